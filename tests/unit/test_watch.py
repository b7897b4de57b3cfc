"""What is measured of a training, kept, and shown."""

import json
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from cloc.config import parse
from cloc.data.batches import Batch
from cloc.data.storage import StorageError, open_storage
from cloc.model import factory
from cloc.training.checkpoint import TrainingState
from cloc.training.distributed import Rank
from cloc.training.flops import Costs, Load, Peak
from cloc.training.job import TrainingJob
from cloc.training.jobfile import METRICS_FILE
from cloc.training.watch import clock as clocks
from cloc.training.watch import meter as meters
from cloc.training.watch import progress
from cloc.training.watch.clock import Clock
from cloc.training.watch.meter import Meter
from cloc.training.watch.record import Recorder
from cloc.training.watch.rows import ObjectRows, open_rows

CONFIG = parse(
    {
        "model": {
            "embed_dim": 16,
            "vision": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "heads": 2},
            "text": {"width": 16, "layers": 1, "heads": 2, "context_length": 16, "vocab_size": 540},
        }
    },
    source="test",
)
RANK = Rank(0, 1, torch.device("cpu"))


class FakeTime:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.now / 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    for module in (meters, clocks):
        monkeypatch.setattr(module, "time", fake)
    return fake


def batch(*, images: int = 4, present: int = 5, length: int = 6, texts: int = 3) -> Batch:
    flags = torch.zeros(images, 4, dtype=torch.bool)
    flags.view(-1)[:present] = True
    return Batch(
        keys=tuple(str(number) for number in range(images)),
        pixels_BSS3=torch.zeros(images, 32, 32, 3, dtype=torch.uint8),
        caption_ids_BL=torch.zeros(images, length, dtype=torch.long),
        boxes_BM4=torch.zeros(images, 4, 4),
        points_BM2=torch.zeros(images, 4, 2),
        pointed_BM=flags,
        present_BM=flags,
        text_ids_UL=torch.zeros(texts, length + 1, dtype=torch.long),
        text_index_BM=torch.zeros(images, 4, dtype=torch.long),
    )


def test_a_window_is_measured(clock: FakeTime) -> None:
    costs = Costs(factory.architecture(CONFIG.model), objective="cloc", loss=CONFIG.loss, train=CONFIG.train)
    meter = Meter(RANK, batch_size=4, patch_size=8, reads_regions=True, costs=costs, peak=Peak(1e9, "test"))
    meter.start()
    for texts in (3, 5):
        with meter.waiting():
            clock.now += 0.5
        clock.now += 1.5
        meter.step(batch(texts=texts))
    with meter.pausing():  # a checkpoint is no part of a step
        clock.now += 100
    found = meter.close()
    assert found["speed/images_per_second"] == 8 / 4
    assert found["speed/step_seconds"] == 2
    assert found["speed/data_wait_share"] == 0.25
    assert found["speed/regions_per_second"] == 10 / 4
    assert found["speed/tokens_per_second"] == (2 * 4 * 16 + 2 * 4 * 6 + 8 * 7) / 4
    load = Load(images=4, image_size=32, texts=8, tokens=24 + 28, squares=4 * 36 + 4 * 49, regions=5)
    assert found["speed/mfu"] == pytest.approx(costs.step(load).total / 2 / 1e9)
    assert 0.05 < found["system/memory_gib"] < 100
    assert "system/gpu_memory_gib" not in found
    clock.now += 1
    meter.step(batch())
    assert meter.close()["speed/step_seconds"] == 1, "the next window begins where the last one ended"


def test_plain_clip_reads_no_region_texts(clock: FakeTime) -> None:
    meter = Meter(RANK, batch_size=4, patch_size=8, reads_regions=False)
    meter.start()
    clock.now += 1
    meter.step(batch())
    found = meter.close()
    assert found["speed/tokens_per_second"] == 4 * 16 + 4 * 6
    assert "speed/mfu" not in found


def test_the_clock_goes_on_and_leaves_out_what_is_no_training(clock: FakeTime) -> None:
    logging = [3.0]
    state = TrainingState(5, {}, cpu_seconds=10.0, wall_seconds=20.0)
    watch = Clock(state, background=lambda: logging[0])
    clock.now += 8
    logging[0] += 1.5
    assert watch.wall == 28
    assert watch.cpu() == 10 + 4 - 1.5


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    written = open_rows(str(tmp_path), start=0)
    for step in (1, 2, 3):
        written.add({"step": step, "loss/total": 3.0 - step})
        assert len(rows(tmp_path / METRICS_FILE)) == step, "a row is there at once"
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 4, "loss')  # killed while it wrote
    again = open_rows(str(tmp_path), start=2)
    assert [row["step"] for row in rows(tmp_path / METRICS_FILE)] == [1, 2]
    again.add({"step": 3, "loss/total": 0.5})
    again.close()
    assert [row["step"] for row in rows(tmp_path / METRICS_FILE)] == [1, 2, 3]
    open_rows(str(tmp_path), start=0).close()
    assert rows(tmp_path / METRICS_FILE) == []


def test_a_run_goes_on_where_no_rows_were_kept(tmp_path: Path) -> None:
    kept = open_rows(str(tmp_path / "fresh"), start=4)
    kept.add({"step": 5})
    kept.close()
    assert rows(tmp_path / "fresh" / METRICS_FILE) == [{"step": 5}]


