"""How fast a training goes: what each limit would allow, and which one binds.

A step computes; it waits for what must be exchanged before it goes on (embeddings of all processes) and for what of the
gradients' exchange does not fit behind the backward pass; and it cannot be faster than images are decoded and read.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from cloc.config import Config
from cloc.model import factory
from cloc.training.flops import Load, StepFlops, costs_of
from cloc.training.plan.figures import Figures
from cloc.training.plan.memory import Setting
from cloc.training.plan.sizes import Sizes
from cloc.training.schedule import phases

# Of a step's computation; gradients are exchanged while it runs.
_BACKWARD = 2 / 3
_FLOAT = 4


@dataclass(frozen=True)
class Limit:
    """What one part of the machinery allows.

    Attributes:
        name: of the part.
        images_per_second: over all GPUs, were it the only limit.
        detail: how that comes about.
        advice: what to change where it binds.
    """

    name: str
    images_per_second: float
    detail: str
    advice: str


@dataclass(frozen=True)
class Traffic:
    """What a GPU sends a step, bytes, by what it is."""

    gradients: float
    embeddings: float


@dataclass(frozen=True)
class Speed:
    """How fast it goes.

    Attributes:
        steps: of the training.
        flops: of a step at the model's own size.
        traffic: of a GPU a step.
        limits: each of them, the binding one first.
        step_seconds: of a step, in the mean over the training.
        images_per_second: over all GPUs.
        mfu: model FLOPs of a step over what the GPUs could do at most.
    """

    steps: int
    flops: StepFlops
    traffic: Traffic
    limits: tuple[Limit, ...]
    step_seconds: float
    images_per_second: float
    mfu: float

    @property
    def hours(self) -> float:
        """By the clock."""
        return self.steps * self.step_seconds / 3600


@dataclass(frozen=True)
class Cluster:
    """What it runs on.

    Attributes:
        gpus: of all machines.
        per_node: GPUs a machine.
    """

    gpus: int
    per_node: int

    @property
    def nodes(self) -> int:
        """Machines."""
        return -(-self.gpus // self.per_node)

    @property
    def local(self) -> int:
        """GPUs of a machine that are used."""
        return min(self.gpus, self.per_node)


def speed(sizes: Sizes, setting: Setting, cluster: Cluster, figures: Figures, *, steps: int) -> Speed:
    """Estimates the speed of a training of so many steps."""
    config = setting.config
    batch = config.train.batch_size
    flops, mean = _flops(setting, figures, steps=steps)
    rate = _compute_rate(mean, setting, figures) * cluster.gpus
    compute_s = batch / rate
    traffic = _traffic(sizes, setting)
    bandwidth = _bandwidth(cluster, figures)
    gradients_s, embeddings_s = traffic.gradients / bandwidth, traffic.embeddings / bandwidth
    limits = [
        _compute(rate, mean, setting, figures),
        *_loading(cluster, figures),
        *_network(batch, gradients_s + embeddings_s, traffic, cluster, figures),
    ]
    exposed = embeddings_s + max(0.0, gradients_s - _BACKWARD * compute_s)
    others = min(limit.images_per_second for limit in limits[1:3])
    step_s = max(compute_s + exposed, batch / others)
    return Speed(
        steps=steps,
        flops=flops,
        traffic=traffic,
        limits=tuple(sorted(limits, key=lambda limit: limit.images_per_second)),
        step_seconds=step_s,
        images_per_second=batch / step_s,
        mfu=mean.total / (step_s * cluster.gpus * figures("gpu_peak") * 1e12),
    )


def _flops(setting: Setting, figures: Figures, *, steps: int) -> tuple[StepFlops, StepFlops]:
    """Of a step at the model's own size, and in the mean over the sizes of the training."""
    size = factory.architecture(setting.config.model).vision_config.image_size
    parts = phases(setting.config.train.resolutions, steps=steps, image_size=size)
    costs = costs_of(setting.config, objective=setting.objective)
    each = {part.image_size: costs.step(_load(setting, figures, image_size=part.image_size)) for part in parts}
    shares = [(each[part.image_size], (part.stop - part.first) / steps) for part in parts]
    mean = StepFlops(**{name: sum(vars(flops)[name] * share for flops, share in shares) for name in vars(each[size])})
    return each[size], mean


def _load(setting: Setting, figures: Figures, *, image_size: int) -> Load:
    batch, longest = setting.config.train.batch_size, factory.architecture(setting.config.model).text_config
    captions, places = min(figures("caption_tokens"), longest.max_position_embeddings), 0
    length = min(figures("region_tokens"), longest.max_position_embeddings)
    if setting.config.model.family == "siglip":
        captions = length = longest.max_position_embeddings
    if setting.objective == "cloc":
        places = batch * setting.config.loss.max_regions
    return Load.of(batch, image_size=image_size, caption=captions, regions=places, text=length, ranks=setting.ranks)


