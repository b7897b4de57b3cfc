"""What goes wrong in training, as a user meets it: one last line that says what to do, and what was trained stays."""

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cloc.data.batches import Batch
from cloc.errors import ConfigError, DataError, TrainingError
from cloc.training import stage
from cloc.training.step import Stepper
from cloc.training.task import CLOCTask, Losses
from cloc.training.trainer import Trainer
from cloc.training.watch.anomalies import BAD_BATCHES
from tests.conftest import write_dataset
from tests.integration import training_runs as runs

IMAGES = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "train", IMAGES, shard_size=4)


@pytest.fixture(scope="module")
def tokenizer(data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs.tokenizer_for(data, tmp_path_factory.mktemp("tokenizer"))


# --- Bad batches ------------------------------------------------------------------------------------------------------

BAD = 4  # the step, from 1, whose batch is bad


@dataclass(frozen=True)
class Whole:
    """A run that nothing happened to."""

    out: Path
    keys: list[tuple[str, ...]]  # of every step


@pytest.fixture(scope="module")
def whole(data: str, tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    out, keys = tmp_path_factory.mktemp("whole"), list[tuple[str, ...]]()
    plain = Stepper.backward

    def backward(self: Stepper, batch: Batch) -> Losses:
        keys.append(batch.keys)
        return plain(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "backward", backward)
        runs.train_here(runs.job(data, out, tokenizer, settings=runs.config()))
    return Whole(out, keys)


def poison(patch: pytest.MonkeyPatch, *keys: str) -> None:
    """Makes the loss of every batch with any of these samples NaN, and so all gradients."""
    plain = CLOCTask.losses

    def losses(self: CLOCTask, embeddings: Any, batch: Batch, *rest: Any, **named: Any) -> Losses:
        found = plain(self, embeddings, batch, *rest, **named)
        return replace(found, total=found.total * math.nan) if set(keys) & set(batch.keys) else found

    patch.setattr(CLOCTask, "losses", losses)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_skipped_batch_leaves_no_trace(
    data: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    """Weights, their average and the optimisers' state are bitwise those of a run that did not have the batch."""
    settings = runs.config(on_nonfinite="skip", ema=0.9, optimizer=optimizer)
    plain, found = Trainer._step, dict[str, dict[str, torch.Tensor]]()

    def without(self: Trainer, batch: Batch, step: int) -> Any:
        if step == BAD - 1:
            return self.last
        self.last = plain(self, batch, step)
        return self.last

    def poisoned(self: Trainer, batch: Batch, step: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            if step == BAD - 1:
                poison(patch, *batch.keys)
            return plain(self, batch, step)

    for name, way in (("without", without), ("poisoned", poisoned)):
        monkeypatch.setattr(Trainer, "_step", way)
        rank = runs.trainer(runs.job(data, tmp_path / name, tokenizer, settings=settings))
        state = rank.run()
        assert state.skipped == (name == "poisoned")
        found[name] = rank._tensors()
    assert found["without"].keys() == found["poisoned"].keys()
    assert any(key.startswith("average.") for key in found["without"])
    for key, value in found["without"].items():
        assert torch.equal(value, found["poisoned"][key]), key
    runs.assert_same_weights(tmp_path / "without", tmp_path / "poisoned")
    assert runs.curve(tmp_path / "poisoned", "train/skipped_batches") == [0] * (BAD - 1) + [1] * (9 - BAD)


def test_a_bad_batch_stops_training_and_is_named(
    data: str, tokenizer: str, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = whole.keys[BAD - 1]
    given = runs.job(data, tmp_path, tokenizer, settings=runs.config())
    poison(monkeypatch, keys[-1])
    with pytest.raises(TrainingError) as caught:
        runs.train_here(given)
    first = next(step for step, batch in enumerate(whole.keys, start=1) if keys[-1] in batch)
    found = whole.keys[first - 1]
    assert str(caught.value) == (
        f"step {first}: the loss is nan; samples {found[0]}, {found[1]}, {found[2]} and 5 more "
        f"({tmp_path}/{BAD_BATCHES}); look at these samples, lower train.learning_rate, or set train.on_nonfinite=skip"
    )
    written = json.loads((tmp_path / BAD_BATCHES).read_text())
    assert written["keys"] == list(found)
    assert (written["step"], written["verdict"], written["loss"]) == (first, "stop", "nan")
    # What the message advises works: the run goes on from its last checkpoint.
    state = runs.train_here(replace(given, config=runs.config(on_nonfinite="skip").model_dump(mode="json")))
    assert (state.step, state.skipped) == (8, sum(keys[-1] in batch for batch in whole.keys))


def test_a_run_that_only_meets_bad_batches_ends(
    data: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, *(f"{number:06d}" for number in range(IMAGES)))
    settings = runs.config(on_nonfinite="skip", max_skipped=3)
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan, after 3 skipped batches in a row"):
        runs.train_here(runs.job(data, tmp_path, tokenizer, settings=settings))
    assert len((tmp_path / BAD_BATCHES).read_text().splitlines()) == 4


# --- Data -------------------------------------------------------------------------------------------------------------


def told(data: str, out: Path, error: type[Exception], **train: Any) -> str:
    """What the launching process says, before anything is launched."""
    given = stage.Inputs(data=data, captions=data, regions=data)
    with pytest.raises(error) as caught:
        stage.run(runs.config(**train), inputs=given, outputs=stage.Outputs(model=str(out)))
    assert "\n" not in str(caught.value)
    assert not (out / "logs").exists()
    return str(caught.value)


@pytest.mark.parametrize("processes", [1, 2])
def test_data_that_cannot_be_trained_on(tmp_path: Path, processes: int) -> None:
    """The same line whatever the number of processes."""
    out = tmp_path / "out"
    none = write_dataset(tmp_path / "none", 0)
    assert told(none, out, DataError, processes=processes) == (
        f"{none}: the data set has no shards; ingest images into it"
    )
    few = write_dataset(tmp_path / "few", 6)
    assert told(few, out, DataError, processes=processes) == (
        f"{few}: 6 images are fewer than a batch of 8; lower train.batch_size"
    )
    mute = write_dataset(tmp_path / "mute", 8, captions=False)
    assert told(mute, out, DataError, processes=processes) == (f"{mute}: no image has a caption; run captioning first")
    bare = write_dataset(tmp_path / "bare", 8, regions=False)
    assert told(bare, out, DataError, processes=processes) == (
        f"{bare}: no image has a region; run grounding first, or train plain CLIP (objective clip)"
    )
    gone = str(tmp_path / "gone")
    assert told(gone, out, DataError, processes=processes).startswith(f"{gone}: neither a data set nor a collection")


def test_plain_clip_needs_no_regions(tmp_path: Path) -> None:
    bare = write_dataset(tmp_path / "bare", 8, regions=False)
    given = runs.job(bare, tmp_path / "out", runs.tokenizer_for(bare, tmp_path / "tok"), settings=runs.config(steps=1))
    assert runs.train_here(replace(given, objective="clip")).step == 1


def spoil(data: str, shard: int) -> str:
    """Cuts a shard in the middle; returns its path."""
    path = Path(data) / "images" / f"{shard:05d}.tar"
    path.write_bytes(path.read_bytes()[:3000])
    return str(path)


def test_bad_shards_are_named(data: str, tokenizer: str, tmp_path: Path) -> None:
    one = shutil.copytree(data, tmp_path / "one")
    bad = spoil(str(one), 3)
    with pytest.raises(DataError, match="truncated") as caught:
        runs.train_here(runs.job(str(one), tmp_path / "a", tokenizer, settings=runs.config()))
    assert str(caught.value).startswith(bad)
    for shard in range(6):
        spoil(str(one), shard)
    with pytest.raises(DataError, match=rf"{one}/images/0000\d\.tar: truncated .*; write this tar again") as caught:
        runs.train_here(runs.job(str(one), tmp_path / "b", tokenizer, settings=runs.config()))
    assert "\n" not in str(caught.value)
    for shard in range(6):
        (one / "images" / f"{shard:05d}.tar").unlink()
    with pytest.raises(DataError, match=r"there is no images/0000\d\.tar"):
        runs.train_here(runs.job(str(one), tmp_path / "c", tokenizer, settings=runs.config()))


def test_a_box_that_is_not_finite_names_its_table(data: str, tokenizer: str, tmp_path: Path) -> None:
    """PyTorch's grid_sample would crash the process at it."""
    broken = shutil.copytree(data, tmp_path / "data")
    rows = pq.read_table(broken / "regions" / "00002.parquet")
    columns = {name: rows[name].to_pylist() for name in rows.column_names}
    columns["x1"][1] = math.nan
    pq.write_table(pa.table(columns, schema=rows.schema), broken / "regions" / "00002.parquet")
    with pytest.raises(DataError) as caught:
        runs.train_here(runs.job(str(broken), tmp_path / "out", tokenizer, settings=runs.config()))
    assert str(caught.value) == f"{broken}/regions/00002.parquet: 1 boxes are not finite; make this table again"


def test_a_tokenizer_that_does_not_load(data: str, tmp_path: Path) -> None:
    (tmp_path / "tok").mkdir()
    for name in (str(tmp_path / "tok"), str(tmp_path / "gone")):
        with pytest.raises(ConfigError) as caught:
            runs.trainer(runs.job(data, tmp_path / "out", name, settings=runs.config()))
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def changed(settings: dict[str, Any], **model: Any) -> Any:
    tree = json.loads(json.dumps(settings))
    tree["model"] |= model
    return tree


def test_a_run_does_not_go_on_as_another_one(data: str, tokenizer: str, whole: Whole, tmp_path: Path) -> None:
    """Another architecture, other settings, other data; the checkpoint stays as it is."""
    shutil.copytree(whole.out / "checkpoints", tmp_path / "checkpoints")
    before = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "checkpoints").rglob("*"))
    given = runs.job(data, tmp_path, tokenizer, settings=runs.config())
    others = {
        "model.embed_dim was 16 and is 24": replace(given, config=changed(given.config, embed_dim=24)),
        "train.learning_rate was 0.001 and is 0.002": replace(
            given, config=runs.config(learning_rate=2e-3).model_dump(mode="json")
        ),
        "data was '0' and is '1'": replace(given, data_digest="1"),
        "objective was 'cloc' and is 'clip'": replace(given, objective="clip"),
    }
    for difference, other in others.items():
        with pytest.raises(TrainingError) as caught:
            runs.train_here(other)
        assert f"{tmp_path}/checkpoints belongs to a run with other settings or data: " in str(caught.value)
        assert difference in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "checkpoints").rglob("*")) == before


# --- As a user meets it -----------------------------------------------------------------------------------------------


def test_a_rank_out_of_memory_is_the_last_line_and_not_the_rank_that_lost_it(data: str, tmp_path: Path) -> None:
    ended = runs.run(runs.config(processes=2), data, tmp_path / "out", fault={"rank": 1, "step": 3, "do": "gpu memory"})
    assert ended.last == (
        "error: out of GPU memory (it asked for 2.00 GiB of 79.10 GiB): set train.micro_batch=2 (now 4 images a "
        "process at once), then train.gradient_checkpointing=true, then a smaller train.batch_size (now 8)"
    )
    assert ended.code == TrainingError.exit_code
    assert "Traceback" not in ended.out + ended.err
    assert ended.err.count("out of GPU memory") == 1


@pytest.mark.slow
def test_a_killed_rank_is_named(data: str, tmp_path: Path) -> None:
    settings = runs.config(processes=2, checkpoint_async=False)  # step 3 is whole before the kill
    ended = runs.run(settings, data, tmp_path / "out", fault={"rank": 1, "step": 4, "do": "kill"})
    assert re.fullmatch(
        r"error: rank 1 on \S+ was killed by SIGKILL \(out of memory\?\): run the same command again, it goes on from "
        r"its last checkpoint; where memory was short, lower train\.micro_batch, train\.workers or "
        r"train\.shuffle_buffer first",
        ended.last,
    ), ended.err
    assert ended.code == 5
    assert (tmp_path / "out" / "checkpoints" / "step-00000003" / "state.json").is_file()


@pytest.mark.slow
def test_ranks_that_wait_in_vain_say_so(data: str, tmp_path: Path) -> None:
    settings = runs.config(processes=2, timeout_seconds=5)
    ended = runs.run(settings, data, tmp_path / "out", fault={"rank": 1, "step": 4, "do": "stand still"})
    assert ended.last.startswith(
        "error: rank lost: another process did not answer within 5 s (train.timeout_seconds); it stands still"
    )
    assert ended.code == 5


@pytest.mark.slow
def test_a_defect_keeps_its_traceback_and_names_its_rank(data: str, tmp_path: Path) -> None:
    ended = runs.run(runs.config(processes=2), data, tmp_path / "out", fault={"rank": 1, "step": 2, "do": "defect"})
    assert re.fullmatch(r"error: rank 1 on \S+ crashed with exit code 1; its traceback stands above", ended.last), (
        ended.err
    )
    assert "[rank 1] KeyError: 'a defect of the program'" in ended.err + ended.out


@pytest.mark.slow
def test_one_rank_out_of_main_memory(data: str, tmp_path: Path) -> None:
    ended = runs.run(
        runs.config(processes=1), data, tmp_path / "out", fault={"rank": 0, "step": 2, "do": "host memory"}
    )
    assert ended.last.startswith("error: out of memory (it asked for 4194304.00 GiB): set train.micro_batch=4 (now 8")
    assert ended.code == 5


@pytest.mark.slow
def test_bad_shards_are_one_line_on_two_ranks(data: str, tmp_path: Path) -> None:
    broken = shutil.copytree(data, tmp_path / "data")
    for shard in range(6):
        spoil(str(broken), shard)
    ended = runs.run(runs.config(processes=2), str(broken), tmp_path / "out")
    assert re.match(rf"error: {broken}/images/0000\d\.tar: truncated ", ended.last), ended.err
    assert ended.code == 3
    assert "Traceback" not in ended.err + ended.out


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount a small file system")
def test_a_full_disk_leaves_the_last_good_checkpoint(data: str, tmp_path: Path) -> None:
    """A file system that has room enough at the start, and that something else fills up while training runs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
    try:
        settings = runs.config(processes=2, steps=60, checkpoint_every=2, keep_checkpoints=2)
        process = runs.start(settings, data, disk / "out")
        while not any(disk.glob("out/checkpoints/step-*/state.json")):
            assert process.poll() is None, process.communicate()[1][-2000:]
            time.sleep(0.02)
        with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
            while True:
                other.write(bytes(4096))
        last = process.communicate(timeout=300)[1].strip().splitlines()[-1]
        assert "No space left on device" in last or "the disk is full" in last
        assert "free some space" in last
        assert process.returncode == 5
        assert any(disk.glob("out/checkpoints/step-*/state.json"))
        # Room was made: the same command goes on from the last one that is whole.
        (disk / "other").unlink()
        again = runs.run(settings, data, disk / "out")
        assert again.code == 0, again.err[-2000:]
        assert json.loads((disk / "out" / "training.json").read_text())["steps"] == 60
        assert runs.curve(disk / "out")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
