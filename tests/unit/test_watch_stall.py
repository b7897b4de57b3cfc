"""A training that stands still: every rank says where."""

import os
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from cloc.training.watch.stall import Watchdog

# Two ranks add numbers up; in step 2 one of them falls asleep, and the other one waits for it.
RANKS = """
import os, sys, time
import torch.distributed as dist
import torch
from cloc.training.watch.stall import Watchdog

def fall_asleep():
    time.sleep(8)

dist.init_process_group("gloo")
rank = dist.get_rank()
with Watchdog(rank, seconds=2) as watchdog:
    for step in range(4):
        if rank == 1 and step == 2:
            fall_asleep()
        dist.all_reduce(torch.ones(1))
        watchdog.beat(step + 1)
print("ended", flush=True)
os._exit(0)
"""

# The thread that hangs keeps the interpreter's lock: no other one of Python runs.
LOCKED = """
import ctypes
from cloc.training.watch.stall import Watchdog

def keep_the_lock():
    ctypes.PyDLL(None).sleep(3)

with Watchdog(0, seconds=0.5) as watchdog:
    watchdog.beat(1)
    keep_the_lock()
"""


def _run(script: str, **variables: str) -> "subprocess.Popen[str]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **variables}, **pipes)


def test_every_rank_prints_its_stacks() -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [_run(RANKS, RANK=str(rank), **group) for rank in range(2)]
    for rank, process in enumerate(ranks):
        out, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert out == "ended\n"
        line = rf"^rank {rank} stands still: no step for [2-9] s after step 2 \(train.stall_seconds 2\)"
        assert len(re.findall(line, said, re.MULTILINE)) >= 1, said
        where = "in fall_asleep" if rank == 1 else "in all_reduce"
        assert where in said.split("stands still", 1)[1]


def test_a_thread_that_keeps_the_lock_is_seen_as_well() -> None:
    process = _run(LOCKED)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "in keep_the_lock" in said


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]):
    """What was said on stderr until a text is in it as often as asked for."""
    so_far = [""]

    def wait(text: str, times: int, *, seconds: float = 30.0) -> str:
        end = time.monotonic() + seconds
        while so_far[0].count(text) < times and time.monotonic() < end:
            time.sleep(0.02)
            so_far[0] += capfd.readouterr().err
        return so_far[0]

    return wait


def test_it_says_so_again_at_growing_intervals_and_ends_quietly(said) -> None:
    with Watchdog(3, seconds=0.3) as watchdog:
        text = said("rank 3 stands still", 1)
        assert "before the first step" in text
        assert "test_watch_stall.py" in text, "the stack of the thread that waits"
        watchdog.beat(7)
        text = said("after step 7", 2)
    waits = [float(value) for value in re.findall(r"no step for (\d+) s after step 7", text)]
    assert len(waits) >= 2
    assert waits[1] >= waits[0]
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


def test_steps_in_time_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Watchdog(0, seconds=20) as watchdog:
        for step in range(5):
            watchdog.beat(step)
            time.sleep(0.01)
    assert capfd.readouterr().err == ""


def test_zero_watches_nothing() -> None:
    with Watchdog(0, seconds=0) as watchdog:
        watchdog.beat(1)
        assert "watchdog" not in [thread.name for thread in threading.enumerate()]
