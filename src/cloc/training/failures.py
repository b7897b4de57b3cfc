"""What stopped a rank, in one line that says what to do.

A rank that fails ends the others: they lose it in the middle of a sum. So there are causes and consequences. A cause is
one line `error: ...` and the exit code of its error. A consequence is a `RankLost`: its rank first waits a little for
being ended by the agent, which knows the cause, and speaks only when nobody does.
"""

import errno
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist

from cloc.config import Config
from cloc.config.schema import AdapterConfig, TrainConfig
from cloc.errors import ClocError, TrainingError

Section = Literal["train", "adapter"]
LOST = 76
"""Exit code of a rank that stopped because another one did (EX_PROTOCOL: the other side went away)."""
_PATIENCE = 10.0  # seconds that a rank which lost another waits for the agent to end it

_GONE = re.compile(
    "connection closed|connection reset|connection refused|connection was likely closed|broken pipe|pair closure|"
    "remote error|remote process exited|failed to recv|ncclremoteerror|ncclsystemerror",
    re.IGNORECASE,
)
_SILENT = re.compile(r"timed out|timeout", re.IGNORECASE)


class RankLost(TrainingError):  # noqa: N818 (what happened, to another)
    """Another process of the job went away, or did not answer in time."""

    exit_code = LOST


def explained(error: BaseException, config: Config, section: Section = "train") -> ClocError | None:
    """The failure that a user can act on; None for a defect, which keeps its traceback."""
    if isinstance(error, ClocError):
        return error
    return next((found for explain in _CAUSES if (found := explain(error, config, section))), None)


def report(
    error: BaseException, config: Config | None, *, stopping: Callable[[], bool], section: Section = "train"
) -> int:
    """Says on stderr what stopped this rank; returns the code to leave with.

    Args:
        error: what was raised.
        config: settings of the job; None where it could not be read.
        stopping: whether somebody told this process to stop meanwhile.
        section: of the settings, whose job it was.
    """
    failure = explained(error, config, section) if config else error if isinstance(error, ClocError) else None
    if failure is None:
        traceback.print_exception(error)
        return 1
    if isinstance(failure, RankLost):
        patience = time.monotonic() + _PATIENCE
        while time.monotonic() < patience:
            if stopping():
                print(f"stopped with the others: {failure}", file=sys.stderr)
                return failure.exit_code
            time.sleep(0.05)
    print(f"error: {failure}", file=sys.stderr)
    return failure.exit_code


def _gpu_memory(error: BaseException, config: Config, section: Section) -> TrainingError | None:
    if not isinstance(error, torch.OutOfMemoryError):
        return None
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    room = re.search(r"total capacity of ([\d.]+ \w+)", str(error))
    what = (f" (it asked for {asked[1]}" + (f" of {room[1]}" if room else "") + ")") if asked else ""
    return TrainingError(f"out of GPU memory{what}: {_less_memory(config, section)}")


def _host_memory(error: BaseException, config: Config, section: Section) -> TrainingError | None:
    text = str(error)
    refused = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text
    if not (refused or isinstance(error, MemoryError) or _errno(error) == errno.ENOMEM):
        return None
    asked = re.search(r"tried to allocate (\d+) bytes", text)
    what = f" (it asked for {int(asked[1]) / 2**30:.2f} GiB)" if asked else ""
    train = config.train
    waiting = f"train.shuffle_buffer={max(1, train.shuffle_buffer // 2)} (now {train.shuffle_buffer} samples a stream)"
    if section == "train" and train.workers:
        waiting += f", train.workers={train.workers // 2} (now {train.workers})"
    if section == "adapter" and config.adapter.cache_gigabytes:
        waiting += f", kept features go with adapter.cache_gigabytes=0 (now {config.adapter.cache_gigabytes:g})"
    return TrainingError(
        f"out of memory{what}: {_less_memory(config, section)}; what waits to be trained on shrinks by {waiting}"
    )


