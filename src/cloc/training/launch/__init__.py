"""Launching a training job through TorchX: the job as pure data, the request for its scheduler, its run and its end.

The only place that imports torchx.

    app        the AppDef
    run        schedule, follow, try again, and the verdict
    wait       orders to stop, and the end
    logs       what the replicas say
    place      where it reads and writes
    local, volcano, slurm    what TorchX's schedulers lack
"""

import shlex
from pathlib import Path

from torchx import specs
from torchx.runner import Runner
from torchx.schedulers.kubernetes_scheduler import create_scheduler as kubernetes_scheduler
from torchx.schedulers.slurm_scheduler import create_scheduler as slurm_scheduler

from cloc.config.schema import TrainConfig
from cloc.training.launch.app import training_app
from cloc.training.launch.place import finish, home, impatient, reachable
from cloc.training.launch.run import request, run_app

__all__ = ["finish", "home", "impatient", "reachable", "request_text", "run_app", "training_app"]


def request_text(app: specs.AppDef, config: TrainConfig) -> str:
    """What would be handed to the scheduler: the Volcano job as YAML, the batch script, or command and variables.

    Nothing is asked, started or written. Raises ConfigError for settings that cannot be read.
    """
    if config.scheduler == "local_cwd":
        (role,) = app.roles
        values = specs.macros.Values(img_root="", app_id=app.name, replica_id="0", rank0_env="TORCHX_RANK0_HOST")
        applied = values.apply(role)
        variables = [f"{name}={shlex.quote(value)}" for name, value in sorted(applied.env.items())]
        return "\n".join([*variables, shlex.join([applied.entrypoint, *applied.args])]) + "\n"
    schedulers = {"kubernetes": kubernetes_scheduler, "slurm": slurm_scheduler}
    with Runner("cloc", {config.scheduler: schedulers[config.scheduler]}) as runner:
        info = request(runner, app, config, log_dir=Path())
        text = info.request.materialize() if config.scheduler == "slurm" else str(info.request)
    return text.rstrip("\n") + "\n"
