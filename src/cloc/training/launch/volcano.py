"""A training job on Kubernetes: TorchX's request for Volcano completed, and what became of its pods."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kubernetes import client
from torchx import specs
from torchx.schedulers.kubernetes_scheduler import KubernetesJob

from cloc.config.schema import KubernetesConfig, TrainConfig
from cloc.errors import ConfigError
from cloc.training.launch.app import LABEL_RUN
from cloc.training.ranks import FAILURES

_GPU = "nvidia.com/gpu"  # the name that TorchX gives GPUs
_JOB_LABEL = "volcano.sh/job-name"  # Volcano labels a job's pods by it


def options(config: TrainConfig) -> dict[str, Any]:
    """TorchX's run options for the Kubernetes scheduler; the API server is not asked for a dry run."""
    settings = config.kubernetes
    named = {"service_account": settings.service_account, "priority_class": settings.priority_class}
    return {
        "queue": settings.queue,
        "namespace": settings.namespace,
        "validate_spec": False,
        # A pod asks for what the settings say.
        "reserved_millicpu": 0,
        "reserved_memmb": 0,
        **{name: value for name, value in named.items() if value},
    }


def complete(job: KubernetesJob, config: TrainConfig, app: specs.AppDef) -> None:
    """Adds to TorchX's Volcano job what its options have no words for. Changes `job` in place.

    Raises:
        ConfigError: a toleration, label or volume cannot be read.
    """
    resource, spec = job.resource, job.resource["spec"]
    labels = {"app.kubernetes.io/part-of": "cloc"}
    if app.metadata.get(LABEL_RUN):
        labels[LABEL_RUN] = app.metadata[LABEL_RUN]
    resource["metadata"].update(namespace=config.kubernetes.namespace, labels=labels)
    # All or none: a part of the ranks would hold GPUs and wait. Fewer successes than this are a failure, too.
    spec["minAvailable"] = len(spec["tasks"])
    spec["policies"] = _policies(config.max_retries)
    # Volcano counts the first start as well; 0 would mean its default, 3.
    spec["maxRetry"] = config.max_retries + 1
    for task in spec["tasks"]:
        task.pop("policies", None)
        task.pop("maxRetry", None)
        _complete_pod(task["template"], config.kubernetes, labels)


def _policies(retries: int) -> list[dict[str, Any]]:
    """What Volcano does when a pod ends; the first that fits counts. A `ClocError` would only come again."""
    fatal = [{"exitCode": code, "action": "TerminateJob"} for code in sorted(FAILURES)]
    other = "RestartJob" if retries else "TerminateJob"
    return [*fatal, {"events": ["PodEvicted", "PodFailed"], "action": other}]


def _complete_pod(pod: client.V1Pod, settings: KubernetesConfig, labels: dict[str, str]) -> None:
    spec, (container,) = pod.spec, pod.spec.containers
    pod.metadata.labels.update(labels)
    _resources(container.resources, settings)
    # What the pod security standard `restricted` asks for.
    container.security_context = client.V1SecurityContext(
        allow_privilege_escalation=False,
        capabilities=client.V1Capabilities(drop=["ALL"]),
        run_as_non_root=True,
        seccomp_profile=client.V1SeccompProfile(type="RuntimeDefault"),
    )
    (shm,) = [volume for volume in spec.volumes if volume.name == "dshm"]
    shm.empty_dir.size_limit = f"{settings.shm_mib}Mi"
    for number, item in enumerate(settings.volume_claims):
        claim, path = _two(item, ":", "train.kubernetes.volume_claims", "claim:/path")
        source = client.V1PersistentVolumeClaimVolumeSource(claim_name=claim)
        spec.volumes.append(client.V1Volume(name=f"claim-{number}", persistent_volume_claim=source))
        container.volume_mounts.append(client.V1VolumeMount(name=f"claim-{number}", mount_path=path))
    container.env_from = [
        client.V1EnvFromSource(secret_ref=client.V1SecretEnvSource(name=name)) for name in settings.secrets
    ] or None
    selector = dict(_two(item, "=", "train.kubernetes.node_selector", "label=value") for item in settings.node_selector)
    spec.node_selector = {**(spec.node_selector or {}), **selector} or None
    spec.tolerations = [_toleration(item) for item in settings.tolerations] or None
    spec.termination_grace_period_seconds = settings.grace_seconds
    spec.priority_class_name = settings.priority_class or None


def _resources(wanted: client.V1ResourceRequirements, settings: KubernetesConfig) -> None:
    for part in (wanted.requests, wanted.limits):
        part["memory"] = f"{settings.memory_mib}Mi"
        if _GPU in part:
            part[settings.gpu_resource] = part.pop(_GPU)


def _two(text: str, sign: str, setting: str, form: str) -> tuple[str, str]:
    first, found, second = text.partition(sign)
    if not (first and found and second):
        raise ConfigError(f"{setting}: {text!r} is not {form}")
    return first, second


def _toleration(text: str) -> client.V1Toleration:
    taint, effect = _two(text, ":", "train.kubernetes.tolerations", "key=value:Effect or key:Effect")
    if effect not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
        raise ConfigError(
            f"train.kubernetes.tolerations: {text!r}: the effect must be NoSchedule, PreferNoSchedule or NoExecute"
        )
    key, has_value, value = taint.partition("=")
    if has_value:
        return client.V1Toleration(key=key, operator="Equal", value=value, effect=effect)
    return client.V1Toleration(key=key, operator="Exists", effect=effect)


@dataclass(frozen=True)
class PodEnd:
    """How a pod ended.

    Attributes:
        name: of the pod.
        failed: whether it did not do what it was for.
        code: exit code of its container; None when it is not known.
        reason: what Kubernetes says of it ("OOMKilled", "Evicted"); empty for nothing.
    """

    name: str
    failed: bool
    code: int | None
    reason: str

    def __str__(self) -> str:
        code = "" if self.code is None else f" with exit code {self.code}"
        return f"pod {self.name} ended{code}{f' ({self.reason})' if self.reason else ''}"


@dataclass(frozen=True)
class Pods:
    """The pods of a job that are there.

    Attributes:
        running: how many are not over.
        ends: the others, by name.
    """

    running: int
    ends: list[PodEnd]


def pods_of(core: client.CoreV1Api, *, namespace: str, job: str) -> Pods:
    """The pods of a job. Raises kubernetes' ApiException."""
    found = core.list_namespaced_pod(namespace, label_selector=f"{_JOB_LABEL}={job}").items
    ends = sorted(_ends(found), key=lambda end: end.name)
    return Pods(len(found) - len(ends), ends)


def _ends(pods: list[client.V1Pod]) -> Iterator[PodEnd]:
    for pod in pods:
        ended = [state for item in pod.status.container_statuses or () if (state := item.state.terminated)]
        bad = next((state for state in ended if state.exit_code), None)
        if pod.status.phase not in ("Failed", "Succeeded") and not ended:
            continue
        state = bad or (ended[0] if ended else None)
        generic = ("Completed", "Error", None)
        reason = pod.status.reason or (state.reason if state and state.reason not in generic else "") or ""
        yield PodEnd(
            name=pod.metadata.name,
            failed=bad is not None or pod.status.phase == "Failed",
            code=state.exit_code if state else None,
            reason=reason,
        )
