"""The tasks of a run: how each stands, how often it was tried, and what it wrote.

A server tells of a run as Argo's workflow has it: a list of nodes, each with its display name and the ids of its
children, but without its own id. An id is the hash of the node's path, though, and the paths follow from the compiled
pipeline: a task at `<workflow>.root.captioning` runs its pods at `.executor`, or at `.executor(0)`, `.executor(1)`, ...
when it may be tried again.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from typing import Any

from pipelines.server import Server, ServerError

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
_ERROR_LINE = re.compile(r"^error: (.+)$", re.MULTILINE)
_EXIT_STATUS = re.compile(r"exit status (\d+)")


@dataclass(frozen=True)
class Task:
    """A task of a run.

    Attributes:
        name: its name in the pipeline, with its number in a loop: "captioning[3]".
        title: what people read.
        state: PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED, CANCELING, CANCELED or PAUSED.
        retries: how often it was tried again.
        reused: whether its result was taken from the cache.
        pods: names that its last pod may go by, the likeliest first; none before it starts.
    """

    name: str
    title: str
    state: str
    started: datetime | None = None
    finished: datetime | None = None
    retries: int = 0
    reused: bool = False
    pods: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """How long it took, or takes so far; None before it starts."""
        if self.started is None:
            return None
        return max(0.0, ((self.finished or datetime.now(UTC)) - self.started).total_seconds())

    def to_json(self) -> dict[str, Any]:
        """As scripts read it."""
        return {
            "name": self.name,
            "title": self.title,
            "state": self.state,
            "started": self.started.isoformat() if self.started else None,
            "finished": self.finished.isoformat() if self.finished else None,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "retries": self.retries,
            "reused": self.reused,
            "pod": self.pods[0] if self.pods else None,
        }


@dataclass(frozen=True)
class _Place:
    """Where a task stands: its path below the workflow, its key, its number in loops, its part of the pipeline."""

    path: str
    key: str
    number: str
    spec: Mapping[str, Any]

    @property
    def last(self) -> str:
        return self.path.rpartition(".")[2]


def pipeline_of(server: Server, run: Any) -> dict[str, Any]:
    """The compiled pipeline of a run: "pipeline_spec", and "platform_spec" where it has one."""
    found, version = run.pipeline_spec, run.pipeline_version_reference
    if not found and version and version.pipeline_version_id:
        get = server.client.pipelines.pipeline_service_get_pipeline_version
        found = server.ask(get, version.pipeline_id, version.pipeline_version_id).pipeline_spec
    found = found or {}
    return found if "pipeline_spec" in found else {"pipeline_spec": found}


def tasks_of(run: Any, pipeline: Mapping[str, Any]) -> list[Task]:
    """The tasks of a run, in the order in which they started; those that have not come last, as they will follow.

    Args:
        run: as the server tells of it.
        pipeline: what `pipeline_of` gave.
    """
    nodes = _Nodes(run)
    tasks = [_task(place, nodes, pipeline) for place in _places(pipeline["pipeline_spec"], nodes)]
    return sorted(tasks, key=lambda task: (task.started is None, task.started))


def read_log(server: Server, run_id: str, task: Task) -> str:
    """What the task's last pod wrote.

    Raises:
        ServerError: the server has no log of it; the message says how else to get at it.
    """
    if not task.pods:
        raise ServerError(f"{task.title} has not started: it has no log")
    reason = ""
    for pod in task.pods:
        for path, query in (
            (f"/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", []),  # the API server
            ("/k8s/pod/logs", [("podname", pod), ("runid", run_id), ("podnamespace", server.pods)]),  # the interface
        ):
            try:
                text = server.text(path, query)
            except ServerError as error:
                reason = reason or str(error)
                continue
            if not text.startswith('{"error_message":'):  # the API answers 200 and says so in the body
                return text
            told = json.JSONDecoder().raw_decode(text)[0]["error_message"]
            reason = reason or " ".join(str(told).split())[:300]
    raise ServerError(
        f"{server.where} gives no log of {task.title} ({reason}); "
        f"ask the cluster: kubectl logs -n {server.pods} {task.pods[0]} -c main"
    )


def failure_in(log: str) -> tuple[str, int]:
    """Why a task failed by its log: its line "error: ...", else its last one; and its exit code, else 1."""
    errors, codes = _ERROR_LINE.findall(log), _EXIT_STATUS.findall(log)
    lines = [line for line in log.splitlines() if line.strip()]
    reason = errors[-1] if errors else (lines[-1] if lines else "it said nothing")
    return reason, int(codes[-1]) if codes else 1


class _Nodes:
    """What the server tells of a run's nodes, found by path or by display name."""

    def __init__(self, run: Any) -> None:
        details = (run.run_details.task_details if run.run_details else None) or []
        self.ended = str(run.state) in ENDED
        self.parents: dict[str, Any] = {}
        self.named: dict[str, list[Any]] = {}
        for node in details:
            self.named.setdefault(node.display_name or "", []).append(node)
            for child in node.child_tasks or ():
                self.parents.setdefault(child.pod_name or child.task_id or "", node)
        self.workflow = next(iter(self.parents), "").rpartition("-")[0]

    def id(self, path: str) -> str:
        """Argo's id of the node at a path: the 32-bit FNV-1a hash of its full name."""
        digest = 0x811C9DC5
        for byte in f"{self.workflow}.{path}".encode():
            digest = ((digest ^ byte) * 0x01000193) & 0xFFFFFFFF
        return f"{self.workflow}-{digest}"

    def has(self, path: str) -> bool:
        return self.id(path) in self.parents


