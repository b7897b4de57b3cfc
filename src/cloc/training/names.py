"""What lies in the output of a training job."""

JOB_FILE = "job.json"
SUMMARY_FILE = "training.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"
