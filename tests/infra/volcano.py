"""What Volcano 1.15 takes as a Job and as a Queue, as JSON Schema. No field that it does not know passes.

Written from Volcano's API reference (batch.volcano.sh/v1alpha1, scheduling.volcano.sh/v1beta1); pods inside of a job
are checked as Kubernetes' own. Beyond the fields and types it holds what the admission webhook asks for.
"""

import copy
from typing import Any

import jsonschema
import kubernetes_validate

from tests.infra.manifests import Object

_NAME = {"type": "string", "maxLength": 63, "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
_LONG_NAME = {"type": "string", "maxLength": 253, "pattern": r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"}
_COUNT = {"type": "integer", "minimum": 0}
_QUANTITY = {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|k|Ki|[MGTPE]i?|e\d+)?$"}
_RESOURCES = {"type": "object", "additionalProperties": _QUANTITY}
_EVENTS = [
    "*",
    "PodPending",
    "PodRunning",
    "PodFailed",
    "PodEvicted",
    "Unknown",
    "TaskCompleted",
    "TaskFailed",
    "OutOfSync",
    "CommandIssued",
    "JobUpdated",
]
_ACTIONS = ["AbortJob", "RestartJob", "RestartTask", "RestartPod", "TerminateJob", "CompleteJob", "ResumeJob"]


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_POLICY = {
    **_object(
        ("action",),
        action={"enum": _ACTIONS},
        event={"enum": _EVENTS},
        events={"type": "array", "items": {"enum": _EVENTS}, "minItems": 1},
        exitCode={"type": "integer", "not": {"const": 0}},
        timeout={"type": "string"},
    ),
    # An exit code, or events: the webhook refuses both and neither.
    "oneOf": [{"required": ["exitCode"]}, {"anyOf": [{"required": ["event"]}, {"required": ["events"]}]}],
}
_POLICIES = {"type": "array", "items": _POLICY}
_TASK = _object(
    ("name", "replicas", "template"),
    name=_NAME,
    replicas={"type": "integer", "minimum": 1},
    minAvailable=_COUNT,
    maxRetry=_COUNT,
    policies=_POLICIES,
    template={"type": "object", "required": ["spec"]},
    dependsOn=_object(name={"type": "array", "items": {"type": "string"}}, iteration={"enum": ["any", "all"]}),
    topologyPolicy={"enum": ["none", "best-effort", "restricted", "single-numa-node"]},
)
_JOB = _object(
    ("tasks", "queue", "schedulerName", "minAvailable"),
    tasks={"type": "array", "items": _TASK, "minItems": 1},
    queue=_LONG_NAME,
    schedulerName={"const": "volcano"},
    priorityClassName=_LONG_NAME,
    minAvailable={"type": "integer", "minimum": 1},
    minSuccess={"type": "integer", "minimum": 1},
    maxRetry=_COUNT,
    policies=_POLICIES,
    plugins={
        "type": "object",
        "propertyNames": {"enum": ["env", "svc", "ssh", "pytorch", "mpi", "tensorflow"]},
        "additionalProperties": {"type": "array", "items": {"type": "string"}},
    },
    runningEstimate={"type": "string"},
    ttlSecondsAfterFinished=_COUNT,
)
_QUEUE = _object(
    weight={"type": "integer", "minimum": 1, "maximum": 65535},
    capability=_RESOURCES,
    deserved=_RESOURCES,
    guarantee=_object(resource=_RESOURCES),
    reclaimable={"type": "boolean"},
    parent=_LONG_NAME,
    priority=_COUNT,
    dequeueStrategy={"enum": ["fifo", "traverse"]},
)
_METADATA = {"type": "object", "required": ["name"], "properties": {"name": _LONG_NAME}}
SCHEMAS = {
    ("batch.volcano.sh/v1alpha1", "Job"): _JOB,
    ("scheduling.volcano.sh/v1beta1", "Queue"): _QUEUE,
}


def validate(item: Object, *, kubernetes: str) -> None:
    """Checks a Volcano object.

    Args:
        item: Job or Queue.
        kubernetes: version whose pods a job's are, "1.35".

    Raises:
        jsonschema.ValidationError: Volcano would not take it.
        kubernetes_validate.ValidationError: Kubernetes would not take its pods.
        KeyError: it is no object of Volcano.
    """
    spec = SCHEMAS[item["apiVersion"], item["kind"]]
    schema = _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"type": "string"},
        kind={"type": "string"},
        metadata=_METADATA,
        spec=spec,
    )
    jsonschema.Draft202012Validator(schema).validate(item)
    if item["kind"] != "Job":
        return
    total = 0
    names = set()
    for task in item["spec"]["tasks"]:
        total += task["replicas"]
        names.add(task["name"])
        pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(task["template"])}
        pod["metadata"] = {**pod.get("metadata", {}), "name": task["name"]}
        kubernetes_validate.validate(pod, kubernetes, strict=True)
    if len(names) != len(item["spec"]["tasks"]):
        raise jsonschema.ValidationError("two tasks have the same name")
    if item["spec"]["minAvailable"] > total:
        raise jsonschema.ValidationError(f"minAvailable is {item['spec']['minAvailable']}, of {total} pods")