def _compute_rate(mean: StepFlops, setting: Setting, figures: Figures) -> float:
    """Images a second that a GPU computes."""
    if figures.has("train_rate"):
        return figures("train_rate")
    rate = figures("gpu_peak") * 1e12 * figures("utilisation") * setting.config.train.batch_size / mean.hardware
    if setting.processors:  # the same cores decode first
        rate = 1 / (1 / rate + 1 / (figures("cores") * figures("decode")))
    return rate


def _compute(rate: float, mean: StepFlops, setting: Setting, figures: Figures) -> Limit:
    batch = setting.config.train.batch_size
    detail = f"{mean.hardware / batch / 1e9:,.0f} GFLOP an image"
    if figures.has("train_rate"):
        detail = "as measured"
    elif mean.recomputed / mean.hardware > 0.005:
        detail += f", {mean.recomputed / mean.hardware:.0%} of it recomputed"
    advice = "more GPUs, train.compile: true, or smaller inputs at the start (train.resolutions)"
    if setting.config.train.gradient_checkpointing:
        advice += "; train.gradient_checkpointing: false where it fits"
    return Limit("compute", rate, detail, advice)


def _loading(cluster: Cluster, figures: Figures) -> tuple[Limit, Limit]:
    cores = cluster.gpus * figures("cores")
    decode, read = figures("decode"), figures("storage_read") * 1e6 / figures("image_bytes")
    return (
        Limit(
            "loader",
            cores * decode,
            f"{cores:,.0f} cores of {decode:,.0f} images/s",
            "more cores a GPU, or images stored at a smaller size (data ingest of resized copies)",
        ),
        Limit(
            "storage",
            cluster.nodes * read,
            f"{figures('storage_read'):,.0f} MB/s a machine, {figures('image_bytes') / 1e3:,.0f} kB an image",
            "faster storage, local copies of the shards, or smaller images",
        ),
    )


def _traffic(sizes: Sizes, setting: Setting) -> Traffic:
    """A ring's: of what W processes gather each sends (W - 1) / W, of what they sum twice that."""
    ranks = setting.ranks
    share = (ranks - 1) / ranks
    if setting.config.train.strategy == "fsdp2":
        # Weights for forward and for backward, a pass of each more for every micro-batch but the first; gradients once.
        passes = -(-setting.local // setting.micro)
        gradients = share * _FLOAT * (sizes.trained + sizes.parameters * (2 * passes + (passes if passes > 1 else 0)))
    else:
        gradients = 2 * share * _FLOAT * sizes.trained
    regions = setting.config.loss.max_regions if setting.objective == "cloc" else 0
    # Texts are gathered, and the sums of their gradients scattered.
    rows = setting.config.train.batch_size * (1 + regions)
    return Traffic(gradients, 2 * share * rows * sizes.embed_dim * _FLOAT)


def _bandwidth(cluster: Cluster, figures: Figures) -> float:
    """Bytes a second that a GPU sends."""
    link = figures("gpu_link") if cluster.nodes == 1 else figures("network") / 8
    return link * 1e9 * figures("network_share")


def _network(batch: int, seconds: float, traffic: Traffic, cluster: Cluster, figures: Figures) -> list[Limit]:
    if cluster.gpus == 1:
        return []
    between = f"{figures('network'):,.0f} Gbit/s a GPU" if cluster.nodes > 1 else f"{figures('gpu_link'):,.0f} GB/s"
    detail = f"{(traffic.gradients + traffic.embeddings) / 1e9:.2f} GB a step and GPU at {between}"
    advice = "a larger batch a GPU (fewer GPUs, or train.micro_batch for the same memory), or a faster network"
    return [Limit("network", batch / seconds, detail, advice)]


def steps_of(config: Config, *, steps: int | None, samples: float | None) -> int:
    """Steps of the training: as given, or as many as those samples take, or the settings'."""
    if steps:
        return steps
    return max(1, round(samples / config.train.batch_size)) if samples else config.train.steps


def loader_demand(speed: Speed, cluster: Cluster, figures: Figures) -> Mapping[str, float]:
    """What the loader must do for this speed: images/s and MB/s of a machine, cores of a GPU."""
    node = speed.images_per_second / cluster.nodes
    return {
        "images_per_second_a_node": node,
        "cores_a_gpu": speed.images_per_second / cluster.gpus / figures("decode"),
        "megabytes_per_second_a_node": node * figures("image_bytes") / 1e6,
    }
