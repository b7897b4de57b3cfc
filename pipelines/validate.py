"""Whether a compiled pipeline is one that a server takes, and that our settings fit."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from google.protobuf import json_format
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PlatformSpec
from pydantic import BaseModel

from cloc.config import Config
from cloc.errors import ClocError, ConfigError
from cloc.pipeline.parameters import OTHER, PARAMETERS, arguments, resolve

_KINDS = {
    "STRING": "a text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "LIST": "a list",
    "STRUCT": "a mapping",
}


@dataclass(frozen=True)
class Compiled:
    """A compiled pipeline.

    Attributes:
        spec: the pipeline.
        platform: what it asks of Kubernetes; empty for nothing.
    """

    spec: Mapping[str, Any]
    platform: Mapping[str, Any]

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Parameters by name: type, default, help."""
        return self.spec.get("root", {}).get("inputDefinitions", {}).get("parameters", {})

    @property
    def images(self) -> list[str]:
        """Images of the tasks, each once."""
        executors = self.spec.get("deploymentSpec", {}).get("executors", {})
        return sorted({item["container"]["image"] for item in executors.values() if "container" in item})

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that run a container, those of loops and conditions too."""
        components = self.spec.get("components", {})
        dags = [item.get("dag", {}).get("tasks", {}) for item in (self.spec.get("root", {}), *components.values())]
        return [
            name
            for tasks in dags
            for name, task in tasks.items()
            if "executorLabel" in components.get(task["componentRef"]["name"], {})
        ]


def load(path: str | Path) -> Compiled:
    """Reads a compiled pipeline.

    Raises:
        ConfigError: it is not there, or no compiled pipeline.
    """
    try:
        documents = list(yaml.safe_load_all(Path(path).read_text()))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); `cloc pipeline compile --out {path}`") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not 1 <= len(documents) <= 2:
        raise ConfigError(f"{path} is no compiled pipeline: it holds {len(documents)} documents, not one or two")
    if not all(isinstance(item, dict) for item in documents):
        raise ConfigError(f"{path} is no compiled pipeline: it holds no mapping")
    return Compiled(documents[0], documents[1] if len(documents) > 1 else {})


def validate(path: str | Path, config: Config) -> Compiled:
    """Checks a compiled pipeline against the schema of pipelines, and its parameters against the settings.

    Args:
        path: the compiled pipeline.
        config: settings that runs would be started with.

    Raises:
        ConfigError: what is wrong first.
    """
    compiled = load(path)
    try:
        check_schema(compiled)
        for fault in _parameter_faults(compiled):
            raise ConfigError(fault)
        check_arguments(compiled, arguments(config))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return compiled


def check_schema(compiled: Compiled) -> None:
    """Whether a server can take the pipeline. Raises ConfigError with what is wrong first."""
    for fault in _schema_faults(compiled):
        raise ConfigError(fault)


def check_arguments(compiled: Compiled, given: Mapping[str, Any]) -> None:
    """Whether a pipeline takes these arguments.

    Raises:
        ConfigError: it has no such parameter, one without a default is missing, or a value is of another type.
    """
    known = compiled.parameters
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"the pipeline has no parameter {name!r}; compile it anew")
        kind = known[name].get("parameterType", "")
        if not _fits(value, kind):
            raise ConfigError(f"parameter {name!r} is {_KINDS.get(kind, kind)}, not {value!r}")
    missing = [name for name, item in known.items() if name not in given and not item.get("isOptional")]
    if missing:
        raise ConfigError(f"parameter {missing[0]!r} has no default and is not given")


def argument(compiled: Compiled, item: str) -> tuple[str, Any]:
    """A parameter and its value from "NAME=VALUE"; all but texts are read as JSON.

    Raises:
        ConfigError: it is not written so, or there is no such parameter.
    """
    name, equals, text = item.partition("=")
    if not equals:
        raise ConfigError(f"-P {item}: write it as NAME=VALUE")
    if name not in compiled.parameters:
        raise ConfigError(f"the pipeline has no parameter {name!r}; there are: {', '.join(compiled.parameters)}")
    if compiled.parameters[name].get("parameterType") == "STRING":
        return name, text
    try:
        return name, json.loads(text)
    except ValueError:
        return name, text


def _schema_faults(compiled: Compiled) -> Iterator[str]:
    try:
        json_format.ParseDict(compiled.spec, PipelineSpec())
    except json_format.ParseError as error:
        yield f"no pipeline by KFP's schema: {_line(error)}"
        return
    try:
        json_format.ParseDict(compiled.platform, PlatformSpec())
    except json_format.ParseError as error:
        yield f"its second document is no platform by KFP's schema: {_line(error)}"
        return
    if not compiled.tasks or not compiled.images:
        yield "the pipeline has no tasks"
    executors = compiled.spec.get("deploymentSpec", {}).get("executors", {})
    for platform, content in compiled.platform.get("platforms", {}).items():
        if platform != "kubernetes":
            yield f"its second document is for the platform {platform!r}; only kubernetes is known"
            continue
        for name, wanted in content.get("deploymentSpec", {}).get("executors", {}).items():
            if name not in executors:
                yield f"its second document names the executor {name!r}, which the pipeline lacks"
            try:
                json_format.ParseDict(wanted, KubernetesExecutorConfig())
            except json_format.ParseError as error:
                yield f"what executor {name!r} asks of Kubernetes is not by KFP's schema: {_line(error)}"
    if len(compiled.images) > 1:
        yield f"tasks are of different images: {', '.join(compiled.images)}; compile it anew with one --image"


def _parameter_faults(compiled: Compiled) -> Iterator[str]:
    known = compiled.parameters
    for name, setting in (*PARAMETERS.items(), (OTHER, "")):
        if name not in known:
            yield f"parameter {name!r} is missing; compile it anew"
            continue
        kind, wanted = known[name].get("parameterType", ""), _kind(setting) if setting else "LIST"
        if kind != wanted:
            what = f"the setting {setting}" if setting else "what it stands for"
            yield f"parameter {name!r} is {_KINDS.get(kind, kind)}, but {what} is {_KINDS[wanted]}"
        if "defaultValue" not in known[name]:
            yield f"parameter {name!r} has no default"
    defaults = {name: known[name]["defaultValue"] for name in PARAMETERS if "defaultValue" in known.get(name, {})}
    for name in defaults:
        if _kind(PARAMETERS[name]) == "NUMBER_INTEGER" and _fits(defaults[name], "NUMBER_INTEGER"):
            defaults[name] = int(defaults[name])  # a compiled pipeline holds 4 as 4.0
    try:
        resolve(defaults, ())
    except ClocError as error:
        yield f"the defaults are no settings: {error}"


def _kind(setting: str) -> str:
    """The parameter type that a setting's own type asks for."""
    *sections, field = setting.split(".")
    model: type[BaseModel] = Config
    for section in sections:
        annotation = model.model_fields[section].annotation
        assert isinstance(annotation, type)
        model = annotation
    annotation = model.model_fields[field].annotation
    kinds = [item for item in (get_args(annotation) or (annotation,)) if item is not type(None)]
    if all(isinstance(item, str) for item in kinds):  # a Literal
        return "STRING"
    origin = get_origin(annotation) or annotation
    if origin in (list, tuple):
        return "LIST"
    return {str: "STRING", bool: "BOOLEAN", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE"}[kinds[0]]


def _fits(value: Any, kind: str) -> bool:
    """Whether a value is of a parameter's type, as the server has it: 4.0 is a whole number, and true is none."""
    if kind == "NUMBER_INTEGER":
        return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
    if kind == "NUMBER_DOUBLE":
        return isinstance(value, int | float) and not isinstance(value, bool)
    python = {"STRING": str, "BOOLEAN": bool, "LIST": list, "STRUCT": dict}.get(kind)
    return python is not None and isinstance(value, python)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
