"""Launching a training job through TorchX: the job as pure data, its run, its logs, its end.

The only place that imports torchx.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from torchx import specs
from torchx.runner import Runner, get_runner

from cloc.config.schema import TrainConfig
from cloc.errors import TrainingError

ROLE = "trainer"
_POLL_SECONDS = 0.5


def training_app(output: str, config: TrainConfig, *, environment: dict[str, str]) -> specs.AppDef:
    """The TorchX application of a training job on one machine: torchrun with a rank a process.

    Args:
        output: folder or s3:// prefix that holds the job.
        config: section `train`: processes and max_retries.
        environment: variables that the ranks get besides those of this process.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // config.processes)
    arguments = ["-m", "torch.distributed.run", "--nnodes=1", "--standalone"]
    arguments += [
        f"--nproc-per-node={config.processes}",
        f"--max-restarts={config.max_retries}",
        "--monitor-interval=1",
    ]
    arguments += ["-m", "cloc.training.trainer", output]
    role = specs.Role(
        name=ROLE,
        image="",
        entrypoint=sys.executable,
        args=arguments,
        env={
            "OMP_NUM_THREADS": str(threads),
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **environment,
        },
        num_replicas=1,
        resource=specs.Resource(cpu=config.processes, gpu=0, memMB=0),
    )
    return specs.AppDef(name="cloc-pretrain", roles=[role])


def run_app(app: specs.AppDef, *, scheduler: str, log_dir: Path) -> None:
    """Runs an application to its end, passing its output through; cancels it when this process is told to stop.

    Raises:
        TrainingError: a replica failed; the message is the job's own last error line, or where the log lies.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    with get_runner() as runner, _terminate_as_interrupt():
        handle = runner.schedule(runner.dryrun(app, scheduler, {"log_dir": str(log_dir)}))
        seen = _Output()
        readers = [
            threading.Thread(target=_follow, args=(runner, handle, stream, seen), daemon=True)
            for stream in ("stdout", "stderr")
        ]
        for reader in readers:
            reader.start()
        try:
            status = runner.wait(handle, wait_interval=_POLL_SECONDS)
        except BaseException:
            runner.cancel(handle)
            raise
        for reader in readers:
            reader.join(timeout=10)
    state = status.state if status else specs.AppState.UNKNOWN
    if state != specs.AppState.SUCCEEDED:
        raise TrainingError(seen.error or f"the training job ended as {state.name}; its log lies in {log_dir}")


class _Output:
    """What the ranks said, as far as it is needed at the end."""

    error: str | None = None

    def take(self, line: str) -> None:
        """Passes a line on and remembers the first error that a rank reported for the user."""
        print(line, flush=True)
        if line.startswith("error: ") and self.error is None:
            self.error = line.removeprefix("error: ")


def _follow(runner: Runner, handle: str, stream: str, seen: _Output) -> None:
    from torchx.schedulers.api import Stream

    for line in runner.log_lines(handle, ROLE, 0, should_tail=True, streams=Stream(stream)):
        text = line.rstrip("\n")
        if text:
            seen.take(text)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM (a preempted pod, a cancelled task) ends the job like Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