def test_an_object_is_written_whole_now_and_then_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage, tries, fails = open_storage(tmp_path), threading.Semaphore(0), [True]
    write = storage.write_bytes

    def flaky(path: str, body: bytes) -> None:
        try:
            if fails[0]:
                raise StorageError("the bucket is away")
            write(path, body)
        finally:
            tries.release()

    monkeypatch.setattr(storage, "write_bytes", flaky)
    kept = ObjectRows(storage, ['{"step": 1}'], interval=0.01)
    kept.add({"step": 2})
    assert tries.acquire(timeout=10)
    assert tries.acquire(timeout=10), "it is tried again"
    fails[0] = False
    end = time.monotonic() + 10
    while not (tmp_path / METRICS_FILE).exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert [row["step"] for row in rows(tmp_path / METRICS_FILE)] == [1, 2]
    kept._over.set()
    kept._thread.join()
    kept.add({"step": 3})
    kept.close()
    assert [row["step"] for row in rows(tmp_path / METRICS_FILE)] == [1, 2, 3]
    assert capsys.readouterr().err.count("metrics are kept back until they can be written: the bucket is away") == 1


def test_the_end_fails_where_the_object_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path)

    def away(path: str, body: bytes) -> None:
        raise StorageError("the bucket is away")

    monkeypatch.setattr(storage, "write_bytes", away)
    with pytest.raises(StorageError, match="the bucket is away"):
        ObjectRows(storage, [], interval=60).close()


def job(output: Path, **loss: object) -> TrainingJob:
    settings = CONFIG.model_dump(mode="json")
    settings["loss"] |= loss
    return TrainingJob(settings, "cloc", 100, "images", "captions", "regions", "", "", str(output))


VALUES = {
    "loss/total": 4.0,
    "loss/image": 1.25,
    "loss/region": 0.5,
    "loss/grounding": 0.03,
    "train/learning_rate": 1e-3,
    "samples": 80.0,
}


@pytest.mark.parametrize(("kind", "chance"), [("infonce", [pytest.approx(2.0794415)]), ("sigmoid", [])])
def test_a_recorder_writes_rows_and_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, chance: list[float]
) -> None:
    monkeypatch.delenv("CLOC_MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv(progress.BAR, raising=False)
    with Recorder(job(tmp_path, image=kind), start=0, batch_size=8) as recorder:
        recorder.step(9)
        recorder.step(10)
        recorder.write(10, seconds=1.23456, values=VALUES)
        assert recorder.background_seconds() == 0
    (row,) = rows(tmp_path / METRICS_FILE)
    assert {name: row[name] for name in ("step", "seconds", *VALUES)} == {"step": 10, "seconds": 1.235, **VALUES}
    assert [value for name, value in row.items() if name == "loss/ln_batch"] == chance
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("cloc step 10/100, image 1.250, region 0.500, grounding 0.0300, lr 1.0e-03, ")
    assert line.endswith(" s left")


def test_a_bar_is_told_of_steps_between_records(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(progress.BAR, "bar")
    monkeypatch.setattr(progress, "_BAR_SECONDS", 0.0)
    reporter = progress.Reporter("clip", start=4, steps=10, batch_size=8)
    reporter.step(5)
    assert not capsys.readouterr().out, "nothing is known yet"
    reporter.record(6, {"loss/image": 2.0})
    reporter.step(7)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("clip step 6/10, image 2.000, ")
    assert second.startswith("clip step 7/10, image 2.000, ")


SCREEN = """
import os, sys
from cloc.training.watch.progress import BAR, Screen, line
with Screen() as screen:
    print("asked", os.environ.get(BAR))
    screen.show("job is running")
    for step in (10, 100):
        values = {"loss/image": 1.5, "train/learning_rate": 1e-3}
        screen.show("[rank 0] " + line("cloc", step, 100, values=values, speed=150.0, left=3.0))
    screen.show("a warning", is_error=True)
print("asked", os.environ.get(BAR))
"""
LINE = "cloc step 10/100, image 1.500, lr 1.0e-03, 150 images/s, 3 s left"


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != progress.BAR} | {
        "TERM": "xterm",
        "COLUMNS": "100",
    }


def test_lines_are_lines_where_there_is_no_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCREEN], capture_output=True, text=True, check=True, env=_environment()
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == ["asked None", "job is running", f"[rank 0] {LINE}"]
    assert lines[-1] == "asked None"
    assert done.stderr == "a warning\n"


def test_a_terminal_has_a_bar() -> None:
    parent, child = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", SCREEN], stdout=child, stderr=child, env=_environment()) as process:
        os.close(child)
        said = b""
        while True:
            try:
                said += os.read(parent, 4096)
            except OSError:  # Linux says so that the other side is closed
                break
    os.close(parent)
    text = said.decode()
    assert process.returncode == 0, text
    assert "asked bar" in text
    assert "━" in text
    assert "100/100" in text
    assert "image 1.500, lr 1.0e-03, 150 images/s" in text
    assert "cloc step" not in text, "the line itself is not shown"
    assert text.index("job is running") < text.index("━")
    assert "a warning" in text
    assert text.rstrip().endswith("asked None")
