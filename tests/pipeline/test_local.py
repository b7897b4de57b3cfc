"""The whole DAG by the local runner at toy size, as `cloc run` does it: results, cache, gates, interruption."""

import io
import json
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.console import Console
from tests.pipeline.local_run import Ended, cloc_run, command_of

pytestmark = pytest.mark.timeout(1800)  # eighteen processes in turn, on a machine that does other work, too

TASK = re.compile(r"^\[(\d+)/18\] (.*)$", re.MULTILINE)
REUSED = re.compile(r"^\[\d+/18\] (.*): nothing changed, taken from the cache$", re.MULTILINE)
TOLD = re.compile(r"^\[\d+/18\] .*\n((?:    .*\n)*?)    done after (\d+) s$", re.MULTILINE)
TITLES = (
    "Settings",
    "Data",
    "Teachers",
    "Shares of the captioning",
    "Captioning",
    "Shares of the grounding",
    "Grounding",
    "Validation (gate)",
    "Pre-training: CLOC",
    "Pre-training: CLIP, equal steps",
    "Pre-training: CLIP, equal compute",
    "Evaluation",
    "Registration (gate)",
    "MLLM adapter on CLIP",
    "MLLM adapter on CLOC",
    "MLLM adapter on CLOC, Prompter as sampler",
    "Summary",
    "Outcome",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dag")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Ended:
    """The first run, from nothing to the end."""
    return cloc_run(folder)


def test_runs_to_the_end(whole: Ended, folder: Path) -> None:
    assert whole.code == 0, whole.text[-5000:]
    assert sorted(title for _, title in TASK.findall(whole.text)) == sorted(TITLES)


def test_no_task_is_silent_for_long(whole: Ended) -> None:
    """After 15 s without a line one says what is running; a busy machine may be as late again."""
    told = TOLD.findall(whole.text)
    assert len(told) == len(TITLES)
    assert not [(said, took) for said, took in told if said.count("\n") < int(took) // 30]


def test_output_is_for_people(whole: Ended) -> None:
    for noise in ("\x1b[", "executor_input", "KFP Executor", "Traceback", "have no effect", "UNEXPECTED"):
        assert noise not in whole.text


def test_end_shows_table_places_and_commands(whole: Ended, folder: Path) -> None:
    end = whole.text[whole.text.rindex("CLIP and CLOC on the split") :]
    assert "CLIP (equal steps)" in end
    assert "CLIP (equal compute)" in end
    assert "region mAcc" in end
    assert "refers, word for word" in end
    assert "bin/mlflow ui --backend-store-uri sqlite:///" in end
    assert f"  report      {(folder / 'out/report/index.html').as_uri()}" in end
    (asked,) = [line for line in end.splitlines() if line.startswith("  playground  ")]
    given = dict(zip(shlex.split(asked)[3::2], shlex.split(asked)[4::2], strict=True))
    assert (folder / given["--model"].partition("=")[2] / "model.safetensors").is_file()
    assert (folder / given["--data"] / "manifest.json").is_file()
    assert (folder / "out/report/index.html").is_file()
    assert (folder / "out/model/model.safetensors").is_file()
    assert (folder / "out/logs/pretraining.log").read_text().count("step") >= 4


def test_stages_are_children_of_one_mlflow_run(whole: Ended, folder: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("cloc")
    runs = client.search_runs([experiment.experiment_id], filter_string="tags.`cloc.kind` = 'pipeline'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    children = client.search_runs(
        [experiment.experiment_id], filter_string=f"tags.`mlflow.parentRunId` = '{runs[0].info.run_id}'"
    )
    names = [run.data.tags["cloc.stage"] for run in children]
    assert (len(names), names.count("pretraining"), names.count("adapter_tuning")) == (13, 3, 3)


@pytest.fixture(scope="module")
def again(whole: Ended, folder: Path) -> Ended:
    return cloc_run(folder)


def test_second_run_reuses_everything(again: Ended) -> None:
    assert again.code == 0, again.text[-3000:]
    assert sorted(REUSED.findall(again.text)) == sorted(set(TITLES) - {"Settings", "Summary", "Outcome"})
    assert "CLIP and CLOC on the split" in again.text


def test_gate_on_labels_stops_the_pipeline(again: Ended, folder: Path) -> None:
    ended = cloc_run(folder, validation__min_images="1000")
    assert ended.code == 4
    assert ended.lines[-1].startswith("error: validation: 1 of ")
    assert "1,000" in ended.lines[-1]
    assert sorted(REUSED.findall(ended.text)) == [
        "Captioning",
        "Data",
        "Grounding",
        "Shares of the captioning",
        "Shares of the grounding",
        "Teachers",
    ]
    assert "the pipeline ended as FAILED" in ended.text
    assert "Pre-training" not in ended.text
    assert "Traceback" not in ended.text


def test_gate_on_the_model_stops_the_pipeline(again: Ended, folder: Path) -> None:
    ended = cloc_run(folder, evaluation__min_region_gain="1000.0")
    assert ended.code == 4
    assert ended.lines[-1].startswith("error: CLOC is not registered: min_region_gain")
    assert "Pre-training: CLOC" in REUSED.findall(ended.text)
    assert "MLLM adapter" not in ended.text


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["-S", "train.stepz=5"], 2, "unknown key train.stepz"),
        (["-S", "train.steps=0"], 2, "train.steps"),
        (["--data", "nowhere"], 3, "nowhere"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, more: list[str], code: int, message: str) -> None:
    ended = cloc_run(tmp_path, *more)
    assert (ended.code, len(ended.lines)) == (code, 1), ended.text
    assert ended.lines[0].startswith("error: ")
    assert message in ended.lines[0]
    assert not (tmp_path / "out").exists(), "nothing is made before settings and data are checked"


def test_given_data_and_a_defect_of_the_program(tmp_path: Path, make_dataset: Any) -> None:
    """Data from outside are pointed at, not copied; a shard that cannot be read is the task's own last line."""
    for split in ("train", "test"):
        make_dataset(tmp_path / "photos" / split, 12)
    (tmp_path / "photos/train/images/00001.tar").write_bytes(b"")
    ended = cloc_run(tmp_path, "--data", "photos")
    assert ended.code == 3
    assert ended.lines[-1].startswith("error: ")
    assert "00001.tar" in ended.lines[-1]
    assert not list((tmp_path / "out").rglob("*.tar"))


def test_stopped_run_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    command, environment = command_of(tmp_path, data__scenes__train_images="4000")
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            if re.search(r"scenes: [1-9]\d* of", line):
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "Traceback" not in rest
    shards = list((tmp_path / "out/kfp").rglob("*.tar"))
    assert shards, "finished shards stay for the next run"
    time.sleep(0.5)
    assert len(list((tmp_path / "out/kfp").rglob("*.tar"))) == len(shards), "nobody goes on rendering"


def test_console_tells_tasks_from_noise(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(out, titles={"a": "Task A", "b": "Task B"}, logs=tmp_path, silence=0.2)
    for line in (
        "12:00:00.000 - INFO - Executing task \x1b[96m'a'\x1b[0m",
        "12:00:00.000 - INFO - Streamed logs:",
        "",
        "    [KFP Executor 2026-01-01 00:00:00,000 INFO]: Got executor_input:",
        "    {",
        '        "inputs": {}',
        "    }",
        "    half way {",
        "    }",
    ):
        print(line, file=console)
    time.sleep(1)
    print("12:00:01.000 - INFO - Task \x1b[96m'a'\x1b[0m finished with status \x1b[92m'SUCCESS'\x1b[0m", file=console)
    print("12:00:01.000 - INFO - Task \x1b[96m'a'\x1b[0m outputs:\n    model: Model( name='x',", file=console)
    print("-" * 80, file=console)
    console.finish()
    lines = out.getvalue().splitlines()
    assert lines[:3] == ["[1/2] Task A", "    half way {", "    }"]
    assert lines[3].startswith("    ... Task A is running (")
    assert lines[-1] == "    done after 1 s"
    assert "half way {" in (tmp_path / "a.log").read_text()


def test_summary_file_says_where_things_lie(whole: Ended, folder: Path) -> None:
    places = json.loads((folder / "out/summary.json").read_text())
    assert all(Path(place).exists() for place in places.values())
