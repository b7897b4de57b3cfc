"""Adapter tuning as a stage: launched, on one and two processes, stopped and started again; its report."""

import json
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cloc.cli import cloc
from cloc.mllm import stage
from cloc.mllm.judging import read_predictions
from cloc.mllm.saving import load_adapter
from cloc.training.preemption import PREEMPTED
from tests.conftest import write_dataset
from tests.integration import tuning_runs as runs
from tests.integration.tuning_runs import config
from tests.tiny_adapters import save_plain_clip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A collection."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder / "train", 24), write_dataset(folder / "test", 6, seed=1)
    return str(folder)


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


LONG = {
    "steps": 8, "log_every": 1, "checkpoint_every": 3, "region_sampler": "roi_align", "align": "closed_form"
}  # fmt: skip


@pytest.fixture(scope="module")
def two(data: str, encoder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that nothing happens to."""
    out = tmp_path_factory.mktemp("two") / "out"
    ended = runs.run(config({**LONG, "processes": 2}, streams=2), data, out, encoder)
    assert ended.code == 0, ended.err[-2000:]
    return out


def test_one_and_two_processes_tune_alike(data: str, encoder: str, two: Path, tmp_path: Path) -> None:
    ended = runs.run(config({**LONG, "processes": 1}, streams=2), data, tmp_path / "one", encoder)
    assert ended.code == 0, ended.err[-2000:]
    for one, other in zip(rows(tmp_path / "one"), rows(two), strict=True):
        assert one["loss/answers"] == pytest.approx(other["loss/answers"], rel=1e-4)
        assert one["samples"] == other["samples"]
    one, other = runs.weights(tmp_path / "one"), runs.weights(two)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=1e-3, msg=lambda text, at=name: f"{at}: {text}")
    asked = [
        [(item.key, item.question) for item in read_predictions(place / "predictions.jsonl")]
        for place in (tmp_path / "one", two)
    ]
    assert asked[0] == asked[1]
    pictures = [json.loads((place / "pictures" / "pictures.json").read_text()) for place in (tmp_path / "one", two)]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    ("fault", "retries", "code"),
    [
        pytest.param({"rank": 0, "step": 5, "do": "signal launcher", "signal": "SIGTERM"}, 0, PREEMPTED, id="told"),
        pytest.param({"rank": 1, "step": 6, "do": "kill"}, 1, 0, id="killed"),
    ],
)
def test_whatever_happens_to_it_it_ends_the_same(
    data: str, encoder: str, two: Path, tmp_path: Path, fault: dict[str, object], retries: int, code: int
) -> None:
    settings = config({**LONG, "processes": 2}, streams=2, max_retries=retries)
    fault = {**fault, "marker": str(tmp_path / "marker")}
    ended = runs.run(settings, data, tmp_path / "out", encoder, fault=fault)
    assert ended.code == code, ended.err[-2000:]
    if code:
        assert f"told to stop by {signal.SIGTERM.name}: its ranks saved; run the same command again" in ended.last
        assert len(list((tmp_path / "out" / "checkpoints").glob("step-*/state.json"))) == 2
        again = runs.run(settings, data, tmp_path / "out", encoder)
        assert again.code == 0, again.err[-2000:]
    expected = runs.weights(two)
    assert all(torch.equal(value, expected[name]) for name, value in runs.weights(tmp_path / "out").items())
    assert [row["loss/answers"] for row in rows(tmp_path / "out")] == [row["loss/answers"] for row in rows(two)]
    assert (tmp_path / "out" / "predictions.jsonl").read_text() == (two / "predictions.jsonl").read_text()


def test_what_is_tuned_is_only_asked_again(data: str, encoder: str, two: Path) -> None:
    before = (two / "tuning.json").read_text(), runs.weights(two)
    ended = runs.run(config({**LONG, "processes": 2, "eval_images": 3}, streams=2), data, two, encoder)
    assert ended.code == 0, ended.err[-2000:]
    assert "adapter: seed 0 is tuned already" in ended.out
    assert (two / "tuning.json").read_text() == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in runs.weights(two).items())
    assert len({item.key for item in read_predictions(two / "predictions.jsonl")}) == 3


def test_a_bad_encoder_is_one_line(data: str, encoder: str, tmp_path: Path) -> None:
    public = save_plain_clip(tmp_path / "clip", encoder)
    ended = runs.run(config({"region_sampler": "prompter"}), data, tmp_path / "out", public)
    assert ended.code == 2
    assert "has no trained region parts; name an encoder that CLOC trained" in ended.last


def test_the_request_is_shown(data: str, encoder: str, tmp_path: Path) -> None:
    given = ["--data", data, "--captions", f"{data}/train", "--regions", f"{data}/train", "--encoder", encoder]
    cluster = ["train.scheduler=kubernetes", "train.kubernetes.image=registry.example/cloc:1", "adapter.processes=2"]
    settings = [item for text in [*cluster, "train.storage=s3://bucket/runs"] for item in ("-S", text)]
    shown = CliRunner().invoke(cloc, ["tune", *given, "--out", str(tmp_path / "out"), "--dry-run", *settings])
    assert shown.exit_code == 0, shown.output
    assert "cloc.mllm.trainer" in shown.output
    assert "s3://bucket/runs/adapter-" in shown.output
    assert not (tmp_path / "out").exists()


def test_stage_with_two_seeds_and_a_sampler(encoder: str, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    train, _ = write_dataset(data / "train", 8), write_dataset(data / "test", 6, seed=1)
    inputs = stage.Inputs(data=str(data), captions=train, regions=train, encoder=encoder, region_sampler="prompter")
    settings: dict[str, object] = {"align": "closed_form", "processes": 2}
    result = stage.run(config({**settings, "repeats": 2}), inputs=inputs, outputs=stage.Outputs(adapter=str(out)))
    names = {f"eval/mllm_{name}" for name in ("refer/test/accuracy", "refer/test/noun_accuracy", "ground/test/acc_0.5")}
    assert names <= result.metrics.keys()
    assert result.counts["test_images"] == 4
    results = json.loads((out / "results.json").read_text())
    assert (results["encoder_objective"], results["test"], results["seeds"]) == ("cloc", "test", 2)
    assert results["figures"]["eval/mllm_refer/test/accuracy"] == result.metrics["eval/mllm_refer/test/accuracy"]
    about = [json.loads((place / "adapter.json").read_text()) for place in (out, out / "seeds" / "1")]
    assert [item["seed"] for item in about] == [0, 1]
    assert about[0]["region_sampler"]["kind"] == "prompter"
    page = (out / "report" / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 4
    assert "(2 seeds)" in page
    assert all(Path(path).exists() for path in result.artifacts.values())
    assert load_adapter(out).sampler is not None
    second = runs.weights(out / "seeds" / "1")
    stage.run(config({**settings, "seed": 1}), inputs=inputs, outputs=stage.Outputs(adapter=str(out)))
    assert not (out / "seeds").exists()  # of the run before
    alone = runs.weights(out)
    assert all(torch.equal(value, alone[name]) for name, value in second.items()), "what the first seed saw serves it"
    assert json.loads((out / "results.json").read_text())["seeds"] == 1


def test_an_instruction_file_is_mixed_in(data: str, encoder: str, tmp_path: Path) -> None:
    for name in ("one.png", "000001.png"):  # the second one has the key of a test image
        Image.new("RGB", (80, 40), "red").save(tmp_path / name)
    said = [{"from": "human", "value": "<image>\nwhere is it?"}, {"from": "gpt", "value": "at [0, 0, 0.5, 0.5]"}]
    items = [{"image": name, "conversations": said} for name in ("one.png", "000001.png")]
    (tmp_path / "llava.json").write_text(json.dumps(items))
    out = tmp_path / "out"
    ended = runs.run(config({"files": (str(tmp_path / "llava.json"),), "processes": 2}), data, out, encoder)
    assert ended.code == 0, ended.err[-2000:]
    assert "adapter: 1 items of 1 files are mixed in, 1 left out: a test image" in ended.out
    assert json.loads((out / "adapter.json").read_text())["settings"]["files"] == [str(tmp_path / "llava.json")]
    assert json.loads((out / "tuning.json").read_text())["images"] == 16


def test_expressions_of_a_file_are_grounded_in_their_own_rows(encoder: str, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 24)
    Image.new("RGB", (80, 40), "red").save(tmp_path / "one.jpg")
    items = [
        {"image": "one.jpg", "expression": "the red one", "bbox": [8, 4, 40, 20], "split": "testA"},
        {"image": "one.jpg", "expression": "another one", "bbox": [0, 0, 8, 8], "split": "val"},
    ]
    (tmp_path / "refcoco.json").write_text(json.dumps(items))
    files = {"test_files": (str(tmp_path / "refcoco.json"),), "test_file_split": "testA"}
    out = tmp_path / "out"
    result = stage.run(
        config(files),
        inputs=stage.Inputs(data=data, captions=data, regions=data, encoder=encoder),
        outputs=stage.Outputs(adapter=str(out)),
    )
    assert "eval/mllm_ground/refcoco/acc_0.5" in result.metrics
    (item,) = [each for each in read_predictions(out / "predictions.jsonl") if each.source]
    assert item.right == [pytest.approx((0.1, 0.1, 0.6, 0.6))]
    assert "refcoco:" in (out / "report" / "index.html").read_text()
