"""What runs say, on a real SQLite store: names, figures, data sets, who started them, models side by side, views."""

import hashlib
import json
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from cloc import tracking
from cloc.config import parse
from cloc.config.schema import TrackingConfig
from cloc.stage import StageResult
from cloc.stages import run_stage
from cloc.tracking.names import FAMILIES, eval_name, problem
from cloc.tracking.provenance import common_tags
from cloc.tracking.rows import NO_METRICS
from cloc.tracking.titles import pipeline_title
from tests.conftest import write_dataset
from tests.evaluated_models import settings, write_model, write_public
from tests.unit.test_training_evaluate import trained

CLIP, CLOC = "CLIP (equal steps)", "CLOC"
PIPELINE = "demo 2026-11-30 14:02"
REPORT = "out"
ENVIRONMENT = (
    "MLFLOW_RUN_ID", "MLFLOW_RUN_NAME", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME",
    "CLOC_RUN_KEY", "DVC_ROOT",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with nothing of the environment that tells of runs."""
    folder = tmp_path_factory.mktemp("content")
    with pytest.MonkeyPatch.context() as patch:
        for name in ENVIRONMENT:
            patch.delenv(name, raising=False)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def store(place: Path) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{place}/mlflow.db", experiment="content")


@pytest.fixture(scope="module")
def client(store: TrackingConfig) -> MlflowClient:
    return MlflowClient(store.uri)


@pytest.fixture(scope="module")
def results(place: Path, store: TrackingConfig) -> dict[str, StageResult]:
    """A pipeline's stages on a tiny data set, by name, recorded under one run."""
    tree = {
        **settings(pictures=2).model_dump(mode="json"),
        "tracking": store.model_dump(mode="json"),
        "captioning": {"backend": "annotations"},
        "grounding": {"backend": "annotations"},
        "validation": {"min_images": 1},
    }
    for split, seed in (("train", 1), ("test", 0)):
        write_dataset(place / "set" / split, 12, shard_size=6, seed=seed)
    models = {CLIP: write_public(place / "clip"), CLOC: write_model(place / "cloc", "cloc")}
    (place / "cloc" / "lineage.json").write_text(json.dumps({"run": {"id": "f" * 32}}))
    config = parse(tree, source="test")
    data, labels = str(place / "set"), {"captions": "captions", "regions": "regions"}
    with tracking.pipeline_run(store, name=PIPELINE, settings=tree):
        captioned = run_stage(
            "captioning", config, inputs={"data": data}, outputs={"captions": "captions", "report": "captioning"}
        )
        grounded = run_stage(
            "grounding",
            config,
            inputs={"data": data, "captions": "captions"},
            outputs={"regions": "regions", "report": "grounding"},
        )
        validated = run_stage("validation", config, inputs={"data": data, **labels}, outputs={"report": "validation"})
        evaluated = run_stage("evaluation", config, inputs={"data": data, "models": models}, outputs={"report": REPORT})
    return {found.stage: found for found in (captioned, grounded, validated, evaluated)}


@pytest.fixture(scope="module")
def runs(results: dict[str, StageResult], client: MlflowClient) -> dict[str, Run]:
    """The recorded runs, those of models by their model and others by their name."""
    experiment = client.get_experiment_by_name("content")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    return {run.data.tags.get("cloc.model", run.info.run_name): run for run in found}


def parent(run: Run) -> str:
    return str(run.data.tags["mlflow.parentRunId"])


def test_runs_are_a_family_and_have_names_of_their_own(runs: dict[str, Run]) -> None:
    top = runs[PIPELINE]
    stages = {name for name, run in runs.items() if run.data.tags["cloc.kind"] == "stage"}
    assert stages == {"captioning", "grounding", "validation", f"evaluation {REPORT}"}
    assert {parent(runs[name]) for name in stages} == {top.info.run_id}
    models = {name for name, run in runs.items() if run.data.tags["cloc.kind"] == "model"}
    assert models == {CLIP, CLOC}
    assert {runs[name].info.run_name for name in models} == {f"{CLIP} of {PIPELINE}", f"{CLOC} of {PIPELINE}"}
    assert {parent(runs[name]) for name in models} == {runs[f"evaluation {REPORT}"].info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_models_stand_beside_each_other_under_the_same_names(runs: dict[str, Run], place: Path) -> None:
    figures = json.loads((place / REPORT / "metrics.json").read_text())
    for name in (CLIP, CLOC):
        own = runs[name].data
        for way in ("i2t", "t2i"):
            value = figures["splits"]["test"]["retrieval"][name][way]["R@1"]
            assert own.metrics[f"eval/retrieval/test/{way}_R1"] == pytest.approx(value)
        assert own.params["weights_sha256"] == figures["models"][name]["weights_sha256"]
        assert own.tags["cloc.weights_sha256"] == figures["models"][name]["weights_sha256"]
    common = runs[CLIP].data.metrics.keys() & runs[CLOC].data.metrics.keys()
    assert {"eval/region/test/mAcc", "eval/region/test/roi_align/mAcc", "eval/retrieval/test/i2t_R1"} <= common
    assert runs[CLOC].data.params["steps"] == "10"
    assert runs[CLOC].data.tags["cloc.trained_by"] == "f" * 32
    assert "cloc.trained_by" not in runs[CLIP].data.tags


def test_the_pipeline_shows_the_headline_and_links_the_report(
    runs: dict[str, Run], results: dict[str, StageResult]
) -> None:
    top, stage = runs[PIPELINE], runs[f"evaluation {REPORT}"]
    evaluated = results["evaluation"]
    assert {"eval/region/test/mAcc", "eval/retrieval/test/i2t_R1", "eval/grounding/test/acc_0.5"} <= set(
        evaluated.headline
    )
    shown = {name: value for name, value in top.data.metrics.items() if name.startswith("eval/")}
    assert shown == pytest.approx({name: evaluated.metrics[name] for name in evaluated.headline})
    assert shown["eval/region/test/mAcc"] == pytest.approx(runs[CLOC].data.metrics["eval/region/test/mAcc"])
    assert top.data.metrics["speed/wall_seconds"] > 0
    page = f"#/experiments/{top.info.experiment_id}/runs/{stage.info.run_id}/artifacts/index.html"
    assert top.data.tags["mlflow.note.content"].endswith(f"[report]({page})")


def test_data_sets_have_digests_counts_and_what_they_were_for(runs: dict[str, Run], place: Path) -> None:
    def read(name: str) -> dict[str, tuple[str, dict[str, Any], str]]:
        found = {}
        for item in runs[name].inputs.dataset_inputs:
            context = next(tag.value for tag in item.tags if tag.key == "mlflow.data.context")
            found[item.dataset.name] = (item.dataset.digest, json.loads(item.dataset.profile), context)
        return found

    digests = {
        split: hashlib.sha256((place / "set" / split / "manifest.json").read_bytes()).hexdigest()[:16]
        for split in ("train", "test")
    }
    assert (
        read(CLOC)
        == read(f"evaluation {REPORT}")
        == {"set/test": (digests["test"], {"images": 12, "shards": 2}, "evaluation")}
    )
    found = read("validation")
    assert found.keys() == {"set/train", "captions", "regions"}
    assert found["set/train"][0] == digests["train"]
    assert found["set/train"][2] == "validation"
    assert found["regions"][1]["rows"] == 24
    assert read("grounding")["captions"][0] == found["captions"][0] != found["regions"][0]


def test_pictures_and_tables_of_examples_are_kept(runs: dict[str, Run], client: MlflowClient) -> None:
    for name, column in (("captioning", "text"), ("grounding", "score"), (f"evaluation {REPORT}", "answer")):
        run = runs[name]
        names = {item.path for item in client.list_artifacts(run.info.run_id, "examples")}
        assert {"examples/examples.json", "examples/01.jpg"} <= names
        table = client.load_table(run.info.experiment_id, "examples/examples.json", [run.info.run_id])
        assert {"picture", "key", column} <= set(table.columns)
        assert {f"examples/{picture}" for picture in table["picture"]} <= names


def test_every_figure_has_one_name_whoever_measures_it(
    results: dict[str, StageResult], place: Path, tmp_path: Path
) -> None:
    """Over all stages and the rows of a training that evaluates: a figure stands in one family."""
    names = set[str]()
    for found in results.values():
        names |= set(found.metrics) | {name for model in found.models.values() for name in model.metrics}
    from tests.integration.evaluate_ranks import config

    model = write_model(place / "started", "cloc")
    data = str(place / "set" / "train")
    trained(
        config(steps=2, warmup_steps=1, log_every=1), data, str(place / "set" / "test"), model, tmp_path / "trained"
    )
    for row in (tmp_path / "trained" / "metrics.jsonl").read_text().splitlines():
        names |= json.loads(row).keys() - NO_METRICS
    assert not [wrong for name in sorted(names) if (wrong := problem(name))]
    assert {name.partition("/")[0] for name in names} >= {"eval", "loss", "train", "speed", "system", "labels", "data"}
    families = defaultdict(set)
    for name in names:
        family, _, figure = name.rpartition("/")
        families[figure].add(family.partition("/")[0])
    assert not {figure: found for figure, found in families.items() if len(found) > 1 and figure != "total"}
    # What training evaluates has the names of `cloc evaluate`, but for the set's.
    evaluated = {name for name in names if "/val/" in name}
    measured = {name.replace("/test/", "/val/") for name in results["evaluation"].metrics}
    assert evaluated - measured == {"eval/loss/val/total"}


def test_names_are_made_and_judged_alike() -> None:
    assert eval_name("region", "coco", "mAcc") == "eval/region/coco/mAcc"
    assert (
        eval_name("grounding", "a/b (c)", "acc@0.5", reader="roi_align") == "eval/grounding/a_b _c_/roi_align/acc_0.5"
    )
    assert eval_name("retrieval", "test", "i2t_R@10") == "eval/retrieval/test/i2t_R10"
    assert not problem("samples")
    assert not [wrong for family in FAMILIES[1:] if (wrong := problem(f"{family}/x"))]
    for name in ("mAcc", "eval/region/mAcc", "test/region/mAcc", "loss", "eval/grounding/test/acc@0.5"):
        assert problem(name)


def test_an_experiment_gets_views_and_keeps_what_people_changed(
    runs: dict[str, Run], client: MlflowClient, store: TrackingConfig
) -> None:
    number = runs[CLOC].info.experiment_id
    tags = client.get_experiment(number).tags
    saved = json.loads(tags["mlflow.sharedViewState.cloc-models"])
    state = json.loads(saved["state"])
    found = client.search_runs([number], state["searchFilter"], order_by=[f"{state['orderByKey']} DESC"])
    assert {run.data.tags["cloc.model"] for run in found} == {CLIP, CLOC}
    values = [run.data.metrics["eval/region/test/mAcc"] for run in found]
    assert values == sorted(values, reverse=True)
    for view in ("cloc-pipelines", "cloc-trainings", "cloc-adapters"):
        state = json.loads(json.loads(tags[f"mlflow.sharedViewState.{view}"])["state"])
        client.search_runs([number], state["searchFilter"])  # its syntax
        assert (
            f"#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={view}"
            in tags["mlflow.note.content"]
        )
    client.set_experiment_tag(number, "mlflow.note.content", "ours")
    with tracking.stage_run(store, stage="evaluation", settings={}) as run:
        tracking.log_family(
            store, run, StageResult("evaluation", {"eval/region/test/mAcc": 0.5}, headline=("eval/region/test/mAcc",))
        )
    assert client.get_experiment(number).tags["mlflow.note.content"] == "ours"


def test_a_stage_of_its_own_is_named_by_the_environment(
    store: TrackingConfig, client: MlflowClient, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_NAME", "monday")
    with tracking.stage_run(store, stage="pretraining", settings={}, name="pretraining cloc") as run:
        assert client.get_run(run.run_id).info.run_name == "monday"
    with (
        tracking.pipeline_run(store, name="demo", settings={}) as above,
        tracking.stage_run(store, stage="pretraining", settings={}, name="pretraining cloc") as run,
    ):
        assert client.get_run(above.run_id).info.run_name == "monday"
        assert client.get_run(run.run_id).info.run_name == "pretraining cloc"


def test_the_experiment_of_the_environment(
    store: TrackingConfig, client: MlflowClient, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filed(config: TrackingConfig) -> str:
        with tracking.stage_run(config, stage="captioning", settings={}) as run:
            return str(client.get_experiment(client.get_run(run.run_id).info.experiment_id).name)

    plain = TrackingConfig(uri=store.uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    assert filed(plain) == "named"
    assert tracking.Reader(plain).newest(limit=5)
    assert filed(store) == "content"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", client.create_experiment("numbered"))
    assert filed(plain) == "numbered"


def test_titles_tell_stages_apart() -> None:
    def title(made: str, **more: str) -> str:
        return tracking.stage_title("pretraining", made=made, fields=frozenset({"model"}), **{"title": "clip", **more})

    assert title("work/models/clip_equal_steps") == "pretraining clip_equal_steps"
    assert title("s3://tasks/run/pretraining-2/model") == "pretraining clip"
    assert title("") == "pretraining clip"
    assert title("pretraining", title="", worker="2/8") == "pretraining 2/8"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout on a branch, under DVC, with settings that differ from the commit's."""

    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    params = tmp_path / "params.yaml"
    params.write_text("train: {steps: 100, learning_rate: 0.001}\n")
    (tmp_path / "data.dvc").write_text("outs:\n- {path: data, md5: 0123abc.dir}\n")
    git("init", "-b", "sparrow")
    git("add", ".")
    git("commit", "-m", "all")
    params.write_text("train: {steps: 100, learning_rate: 0.0005}\n")
    monkeypatch.chdir(tmp_path)
    for name in ("KFP_POD_NAME", "CLOC_KFP_RUN_URL", "MLFLOW_RUN_NAME", "CLOC_RUN_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_dvc_is_named_by_experiment_and_what_it_changes(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(checkout))
    monkeypatch.setenv("DVC_EXP_NAME", "urban-tarp")
    monkeypatch.setenv("DVC_STAGE", "cloc")
    started = datetime(2026, 11, 30, 14, 2)
    assert pipeline_title(started=started) == "urban-tarp: train.learning_rate=0.0005"
    tags = common_tags()
    expected = {
        "cloc.started_by": "dvc",
        "dvc.experiment": "urban-tarp",
        "dvc.stage": "cloc",
        "dvc.data_md5": "0123abc.dir",
        "git.dirty": "true",
        "mlflow.source.git.branch": "sparrow",
    }
    assert expected.items() <= tags.items()
    assert {"torch", "transformers", "mlflow", "python", "host", "cloc.version"} <= tags.keys()
    monkeypatch.delenv("DVC_EXP_NAME")
    assert pipeline_title(started=started).startswith("dvc repro 2026-11-30 14:02: ")
    (checkout / "params.yaml").write_text(f"train: {json.dumps({f'a{n}': n for n in range(5)})}\n")
    assert pipeline_title(started=started).endswith("train.a0=0, train.a1=1, train.a2=2, and 2 more")


def test_kubeflow_is_named_and_linked(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "cloc-abc")
    monkeypatch.setenv("CLOC_RUN_KEY", "0b1c")
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "http://ui/")
    expected = {"cloc.started_by": "kfp", "kfp.run_id": "0b1c", "kfp.run_url": "http://ui/#/runs/details/0b1c"}
    assert expected.items() <= common_tags().items()
    monkeypatch.setenv("CLOC_KFP_RUN_URL", "https://own/page")
    assert common_tags()["kfp.run_url"] == "https://own/page"
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name in ("KFP_POD_NAME", "CLOC_KFP_RUN_URL"):
        monkeypatch.delenv(name)
    assert common_tags()["cloc.started_by"] == "cli"


def test_the_run_of_dvc_ends_as_its_last_stage_did(
    store: TrackingConfig, client: MlflowClient, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloc.tracking import parents

    monkeypatch.setenv("DVC_ROOT", str(checkout))
    monkeypatch.setattr(parents, "_dvc_process", lambda: SimpleNamespace(pid=1, create_time=lambda: 2.5))
    ends = []
    for fails in (False, True):
        try:
            with tracking.ending_as_its_stage(store), tracking.stage_run(store, stage="captioning", settings={}) as run:
                if fails:
                    raise ValueError("no")
        except ValueError:
            pass
        above = client.get_run(parent(client.get_run(run.run_id)))
        ends.append((above.info.run_id, above.info.status, above.info.end_time))
        assert run.pipeline == above.info.run_name  # whenever a stage begins
    assert ends[0][0] == ends[1][0]
    assert [status for _, status, _ in ends] == ["FINISHED", "FAILED"]
    assert ends[0][2] < ends[1][2]


def test_the_machine_is_sampled_while_a_stage_runs(
    store: TrackingConfig, client: MlflowClient, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "2")

    with tracking.stage_run(store, stage="captioning", settings={}) as run:
        until = time.monotonic() + 60
        while not client.get_run(run.run_id).data.metrics and time.monotonic() < until:
            time.sleep(0.05)
    assert "system/cpu_utilization_percentage" in client.get_run(run.run_id).data.metrics
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with tracking.stage_run(store, stage="captioning", settings={}) as run:
        assert not [thread.name for thread in threading.enumerate() if thread.name == "system-metrics"]
