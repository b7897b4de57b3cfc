"""Teachers: a small detector and a small captioner, fitted on a labelled split and saved as public checkpoints are."""
