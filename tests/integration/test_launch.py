"""Launching for real: agents with their ranks, jobs through TorchX on this machine, and a cluster's API that is faked.

With a cluster: CLOC_CLUSTER_IMAGE=registry.example/cloc:1 CLOC_CLUSTER_STORAGE=s3://bucket/tests pytest -m cluster
(see docs/training.md).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cloc.config import parse
from cloc.config.schema import TrainConfig
from cloc.errors import DataError, TrainingError
from cloc.training import stage
from cloc.training.agent import Part, run
from cloc.training.launch import run_app, training_app
from cloc.training.preemption import PREEMPTED, Stopped
from tests.conftest import children, write_dataset
from tests.integration.test_training import TINY
from tests.s3_server import needs_server, serving_s3, use_endpoint

ROOT = Path(__file__).parents[2]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _signals_are_given_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def part(processes: int, what: dict[str, list[list[object]]], **more: object) -> Part:
    return Part(output=json.dumps(what), processes=processes, module="tests.fake_rank", **more)


def when(ready: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Calls `act` in a thread once `ready`."""

    def wait() -> None:
        while not ready():
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The agent


def test_agent_prefixes_lines_and_says_equal_errors_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    here = [str(tmp_path / "0"), str(tmp_path / "1")]  # nobody ends before both have spoken
    end = [["wait", *here], ["warn", "error: no shards in s3://b/data"], ["exit", 3]]
    what = {
        "0": [["say", "step 1"], ["warn", "careful"], ["mark", here[0]], *end],
        "1": [["say", "step 1"], ["mark", here[1]], *end],
    }
    assert run(part(2, what)) == 3
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == ["[rank 0] step 1", "[rank 1] step 1"]
    assert err.splitlines() == ["[rank 0] careful", "error: no shards in s3://b/data"]


