"""A Kubeflow Pipelines server for tests: the REST API v2beta1 over HTTP, with the real `kfp.Client` before it.

with fake_kfp() as server:
    server.script = [look("RUNNING", ingest="RUNNING"), look("SUCCEEDED", ingest="SUCCEEDED")]
    connect(host=server.url, namespace=None, token=None)

The contract is that of `kfp_server_api`: its operations say which addresses, queries and bodies there are, its models
which fields. A request or an answer that breaks it is a fault, and the test fails when the server closes. What a
server of 2.17 does beyond its schema is as its source has it: the nodes of a run, its logs, its refusals.
"""

import email
import inspect
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from uuid import UUID, uuid4

import kfp_server_api
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec

MULTIPART = "multipart"
_START = datetime(2026, 1, 1, tzinfo=UTC)
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)  # how the server writes a time that has not come
_STATES = {"Pending": "PENDING", "Omitted": "RUNTIME_STATE_UNSPECIFIED"}


@dataclass(frozen=True)
class Operation:
    """An operation of the API, as the generated client has it."""

    name: str
    method: str
    path: re.Pattern[str]
    queries: frozenset[str]
    body: str | None
    answer: str


@dataclass(frozen=True)
class Look:
    """What a look at a run shows.

    Attributes:
        state: of the run.
        tasks: state of tasks by name, "captioning" or "captioning[1]"; "CACHED" is from the cache, "DRIVER" failed
            before its pod.
        tries: pods of tasks that were tried more than once.
        error: of the run.
    """

    state: str
    tasks: Mapping[str, str] = field(default_factory=dict)
    tries: Mapping[str, int] = field(default_factory=dict)
    error: str = ""


def look(state: str, *, tries: Mapping[str, int] | None = None, error: str = "", **tasks: str) -> Look:
    """A `Look`; names of tasks are written with underscores for hyphens."""
    return Look(state, {name.replace("_", "-"): value for name, value in tasks.items()}, tries or {}, error)


