"""The rows of the ablation: what each changes, and which row of the paper it is set beside.

A row is the base row (`cloc`) with a few settings, the objective or the labels changed; METHOD's order. Rows that are
not on by default are asked for by name. Pure: no torch, so that `cloc ablate --help` can list them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import lcm
from typing import Any, Literal

from cloc.ablation.paper import CLOC_2B, CLOC_300M
from cloc.config import Config, apply_overrides, flatten, parse
from cloc.errors import ConfigError

BASE = "cloc"
# Share of the images that keep their region labels in the row `fewer-labels`: the paper's 300M of 300M + 2B.
FEWER_SHARE = 0.13


class LabelKind(StrEnum):
    """Which labels a row is trained with."""

    ALL = "all"
    """Captions of every image, and regions for the phrases of every image's captions."""
    FEWER = "fewer"
    """The same, but regions on `FEWER_SHARE` of the images only."""
    ALT_TEXT = "alt_text"
    """Without VESL: regions named by the alt-text's n-grams."""


@dataclass(frozen=True)
class Growth:
    """A larger image encoder: factors on its width and its layers.

    Heads stay; the width is rounded to a multiple of them, and of 4 for the Prompter's positional encoding.
    """

    width: float
    layers: float

    def overrides(self, config: Config) -> tuple[str, ...]:
        """The settings, as `section.key=value`."""
        vision = config.model.vision
        unit = lcm(vision.heads, 4)
        width = max(1, round(vision.width * self.width / unit)) * unit
        return (f"model.vision.width={width}", f"model.vision.layers={round(vision.layers * self.layers)}")


@dataclass(frozen=True)
class Row:
    """A row of the ablation.

    Attributes:
        key: name on the command line and of folders.
        title: for people.
        overrides: settings that differ from the base row's, as `section.key=value`.
        growth: a larger image encoder.
        objective, labels: what is trained, and with which labels.
        paper: the paper's row; "" for an extension that the paper does not have.
        reference: the paper's row that the paper's difference is taken to.
        default: whether it is trained when no rows are named.
        note: what must be known to compare it with the paper.
    """

    key: str
    title: str
    overrides: tuple[str, ...] = ()
    growth: Growth | None = None
    objective: Literal["cloc", "clip"] = "cloc"
    labels: LabelKind = LabelKind.ALL
    paper: str = ""
    reference: str = CLOC_300M
    default: bool = True
    note: str = ""

    def config(self, base: Config) -> Config:
        """The row's settings.

        Raises:
            ConfigError: the settings have no such variant.
        """
        if self.growth and base.model.init_from:
            raise ConfigError(
                f"row {self.key}: model.init_from is {base.model.init_from!r}, whose sizes are fixed; "
                "leave this row out, or train from scratch"
            )
        grown = self.growth.overrides(base) if self.growth else ()
        tree = apply_overrides(base.model_dump(mode="json"), (*self.overrides, *grown))
        return parse(tree, source=f"row {self.key} of the ablation")

    def changes(self, base: Config) -> dict[str, Any]:
        """The settings that differ from the base row's, by name; empty where there are none."""
        before, after = (flatten(config.model_dump(mode="json")) for config in (base, self.config(base)))
        return {key: value for key, value in after.items() if value != before[key]}

    def is_base(self, base: Config) -> bool:
        """Whether it would be the base row again under these settings."""
        return self.objective == "cloc" and self.labels is LabelKind.ALL and not self.changes(base)


ROWS: Mapping[str, Row] = {
    row.key: row
    for row in (
        Row(
            "clip",
            "CLIP",
            objective="clip",
            paper="CLIP",
            reference=CLOC_2B,
            note="As many steps as the other rows, so less processor time. Its difference is set beside the one to the "
            "paper's 2B row, because here, as there, every image has region labels.",
        ),
        Row(BASE, "CLOC", paper=CLOC_300M, note="The row that the others are compared with."),
        Row(
            "no-prompter",
            "without Prompter (RoIAlign)",
            overrides=("model.prompter.kind=roi_align",),
            paper="without Prompter (RoIAlign)",
            note="RoIAlign takes no text prompt: no grounding.",
        ),
        Row(
            "no-filter",
            "without text filter",
            overrides=("loss.similar_text_threshold=1.0",),
            paper="without text filter",
        ),
        Row(
            "no-grounding",
            "without grounding loss",
            overrides=("loss.grounding=none",),
            paper="without grounding loss",
            note="The box head is not trained: no grounding.",
        ),
        Row("m2", "M = 2", overrides=("loss.max_regions=2",), paper="M = 2"),
        Row(
            "fewer-labels",
            "fewer region labels",
            labels=LabelKind.FEWER,
            paper=CLOC_300M,
            reference=CLOC_2B,
            note="The paper's rows of 300M and 2B region labels, the other way round: the row CLOC has regions on all "
            f"images, as the paper's 2B row; this one on {100 * FEWER_SHARE:.0f} % of them. Captions are the same.",
        ),
        Row(
            "no-vesl",
            "without VESL",
            overrides=("train.alt_text_share=1.0",),
            labels=LabelKind.ALT_TEXT,
            paper="without VESL",
            reference=CLOC_2B,
            note="Captions are the alt-texts alone; regions are named by n-grams of the alt-text. With the backend "
            "annotations, boxes stay exact, and those that the alt-text does not name are left out.",
        ),
        Row(
            "larger",
            "larger encoder",
            growth=Growth(width=4 / 3, layers=2),
            paper="L/14",
            reference=CLOC_2B,
            default=False,
            note="Width and layers grow as from B/16 to L/14; patches and input size stay.",
        ),
        Row(
            "largest",
            "largest encoder",
            growth=Growth(width=5 / 3, layers=8 / 3),
            paper="H/14",
            reference=CLOC_2B,
            default=False,
            note="Width and layers grow as from B/16 to H/14; patches and input size stay.",
        ),
        Row(
            "plain-prompter",
            "plain Prompter",
            overrides=("model.prompter.spatial_bias=none",),
            note="The paper's Prompter, without this project's spatial bias from the box.",
        ),
        Row(
            "pool-all",
            "pool over all tokens",
            overrides=("model.prompter.pool=all",),
            note="The paper's global average pool over the Prompter's outputs.",
        ),
    )
}


def select_rows(names: Sequence[str] | None, base: Config) -> tuple[Row, ...]:
    """The rows to train, in METHOD's order.

    Args:
        names: keys of rows, or "all"; None for those that are on by default, less those that these settings make equal
            to the base row (which is said).
        base: settings of the base row.

    Raises:
        ConfigError: a row is unknown or equal to the base row, or the base row is not among them.
    """
    if names is None:
        equal = [row.key for row in ROWS.values() if row.default and row.key != BASE and row.is_base(base)]
        if equal:
            print(f"ablation: left out, being the row {BASE} itself under these settings: {', '.join(equal)}")
        return tuple(row for row in ROWS.values() if row.default and row.key not in equal)
    wanted = set(ROWS) if "all" in names else set(names)
    for name in names:
        if name not in ROWS and name != "all":
            raise ConfigError(f"--rows: there is no row {name!r}; there are: {', '.join(ROWS)}, or all")
    if BASE not in wanted:
        raise ConfigError(f"--rows: {', '.join(names)} lacks {BASE}, the row that the others are compared with; add it")
    for name in wanted - {BASE}:
        if ROWS[name].is_base(base):
            changed = ", ".join(ROWS[name].overrides)
            raise ConfigError(f"--rows: {name} ({changed}) is the row {BASE} itself under these settings; leave it out")
    return tuple(row for row in ROWS.values() if row.key in wanted)
