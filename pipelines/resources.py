"""What a task asks of a cluster. The local runner has no use for it."""

from dataclasses import dataclass

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel

# Names in the cluster's namespace; infra/ makes them.
CONFIG_MAP = "cloc"
S3_SECRET = "cloc-s3"  # noqa: S105 (the name of a Secret)
# Each secret's keys and the variables that tasks have them in; a server without login, or no captioning endpoint, needs
# none of the others.
SECRETS = {
    S3_SECRET: {"access-key": "AWS_ACCESS_KEY_ID", "secret-key": "AWS_SECRET_ACCESS_KEY"},
    "cloc-mlflow": {"username": "MLFLOW_TRACKING_USERNAME", "password": "MLFLOW_TRACKING_PASSWORD"},
    "cloc-captioner": {"api-key": "OPENAI_API_KEY"},
}
RUN_ID_LABEL = "metadata.labels['pipeline/runid']"


@dataclass(frozen=True)
class Resources:
    """Requests of a task, as Kubernetes quantities, how long it may take, and how often it is tried again when its pod
    fails."""

    cpu: str
    memory: str
    hours: int
    retries: int = 2
    uses_gpu: bool = False


# A gate is not tried again: its verdict would be the same.
RESOURCES = {
    "settings": Resources(cpu="500m", memory="1Gi", hours=1),
    "ingest": Resources(cpu="4", memory="4Gi", hours=24),
    "teachers": Resources(cpu="4", memory="8Gi", hours=24, uses_gpu=True),
    "label_parts": Resources(cpu="500m", memory="1Gi", hours=1),
    "captioning": Resources(cpu="4", memory="16Gi", hours=240, uses_gpu=True),
    "grounding": Resources(cpu="4", memory="16Gi", hours=240, uses_gpu=True),
    "validation": Resources(cpu="2", memory="8Gi", hours=24, retries=0),
    "pretraining": Resources(cpu="8", memory="32Gi", hours=720, uses_gpu=True),
    "evaluation": Resources(cpu="4", memory="16Gi", hours=24, uses_gpu=True),
    "registration": Resources(cpu="1", memory="4Gi", hours=2, retries=0),
    "adapter_tuning": Resources(cpu="8", memory="32Gi", hours=240, uses_gpu=True),
    "summary": Resources(cpu="500m", memory="1Gi", hours=1),
    "outcome": Resources(cpu="500m", memory="1Gi", hours=1),
}
_HOUR = 3600
# Where PyTorch's processes hand each other batches: containers have 64 MiB, which ends in a bus error.
SHARED_MEMORY = "/dev/shm"  # noqa: S108 (a mount, no temporary file)


@dataclass(frozen=True)
class Wishes:
    """What a run asks of its nodes: parameters of the pipeline.

    Attributes:
        gpus, gpu_type: number of GPUs of a task that can use them, and their resource name.
        node_selector, tolerations: as in a pod.
    """

    gpus: PipelineChannel | int
    gpu_type: PipelineChannel | str
    node_selector: PipelineChannel | dict[str, str]
    tolerations: PipelineChannel | list[dict[str, str]]


def on_cluster(task: dsl.PipelineTask, name: str, wishes: Wishes) -> dsl.PipelineTask:
    """Asks for the resources of `RESOURCES[name]`, retries with back-off, and the environment that stages read."""
    wanted = RESOURCES[name]
    task.set_cpu_request(wanted.cpu).set_memory_request(wanted.memory).set_memory_limit(wanted.memory)
    if wanted.uses_gpu:
        task.set_accelerator_type(wishes.gpu_type).set_accelerator_limit(wishes.gpus)
        # Else KFP does not hand these parameters on into loops and exit handlers.
        task.register_pipeline_channels(
            [channel for channel in (wishes.gpus, wishes.gpu_type) if isinstance(channel, PipelineChannel)]
        )
        kubernetes.empty_dir_mount(task, volume_name="shm", mount_path=SHARED_MEMORY, medium="Memory")
    kubernetes.add_node_selector_json(task, node_selector_json=wishes.node_selector)
    kubernetes.add_toleration_json(task, toleration_json=wishes.tolerations)
    kubernetes.set_timeout(task, wanted.hours * _HOUR)
    if wanted.retries:
        task.set_retry(wanted.retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="600s")
    task.set_env_variable("PYTHONUNBUFFERED", "1")
    # The stages of one run find each other in MLflow by the run's id. It is no parameter: caching would end.
    kubernetes.use_field_path_as_env(task, env_name="CLOC_RUN_KEY", field_path=RUN_ID_LABEL)
    kubernetes.use_config_map_as_env(
        task,
        config_map_name=CONFIG_MAP,
        config_map_key_to_env={"mlflow-tracking-uri": "MLFLOW_TRACKING_URI", "s3-endpoint": "AWS_ENDPOINT_URL"},
    )
    for secret, keys in SECRETS.items():
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=keys, optional=secret != S3_SECRET)
    return task
