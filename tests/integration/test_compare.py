"""`cloc compare` on a real SQLite store and on folders that stages wrote."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloc import tracking
from cloc.cli import compare as verb
from cloc.cli.subjects import Subjects
from cloc.config import dump, parse
from cloc.config.schema import TrackingConfig
from cloc.errors import ClocError, ConfigError, DataError
from cloc.evaluation.comparison import Subject, compare
from cloc.stage import CONFIG_FILE, StageResult
from cloc.tracking import Reader
from tests.conftest import write_dataset
from tests.evaluations import write_evaluation


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TrackingConfig, Path]]:
    """Two pipelines in a store: another number of steps, other images, and a better model on the same set."""
    folder = tmp_path_factory.mktemp("runs")
    config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    for number, (steps, macc) in enumerate(((600, 0.5), (1200, 0.6)), start=1):
        weights = folder / f"model{number}"
        weights.mkdir()
        (weights / "model.safetensors").write_bytes(b"weights %d" % number)
        write_dataset(folder / f"in{number}" / "data" / "train", 4 * number)
        read = {"data": str(folder / f"in{number}" / "data")}
        report = folder / f"out{number}" / "report"
        write_evaluation(report, {"CLOC": (str(weights), macc)}, seed=number)
        settings = {"train": {"steps": steps, "seed": 0}}
        with tracking.pipeline_run(config, name=f"run {number}", settings=settings):
            with tracking.stage_run(config, stage="pretraining", settings=settings) as run:
                run.log_inputs(read, tracking.data_sets(read, splits=["train"], context="training"))
                run.log_result(StageResult("pretraining", metrics={"loss/total": 3.0 - number}, counts={"images": 7}))
            with tracking.stage_run(config, stage="evaluation", settings={}) as run:
                artifacts = {name: str(report / name) for name in ("metrics.json", "estimates.safetensors")}
                result = StageResult("evaluation", metrics={"eval/test/mAcc": macc}, artifacts=artifacts)
                result.save(report)
                resolved = parse({"train": {"steps": 5}, "evaluation": {"batch_size": number}}, source="test")
                (report / CONFIG_FILE).write_text(dump(resolved))
                run.log_result(result)
    yield config, folder
    shutil.rmtree(folder)


def test_what_differs_between_two_pipelines(made: tuple[TrackingConfig, Path]) -> None:
    config, _ = made
    subjects = Subjects(config)
    found = compare([subjects.find("run 1"), subjects.find("run 2")])
    assert {line.name: line.values for line in found.config} == {"train.steps": ("600", "1200")}
    assert [line.name for line in found.data] == ["evaluation: candidate", "pretraining: data/train"]
    assert found.data[1].values[1].endswith("(8 images, 2 shards)")
    assert {line.name: line.values for line in found.metrics if line.name != "speed/wall_seconds"} == {
        "pretraining: loss/total": (2.0, 1.0),
        "evaluation: eval/test/mAcc": (0.5, 0.6),
    }
    (recognition, top1) = found.figures
    assert (recognition.split, recognition.path, recognition.found[0].value) == ("test", "region/mAcc", 0.5)
    gap = recognition.gaps[1]
    assert gap.value == pytest.approx(0.1)
    assert gap.better == "this"
    assert 0.05 < gap.interval[0] < 0.1 < gap.interval[1] < 0.15  # paired: what both share has gone
    assert top1.gaps[1].note == "resamples were not kept"
    everything = compare([subjects.find("run 1"), subjects.find("run 2")], everything=True)
    assert {"train.seed", "train.steps"} == {line.name for line in everything.config}
    assert "pretraining: count/images" in {line.name for line in everything.metrics}
    assert [line for line in everything.data if line.name == "evaluation: evaluation set test"]


def test_ids_names_and_what_is_not_there(made: tuple[TrackingConfig, Path], tmp_path: Path) -> None:
    config, folder = made
    reader = Reader(config)
    run = reader.find("run 2")
    assert [item.stage for item in reader.children(run)] == ["pretraining", "evaluation"]
    assert reader.find(run.run_id) == reader.find(run.run_id[:12]) == run
    failures = {
        "evaluation": r"run 'evaluation' is one of 2: .* give the start of one's id",
        "nothing": r"run 'nothing': no such folder, and no run of that id or name in the experiment 'cloc' of",
        run.run_id[:3]: "no such folder, and no run",
        str(folder / "in1/data/train"): "nothing that a run wrote",
    }
    for reference, message in failures.items():
        with pytest.raises(ClocError, match=message) as caught:
            Subjects(config).find(reference)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"has no experiment 'other'; set tracking\.experiment"):
        Reader(config.model_copy(update={"experiment": "other"}))
    with pytest.raises(ConfigError, match=r"there is no MLflow store .*none\.db; set tracking\.uri"):
        Reader(TrackingConfig(uri=f"sqlite:///{tmp_path}/none.db"))
    assert not (tmp_path / "none.db").exists()


def test_folders(made: tuple[TrackingConfig, Path]) -> None:
    """Only the settings that a stage read count: the rest of its file is not what anything was trained with."""
    config, folder = made
    subjects = Subjects(TrackingConfig(uri="sqlite:////nowhere/mlflow.db"))  # not looked at
    for names in (("out1", "out2"), ("out1/report", "out2/report")):
        found = compare([subjects.find(str(folder / name)) for name in names])
        assert {line.name: line.values for line in found.config} == {"evaluation.batch_size": ("1", "2")}
        assert [line.path for line in found.figures] == ["region/mAcc", "region/top1"]
        assert found.figures[0].gaps[1].better == "this"
    same = compare([subjects.find(str(folder / "out1"))] * 2)
    assert same.config == same.data == same.code == same.metrics == same.figures == ()
    mixed = compare([subjects.find(str(folder / "out1")), Subjects(config).find("run 1")])
    assert mixed.figures == ()


def test_metrics_of_one_run_alone_are_counted(made: tuple[TrackingConfig, Path]) -> None:
    subjects = [Subjects(made[0]).find("run 1"), Subject("other", metrics={"pretraining: loss/total": 9.0})]
    found = compare(subjects)
    assert ([line.name for line in found.metrics], found.partial) == (["pretraining: loss/total"], 3)
    everything = compare(subjects, everything=True)
    assert (len(everything.metrics), everything.partial) == (4, 0)


def test_other_sets_give_no_interval(made: tuple[TrackingConfig, Path], tmp_path: Path) -> None:
    _, folder = made
    write_evaluation(tmp_path / "other", {"CLOC": (str(folder / "model1"), 0.7)}, digest="set-b")
    subjects = Subjects(TrackingConfig())
    found = compare([subjects.find(str(folder / "out1")), subjects.find(str(tmp_path / "other"))])
    gap = found.figures[0].gaps[1]
    assert (gap.interval, gap.better, gap.note) == (None, "", "another evaluation set")
    (tmp_path / "other" / "metrics.json").write_text("[]")
    with pytest.raises(DataError, match=r"its metrics\.json is not of an evaluation"):
        subjects.find(str(tmp_path / "other"))


def _invoke(config: TrackingConfig, *arguments: str) -> str:
    done = CliRunner().invoke(verb.compare, [*arguments, "--preset", "demo", "-S", f"tracking.uri={config.uri}"])
    assert done.exit_code == 0, done.output
    return done.output


def test_what_is_printed(made: tuple[TrackingConfig, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = made
    body = json.loads(_invoke(config, "run 1", "run 2", "--json"))
    assert body["config"] == {"train.steps": ["600", "1200"]}
    assert body["figures"][0]["differences"][1]["better"] == "this"
    plain = _invoke(config, "run 1", "run 2").splitlines()
    assert "config\ttrain.steps\t600\t1200" in plain
    assert "metrics\tpretraining: loss/total\t2\t1 (-1)" in plain
    (line,) = (line for line in plain if line.startswith("figure\tregion mAcc, test"))
    assert line.split("\t")[2] == "50.0 (Prompter)"
    assert line.endswith("better")


def test_the_table_fits_a_terminal(made: tuple[TrackingConfig, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = made
    subjects = [Subjects(config).find(name) for name in ("run 1", "run 2", "run 1")]
    verb._show(compare(subjects, everything=True))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    for part in ("Settings", "train.steps", "Metrics", "Figures of the candidates", "better", "run 1"):
        assert part in shown


def test_a_result_of_an_earlier_release_is_read(tmp_path: Path) -> None:
    path = StageResult("registration", message="done").save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "registers": "work/model"}))
    assert StageResult.load(tmp_path) == StageResult("registration", message="done")


def test_one_run_is_no_comparison() -> None:
    done = CliRunner().invoke(verb.compare, ["a"])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == "compare: 1 run given; name two or more"


def test_a_reader_makes_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="there is no MLflow store"):
        tracking.local_model("models:/cloc@champion")
    assert not list(tmp_path.iterdir())
