"""What the pipeline's components and its runners share. Nothing here imports kfp: components hand in what they got."""
