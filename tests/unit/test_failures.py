"""What a user is told: one line for every failure that has a remedy, none for a defect."""

import errno

import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError

from cloc.config import Config, parse
from cloc.errors import DataError, TrainingError
from cloc.training import distributed, failures
from cloc.training.failures import LOST, RankLost, explained, report
from cloc.training.preemption import PREEMPTED

# The words of torch 2.13's own errors.
GPU_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 512.00 MiB is "
    "free. Process 123 has 78.60 GiB memory in use."
)
HOST_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4294967296 bytes. Error code 12 (Cannot allocate memory)"
)
GLOO = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/"
CLOSED = f"{GLOO}pair.cc:553] Connection closed by peer [127.0.0.1]:44781. This is typically caused by a remote worker"
RESET = f"{GLOO}pair.cc:537] Read error [127.0.0.1]:58082: Connection reset by peer. This is typically caused by"
SILENT = f"{GLOO}unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation to complete"
PORT = (
    "The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98, "
    "name: EADDRINUSE, message: address already in use"
)
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error\nncclUnhandledCudaError: Call to CUDA failed."


def config(**train) -> Config:
    return parse({"train": {"batch_size": 64, "processes": 2, **train}}, source="test")


def line(error: BaseException, **train) -> str:
    failure = explained(error, config(**train))
    assert failure is not None
    assert "\n" not in str(failure)
    return str(failure)


def test_gpu_memory_says_what_to_lower_what_costs_least_first() -> None:
    error = torch.OutOfMemoryError(GPU_MEMORY)
    assert line(error) == (
        "out of GPU memory (it asked for 2.00 GiB of 79.10 GiB): set train.micro_batch=16 (now 32 images a process at "
        "once), then train.gradient_checkpointing=true, then train.strategy=fsdp2, then a smaller train.batch_size "
        "(now 64)"
    )
    assert "set train.micro_batch=4 (now 8 images" in line(error, micro_batch=8)
    tried = {"micro_batch": 1, "gradient_checkpointing": True, "strategy": "fsdp2"}
    assert line(error, **tried).endswith(": lower train.batch_size")
    assert "fsdp2" not in line(error, processes=1)
    assert "fsdp2" not in line(error, optimizer="muon")


def test_adapters_out_of_memory_are_told_of_their_own_settings() -> None:
    adapter = {"batch_size": 8, "questions": 4}

    def told(error: BaseException, **changes: object) -> str:
        settings = parse({"adapter": {**adapter, **changes}}, source="test")
        return str(explained(error, settings, "adapter"))

    assert told(torch.OutOfMemoryError(GPU_MEMORY)) == (
        "out of GPU memory (it asked for 2.00 GiB of 79.10 GiB): set adapter.gradient_checkpointing=true, then "
        "adapter.questions=2 (now 4 about an image), then a smaller adapter.batch_size (now 8)"
    )
    tried = told(torch.OutOfMemoryError(GPU_MEMORY), gradient_checkpointing=True, questions=1)
    assert tried.endswith(": a smaller adapter.batch_size (now 8)")
    assert "adapter.cache_gigabytes=0 (now 1)" in told(RuntimeError(HOST_MEMORY))
    assert "cache_gigabytes" not in told(RuntimeError(HOST_MEMORY), cache_gigabytes=0.0)


def test_host_memory_names_what_waits_as_well() -> None:
    text = line(RuntimeError(HOST_MEMORY), workers=4)
    assert text.startswith("out of memory (it asked for 4.00 GiB): set train.micro_batch=16")
    assert "train.shuffle_buffer=1024 (now 2048 samples a stream), train.workers=2 (now 4)" in text
    assert line(MemoryError()).startswith("out of memory: ")
    assert line(OSError(errno.ENOMEM, "Cannot allocate memory")).startswith("out of memory: ")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/models/run/x"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "/models/run/x"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk(error: Exception) -> None:
    text = line(error)
    assert text.startswith("the disk is full")
    assert "train.keep_checkpoints (now 2)" in text
    assert ("(/models/run/x)" in text) == isinstance(error, OSError)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError(CLOSED), "another process ([127.0.0.1]:44781) closed its connection"),
        (RuntimeError(RESET), "another process ([127.0.0.1]:58082) closed its connection"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "another process closed its connection"),
        (dist.DistBackendError("ncclRemoteError: A call failed possibly due to a network error"), "closed its conn"),
        (RuntimeError(SILENT), "another process did not answer within 1800 s (train.timeout_seconds)"),
        (
            dist.DistNetworkError("The client socket has timed out after 4000ms while trying to connect to (h, 1)"),
            "not ans",
        ),
    ],
)
def test_a_lost_rank_is_a_consequence(error: Exception, told: str) -> None:
    failure = explained(error, config())
    assert isinstance(failure, RankLost)
    assert str(failure).startswith("rank lost: ")
    assert told in str(failure)


def test_a_taken_port_and_a_group_that_does_not_form() -> None:
    assert line(dist.DistNetworkError(PORT)).startswith("port 29500 of this machine is taken")
    assert line(OSError(errno.EADDRINUSE, "Address already in use")).startswith(
        "port of the rendezvous of this machine"
    )
    assert "ncclUnhandledCudaError" in line(dist.DistBackendError(NCCL))


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("x"), OSError(2, "")]
)
def test_a_defect_keeps_its_traceback(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(error, config()) is None
    with pytest.raises(type(error)) as raised:
        raise error
    assert report(raised.value, config(), stopping=lambda: False) == 1
    told = capsys.readouterr().err
    assert "Traceback (most recent call last)" in told
    assert "error: " not in told.splitlines()[0]


def test_a_cause_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    def asked() -> bool:
        raise AssertionError("a cause asks nobody")

    assert report(DataError("no shards"), config(), stopping=asked) == 3
    assert capsys.readouterr().err == "error: no shards\n"
    assert report(TrainingError("no job"), None, stopping=asked) == 5
    assert capsys.readouterr().err == "error: no job\n"


def test_a_consequence_is_told_only_when_nobody_knows_the_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asks = iter([False, False, True])
    assert report(RuntimeError(CLOSED), config(), stopping=lambda: next(asks)) == LOST
    assert not any(text.startswith("error: ") for text in capsys.readouterr().err.splitlines())
    monkeypatch.setattr(failures, "_PATIENCE", 0.1)
    assert report(RuntimeError(CLOSED), config(), stopping=lambda: False) == LOST
    assert capsys.readouterr().err.startswith("error: rank lost: ")
    assert LOST not in (0, 1, 2, 3, 4, 5, PREEMPTED)


def test_gpus_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(TrainingError, match=r"train.device is cuda, but PyTorch .* sees no GPU"),
        distributed.process_group("cuda"),
    ):
        raise AssertionError("there is a group")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for local in ("0", "3"):  # all ranks say the same, so that none waits for the others
        monkeypatch.setenv("LOCAL_RANK", local)
        with (
            pytest.raises(TrainingError, match=r"4 processes .* share 2 GPUs here; .* train.processes=2"),
            distributed.process_group("auto"),
        ):
            raise AssertionError("there is a group")
