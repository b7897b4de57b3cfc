"""What tracking costs a training, and a stage whose server is away.

    python benchmarks/tracking.py              # steps of 0.3 s with 300 metrics each, a real `mlflow server`
    python benchmarks/tracking.py --steps 40

The same loop with and without tracking takes turns, by steps: a step works on the processor for 0.3 s (bare products of
matrices), then writes its row as training does, and with tracking hands it over. What that takes of the loop's own
thread and what the sending thread takes are processor times. Stages that do nothing begin and end on SQLite, on an
address that refuses, and on one that never answers.
"""

import argparse
import contextlib
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from cloc import tracking
from cloc.config.schema import TrackingConfig
from cloc.tracking.store import connect
from cloc.training.watch.live import LiveRun, live_run
from cloc.training.watch.rows import FileRows


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server's address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--serve-artifacts"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(900):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class Work:
    """A step's work: always the same products, about 0.3 s of a processor."""

    def __init__(self, seconds: float) -> None:
        self._matrix = np.random.default_rng(0).random((400, 400), dtype=np.float32)
        began, self._times = time.process_time(), 0
        while time.process_time() - began < seconds:
            self.once()
            self._times += 1

    def once(self) -> None:
        """One product."""
        np.matmul(self._matrix, self._matrix)

    def step(self) -> None:
        """A step."""
        for _ in range(self._times):
            self.once()


def row(step: int, metrics: int) -> dict[str, float]:
    """A row as training writes it."""
    values = {f"loss/part_{number}" if number < 8 else f"train/layer_{number}/norm": step / (number + 1)
              for number in range(metrics)}  # fmt: skip
    return {
        "step": step,
        "seconds": 0.3 * step,
        "timestamp": time.time_ns() // 1_000_000,
        "samples": 64.0 * step,
        **values,
    }


def compare(
    live: LiveRun, rows: FileRows, *, work: Work, steps: int, metrics: int, block: int
) -> dict[str, list[float]]:
    """Seconds a step: the process's processor time in blocks that take turns, and what handing a row over takes."""
    found = {name: list[float]() for name in ("bare", "tracked", "own", "stall")}
    for first in range(1, steps + 1, block):  # step 0 is there
        for tracked in (False, True):
            began = time.process_time()
            for step in range(first, first + block):
                work.step()
                made = row(step, metrics)
                rows.add(made)
                if tracked:
                    began_cpu, began_clock = time.thread_time(), time.perf_counter()
                    live.log(made)
                    found["own"].append(time.thread_time() - began_cpu)
                    found["stall"].append(time.perf_counter() - began_clock)
            found["tracked" if tracked else "bare"].append((time.process_time() - began) / block)
    return found


def measure_loop(folder: Path, *, steps: int, metrics: int, seconds: float, block: int) -> None:
    """Prints what tracking takes of a step."""
    with serving(folder) as uri:
        config = TrackingConfig(uri=uri, experiment="benchmark")
        with tracking.stage_run(config, stage="pretraining", settings={}) as run:
            live = live_run()
            assert live is not None
            live.log(row(0, metrics))
            client = connect(uri)
            while not client.get_metric_history(run.run_id, "samples"):  # its thread imports mlflow
                time.sleep(1)
            work, cpu = Work(seconds), live.cpu_seconds
            found = compare(live, FileRows(folder, []), work=work, steps=steps, metrics=metrics, block=block)
            live.close(patience=60)
            sending = (live.cpu_seconds - cpu) / steps
            arrived = len(client.get_metric_history(run.run_id, "samples")) - 1
    bare = statistics.median(found["bare"])
    print(f"\n{steps} steps of {bare * 1000:.0f} ms, {metrics} metrics each; {arrived} of them arrived\n")
    print("| what | ms a step | of a step |\n|---|---:|---:|")
    for name, value in (
        ("processor time of the loop's thread", statistics.median(found["own"])),
        ("processor time of the sending thread", sending),
        ("the loop waits, by the clock (median)", statistics.median(found["stall"])),
        ("the process, tracked over bare", statistics.median(found["tracked"]) - bare),
    ):
        print(f"| {name} | {value * 1000:.2f} | {value / bare:.2%} |")


def measure_stage(name: str, uri: str) -> None:
    """Prints what a stage that does nothing takes."""
    times, said = list[float](), io.StringIO()
    with contextlib.redirect_stderr(said):
        for _ in range(3):
            began = time.perf_counter()
            with tracking.stage_run(TrackingConfig(uri=uri), stage="captioning", settings={"a": 1}):
                times.append(time.perf_counter() - began)
                middle = time.perf_counter()
            times.append(time.perf_counter() - middle)
    starts, ends, lines = times[::2], times[1::2], len(said.getvalue().splitlines()) // 3
    print(
        f"| {name} | {starts[0]:.2f} | {statistics.median(starts[1:]):.2f} | {statistics.median(ends):.2f} | {lines} |"
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--metrics", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--block", type=int, default=20, help="steps a turn")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, socket.create_server(("127.0.0.1", 0)) as silent:
        os.chdir(scratch)
        print("| store | first start, s | start, s | end, s | lines on stderr |\n|---|---:|---:|---:|---:|")
        measure_stage("SQLite", f"sqlite:///{scratch}/mlflow.db")
        measure_stage("refuses connections", "http://127.0.0.1:9")
        measure_stage("never answers", f"http://127.0.0.1:{silent.getsockname()[1]}")
        measure_loop(Path(scratch), **{name: getattr(given, name) for name in ("steps", "metrics", "seconds", "block")})


if __name__ == "__main__":
    main()
