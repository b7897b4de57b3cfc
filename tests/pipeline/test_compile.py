"""The compiled pipeline: it is the committed YAML, the proto takes it, and what users and caches see of it is right."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from docstring_parser import parse as parse_docstring
from google.protobuf import json_format
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from cloc.config import Config, load_preset
from cloc.pipeline import parameters
from pipelines.cloc_pipeline import cloc_pipeline
from pipelines.compile import GOLDEN, compile_pipeline
from tests.pipeline import toy

GATES = {"validation", "registration"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compiled") / "cloc_pipeline.yaml"
    compile_pipeline(path)
    return path


@pytest.fixture(scope="module")
def spec(compiled: Path) -> dict[str, Any]:
    return next(yaml.safe_load_all(compiled.read_text()))


@pytest.fixture(scope="module")
def platform(compiled: Path) -> dict[str, Any]:
    return list(yaml.safe_load_all(compiled.read_text()))[1]["platforms"]["kubernetes"]


def test_golden(compiled: Path) -> None:
    assert compiled.read_text() == GOLDEN.read_text(), (
        "pipelines/cloc_pipeline.yaml is not what the source compiles to; look at the difference, and if it is meant: "
        "`.venv/bin/python -m pipelines.compile`"
    )


def test_proto_takes_it(spec: dict[str, Any]) -> None:
    message = json_format.ParseDict(spec, PipelineSpec())
    assert set(message.root.dag.tasks) == {"exit-handler-1", "outcome"}
    assert len(message.components["comp-exit-handler-1"].dag.tasks) == 17 + 2  # and two loops


def test_image_of_a_deployment(tmp_path: Path) -> None:
    compile_pipeline(tmp_path / "p.yaml", image="registry.example/cloc-python@sha256:00")
    executors = next(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))["deploymentSpec"]["executors"]
    assert {item["container"]["image"] for item in executors.values()} == {"registry.example/cloc-python@sha256:00"}


def test_parameters_are_the_settings(spec: dict[str, Any]) -> None:
    given = spec["root"]["inputDefinitions"]["parameters"]
    assert set(given) == {
        "data",
        "gpus",
        "gpu_type",
        "node_selector",
        "tolerations",
        parameters.OTHER,
        *parameters.PARAMETERS,
    }
    for name, value in parameters.defaults().items():
        assert given[name]["defaultValue"] == value, f"{name} is not the demo's {parameters.PARAMETERS[name]}"


def test_params_yaml_is_the_default() -> None:
    assert parameters.arguments(load_preset("demo")) == {**parameters.defaults(), parameters.OTHER: []}


def test_every_parameter_has_help(spec: dict[str, Any]) -> None:
    given = spec["root"]["inputDefinitions"]["parameters"]
    without = [name for name, item in given.items() if len(item.get("description", "")) < 10]
    assert not without
    documented = {item.arg_name for item in parse_docstring(inspect.getdoc(cloc_pipeline.pipeline_func) or "").params}
    assert documented == set(given)


@pytest.mark.parametrize(
    "config", [toy.config(), load_preset("b16"), load_preset("finetune")], ids=["toy", "b16", "ft"]
)
def test_arguments_give_the_settings_back(config: Config) -> None:
    given = parameters.arguments(config)
    others = given.pop(parameters.OTHER)
    assert parameters.resolve(given, others) == config


def tasks_of(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All tasks that run something, also those in the exit handler and in loops."""
    dags = [spec["root"]["dag"], *(part["dag"] for part in spec["components"].values() if "dag" in part)]
    return {
        name: task
        for dag in dags
        for name, task in dag["tasks"].items()
        if "dag" not in spec["components"][task["componentRef"]["name"]]
    }


def test_tasks(spec: dict[str, Any]) -> None:
    executors = spec["deploymentSpec"]["executors"]
    tasks = tasks_of(spec)
    assert len(tasks) == 20
    for name, task in tasks.items():
        assert task["taskInfo"]["name"][0].isupper(), "tasks have names for people"
        assert bool(task["cachingOptions"].get("enableCache")) == (name not in ("settings", "summary", "outcome"))
        assert "cacheKey" not in task["cachingOptions"], "a key of one's own leaves the arguments out"
        assert ("retryPolicy" in task) == (name not in GATES)
        container = executors[f"exec-{name}"]["container"]
        assert {"cpuRequest", "memoryRequest", "memoryLimit"} <= set(container["resources"])
        assert "pip install" not in " ".join(container["command"])


def test_gates_come_before_what_they_guard(spec: dict[str, Any]) -> None:
    tasks = tasks_of(spec)
    for name in ("pretraining", "pretraining-2", "pretraining-3"):
        assert "validation" in tasks[name]["dependentTasks"]
    for name in ("adapter-tuning", "adapter-tuning-2", "adapter-tuning-3"):
        assert "registration" in tasks[name]["dependentTasks"]


def test_tracking_is_no_parameter(spec: dict[str, Any], platform: dict[str, Any]) -> None:
    """A run's id among the arguments would end all caching."""
    for name, task in tasks_of(spec).items():
        named = [item for item in task["inputs"].get("parameters", {}) if "mlflow" in item or "run" in item]
        # The first task, which is never cached, is told the name of the run.
        assert named == (["run_name"] if name == "settings" else [])
        own = platform["deploymentSpec"]["executors"][f"exec-{name}"]
        assert own["fieldPathAsEnv"] == [{"name": "CLOC_RUN_KEY", "fieldPath": "metadata.labels['pipeline/runid']"}]
        assert own["secretAsEnv"][0]["secretName"] == "cloc-s3"


def test_stages_get_only_their_own_settings() -> None:
    """Else a change of one setting would run every stage again."""
    before = parameters.stage_parameters(toy.config())
    changed = parameters.stage_parameters(toy.config(train__learning_rate="0.5"))
    assert [name for name in before if before[name] != changed[name]] == ["pretraining", "adapter_tuning", "baseline"]
    changed = parameters.stage_parameters(toy.config(evaluation__pictures="5"))
    assert [name for name in before if before[name] != changed[name]] == ["evaluation", "registration"]


def test_given_data_are_named_by_content(tmp_path: Path, make_dataset: Any) -> None:
    for split in ("train", "test"):
        make_dataset(tmp_path / split, 4)
    config = toy.config()
    before = parameters.stage_parameters(config, data=str(tmp_path))
    assert parameters.stage_parameters(config, data=str(tmp_path)) == before
    make_dataset(tmp_path / "train", 4, regions=False)  # the same pictures with other labels
    (tmp_path / "train/regions/00000.parquet").unlink()
    after = parameters.stage_parameters(config, data=str(tmp_path))
    assert [name for name in before if before[name] != after[name]] == ["scenes"]