def test_one_rank_speaks_without_prefix_and_crashes_name_it(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(part(1, {"0": [["say", "step 1"], ["exit", 1]]})) == 1
    out, err = capfd.readouterr()
    assert out == "step 1\n"
    assert err.splitlines()[-1].startswith(f"error: rank 0 on {socket.gethostname()} crashed with exit code 1")


def test_a_killed_rank_is_named_and_the_others_end(capfd: pytest.CaptureFixture[str]) -> None:
    what = {"0": [["sleep", 60]], "1": [["sleep", 0.2], ["kill", 9]]}
    # Rank 0 does not listen to SIGTERM while it sleeps: like one that waits for a sum.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cloc.training.agent._COLLATERAL_SECONDS", 1)
        assert run(part(2, what)) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: rank 1 on {socket.gethostname()} was killed by SIGKILL (out of memory?): run")


def test_sigterm_gives_ranks_the_time_that_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 has left when rank 1 still writes: it must not be cut."""
    monkeypatch.setattr("cloc.training.agent._COLLATERAL_SECONDS", 0)
    files, up = [tmp_path / "0", tmp_path / "1"], [tmp_path / "up-0", tmp_path / "up-1"]
    what = {
        str(rank): [["mark", str(up[rank])], ["save", seconds, str(files[rank])]]
        for rank, seconds in enumerate((0.0, 1.5))
    }

    def tell() -> None:
        for _ in range(2):  # a scheduler may tell more than once
            os.kill(os.getpid(), signal.SIGTERM)

    teller = when(lambda: all(file.exists() for file in up), tell)
    assert run(part(2, what, grace=60)) == PREEMPTED
    teller.join()
    assert all(file.exists() for file in files)
    assert not children()


def test_a_rank_that_does_not_save_in_time_is_killed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    up, what = tmp_path / "up", ["save", 60, str(tmp_path / "0")]
    when(up.exists, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(part(1, {"0": [["mark", str(up)], what]}, grace=1)) == PREEMPTED
    assert "did not save within 1 seconds" in capfd.readouterr().err.splitlines()[-1]
    assert not children()


def test_two_machines_find_each_other_and_a_taken_port_is_one_line() -> None:
    port = free_port()
    what = json.dumps({str(rank): [["say", f"I am {rank}"]] for rank in range(4)})
    command = [sys.executable, str(ROOT / "tests" / "fake_agent.py"), what, str(port)]
    second = subprocess.Popen([*command, "1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    try:
        first = subprocess.run([*command, "0"], capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
        said = first.stdout + str(second.communicate(timeout=120)[0])
    finally:
        second.kill()
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + said
    assert sorted(said.split("\n")) == ["", *(f"[rank {rank}] I am {rank}" for rank in range(4))]
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        port = int(holder.getsockname()[1])
        with pytest.raises(TrainingError, match=f"port {port} of .* cannot be listened at .*set train.port"):
            run(part(1, {}, nodes=2, port=port))


# The launcher, with agents that are scripts


def settings(**train: object) -> TrainConfig:
    return TrainConfig(processes=1, **train)


def script(tmp_path: Path, text: str, config: TrainConfig):
    """The application, whose agent is a script; `count` in it is the number of this attempt."""
    counter = tmp_path / "attempts"
    head = (
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        f"path = Path({str(counter)!r})\n"
        "count = len(path.read_text()) + 1 if path.exists() else 1\npath.write_text('x' * count)\n"
    )
    (tmp_path / "agent.py").write_text(head + text)
    app = training_app(str(tmp_path), config, module="cloc.training.trainer", environment={})
    app.roles[0].args = [str(tmp_path / "agent.py")]
    return app


def attempts(tmp_path: Path) -> int:
    return len((tmp_path / "attempts").read_text())


def test_a_lost_job_is_tried_again_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (
        "print('at work', flush=True)\nprint('a warning', file=sys.stderr, flush=True)\n"
        "if count == 1: print('error: rank 1 on h was killed', file=sys.stderr)\n"
        "sys.exit({1: 1, 2: 75}.get(count, 0))\n"
    )
    config = settings(max_retries=3)
    run_app(script(tmp_path, text, config), config, log_dir=tmp_path / "logs")
    out, err = capfd.readouterr()
    assert attempts(tmp_path) == 3
    assert "attempt 1 of 4 failed: rank 1 on h was killed" in out
    assert "attempt 2 of 4\n" in out
    assert out.count("at work") == 3
    assert err.count("a warning") == 3
    assert "error: " not in err


def test_an_error_of_the_user_is_not_tried_again(tmp_path: Path) -> None:
    config = settings(max_retries=3)
    text = "print('error: no shards', file=sys.stderr)\nsys.exit(3)\n"
    with pytest.raises(DataError, match=r"^no shards$"):
        run_app(script(tmp_path, text, config), config, log_dir=tmp_path / "logs")
    assert attempts(tmp_path) == 1


def test_retries_come_to_an_end_with_the_reason(tmp_path: Path) -> None:
    config = settings(max_retries=1)
    with pytest.raises(TrainingError, match="the agent was killed by signal 9"):
        run_app(script(tmp_path, "os.kill(os.getpid(), 9)\n", config), config, log_dir=tmp_path / "logs")
    assert attempts(tmp_path) == 2


SLOW = (
    "told = []\nsignal.signal(signal.SIGTERM, lambda *_: told.append(1))\n"
    "print('up', flush=True)\n"
    "while not told: time.sleep(0.05)\n"
    "time.sleep({seconds})\nprint('saved', flush=True)\nPath(path.parent / 'saved').touch()\nsys.exit(75)\n"
)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_an_order_to_stop_waits_for_the_save_and_is_no_retry(
    tmp_path: Path, number: signal.Signals, error: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    config = settings(max_retries=3)
    app = script(tmp_path, SLOW.format(seconds=1.5), config)
    log = tmp_path / "logs"
    when(
        lambda: any("up" in file.read_text() for file in log.rglob("stdout.log")), lambda: os.kill(os.getpid(), number)
    )
    with pytest.raises(error) as caught:
        run_app(app, config, log_dir=log)
    assert (tmp_path / "saved").exists()
    assert "saved" in capfd.readouterr().out
    assert attempts(tmp_path) == 1
    assert not children()
    if error is Stopped:
        assert str(caught.value).startswith("told to stop by SIGTERM: its ranks saved")
        assert caught.value.exit_code == PREEMPTED


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    config = settings()
    log = tmp_path / "logs"

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    when(lambda: any("up" in file.read_text() for file in log.rglob("stdout.log")), twice)
    with pytest.raises(KeyboardInterrupt):
        run_app(script(tmp_path, SLOW.format(seconds=300), config), config, log_dir=log)
    assert not (tmp_path / "saved").exists()
    assert not children()


# All of it


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        try:
            if "cloc.training.trainer" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@needs_server
def test_a_killed_rank_costs_an_attempt_and_the_model_comes_from_s3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "data" / "train", 24, shard_size=4)
    train = {**TINY["train"], "steps": 8, "max_retries": 1}
    (tmp_path / "server").mkdir()
    with serving_s3(tmp_path / "server") as server:
        use_endpoint(monkeypatch, server.endpoint)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        config = parse({**TINY, "train": {**train, "storage": "s3://bucket/runs"}}, source="test")
        runs = server.root / "bucket" / "runs"
        killer = when(
            lambda: any(runs.glob("*/checkpoints/*/state.json")), lambda: ranks_of(psutil.Process())[-1].kill()
        )
        out = tmp_path / "model"
        result = stage.run(
            config,
            inputs=stage.Inputs(data=data, captions=data, regions=data),
            outputs=stage.Outputs(model=str(out)),
        )
        killer.join()
        (home,) = runs.iterdir()
    printed = capfd.readouterr().out
    assert "attempt 1 of 2 failed: rank 1 on" in printed
    assert "was killed by SIGKILL" in printed
    assert result.counts["steps"] == 8
    assert home.name.startswith("cloc-")
    assert {path.name for path in out.iterdir()} >= {"model.safetensors", "training.json", "metrics.jsonl"}
    assert not (out / "checkpoints").exists()
    assert (home / "tokenizer" / "tokenizer.json").is_file()
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [*range(1, 9)]


def test_a_terminated_training_saves_ends_with_75_and_leaves_nobody(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data" / "train", 24, shard_size=4)
    train = {**TINY["train"], "steps": 500, "checkpoint_every": 499, "max_retries": 3}
    out, family = tmp_path / "model", list[psutil.Process]()

    def trains() -> bool:
        metrics = out / "metrics.jsonl"
        return metrics.exists() and len(metrics.read_text().splitlines()) > 2

    def terminate() -> None:
        family.extend(children(recursive=True))
        os.kill(os.getpid(), signal.SIGTERM)

    when(trains, terminate)
    with pytest.raises(
        Stopped, match=r"^told to stop by SIGTERM: its ranks saved; run the same command again"
    ) as caught:
        stage.run(
            parse({**TINY, "train": train}, source="test"),
            inputs=stage.Inputs(data=data, captions=data, regions=data),
            outputs=stage.Outputs(model=str(out)),
        )
    assert caught.value.exit_code == PREEMPTED  # what `cloc` ends with
    assert len(list((out / "checkpoints").glob("step-*/state.json"))) == 1
    assert len(family) >= 3
    assert not [item for item in family if item.is_running() and item.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.cluster
def test_two_pods_train_on_a_cluster(tmp_path: Path) -> None:
    """Needs kubectl's context, Volcano, a queue `default`, an image with cloc, and an S3 storage that both reach."""
    image, storage = os.environ["CLOC_CLUSTER_IMAGE"], os.environ["CLOC_CLUSTER_STORAGE"]
    data = write_dataset(f"{storage}/launch-test/data", 24, shard_size=4)
    kubernetes = {"image": image, "cpu": 1, "memory_mib": 3072, "shm_mib": 512, "grace_seconds": 60}
    kubernetes["secrets"] = [name for name in os.environ.get("CLOC_CLUSTER_SECRETS", "").split(",") if name]
    train = {**TINY["train"], "nodes": 2, "processes": 1, "device": "cpu", "scheduler": "kubernetes"}
    train |= {"storage": f"{storage}/launch-test/runs", "kubernetes": kubernetes}
    result = stage.run(
        parse({**TINY, "train": train}, source="test"),
        inputs=stage.Inputs(data=data, captions=data, regions=data),
        outputs=stage.Outputs(model=str(tmp_path)),
    )
    assert result.counts["steps"] == TINY["train"]["steps"]
