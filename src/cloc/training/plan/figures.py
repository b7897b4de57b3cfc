"""Figures that an estimate rests on: what each is worth, and who says so. What nobody measured says "assumed"."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from cloc.errors import ConfigError


class Origin(StrEnum):
    """Where a figure comes from."""

    ASSUMED = "assumed"
    MEASURED = "measured"
    GIVEN = "given"


@dataclass(frozen=True)
class Figure:
    """A number that is not computed.

    Attributes:
        value: the number.
        unit: of it.
        what: what it says.
        source: who says so.
        origin: whether it was assumed, measured, or given by the user.
    """

    value: float
    unit: str
    what: str
    source: str
    origin: Origin = Origin.ASSUMED


_METHOD = "the paper, labels of WiT-300M"
_LOADER = "benchmarks/loader.py, COCO at 512 px"
_TABLES = "write_table, texts of the paper's lengths"

ASSUMED: Mapping[str, Figure] = {
    "utilisation": Figure(
        0.28, "", "share of the GPU's peak that a step reaches, recomputation included",
        "OpenCLIP's ViT-bigG/14 on 512 A100: 20.4 samples/s each",
    ),
    "reserve": Figure(0.08, "", "share of the GPU's memory that stays free", "room for the allocator's fragments"),
    "context": Figure(1.5, "GiB", "CUDA context, NCCL's buffers, cuBLAS workspaces", "usual for one process a GPU"),
    "network_share": Figure(0.7, "", "share of the network's bandwidth that collectives reach", "usual for NCCL"),
    "decode": Figure(569, "images/s", "decoded, resized, collated by a core", _LOADER),
    "storage_read": Figure(2000, "MB/s", "read from the storage by a machine", "half of a 32 Gbit/s link"),
    "image_bytes": Figure(63_000, "B", "an image in its tar, with its metadata", _LOADER),
    "caption_bytes": Figure(170, "B", "captions table, an image", _TABLES),
    "region_bytes": Figure(37, "B", "regions table, a region", _TABLES),
    "regions_per_image": Figure(11.6, "", "labelled regions an image", _METHOD),
    "caption_tokens": Figure(77, "tokens", "longest caption of a micro-batch", "text.context_length at most"),
    "region_tokens": Figure(12, "tokens", "longest region text of a micro-batch", "2.1 tokens in the mean (the paper)"),
    "label_tokens": Figure(60, "tokens", "a generated caption", "44.9 tokens in the mean (the paper)"),
    "decoder_step": Figure(0.02, "s", "one token of a batch, on a GPU", "a small decoder in transformers, greedy"),
    "label_utilisation": Figure(0.4, "", "share of the GPU's peak of labelling models", "large matrices, forward only"),
    "detector_tflop": Figure(0.75, "TFLOP", "OWLv2 L/14 at 448 px reads an image", "0.3 G weights, 1,025 tokens"),
    "captioner_tflop": Figure(0.4, "TFLOP", "BLIP-large reads an image", "0.3 G weights, 577 tokens"),
    "endpoint_tflop": Figure(20, "TFLOP", "an endpoint's model captions an image", "8 G weights, 1,250 tokens"),
}  # fmt: skip
"""What is taken where nothing better is known; `--assume NAME=VALUE` sets another value."""

RATES: Mapping[str, Figure] = {
    "train_rate": Figure(0, "images/s", "trained on by a GPU", ""),
    "caption_rate": Figure(0, "images/s", "captioned by a GPU", ""),
    "ground_rate": Figure(0, "images/s", "grounded by a GPU", ""),
}
"""Figures that are computed from others where nobody gave or measured them."""


class Figures:
    """The figures of an estimate, and which of them were used.

    Args:
        known: figures that replace the assumed ones, by name.
    """

    def __init__(self, known: Mapping[str, Figure] | None = None) -> None:
        self._all = {**ASSUMED, **(known or {})}
        self._used: dict[str, None] = {}

    def __call__(self, name: str) -> float:
        """The value of a figure; it is then listed among those that were used."""
        self._used[name] = None
        return self._all[name].value

    def add(self, figures: Mapping[str, Figure]) -> None:
        """Takes figures for which nothing better is known yet: what was given or measured stays."""
        for name, figure in figures.items():
            if name not in self._all or self._all[name].origin is Origin.ASSUMED:
                self._all[name] = figure

    def has(self, name: str) -> bool:
        """Whether there is such a figure."""
        return name in self._all

    @property
    def used(self) -> dict[str, Figure]:
        """What the estimate rests on, by name."""
        return {name: self._all[name] for name in self._used}


def given(items: Iterable[str], *, hardware: Mapping[str, Figure]) -> dict[str, Figure]:
    """The figures of `--assume NAME=VALUE`.

    Args:
        items: as given.
        hardware: the GPU's and the machine's figures, which can be set as well.

    Raises:
        ConfigError: an unknown name, or no number.
    """
    known, found = {**ASSUMED, **RATES, **hardware}, dict[str, Figure]()
    for item in items:
        name, _, text = item.partition("=")
        if name not in known:
            raise ConfigError(f"--assume {item!r}: there is no figure {name!r}; there are: {', '.join(sorted(known))}")
        try:
            value = float(text)
        except ValueError:
            raise ConfigError(f"--assume {item!r}: {text!r} is no number; write it as {name}=2.5") from None
        if not 0 < value < float("inf"):
            raise ConfigError(f"--assume {item!r}: {name} must be above 0")
        found[name] = replace(known[name], value=value, source="--assume", origin=Origin.GIVEN)
    return found