def _places(spec: Mapping[str, Any], nodes: _Nodes) -> Iterator[_Place]:
    """Tasks that run a container, in the pipeline and within its loops and conditions, each after what it needs."""

    def walk(dag: Mapping[str, Any], above: str, number: str) -> Iterator[_Place]:
        tasks = dag.get("tasks", {})
        for key in TopologicalSorter(
            {key: task.get("dependentTasks", ()) for key, task in tasks.items()}
        ).static_order():
            task, path = tasks[key], f"{above}.{key}"
            if task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED":
                path = f"{above}.{task['dependentTasks'][0]}.onExit.{key}"
            if "parameterIterator" not in task:
                yield from below(_Place(path, key, number, task))
                continue
            items = (f"{path}.iteration-iterations({index}:{index})" for index in itertools.count())
            for index, item in enumerate(itertools.takewhile(nodes.has, items)):
                yield from below(_Place(f"{item}.iteration-item", key, f"{number}[{index}]", task))

    def below(place: _Place) -> Iterator[_Place]:
        component = spec["components"][place.spec["componentRef"]["name"]]
        if "dag" in component:
            yield from walk(component["dag"], place.path, place.number)
        else:
            yield place

    yield from walk(spec.get("root", {}).get("dag", {}), "root", "")


def _task(place: _Place, nodes: _Nodes, pipeline: Mapping[str, Any]) -> Task:
    name = f"{place.key}{place.number}"
    title = f"{place.spec.get('taskInfo', {}).get('name') or place.key}{place.number}"
    retried = "retryPolicy" in place.spec
    node = nodes.parents.get(nodes.id(f"{place.path}.executor"))
    if node is None:
        return _without_pod(place, name, title, nodes)
    tries = next(n for n in itertools.count() if not nodes.has(f"{place.path}.executor({n})"))
    pod = f"{place.path}.executor" + (f"({tries - 1})" if tries else "")
    state = str(node.state)
    reused = retried and not tries and state == "SUCCEEDED"
    return Task(
        name=name,
        title=title,
        state=state,
        started=_time(node.start_time),
        finished=_time(node.end_time) if state in ENDED else None,
        retries=max(0, tries - 1),
        reused=reused,
        pods=() if reused or (retried and not tries) else _pods(nodes, pod, _template(place.spec, pipeline)),
    )


def _without_pod(place: _Place, name: str, title: str, nodes: _Nodes) -> Task:
    """A task that has not started, that a condition left out, or whose inputs the server could not make ready."""
    driver = f"{place.path}-driver"
    for node in nodes.named.get(f"{place.last}-driver", ()):
        if str(node.state) == "FAILED" and nodes.has(driver):
            pods = _pods(nodes, driver, "system-container-driver")
            times = {"started": _time(node.start_time), "finished": _time(node.end_time)}
            return Task(name, title, "FAILED", pods=pods, **times)
    states = {str(node.state) for node in nodes.named.get(place.last, ()) if not node.child_tasks}
    found = states.pop() if len(states) == 1 else ""
    known = found in ENDED or found in ("RUNNING", "PENDING")
    return Task(name, title, found if known else ("SKIPPED" if nodes.ended else "PENDING"))


def _template(task: Mapping[str, Any], pipeline: Mapping[str, Any]) -> str:
    """Name of the server's template that the task's pod comes from; a pod is called after it."""
    name = "retry-system-container-impl" if "retryPolicy" in task else "system-container-impl"
    label = pipeline["pipeline_spec"]["components"][task["componentRef"]["name"]].get("executorLabel", "")
    platforms = pipeline.get("platform_spec", {}).get("platforms", {})
    executors = platforms.get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    wanted = executors.get(label, {}).get("podMetadata")
    if wanted is None:
        return name
    return f"metadata-{len(wanted.get('annotations', {}))}-{len(wanted.get('labels', {}))}-{name}"


def _pods(nodes: _Nodes, path: str, template: str) -> tuple[str, ...]:
    node = nodes.id(path)
    return f"{nodes.workflow}-{template}-{node.rpartition('-')[2]}", node


def _time(value: datetime | None) -> datetime | None:
    """A time that the server tells; it writes none as the beginning of its calendar."""
    return value if value is not None and value.year > 1970 else None
