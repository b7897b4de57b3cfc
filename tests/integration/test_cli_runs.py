"""`cloc runs` on a real SQLite store: what it lists, shows and links, and how runs are named to it."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput

from cloc import tracking
from cloc.cli import run_tables
from cloc.cli.compare import compare
from cloc.cli.run_facts import headline, links, page
from cloc.cli.run_tables import took
from cloc.cli.runs import runs
from cloc.config.beside import beside
from cloc.config.load import flatten, load_preset
from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError, DataError
from cloc.stage import StageResult
from cloc.tracking import Reader

COUNTS = '{"images": 2}'
REASON = "grounding: 9 of 10 images had to be quarantined"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TrackingConfig, Path]]:
    """A pipeline that went well, one that failed, a stage alone, and one of another experiment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "CLOC_RUN_KEY", "DVC_ROOT"):
            patch.delenv(name, raising=False)
        folder = tmp_path_factory.mktemp("runs")
        patch.chdir(folder)
        config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
        settings = load_preset("demo").model_dump(mode="json")
        settings["train"]["steps"] = 7
        (folder / "report").mkdir()
        (folder / "report" / "index.html").write_text("<html></html>")
        with tracking.pipeline_run(config, name="good", settings=settings) as parent:
            parent.log_metrics({"eval/region/test/mAcc": 0.61, "eval/region/test/crop/mAcc": 0.5, "loss/total": 1.0})
            with tracking.stage_run(config, stage="pretraining", settings={"train": settings["train"]}) as run:
                read = Dataset("data/train", "0123456789abcdef", source_type="local", source="{}", profile=COUNTS)
                MlflowClient(config.uri).log_inputs(run.run_id, datasets=[DatasetInput(read)])
            with tracking.stage_run(config, stage="evaluation", settings={}) as run:
                page = str(folder / "report" / "index.html")
                run.log_result(StageResult("evaluation", message="done", artifacts={"report": page}))
        time.sleep(0.01)  # runs are ordered by milliseconds
        with pytest.raises(DataError):
            _fail(config, settings)
        time.sleep(0.01)
        with tracking.stage_run(config, stage="scenes", settings={}):
            pass
        other = config.model_copy(update={"experiment": "other"})
        with tracking.pipeline_run(other, name="elsewhere", settings={}):
            pass
        yield config, folder
        shutil.rmtree(folder)


def _fail(config: TrackingConfig, settings: dict[str, object]) -> None:
    with (
        tracking.pipeline_run(config, name="bad", settings=settings),
        tracking.stage_run(config, stage="grounding", settings={}) as run,
    ):
        run.fail(REASON)
        raise DataError(REASON)


def ask(config: TrackingConfig, *arguments: str) -> Result:
    return CliRunner().invoke(runs, [*arguments, "--preset", "demo", "-S", f"tracking.uri={config.uri}"])


def listed(config: TrackingConfig, *arguments: str) -> list[dict[str, object]]:
    done = ask(config, *arguments, "--json")
    assert done.exception is None, done.exception
    found: list[dict[str, object]] = json.loads(done.output)
    return found


def test_the_newest_come_first_with_what_became_of_them(store: tuple[TrackingConfig, Path]) -> None:
    alone, bad, good = listed(store[0])
    assert alone["stage"] == "scenes"
    assert (bad["name"], bad["status"]) == ("bad", "FAILED")
    assert REASON in str(bad["reason"])
    assert (good["name"], good["status"], good["reason"], good["experiment"]) == ("good", "FINISHED", "", "cloc")
    assert good["figures"] == {"region/test/mAcc": 0.61}
    assert good["data"] == "0123456789abcdef"
    assert good["started_by"] == "cli"


def test_how_many_and_which(store: tuple[TrackingConfig, Path]) -> None:
    config, _ = store
    assert len(listed(config, "list", "--limit", "1")) == 1
    assert [run["name"] for run in listed(config, "--filter", "attributes.status = 'FAILED'")] == ["bad"]
    assert [run["name"] for run in listed(config, "--filter", "metrics.`eval/region/test/mAcc` > 0.6")] == ["good"]
    assert "elsewhere" in [run["name"] for run in listed(config, "--all-experiments")]
    (good,) = listed(config, "list", "good")
    assert [stage["stage"] for stage in good["stages"]] == ["pretraining", "evaluation"]
    done = ask(config, "--filter", "nonsense")
    assert isinstance(done.exception, ConfigError)
    assert "cannot be asked for the runs where nonsense" in str(done.exception)


def test_lines_of_fields(store: tuple[TrackingConfig, Path]) -> None:
    header, *lines = [line.split("\t") for line in ask(store[0], "--stages").output.splitlines()]
    assert header[:4] == ["run", "name", "started", "seconds"]
    assert {len(line) for line in lines} == {len(header)}
    assert [line[0].count("/") for line in lines] == [0, 0, 1, 0, 1, 1]


