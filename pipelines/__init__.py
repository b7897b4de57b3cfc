"""The DAG, and the ways to run it."""
