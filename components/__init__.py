"""KFP components: each a folder with a thin component and its README."""

# What tasks run in. A deployment's own name for the image is given when the pipeline is compiled or submitted.
IMAGE = "cloc-python:0.1.0"
