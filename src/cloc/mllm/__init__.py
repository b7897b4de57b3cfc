"""Adapter tuning: the encoder in a language model that refers to and grounds regions (METHOD, Evaluation, MLLM)."""