class Refusal(Exception):  # noqa: N818 (an answer, not a fault)
    """What the server answers instead of what was asked for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Kfp:
    """What the server holds and was asked.

    Attributes:
        url: of the API.
        multi_user: whether it is divided among users.
        token: bearer token that it wants; empty wants none.
        cookie: cookie that it takes in place of the token.
        script: what looks at a run show, one after another; the last one stays.
        logs: what pods wrote, by "template:path", such as "system-container-impl:root.ingest.executor".
        log_from: "api", "ui" for a server that is asked through its pages, or "" for none.
        serves: "v2beta1", or "v1beta1" for a server of 1.x.
        page: HTML that it answers everything with; empty for none.
        failing: how many of the next requests fail with 503.
        refusal: status that every request is refused with; 0 for none.
        race: whether somebody else uploads every new version a moment before.
        requests: method, path and query or body of all requests.
        faults: what broke the contract.
    """

    url: str = ""
    multi_user: bool = False
    token: str = ""
    cookie: str = ""
    script: list[Look] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    log_from: str = "api"
    serves: str = "v2beta1"
    page: str = ""
    failing: int = 0
    refusal: int = 0
    race: bool = False
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    pipelines: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    experiments: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    schedules: dict[str, Any] = field(default_factory=dict)
    _clock: int = 0

    def asked(self, method: str, end: str) -> list[Any]:
        """Queries or bodies of the requests of a kind; `end` is the path's end."""
        return [body for verb, path, body in self.requests if verb == method and path.endswith(end)]

    def now(self) -> datetime:
        """A time later than all before."""
        self._clock += 1
        return _START + timedelta(seconds=self._clock)

    def new_run(self, name: str, spec: Mapping[str, Any]) -> Any:
        """A run that somebody else started, of a pipeline that was not uploaded."""
        run = kfp_server_api.V2beta1Run(display_name=name, pipeline_spec=dict(spec), experiment_id=str(uuid4()))
        return self.run_service_create_run({}, {}, run)

    # Operations: path parameters, queries, body -> answer.

    def healthz_service_get_healthz(self, path: Any, query: Any, body: Any) -> Any:
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=self.multi_user)

    def pipeline_service_list_pipelines(self, path: Any, query: Any, body: Any) -> Any:
        found = [item for item in self.pipelines.values() if self._same_namespace(item, query)]
        return self._listing("V2beta1ListPipelinesResponse", "pipelines", found, query)

    def pipeline_service_create_pipeline(self, path: Any, query: Any, body: Any) -> Any:
        self._namespace_of(body)
        if not (body.name or body.display_name):
            raise Refusal(400, "Pipeline's name cannot be empty")
        if any(item.display_name == body.display_name for item in self.pipelines.values()):
            raise Refusal(409, f"The name {body.display_name} already exists. Please specify a new name")
        body.pipeline_id, body.created_at, body.name = str(uuid4()), self.now(), body.name or body.display_name
        self.pipelines[body.pipeline_id] = body
        return body

    def pipeline_service_get_pipeline_version(self, path: Any, query: Any, body: Any) -> Any:
        return self._held(self.versions, path["pipeline_version_id"])

    def pipeline_service_list_pipeline_versions(self, path: Any, query: Any, body: Any) -> Any:
        found = [item for item in self.versions.values() if item.pipeline_id == path["pipeline_id"]]
        return self._listing("V2beta1ListPipelineVersionsResponse", "pipeline_versions", found, query)

    def upload_pipeline_version(self, path: Any, query: Any, body: Any) -> Any:
        self._held(self.pipelines, query["pipelineid"])
        documents = list(yaml.safe_load_all(body))
        json_format.ParseDict(documents[0], PipelineSpec())
        spec = documents[0]
        if len(documents) == 2:
            json_format.ParseDict(documents[1], PlatformSpec())
            spec = {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        made = kfp_server_api.V2beta1PipelineVersion(
            pipeline_id=query["pipelineid"],
            pipeline_version_id=str(uuid4()),
            name=query["name"],
            display_name=query.get("display_name") or query["name"],
            description=query.get("description"),
            created_at=self.now(),
            pipeline_spec=spec,
        )
        taken = any(item.name == made.name for item in self.versions.values())
        if not taken:
            self.versions[made.pipeline_version_id] = made
        if taken or self.race:
            raise Refusal(409, "Failed to create a pipeline version")
        return made

    def experiment_service_list_experiments(self, path: Any, query: Any, body: Any) -> Any:
        found = [item for item in self.experiments.values() if self._same_namespace(item, query)]
        return self._listing("V2beta1ListExperimentsResponse", "experiments", found, query)

    def experiment_service_create_experiment(self, path: Any, query: Any, body: Any) -> Any:
        self._namespace_of(body)
        if not body.display_name:
            raise Refusal(400, "Experiment's name cannot be empty")
        body.experiment_id, body.created_at = str(uuid4()), self.now()
        self.experiments[body.experiment_id] = body
        return body

    def run_service_create_run(self, path: Any, query: Any, body: Any) -> Any:
        if body.pipeline_version_reference:
            version = self._held(self.versions, body.pipeline_version_reference.pipeline_version_id)
            self._check_arguments(version.pipeline_spec, body.runtime_config)
            self._held(self.experiments, body.experiment_id)
        body.run_id, body.created_at, body.state = str(uuid4()), self.now(), "PENDING"
        body.finished_at = _NEVER
        self.runs[body.run_id] = body
        return body

    def run_service_get_run(self, path: Any, query: Any, body: Any) -> Any:
        run = self._held(self.runs, path["run_id"])
        if self.script:
            self.show(run, self.script.pop(0) if len(self.script) > 1 else self.script[0])
        return run

    def run_service_list_runs(self, path: Any, query: Any, body: Any) -> Any:
        wanted = query.get("experiment_id")
        if self.multi_user and not wanted and not query.get("namespace"):
            raise Refusal(400, "Invalid resource references for ListRuns. Namespace is required in multi-user mode")
        found = [run for run in self.runs.values() if not wanted or run.experiment_id == wanted]
        return self._listing("V2beta1ListRunsResponse", "runs", found, query)

    def run_service_terminate_run(self, path: Any, query: Any, body: Any) -> Any:
        self._held(self.runs, path["run_id"]).state = "CANCELING"
        return {}

    def recurring_run_service_create_recurring_run(self, path: Any, query: Any, body: Any) -> Any:
        version = self._held(self.versions, body.pipeline_version_reference.pipeline_version_id)
        self._check_arguments(version.pipeline_spec, body.runtime_config)
        self._held(self.experiments, body.experiment_id)
        if not 1 <= int(body.max_concurrency or 0) <= 10:
            raise Refusal(400, "The max concurrency of the recurring run is out of range (1 to 10)")
        cron, periodic = body.trigger.cron_schedule, body.trigger.periodic_schedule
        if cron and len(cron.cron.split()) not in (5, 6):
            raise Refusal(400, "Schedule cron is not a supported format")
        if periodic and int(periodic.interval_second) < 1:
            raise Refusal(400, "Found invalid period schedule interval")
        body.recurring_run_id, body.created_at = str(uuid4()), self.now()
        body.status = {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[body.mode]
        self.schedules[body.recurring_run_id] = body
        return body

    def recurring_run_service_list_recurring_runs(self, path: Any, query: Any, body: Any) -> Any:
        found = list(self.schedules.values())
        return self._listing("V2beta1ListRecurringRunsResponse", "recurring_runs", found, query)

    def recurring_run_service_enable_recurring_run(self, path: Any, query: Any, body: Any) -> Any:
        self._held(self.schedules, path["recurring_run_id"]).status = "ENABLED"
        return {}

    def recurring_run_service_disable_recurring_run(self, path: Any, query: Any, body: Any) -> Any:
        self._held(self.schedules, path["recurring_run_id"]).status = "DISABLED"
        return {}

    def recurring_run_service_delete_recurring_run(self, path: Any, query: Any, body: Any) -> Any:
        self._held(self.schedules, path["recurring_run_id"])
        del self.schedules[path["recurring_run_id"]]
        return {}

    # What is beyond the schema.

    def show(self, run: Any, now: Look) -> None:
        """Makes a run look as a step of the script."""
        if run.state in ("CANCELING", "CANCELED"):
            run.state = "CANCELED"
            return
        spec = run.pipeline_spec
        if run.pipeline_version_reference:
            spec = self.versions[run.pipeline_version_reference.pipeline_version_id].pipeline_spec
        details = Nodes(spec.get("pipeline_spec", spec), now, workflow=f"cloc-{run.run_id[:5]}").details
        run.state = now.state
        run.run_details = kfp_server_api.V2beta1RunDetails(task_details=details)
        ended = now.state in ("SUCCEEDED", "FAILED", "CANCELED")
        run.finished_at = run.created_at + timedelta(minutes=10) if ended else _NEVER
        if now.error:
            status = kfp_server_api.GoogleRpcStatus(code=2, message=now.error)
            run.state_history = [kfp_server_api.V2beta1RuntimeStatus(state=now.state, error=status)]

    def log(self, pod: str) -> str:
        """A pod's log. The API answers 200 and an error in the body when there is none."""
        for run in self.runs.values():
            for path, name in Nodes.pods(f"cloc-{run.run_id[:5]}", self.logs):
                if name == pod:
                    return self.logs[path]
        return json.dumps({"error_message": f"Failed to read logs: pod {pod} not found", "error_details": ""})

    def _held(self, things: dict[str, Any], name: str) -> Any:
        UUID(name)
        if name not in things:
            raise Refusal(404, f"ResourceNotFoundError: {name} not found")
        return things[name]

    def _namespace_of(self, body: Any) -> None:
        if bool(body.namespace) != self.multi_user:
            need = "must have" if self.multi_user else "cannot have"
            raise Refusal(400, f"the request {need} a namespace")

    def _same_namespace(self, item: Any, query: Mapping[str, str]) -> bool:
        if bool(query.get("namespace")) != self.multi_user:
            raise Refusal(400, "a namespace is for a server of several users, and needed there")
        return bool(not self.multi_user or item.namespace == query["namespace"])

    def _listing(self, kind: str, name: str, found: list[Any], query: Mapping[str, str]) -> Any:
        """A page of what a filter lets through, in the order that is asked for."""
        wanted = json.loads(query.get("filter") or "{}")
        _check(wanted, "V2beta1Filter")
        for predicate in wanted.get("predicates", []):
            value, key = predicate["string_value"], predicate["key"]
            fits: Callable[[str], bool] = {
                "EQUALS": lambda text, value=value: text == value,
                "IS_SUBSTRING": lambda text, value=value: value in text,
            }[predicate["operation"]]
            found = [item for item in found if fits(getattr(item, key) or "")]
        column, _, direction = query.get("sort_by", "").partition(" ")
        found = sorted(found, key=lambda item: getattr(item, column or "created_at"), reverse=direction == "desc")
        first, size = int(query.get("page_token") or 0), int(query.get("page_size") or 20)
        more = str(first + size) if first + size < len(found) else None
        page = {name: found[first : first + size] or None, "next_page_token": more, "total_size": len(found)}
        return getattr(kfp_server_api, kind)(**page)

    def _check_arguments(self, spec: Any, runtime: Any) -> None:
        """As the server: unknown and missing parameters are refused."""
        known = spec.get("pipeline_spec", spec)["root"].get("inputDefinitions", {}).get("parameters", {})
        given = runtime.parameters or {}
        wrong = [name for name in given if name not in known]
        wrong += [name for name, item in known.items() if not item.get("isOptional") and name not in given]
        if wrong:
            raise Refusal(400, f"parameter {wrong[0]!r} is unknown or missing")


class Nodes:
    """The nodes of Argo's workflow, as KFP 2.17 tells of them: display name and children's ids, no own id."""

    def __init__(self, spec: Mapping[str, Any], now: Look, *, workflow: str) -> None:
        self.spec, self.now, self.workflow = spec, now, workflow
        self.details: list[Any] = []
        self.dag(spec["root"]["dag"], f"{workflow}.root", "")
        self.add("root", "RUNNING", [])

    @staticmethod
    def id(path: str) -> str:
        value = 2166136261
        for character in path.encode():
            value = (value ^ character) * 16777619 % 2**32
        return f"{path.partition('.')[0]}-{value}"

    @classmethod
    def pods(cls, workflow: str, logs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Keys of the logs, "template:path", with the pods' names: Argo calls a pod after template and node."""
        for key in logs:
            template, _, path = key.partition(":")
            yield key, f"{workflow}-{template}-{cls.id(f'{workflow}.{path}').rpartition('-')[2]}"

    def add(self, name: str, state: str, children: list[str], seconds: int = 30) -> None:
        ended = state in ("SUCCEEDED", "FAILED", "SKIPPED")
        started = _START + timedelta(seconds=len(self.details))
        node = kfp_server_api.V2beta1PipelineTaskDetail(
            task_id=str(uuid4()),
            display_name=name,
            create_time=started,
            start_time=started,
            end_time=started + timedelta(seconds=seconds) if ended else _NEVER,
            state=_STATES.get(state, state),
            child_tasks=[kfp_server_api.PipelineTaskDetailChildTask(pod_name=child) for child in children] or None,
        )
        self.details.append(node)

    def dag(self, dag: Mapping[str, Any], above: str, number: str) -> None:
        needs = {key: task.get("dependentTasks", ()) for key, task in dag["tasks"].items()}
        for key in TopologicalSorter(needs).static_order():
            task, path = dag["tasks"][key], f"{above}.{key}"
            if task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED":
                path = f"{above}.{task['dependentTasks'][0]}.onExit.{key}"
            component = self.spec["components"][task["componentRef"]["name"]]
            if "parameterIterator" in task:
                rounds = {name.partition("[")[2][:-1] for name in self.now.tasks if "[" in name}
                items = [f"{path}.iteration-iterations({index}:{index})" for index in sorted(rounds)]
                self.add("iteration-iterations", "RUNNING", [self.id(item) for item in items])
                for item, index in zip(items, sorted(rounds), strict=True):
                    self.dag(component["dag"], f"{item}.iteration-item", f"[{index}]")
            elif "dag" in component:
                self.dag(component["dag"], path, number)
            elif state := self.now.tasks.get(f"{key}{number}"):
                self.leaf(path, f"{key}{number}", state, task)

    def leaf(self, path: str, name: str, state: str, task: Mapping[str, Any]) -> None:
        last = path.rpartition(".")[2]
        driver = f"{path}-driver"
        if state == "DRIVER":
            self.add("root-or-before", "SUCCEEDED", [self.id(driver)])
            self.add(f"{last}-driver", "FAILED", [])
            self.add(last, "Omitted", [])
            return
        self.add("root-or-before", "SUCCEEDED", [self.id(driver)])
        self.add(f"{last}-driver", "SUCCEEDED", [self.id(path)])
        if state in ("SKIPPED", "Omitted"):
            self.add(last, state, [])
            return
        executor = f"{path}.executor"
        shown = "SUCCEEDED" if state == "CACHED" else state
        self.add(last, shown, [self.id(executor)])
        tries = self.now.tries.get(name, 1) if "retryPolicy" in task and state != "CACHED" else 0
        pods = [self.id(f"{executor}({attempt})") for attempt in range(tries)]
        self.add("executor", "SKIPPED" if state == "CACHED" else shown, pods)
        for attempt in range(tries):
            self.add(f"executor({attempt})", shown if attempt == tries - 1 else "FAILED", [])


def operations() -> list[Operation]:
    """The API's operations, read from the generated client."""
    found = []
    for service in vars(kfp_server_api).values():
        if not inspect.isclass(service) or not service.__name__.endswith("ServiceApi"):
            continue
        for name, function in inspect.getmembers(service, inspect.isfunction):
            if not name.endswith("_with_http_info"):
                continue
            source = inspect.getsource(function)
            address = re.search(r"'(/apis/[^']+)', '([A-Z]+)'", source)
            answer = re.search(r"response_type='([^']+)'", source)
            assert address, name
            assert answer, name
            path = re.sub(r"\\\{([\w.\\]+?)\\\}", _group, re.escape(address[1]))
            body = re.search(r"body_params = local_var_params\['(\w+)'\]", source)
            kind = re.search(rf":type {body[1]}: (\w+)", source) if body else None
            multipart = MULTIPART if "local_var_files['uploadfile']" in source else None
            found.append(
                Operation(
                    name=name.removesuffix("_with_http_info"),
                    method=address[2],
                    path=re.compile(path),
                    queries=frozenset(re.findall(r"query_params\.append\(\('([^']+)'", source)),
                    body=kind[1] if kind else multipart,
                    answer=answer[1],
                )
            )
    # The generated client has no order, but "upload" is no pipeline's id.
    return sorted(found, key=lambda item: "(?P<" in item.path.pattern)


def _group(found: re.Match[str]) -> str:
    name = re.sub(r"\W+", "_", found[1])
    return f"(?P<{name}>[^/:]+)"


def _check(value: Any, kind: str, where: str = "") -> Any:
    """A value made from JSON strictly by a type of the generated client. Raises ValueError for what is not in it."""
    if value is None:
        return None
    if found := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            raise ValueError(f"{where or 'it'} is no list")
        return [_check(item, found[1], f"{where}[{number}]") for number, item in enumerate(value)]
    if found := re.fullmatch(r"dict\(str, (.+)\)", kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where or 'it'} is no mapping")
        return {name: _check(item, found[1], f"{where}.{name}") for name, item in value.items()}
    if kind == "object":
        return value
    if kind == "datetime":
        return datetime.fromisoformat(value)
    if kind in ("str", "int", "bool", "float"):
        python: Any = {"str": str, "int": int, "bool": bool, "float": (int, float)}[kind]
        if not isinstance(value, python) or (kind != "bool" and isinstance(value, bool)):
            raise ValueError(f"{where or 'it'} is {value!r}, no {kind}")
        return value
    model = getattr(kfp_server_api, kind)
    if hasattr(model, "allowable_values"):
        if value not in model.allowable_values:
            raise ValueError(f"{where or 'it'} is {value!r}, none of {model.allowable_values}")
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'it'} is {value!r}, no {kind}")
    names = {key: attribute for attribute, key in model.attribute_map.items()}
    unknown = sorted(set(value) - set(names))
    if unknown:
        raise ValueError(f"{kind} has no field {where}.{unknown[0]}")
    fields = {
        names[key]: _check(item, model.openapi_types[names[key]], f"{where}.{key}") for key, item in value.items()
    }
    return model(**fields)


def _multipart(body: bytes, content_type: str) -> str:
    """The one file of a form."""
    message = email.message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    parts = message.get_payload()
    if not isinstance(parts, list) or len(parts) != 1:
        raise ValueError("the form has not one part")
    if parts[0].get_param("name", header="content-disposition") != "uploadfile":
        raise ValueError("the form has no file 'uploadfile'")
    content = parts[0].get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode()


@contextmanager
def fake_kfp(**state: Any) -> Iterator[Kfp]:
    """A server for the time of a test; a broken contract fails it at the end."""
    kfp, known, lock = Kfp(**state), operations(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            with lock:
                status, kind, content = self._respond()
            payload = content.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def _respond(self) -> tuple[int, str, str]:
            parts = urlsplit(self.path)
            path, query = unquote(parts.path), dict(parse_qsl(parts.query))
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            form = "multipart" in self.headers.get("Content-Type", "")
            kfp.requests.append((self.command, path, json.loads(raw) if raw and not form else query))
            if kfp.page:
                return 200, "text/html; charset=utf-8", kfp.page
            if kfp.refusal:
                return _json(kfp.refusal, {"error": "Permission denied", "code": 7, "message": "Permission denied"})
            if kfp.failing:
                kfp.failing -= 1
                return _json(503, {"error": "upstream is not ready", "code": 14, "message": "upstream is not ready"})
            if kfp.token or kfp.cookie:
                bearer = self.headers.get("Authorization") == f"Bearer {kfp.token}" and kfp.token
                if not bearer and (not kfp.cookie or self.headers.get("Cookie") != kfp.cookie):
                    return _json(401, {"error": "Request header error: there is no user identity header", "code": 16})
            if kfp.serves != "v2beta1":
                if path == "/apis/v1beta1/healthz":
                    return _json(200, {"commit_sha": "0", "tag_name": "1.8.5", "multi_user": kfp.multi_user})
                return _json(404, {"error": "Not Found", "code": 5, "message": "Not Found"})
            if found := re.fullmatch(r"/apis/v1alpha1/runs/[^/]+/nodes/([^/]+)/log", path):
                if kfp.log_from == "api":
                    return 200, "text/plain", kfp.log(found[1])
                return _json(404, {"error": "Not Found", "code": 5, "message": "Not Found"})
            if path == "/k8s/pod/logs":
                text = kfp.log(query["podname"]) if kfp.log_from == "ui" else ""
                missing = not text or text.startswith('{"error_message"')
                return (
                    (500, "text/plain", "Could not get main container logs") if missing else (200, "text/plain", text)
                )
            return self._operate(path, query, raw, form)

        def _operate(self, path: str, query: dict[str, str], raw: bytes, form: bool) -> tuple[int, str, str]:
            try:
                operation = next(
                    item for item in known if item.method == self.command and item.path.fullmatch(path) is not None
                )
                stray = set(query) - operation.queries
                if stray:
                    raise ValueError(f"{operation.name} takes no query {sorted(stray)[0]!r}")
                if operation.body == MULTIPART:
                    body: Any = _multipart(raw, self.headers["Content-Type"])
                elif operation.body:
                    body = _check(json.loads(raw), operation.body)
                elif raw:
                    raise ValueError(f"{operation.name} takes no body")
                else:
                    body = None
                found = operation.path.fullmatch(path)
                assert found
                answer = getattr(kfp, operation.name)(found.groupdict(), query, body)
            except StopIteration:
                kfp.faults.append(f"no operation {self.command} {path}")
                return _json(404, {"error": "Not Found", "code": 5, "message": "Not Found"})
            except Refusal as refusal:
                message = {"error": str(refusal), "code": 3, "message": str(refusal), "details": []}
                return _json(refusal.status, message)
            except Exception as error:
                kfp.faults.append(f"{self.command} {path}: {error!r}")
                return _json(400, {"error": str(error), "code": 3, "message": str(error)})
            content = kfp_server_api.ApiClient().sanitize_for_serialization(answer)
            try:
                _check(content, operation.answer)
            except ValueError as error:
                kfp.faults.append(f"the answer of {operation.name}: {error}")
            return _json(200, content)

        do_GET = do_POST = do_DELETE = do_PATCH = _answer

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kfp.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield kfp
    finally:
        server.shutdown()
        server.server_close()
    assert not kfp.faults, "; ".join(kfp.faults)


def _json(status: int, content: Any) -> tuple[int, str, str]:
    return status, "application/json", json.dumps(content)
