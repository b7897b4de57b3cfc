"""Settings of a training against each other: what the schema alone cannot know."""

from cloc.errors import ConfigError
from cloc.training.doctor.registry import Subject, Warn, check
from cloc.training.schedule import phases


@check("batch", "train", cheap=True)
def batch(subject: Subject) -> str:
    """The global batch is shared equally by the processes."""
    from cloc.data.loader import check_division

    train, ranks = subject.config.train, subject.ranks
    check_division(batch_size=train.batch_size, streams=0, processes=ranks)
    return f"{train.batch_size:,} images: {train.batch_size // ranks:,} for each of {ranks} processes"


@check("streams", "train", cheap=True)
def streams(subject: Subject) -> str:
    """Streams are shared by processes, and share the batch."""
    from cloc.data.loader import check_division

    train, ranks = subject.config.train, subject.ranks
    if not train.streams:
        return f"one a process: {ranks}"
    check_division(batch_size=train.batch_size, streams=train.streams, processes=ranks)
    return f"{train.streams}: {train.streams // ranks} a process"


@check("micro-batch", "train", cheap=True)
def micro_batch(subject: Subject) -> str:
    """Micro-batches make up a process's part of the batch."""
    train = subject.config.train
    local = train.batch_size // subject.ranks
    if not train.micro_batch:
        return f"none: {local:,} images at once"
    if train.micro_batch >= local:
        raise Warn(f"train.micro_batch {train.micro_batch} is no smaller than a process's {local} images: no effect")
    if local % train.micro_batch:
        raise Warn(
            f"train.micro_batch {train.micro_batch} does not divide a process's {local} images: the last part of each "
            "step is smaller"
        )
    return f"{local // train.micro_batch} parts of {train.micro_batch}"


@check("image size", "train", cheap=True)
def image_size(subject: Subject) -> str:
    """Sizes of the network input are made of whole patches."""
    model, train = subject.config.model, subject.config.train
    vision = model.vision
    if model.init_from:
        return f"as in {model.init_from}" if not model.init_image_size else f"{model.init_image_size} px"
    parts = phases(train.resolutions, steps=train.steps, image_size=vision.image_size, patch_size=vision.patch_size)
    return f"{', then '.join(str(part.image_size) for part in parts)} px, patches of {vision.patch_size}"


@check("schedule", "train", cheap=True)
def schedule(subject: Subject) -> str:
    """Warm-up, checkpoints and evaluations fit into the steps."""
    train = subject.config.train
    if train.keep_best and not train.evaluate_every:
        raise ConfigError(
            f"train.keep_best is {train.keep_best}, but nothing is evaluated while training: set train.evaluate_every"
        )
    if train.warmup_steps >= train.steps:
        raise Warn(f"train.warmup_steps {train.warmup_steps:,} reach the end of {train.steps:,} steps")
    if train.checkpoint_every >= train.steps > 1:
        raise Warn(
            f"train.checkpoint_every {train.checkpoint_every:,} is beyond the {train.steps:,} steps: a run that is "
            "killed begins anew"
        )
    return f"{train.steps:,} steps, {train.warmup_steps:,} of warm-up, a checkpoint every {train.checkpoint_every:,}"
