"""What a training needs and how long it takes, before it is begun: `cloc plan` (docs/planning.md).

plan = estimate(config, Request(images=2_000_000_000, gpus=64, gpu="h100"))
plan.memory.total, plan.speed.hours, plan.binding
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cloc.config import Config
from cloc.errors import ConfigError
from cloc.training.plan import hardware
from cloc.training.plan.figures import Figure, Figures, given
from cloc.training.plan.measure import Machine
from cloc.training.plan.memory import Memory, Setting, memory
from cloc.training.plan.sizes import Sizes, known_checkpoint, sizes
from cloc.training.plan.speed import Cluster, Speed, loader_demand, speed, steps_of
from cloc.training.plan.storage import Kept, kept, label_rates
from cloc.training.task import Objective

HERE = "here"
_MANY_SHARDS = 500_000


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        images: of the data set.
        gpus: of all machines; 0: as many as the settings have processes.
        gpu: name in `hardware.GPUS`; "here" for `machine`.
        per_node: GPUs a machine; 0: as usual for the GPU.
        objective: "cloc" or "clip".
        steps, samples: length of the training; else the settings'.
        shards: of a data set that is there; 0 where it is only planned.
        assume: figures set by the user, as NAME=VALUE.
        measured: figures that were measured.
        machine: this one, as measured.
    """

    images: int
    gpus: int = 0
    gpu: str = "h100"
    per_node: int = 0
    objective: Objective = "cloc"
    steps: int = 0
    samples: float = 0
    shards: int = 0
    assume: Sequence[str] = ()
    measured: Mapping[str, Figure] = field(default_factory=dict)
    machine: Machine | None = None


@dataclass(frozen=True)
class Variant:
    """Another way to hold the model.

    Attributes:
        strategy: "ddp" or "fsdp2".
        checkpointing: whether layers are computed again in backward.
        memory: with the whole part of the batch at once.
        chosen: whether it is the settings'.
    """

    strategy: str
    checkpointing: bool
    memory: Memory
    chosen: bool


@dataclass(frozen=True)
class Plan:
    """The estimate.

    Attributes:
        request: what was asked.
        config: the settings that it is for; with a micro-batch where the settings' does not fit.
        cluster: what it runs on.
        sizes: of the model.
        memory: of a GPU.
        variants: other ways to hold it.
        speed: how fast it goes.
        kept: what lies on the storage.
        loader: what the loader must do.
        labels: images a second a GPU captions and grounds; infinite where people did it.
        figures: what the estimate rests on, by name.
        remarks: what to know and what to change, the weightiest first.
    """

    request: Request
    config: Config
    cluster: Cluster
    sizes: Sizes
    memory: Memory
    variants: Sequence[Variant]
    speed: Speed
    kept: Kept
    loader: Mapping[str, float]
    labels: Mapping[str, float]
    figures: Mapping[str, Figure]
    remarks: Sequence[str]

    @property
    def epochs(self) -> float:
        """How often each image is seen."""
        return self.speed.steps * self.config.train.batch_size / self.request.images

    @property
    def label_hours(self) -> dict[str, float]:
        """GPU-hours of labelling all images, by stage."""
        return {stage: self.request.images / rate / 3600 for stage, rate in self.labels.items()}

    @property
    def binding(self) -> str:
        """Name of the limit that binds."""
        return "memory" if not self.memory.largest else self.speed.limits[0].name


def estimate(config: Config, request: Request) -> Plan:
    """Estimates a training.

    Raises:
        ConfigError: an unknown GPU or figure, a batch that the GPUs cannot share, or a checkpoint that cannot be read.
    """
    config, remark = known_checkpoint(config)
    bfloat16 = _bfloat16(config, request)
    figures, cluster = _figures(config, request, bfloat16=bfloat16)
    _check(config, cluster, request)
    model = sizes(config, objective=request.objective)
    config, fits = _fitting(config, model, cluster, request, figures, bfloat16=bfloat16)
    setting = _setting(config, cluster, request, bfloat16=bfloat16)
    held = memory(model, setting, figures)
    steps = steps_of(config, steps=request.steps or None, samples=request.samples or None)
    going = speed(model, setting, cluster, figures, steps=steps)
    lying = kept(config, model, figures, images=request.images, shards=request.shards)
    labels = label_rates(config, figures)
    remarks = [text for text in (fits, *_remarks(config, cluster, request, going, lying), remark) if text]
    return Plan(
        request=request,
        config=config,
        cluster=cluster,
        sizes=model,
        memory=held,
        variants=_variants(config, model, cluster, request, figures, bfloat16=bfloat16),
        speed=going,
        kept=lying,
        loader=loader_demand(going, cluster, figures),
        labels=labels,
        figures=figures.used,
        remarks=remarks,
    )


