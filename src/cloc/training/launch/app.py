"""A training job as TorchX's AppDef: pure data, the same kind for every scheduler."""

import os
import sys
from collections.abc import Mapping
from urllib.parse import urlsplit

from torchx import specs

from cloc.config.schema import TrainConfig
from cloc.errors import ConfigError

ROLE = "trainer"
APP = "cloc-pretrain"
LABEL_RUN = "cloc/run"
# What ranks elsewhere get from the environment of the launcher: where things are, never who may.
PASSED = (
    "AWS_ENDPOINT_URL",
    "S3_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "CLOC_S3_PATIENCE",
    "CLOC_S3_TIMEOUT",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    "CLOC_MLFLOW_RUN_ID",
    "CLOC_RUN_KEY",
)
_SLURM_GRACE = 300
_LOCAL_GRACE = 300
_MARGIN = 10


def grace_seconds(config: TrainConfig) -> int:
    """Seconds between SIGTERM and SIGKILL for a replica, by scheduler."""
    if config.scheduler == "kubernetes":
        return config.kubernetes.grace_seconds
    return _SLURM_GRACE if config.scheduler == "slurm" else _LOCAL_GRACE


def training_app(
    output: str,
    config: TrainConfig,
    *,
    module: str,
    environment: Mapping[str, str],
    run: str = "",
    name: str = APP,
) -> specs.AppDef:
    """The TorchX application of a training job: on every machine an agent that starts its ranks.

    Args:
        output: folder or s3:// prefix that holds the job.
        config: section `train`: machines, processes, scheduler and its settings.
        environment: the launcher's; ranks on other machines get from it where S3 and MLflow are.
        module: what a rank runs, with `output` for its argument.
        run: name of the run, for labels.
        name: of the application.

    Returns:
        One role, `trainer`, with a replica a machine.

    Raises:
        ConfigError: `train.kubernetes.environment` cannot be read.
    """
    role = specs.Role(
        name=ROLE,
        image=config.kubernetes.image if config.scheduler == "kubernetes" else "",
        entrypoint="python" if config.scheduler == "kubernetes" else sys.executable,
        args=_arguments(output, config, module),
        env=_environment(config, environment),
        num_replicas=config.nodes,
        max_retries=config.max_retries,
        retry_policy=specs.RetryPolicy.APPLICATION,
        resource=_resource(config),
    )
    return specs.AppDef(name=name, roles=[role], metadata={LABEL_RUN: run} if run else {})


def _arguments(output: str, config: TrainConfig, module: str) -> list[str]:
    named = {
        "output": output,
        "module": module,
        "nodes": config.nodes,
        "node": specs.macros.replica_id,
        "processes": config.processes,
        "rank0": specs.macros.rank0_env,
        "port": config.port,
        "run-id": specs.macros.app_id,
        # The agent ends what has not saved, and says so, before its own time is over.
        "grace": max(1, grace_seconds(config) - _MARGIN),
        "timeout": config.timeout_seconds,
    }
    arguments = [text for name, value in named.items() for text in (f"--{name}", str(value))]
    follow = ["--follow"] if config.scheduler == "local_cwd" else []
    return ["-m", "cloc.training.agent", *arguments, *follow]


def _environment(config: TrainConfig, given: Mapping[str, str]) -> dict[str, str]:
    """Variables of the agents, which their ranks inherit."""
    cores = {
        "local_cwd": len(os.sched_getaffinity(0)),
        "kubernetes": config.kubernetes.cpu,
        "slurm": config.slurm.cpus,
    }[config.scheduler]
    own = {
        "OMP_NUM_THREADS": str(max(1, cores // config.processes)),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "NCCL_DEBUG": "WARN",
        # A rank whose peers are gone ends instead of waiting for ever.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    }
    if config.scheduler == "local_cwd":  # inherits the rest
        return own
    passed = {name: given[name] for name in PASSED if given.get(name) and _reaches(name, given[name])}
    return own | passed | (_pairs(config.kubernetes.environment) if config.scheduler == "kubernetes" else {})


def _reaches(name: str, value: str) -> bool:
    """Whether a variable is of use on another machine, and no secret: says so where it is one."""
    if not (name.endswith(("_URI", "_URL"))):
        return True
    parts = urlsplit(value)
    if parts.password or parts.username:
        raise ConfigError(
            f"{name} holds a user or password, which would stand in the job for all to read: keep it in a secret "
            "(train.kubernetes.secrets) and out of this environment, or use MLFLOW_TRACKING_USERNAME and _PASSWORD"
        )
    return parts.scheme in ("http", "https")  # a file or SQLite is of this machine


def _pairs(items: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not name:
            raise ConfigError(f"train.kubernetes.environment: {item!r} is not NAME=value")
        found[name] = value
    return found


def _resource(config: TrainConfig) -> specs.Resource:
    """What a replica asks for. On this machine nothing is asked for: all of it is there."""
    gpus = 0 if config.device == "cpu" else config.processes
    if config.scheduler == "kubernetes":
        return specs.Resource(cpu=config.kubernetes.cpu, gpu=gpus, memMB=config.kubernetes.memory_mib)
    if config.scheduler == "slurm":
        slurm = config.slurm
        return specs.Resource(cpu=slurm.cpus, gpu=gpus if slurm.gpus else 0, memMB=slurm.memory_mib)
    return specs.Resource(cpu=config.processes, gpu=0, memMB=0)