@pytest.mark.parametrize("width", [70, 100, 200])
def test_tables_fit(store: tuple[TrackingConfig, Path], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal; what is long is folded, and nothing cut."""
    config, _ = store
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(run_tables, "on_terminal", lambda: True)
    output = ask(config, "--stages").output
    assert max(map(len, output.splitlines())) <= min(width, 100)
    assert "quarantined" in output
    assert all(word in output for word in ("good", "failed", "finished", "region/test: mAcc 0.61"))
    output = ask(config, "show", "good").output
    assert "Settings that differ from preset demo" in output
    assert "train.steps" in output


def test_everything_of_a_run(store: tuple[TrackingConfig, Path]) -> None:
    config, folder = store
    told = json.loads(ask(config, "show", "good", "--json").output)
    assert told["settings_differ_from"] == "preset demo"
    assert told["settings"]["train.steps"]["value"] == "7"
    assert told["outputs"] == {"report": f"{folder}/report/index.html"}
    assert "settings.json" in told["artifacts"]
    assert told["metrics"]["loss/total"] == 1.0
    assert any("2 images" in text for text in told["data_sets"].values())
    lines = dict(line.split("\t", 1) for line in ask(config, "show", "bad").output.splitlines())
    assert lines["status"] == "FAILED"
    assert REASON in lines["reason"]


def test_links(store: tuple[TrackingConfig, Path]) -> None:
    config, folder = store
    run = Reader(config).find("good")
    found = json.loads(ask(config, "link", "good", "--json").output)
    assert found["MLflow"] == f"http://localhost:5000/#/experiments/{run.experiment}/runs/{run.run_id}"
    assert found["its pages are started by"] == f"mlflow ui --backend-store-uri {config.uri}"
    assert found["report"] == f"{folder}/report/index.html"
    assert page(run, uri="https://me:secret@mlflow.example").startswith("https://me@mlflow.example/#/experiments/")

    MlflowClient(config.uri).set_tag(run.run_id, "kfp.run_url", "https://kfp.example/#/runs/details/1")
    family = Reader(config).families([Reader(config).find("good")])[0]
    told = links(family, uri="https://mlflow.example")
    assert told["Kubeflow"] == "https://kfp.example/#/runs/details/1"
    assert "its pages are started by" not in told


def test_references(store: tuple[TrackingConfig, Path]) -> None:
    config, _ = store
    reader = Reader(config)
    good = reader.find("good")
    assert reader.find(good.run_id) == reader.find(good.run_id[:8]) == good
    assert reader.find("latest").stage == "scenes"
    assert Reader(config, everywhere=True).find("elsewhere").name == "elsewhere"
    for reference in ("no'thing", "no\"'thing", "%", good.run_id[:3], "elsewhere"):
        with pytest.raises(ConfigError, match="no run of that id or name in the experiment 'cloc'"):
            reader.find(reference)


def test_the_run_of_dvc_ends_as_its_last_stage_does(store: tuple[TrackingConfig, Path]) -> None:
    """`dvc repro` tells nobody when it ends."""
    config, _ = store
    client = MlflowClient(config.uri)
    experiment = client.create_experiment("dvc")
    parent = client.create_run(experiment, tags={"cloc.kind": "pipeline", "cloc.started_by": "dvc"}, start_time=1000)
    client.set_terminated(parent.info.run_id, "FINISHED", end_time=2000)
    tags = {"cloc.kind": "stage", "cloc.stage": "pretraining", "mlflow.parentRunId": parent.info.run_id}
    stage = client.create_run(experiment, tags=tags, start_time=1500, run_name="pretraining cloc")
    reader = Reader(config.model_copy(update={"experiment": "dvc"}))
    (family,) = reader.newest(limit=3)
    assert (family.status, family.ended) == ("RUNNING", 0)
    client.set_tag(stage.info.run_id, "cloc.failure", "out of\nmemory")
    client.set_terminated(stage.info.run_id, "FAILED", end_time=61_000)
    (family,) = reader.newest(limit=3)
    assert (family.status, family.seconds) == ("FAILED", 60.0)
    assert family.failure == "pretraining cloc: out of memory"


def test_compare_is_one_command_under_two_names() -> None:
    assert runs.commands["compare"] is compare


def test_nothing_is_left_to_deliver(
    store: tuple[TrackingConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = ask(store[0], "deliver")
    assert (done.exit_code, done.output) == (0, "nothing is left to deliver\n")


def test_the_nearest_preset_is_found() -> None:
    settings = {key: str(value) for key, value in flatten(load_preset("l14").model_dump(mode="json")).items()}
    found = beside(settings | {"train.steps": "3", "gone.setting": "1"})
    assert found.base == "preset l14"
    assert found.differences.keys() == {"train.steps", "gone.setting"}
    assert found.differences["gone.setting"] == ("1", None)


def test_headline_figures_come_in_the_order_of_reports() -> None:
    figures = {"retrieval/a/i2t_R1": 0.2, "region/a/mAcc": 0.6, "region/a/crop/mAcc": 0.5, "region/b/other": 0.1}
    assert list(headline(figures)) == ["region/a/mAcc", "retrieval/a/i2t_R1"]
    assert headline({"own/set/figure": 1.0, "own/set/reader/figure": 2.0}) == {"own/set/figure": 1.0}


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.4, "0 s"), (59, "59 s"), (59.9, "1 min"), (3599, "1 h 00"), (3900, "1 h 05")]
)
def test_durations(seconds: float, told: str) -> None:
    assert took(seconds) == told
