"""This machine: shared memory, disks, memory, GPUs, ports and limits against what the settings will ask of them."""

import os
import re
import resource
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.filesize import decimal

from cloc.errors import ConfigError, DataError, TrainingError
from cloc.training.doctor.registry import MODEL_ROLES, Skip, Subject, Warn, check

if TYPE_CHECKING:
    from cloc.training.plan.sizes import Sizes

MIB = 1 << 20
SHM = "/dev/shm"  # noqa: S108 (where the kernel keeps shared memory)
_SLOTS = 2  # batches a worker holds (cloc.data.decoding)
_NCCL_SHM = 64 * MIB  # a process; NCCL's buffers between the GPUs of a machine
_LEAST_FREE = 256 * MIB
_TIME = re.compile(r"(?:\d+-)?\d+(?::\d{1,2}){0,2}")


@check("processor cores", "train", cheap=True)
def cores(subject: Subject) -> str:
    """Ranks and their workers find a core each."""
    train = subject.config.train
    number = {
        "local_cwd": len(os.sched_getaffinity(0)),
        "kubernetes": train.kubernetes.cpu,
        "slurm": train.slurm.cpus,
    }[train.scheduler]
    wanted = train.processes * (1 + train.workers)
    if wanted > number:
        raise Warn(
            f"{train.processes} processes with {train.workers} workers each share {number} cores a machine: they wait "
            "for each other; lower train.workers or train.processes"
        )
    return f"{number} a machine for {train.processes} processes with {train.workers} workers each"


