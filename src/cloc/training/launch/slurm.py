"""A training job on Slurm: TorchX's batch script, completed."""

from pathlib import Path
from typing import Any

from torchx.schedulers.slurm_scheduler import SlurmBatchRequest

from cloc.config.schema import TrainConfig
from cloc.training.launch.app import grace_seconds
from cloc.training.ranks import FAILURES

_REQUEUE = '    if [ "$TORCHX_MAX_RETRIES" -gt'


def options(config: TrainConfig) -> dict[str, Any]:
    """TorchX's run options for the Slurm scheduler."""
    named = {"partition": config.slurm.partition, "time": config.slurm.time}
    # The job's working directory: relative paths of the job would be looked for in it.
    return {"job_dir": str(Path(config.slurm.job_dir).absolute())} | {key: text for key, text in named.items() if text}


class Batch(SlurmBatchRequest):
    """TorchX's request, whose script does not requeue a job that would only fail again."""

    def materialize(self) -> str:
        """The script for sbatch."""
        script = super().materialize()
        assert script.count(_REQUEUE) == 1, "TorchX writes another script"
        fatal = "|".join(str(code) for code in sorted(FAILURES))
        return script.replace(_REQUEUE, f"    case $exitcode in {fatal}) exit $exitcode ;; esac\n{_REQUEUE}")


def complete(request: SlurmBatchRequest, config: TrainConfig) -> Batch:
    """The request with time to save: before the time limit, and where another machine's part has left."""
    grace = grace_seconds(config)
    for replica in request.replicas.values():
        replica.sbatch_opts["signal"] = f"TERM@{grace}"
        replica.srun_opts["wait"] = str(grace)
        replica.srun_opts["kill-on-bad-exit"] = "0"
    return Batch(**vars(request))
