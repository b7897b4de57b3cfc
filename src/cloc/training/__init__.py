"""Pre-training: task (model and losses), trainer, checkpoint, distributed, launch, and the stage."""