@check("shared memory", "train", cheap=True)
def shared_memory(subject: Subject) -> str:
    """Shared memory holds what workers hand over, and NCCL's buffers."""
    train = subject.config.train
    side = subject.config.model.init_image_size or subject.config.model.vision.image_size
    local = -(-train.batch_size // subject.ranks)
    need = train.processes * train.workers * _SLOTS * local * 3 * side * side
    need += train.processes * _NCCL_SHM if train.processes > 1 and train.device != "cpu" else 0
    if train.scheduler == "kubernetes":
        free, where = train.kubernetes.shm_mib * MIB, "train.kubernetes.shm_mib"
    else:
        subject.need_local()
        if not Path(SHM).is_dir():
            raise Skip(f"there is no {SHM} on this system")
        free, where = shutil.disk_usage(SHM).free, SHM
    if need > free:
        raise TrainingError(
            f"{where} has {free // MIB:,} MiB free, and workers and NCCL need {-(-need // MIB):,}: enlarge it, or "
            "lower train.workers"
        )
    return f"{free // MIB:,} MiB free in {where}, {-(-need // MIB):,} needed"


@check("disk", cheap=True)
def disk(subject: Subject) -> str:
    """The output's disk holds the checkpoints and the model."""
    if not subject.out:
        raise Skip("no --out was given")
    if subject.out.startswith("s3://"):
        raise Skip("--out is on S3; see storage")
    folder = Path(subject.out).absolute()
    nearest = next(item for item in (folder, *folder.parents) if item.exists())
    if not nearest.is_dir():
        raise DataError(f"{folder}: {nearest} is a file; choose another folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise DataError(f"{nearest}: this user may not write there; choose another folder")
    need, why = _needed(subject)
    free = shutil.disk_usage(nearest).free
    if free < need:
        raise DataError(f"{nearest}: {decimal(free)} are free, less than the {decimal(int(need))} of {why}")
    return f"{decimal(free)} free in {nearest}, {decimal(int(need))} needed: {why}"


def _needed(subject: Subject) -> tuple[float, str]:
    """Bytes that the stage will write, and what they are."""
    train = subject.config.train
    if subject.role != "train":
        return _LEAST_FREE, "a reserve"
    from cloc.training.plan.storage import checkpoint_bytes

    model = _sizes(subject)
    if train.storage:
        return _LEAST_FREE + 4.0 * model.parameters, "the model (checkpoints lie in train.storage)"
    number = train.keep_checkpoints + train.keep_best + 1
    own = checkpoint_bytes(model, subject.config)
    return number * own + 4.0 * model.parameters, f"{number} checkpoints of {decimal(int(own))}, and the model"


def _sizes(subject: Subject) -> "Sizes":
    from cloc.training.plan.sizes import known_checkpoint, sizes

    config, _ = known_checkpoint(subject.config)
    try:
        return sizes(config, objective=subject.objective)
    except ConfigError:
        raise Skip(f"how large {config.model.init_from} is cannot be read; see checkpoints") from None


@check("memory", "train")
def memory_check(subject: Subject) -> str:
    """A process's estimate (`cloc plan`) fits into its GPU, or into its share of this machine."""
    import torch

    from cloc.training.plan.figures import Figure, Figures
    from cloc.training.plan.memory import GIB, Setting, memory
    from cloc.training.plan.sizes import known_checkpoint

    subject.need_local()
    config, _ = known_checkpoint(subject.config)
    on_gpu = torch.cuda.is_available() and config.train.device != "cpu"
    if on_gpu:
        limit, what = float(torch.cuda.get_device_properties(0).total_memory), torch.cuda.get_device_name(0)
    else:
        available, processes = psutil.virtual_memory().available, config.train.processes
        limit, what = available / processes, f"{available / GIB:.1f} GiB of memory for {processes} processes"
    figures = Figures({"gpu_memory": Figure(limit / GIB, "GiB", "", ""), "reserve": Figure(0.02, "", "", "")})
    half = on_gpu and config.train.precision != "float32"
    held = memory(_sizes(subject), Setting(config, subject.objective, subject.ranks, half), figures)
    if not held.fits:
        fits = f"set train.micro_batch={held.largest}" if held.largest else "not one image fits: take a larger machine"
        raise TrainingError(
            f"a process needs about {held.total / GIB:.1f} GiB and has {held.limit / GIB:.1f} ({what}): {fits}, or "
            "train.gradient_checkpointing=true"
        )
    return f"about {held.total / GIB:.2f} GiB a process of {held.limit / GIB:.1f} ({what})"


@check("GPUs", *MODEL_ROLES, cheap=True)
def gpus(subject: Subject) -> str:
    """As many GPUs as processes, where GPUs are asked for."""
    import torch

    subject.need_local()
    device, setting, processes = _device(subject)
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu":
        raise Skip(f"{setting}: cpu")
    if device == "cuda" and not visible:
        build = torch.version.cuda or "none"
        raise TrainingError(
            f"{setting} is cuda, and torch sees no GPU (built for CUDA {build}; CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}): install the CUDA build and the driver, or set auto"
        )
    if not visible:
        raise Skip("no GPU here; processors are taken (device: auto)")
    if processes > visible:
        raise TrainingError(f"{processes} processes, and {visible} GPUs: a GPU serves one process; lower the processes")
    if processes < visible:
        raise Warn(f"{processes} processes, and {visible} GPUs: {visible - processes} stay idle")
    return f"{visible} x {torch.cuda.get_device_name(0)}"


def _device(subject: Subject) -> tuple[str, str, int]:
    """Device, its setting, and processes of the role."""
    config = subject.config
    if subject.role == "train":
        return config.train.device, "train.device", config.train.processes
    if subject.role == "label":
        return config.captioning.device, "captioning.device", config.captioning.processes
    if subject.role == "mllm":
        return config.adapter.device, "adapter.device", 1
    return config.evaluation.device, "evaluation.device", 1


@check("driver and NCCL", *MODEL_ROLES)
def driver(subject: Subject) -> str:
    """Versions, and that they go together."""
    import torch

    subject.need_local()
    if not torch.cuda.is_available():
        raise Skip("no GPU here")
    version = ".".join(map(str, torch.cuda.nccl.version()))
    capability = torch.cuda.get_device_capability(0)
    if f"sm_{capability[0]}{capability[1]}" not in torch.cuda.get_arch_list() and capability[0] < 5:
        raise TrainingError(f"torch has no kernels for compute capability {capability[0]}.{capability[1]}")
    if capability[0] < 8 and subject.config.train.precision == "bfloat16":
        raise Warn(f"compute capability {capability[0]}.{capability[1]} has no units for bfloat16: it is emulated")
    return f"CUDA {torch.version.cuda}, NCCL {version}, compute capability {capability[0]}.{capability[1]}"


@check("port", "train", cheap=True)
def port(subject: Subject) -> str:
    """A port can be had where the processes find each other."""
    subject.need_local()
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError as error:
            raise TrainingError(
                f"no port of this machine can be bound ({error.strerror}): processes cannot meet"
            ) from None
        free = probe.getsockname()[1]
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError as error:
        raise Warn(
            f"this machine's name {socket.gethostname()!r} has no address ({error.strerror}): add it to /etc/hosts"
        ) from None
    return f"{free} was free"


@check("open files", *MODEL_ROLES, "ingest", "validate", "scenes", cheap=True)
def open_files(subject: Subject) -> str:
    """Pipes, tars and sockets stay below the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 128 + 16 * (subject.config.train.workers if subject.role == "train" else 8)
    if soft != resource.RLIM_INFINITY and soft < need:
        raise TrainingError(
            f"a process may open {soft} files and needs about {need}: raise it with `ulimit -n {max(need, 4096)}` "
            f"(the hard limit is {hard})"
        )
    return f"{'no limit' if soft == resource.RLIM_INFINITY else f'{soft:,} at most'}, about {need} needed"


@check("time limit", "train", cheap=True)
def time_limit(subject: Subject) -> str:
    """Nothing ends the job for its age without having been asked to."""
    train = subject.config.train
    if train.scheduler == "slurm":
        if train.slurm.time and not _TIME.fullmatch(train.slurm.time):
            raise ConfigError(f"train.slurm.time {train.slurm.time!r} is no time; write it as 2-00:00:00")
        return f"Slurm: {train.slurm.time or 'as the partition has it'}"
    subject.need_local()
    soft, _ = resource.getrlimit(resource.RLIMIT_CPU)
    if soft != resource.RLIM_INFINITY:
        raise Warn(f"a process is ended after {soft:,} seconds of a processor (`ulimit -t`)")
    return "none"