def _bfloat16(config: Config, request: Request) -> bool:
    """Whether training computes in bfloat16 there: `auto` does on GPUs, and here as `train.precision` says."""
    if request.gpu == HERE:
        assert request.machine is not None
        return request.machine.bfloat16
    return config.train.precision != "float32"


def _figures(config: Config, request: Request, *, bfloat16: bool) -> tuple[Figures, Cluster]:
    train = config.train
    if request.gpu == HERE:
        assert request.machine is not None
        machine = {**request.machine.figures, **request.measured}
        per_node = request.per_node or request.machine.devices
    else:
        card = hardware.gpu(request.gpu)
        machine = {**hardware.figures(card, bfloat16=bfloat16), **request.measured}
        per_node = request.per_node or card.per_node
    known = {**machine, **given(request.assume, hardware=machine)}
    return Figures(known), Cluster(request.gpus or train.nodes * train.processes, per_node)


def _check(config: Config, cluster: Cluster, request: Request) -> None:
    if request.images < 1:
        raise ConfigError(f"--images {request.images}: a plan needs at least one image")
    if cluster.gpus > config.train.batch_size:
        raise ConfigError(
            f"train.batch_size {config.train.batch_size} gives nothing to some of {cluster.gpus} GPUs; raise it, or "
            "take fewer GPUs"
        )
    if config.train.batch_size % cluster.gpus:
        raise ConfigError(
            f"train.batch_size {config.train.batch_size} cannot be shared equally by {cluster.gpus} GPUs; take "
            f"{_near_divisor(config.train.batch_size, cluster.gpus)} GPUs, or another batch"
        )


def _near_divisor(number: int, near: int) -> int:
    return min((each for each in range(1, 2 * near + 1) if number % each == 0), key=lambda each: abs(each - near))


def _setting(config: Config, cluster: Cluster, request: Request, *, bfloat16: bool) -> Setting:
    here = request.machine if request.gpu == HERE else None
    return Setting(
        config,
        request.objective,
        cluster.gpus,
        bfloat16,
        eager=bool(here and here.eager),
        processors=bool(here and here.processors),
    )


def _with(config: Config, **train: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


def _fitting(
    config: Config, model: Sizes, cluster: Cluster, request: Request, figures: Figures, *, bfloat16: bool
) -> tuple[Config, str]:
    """The settings with a micro-batch that fits where theirs does not, and what to say about it."""
    setting = _setting(config, cluster, request, bfloat16=bfloat16)
    found = memory(model, setting, figures)
    if found.fits:
        return config, ""
    needs = f"{found.total / 2**30:.1f} GiB are needed of {found.limit / 2**30:.1f}"
    if not found.largest:
        other = "train.strategy: fsdp2" if config.train.strategy == "ddp" else "a GPU with more memory"
        return config, f"memory: {needs}, and not one image fits: take {other}, or train.gradient_checkpointing: true"
    size = max(each for each in range(1, found.largest + 1) if setting.local % each == 0)
    remark = (
        f"memory: {needs}: the plan takes train.micro_batch: {size}, which costs a second forward pass; "
        "more GPUs or train.gradient_checkpointing: true are the other ways"
    )
    return _with(config, micro_batch=size), remark


def _variants(
    config: Config, model: Sizes, cluster: Cluster, request: Request, figures: Figures, *, bfloat16: bool
) -> list[Variant]:
    found = []
    for strategy in ("ddp", "fsdp2") if cluster.gpus > 1 else (config.train.strategy,):
        for checkpointing in (False, True):
            other = _with(config, strategy=strategy, gradient_checkpointing=checkpointing, micro_batch=0)
            held = memory(model, _setting(other, cluster, request, bfloat16=bfloat16), figures)
            own = (config.train.strategy, config.train.gradient_checkpointing)
            found.append(Variant(strategy, checkpointing, held, (strategy, checkpointing) == own))
    return found


def _remarks(config: Config, cluster: Cluster, request: Request, speed: Speed, kept: Kept) -> list[str]:
    first, found = speed.limits[0], list[str]()
    found.append(f"{first.name} binds: {first.advice}")
    if kept.shards > _MANY_SHARDS:
        found.append(
            f"shards: {kept.shards:,} make a manifest of {kept.shards * 290 / 1e6:,.0f} MB and "
            f"{kept.objects:,} objects: raise data.images_per_shard, to 10000 or so"
        )
    streams = config.train.streams or cluster.gpus
    readers = max(streams, cluster.gpus * max(1, config.train.workers))
    if kept.shards < readers:
        found.append(
            f"shards: {kept.shards:,} are fewer than {readers:,} readers ({streams:,} streams, {config.train.workers} "
            "workers a GPU), so that some read the same tars: lower data.images_per_shard"
        )
    if config.train.warmup_steps >= speed.steps:
        found.append(f"train.warmup_steps {config.train.warmup_steps:,} reach the end of {speed.steps:,} steps")
    return found