def _less_memory(config: Config, section: Section) -> str:
    """What lowers a step's memory, what costs least first, and only what is not yet done."""
    return _less_memory_of_adapters(config.adapter) if section == "adapter" else _less_memory_of_training(config.train)


def _less_memory_of_adapters(adapter: AdapterConfig) -> str:
    found = [] if adapter.gradient_checkpointing else ["set adapter.gradient_checkpointing=true"]
    if adapter.questions > 1:
        found.append(f"adapter.questions={adapter.questions // 2} (now {adapter.questions} about an image)")
    found.append(f"a smaller adapter.batch_size (now {adapter.batch_size})")
    return ", then ".join(found)


def _less_memory_of_training(train: TrainConfig) -> str:
    ranks, found = train.processes * train.nodes, list[str]()
    at_once = train.micro_batch or train.batch_size // ranks
    if at_once > 1:
        found.append(f"set train.micro_batch={at_once // 2} (now {at_once} images a process at once)")
    if not train.gradient_checkpointing:
        found.append("train.gradient_checkpointing=true")
    if ranks > 1 and train.strategy == "ddp" and train.optimizer == "adamw":
        found.append("train.strategy=fsdp2")
    found.append(f"a smaller train.batch_size (now {train.batch_size})" if found else "lower train.batch_size")
    return ", then ".join(found)


def _disk_full(error: BaseException, config: Config, section: Section) -> TrainingError | None:
    # safetensors and torch's writers have errors of their own, with the system's words in them.
    worded = isinstance(error, Exception) and "No space left on device" in str(error)
    if not worded and _errno(error) not in (errno.ENOSPC, errno.EDQUOT):
        return None
    where = getattr(error, "filename", None)
    return TrainingError(
        f"the disk is full{f' ({where})' if where else ''}: free some space, lower train.keep_checkpoints (now "
        f"{config.train.keep_checkpoints}) or set train.storage, and run it again: it goes on from the last whole "
        "checkpoint"
    )


def _port_taken(error: BaseException, config: Config, section: Section) -> TrainingError | None:
    text = str(error)
    if _errno(error) != errno.EADDRINUSE and not (isinstance(error, dist.DistError) and "EADDRINUSE" in text):
        return None
    port = re.search(r"port: (\d+)", text)
    return TrainingError(
        f"port {port[1] if port else 'of the rendezvous'} of this machine is taken: another job runs here, or one was "
        "left behind; end it, or name another port"
    )


def _lost(error: BaseException, config: Config, section: Section) -> RankLost | None:
    """A peer that is gone, or silent. gloo raises plain RuntimeErrors, with the place in its source in front."""
    text = " ".join(str(error).split())
    if not isinstance(error, (dist.DistError, ConnectionError)) and not (
        isinstance(error, RuntimeError) and "gloo/" in text
    ):
        return None
    if _GONE.search(text):
        peer = re.search(r"\[[^\[\]]+\]:\d+", text)
        return RankLost(
            f"rank lost: another process{f' ({peer[0]})' if peer else ''} closed its connection; its own last lines "
            "say why (none: it was killed, often for want of memory); run it again: it goes on from the last checkpoint"
        )
    if _SILENT.search(text):
        return RankLost(
            f"rank lost: another process did not answer within {config.train.timeout_seconds} s "
            "(train.timeout_seconds); it stands still or its machine is gone; run it again: it goes on from the last "
            "checkpoint"
        )
    return None


def _no_group(error: BaseException, config: Config, section: Section) -> TrainingError | None:
    if not isinstance(error, dist.DistError):
        return None
    reason = " ".join(str(error).split())
    return TrainingError(f"the processes cannot reach each other: {reason[:300]}; NCCL_DEBUG=INFO says more on GPUs")


def _errno(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


_CAUSES: tuple[Callable[[BaseException, Config, Section], TrainingError | None], ...] = (
    _gpu_memory,
    _host_memory,
    _disk_full,
    _port_taken,
    _lost,
    _no_group,
)
