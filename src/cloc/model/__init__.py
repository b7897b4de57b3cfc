"""The model: Prompter, CLOC over transformers' CLIP, processor, losses."""
