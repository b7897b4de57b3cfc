"""The rules: row-wise expectations on the three tables, and limits of the whole set.

Thresholds come from the `validation` section of the settings (and from the limits that ingest and grounding promise
to keep: `data.min_side`, `data.max_pixels`, `grounding.min_box_side`).
"""

import os
from dataclasses import dataclass
from typing import Any, Literal

# Great Expectations reads this when it is imported; a validation sends nothing anywhere.
os.environ["GX_ANALYTICS_ENABLED"] = "false"

import great_expectations.expectations as gxe

from cloc.config import Config
from cloc.data.schema import CAPTION_KINDS

COORDINATES = ("x1", "y1", "x2", "y2")
# Coordinates are stored as float32: a side of exactly the limit may come back this much shorter.
_FLOAT32_SLACK = 1e-6


@dataclass(frozen=True)
class RowCheck:
    """A rule that each row of a table keeps.

    Attributes:
        id, name, hint: see CheckResult.
        expectation: the Great Expectations class's instance that judges it.
        columns: what an example shows of the offending row.
    """

    id: str
    name: str
    expectation: Any
    columns: tuple[str, ...]
    hint: str = ""


@dataclass(frozen=True)
class SetCheck:
    """A limit on one number of the whole data set (a column of the one-row summary frame).

    Attributes:
        id, name, hint: see CheckResult.
        column: the number's name.
        minimum, maximum: the limits, None for none.
        unit: how to print it.
    """

    id: str
    name: str
    column: str
    minimum: float | None = None
    maximum: float | None = None
    unit: Literal["count", "share", "number"] = "share"
    hint: str = ""

    @property
    def expectation(self) -> Any:
        """The Great Expectations form: the largest value of a one-row column is that row's value."""
        return gxe.ExpectColumnMaxToBeBetween(
            column=self.column,
            min_value=self.minimum,
            max_value=self.maximum,
            description=f"{self.name} ({self.limit})",
            meta={"check": self.id},
        )

    def text(self, value: float) -> str:
        """A value of this number, readable."""
        if self.unit == "share":
            return f"{value:.1%}"
        return f"{value:,.0f}" if self.unit == "count" else f"{value:.2f}"

    @property
    def limit(self) -> str:
        """The limit, readable."""
        parts = []
        if self.minimum is not None:
            parts.append(f"at least {self.text(self.minimum)}")
        if self.maximum is not None:
            parts.append(f"at most {self.text(self.maximum)}")
        return ", ".join(parts)

    def severity(self, value: float) -> float:
        """How far `value` is beyond the limit, relative to it, at most 1."""
        if self.minimum is not None and value < self.minimum:
            return min(1.0, (self.minimum - value) / self.minimum)
        if self.maximum is not None and value > self.maximum:
            return min(1.0, (value - self.maximum) / max(self.maximum, 1e-9))
        return 0.0


def image_checks(config: Config) -> tuple[RowCheck, ...]:
    """Rules for the images table."""
    mostly, data = config.validation.mostly, config.data
    return (
        _row(
            gxe.ExpectColumnValuesToMatchRegex(column="key", regex=r"^[A-Za-z0-9_\-]{1,200}$", mostly=mostly),
            id="images/key_valid",
            name="Image keys are 1 to 200 letters, digits, “_” or “-”",
        ),
        _row(
            gxe.ExpectColumnValuesToBeUnique(column="key", mostly=mostly),
            id="images/key_unique",
            name="Every image has a key of its own",
            hint="Labels of images with one key cannot be told apart; make the data set again.",
        ),
        _row(
            gxe.ExpectColumnValuesToNotBeNull(column="pixels", mostly=mostly),
            id="images/readable",
            name="Images can be opened",
            columns=("suffix",),
            hint="The file's header is damaged or of another format.",
        ),
        _row(
            gxe.ExpectColumnValuesToBeBetween(column="side", min_value=data.min_side, mostly=mostly),
            id="images/min_side",
            name=f"Shorter side of an image is at least {data.min_side} pixels",
            columns=("width", "height"),
        ),
        _row(
            gxe.ExpectColumnValuesToBeBetween(column="pixels", max_value=data.max_pixels, mostly=mostly),
            id="images/max_pixels",
            name=f"Images have at most {data.max_pixels:,} pixels",
            columns=("width", "height"),
        ),
    )


def caption_checks(config: Config) -> tuple[RowCheck, ...]:
    """Rules for the captions table."""
    mostly = config.validation.mostly
    kinds = ", ".join(CAPTION_KINDS)
    return (
        *_text_checks(config, table="captions", thing="caption"),
        _row(
            gxe.ExpectColumnValuesToBeInSet(column="kind", value_set=list(CAPTION_KINDS), mostly=mostly),
            id="captions/kind_known",
            name=f"Kind of a caption is one of {kinds}",
        ),
        _row(
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["key", "kind", "model", "text"], mostly=mostly),
            id="captions/row_unique",
            name="No caption stands twice for an image",
            columns=("kind", "text"),
            hint="A labelling stage wrote its rows more than once.",
        ),
    )


def region_checks(config: Config) -> tuple[RowCheck, ...]:
    """Rules for the regions table."""
    mostly, min_side = config.validation.mostly, config.grounding.min_box_side
    inside = tuple(
        _row(
            gxe.ExpectColumnValuesToBeBetween(column=axis, min_value=0, max_value=1, mostly=mostly),
            id=f"regions/{axis}_inside",
            name=f"Boxes lie inside their image: {axis} from 0 to 1",
            columns=COORDINATES,
            hint="Boxes are shares of the original image; values far above 1 are pixels that were never divided.",
        )
        for axis in COORDINATES
    )
    ordered = tuple(
        _row(
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(column_A=f"{axis}2", column_B=f"{axis}1", mostly=mostly),
            id=f"regions/{axis}_ordered",
            name=f"Corners of a box are in order: {axis}1 below {axis}2",
            columns=COORDINATES,
            hint="Boxes are left, top, right, bottom; swapped corners or x, y, width, height look like this.",
        )
        for axis in ("x", "y")
    )
    return (
        *_text_checks(config, table="regions", thing="region"),
        _row(
            gxe.ExpectColumnValuesToBeBetween(column="finite", min_value=4, max_value=4, mostly=mostly),
            id="regions/box_finite",
            name="Boxes have four finite coordinates",
            columns=COORDINATES,
        ),
        *inside,
        *ordered,
        _row(
            gxe.ExpectColumnValuesToBeBetween(column="side", min_value=min_side - _FLOAT32_SLACK, mostly=mostly),
            id="regions/min_side",
            name=f"Shorter side of a box is at least {min_side:.1%} of the image",
            columns=COORDINATES,
        ),
        _row(
            gxe.ExpectColumnValuesToBeBetween(column="score", min_value=0, max_value=1, mostly=mostly),
            id="regions/score_range",
            name="Scores lie from 0 to 1",
        ),
        _row(
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["key", *COORDINATES, "text"], mostly=mostly),
            id="regions/row_unique",
            name="No region stands twice for an image",
            columns=(*COORDINATES, "text"),
            hint="A labelling stage wrote its rows more than once.",
        ),
    )


def set_checks(config: Config) -> tuple[SetCheck, ...]:
    """Limits of the whole data set."""
    limits = config.validation
    return (
        SetCheck("set/images", "Number of images", "images", minimum=limits.min_images, unit="count"),
        SetCheck(
            "set/caption_coverage",
            "Images with a caption that is not the alt-text",
            "caption_coverage",
            minimum=limits.min_caption_coverage,
            hint="Captioning did not run, or gave up on many images: look at its quarantine.",
        ),
        SetCheck(
            "set/region_coverage",
            "Images with at least one region",
            "region_coverage",
            minimum=limits.min_region_coverage,
            hint="Grounding found little: captions without things in them, or grounding.score_threshold is too high.",
        ),
        SetCheck(
            "set/regions_per_image",
            "Mean number of regions an image",
            "regions_per_image",
            minimum=limits.min_regions_per_image,
            unit="number",
            hint="Grounding found little: captions without things in them, or grounding.score_threshold is too high.",
        ),
        SetCheck(
            "set/duplicate_captions",
            "Share of the most common caption",
            "top_caption_share",
            maximum=limits.max_duplicate_captions,
            hint="A captioner that says the same of every picture teaches nothing.",
        ),
        SetCheck(
            "set/quarantined",
            "Share of quarantined images",
            "quarantined_share",
            maximum=limits.max_quarantined,
            hint="Look at the reasons in the quarantine tables.",
        ),
    )


def all_checks(config: Config) -> tuple[RowCheck | SetCheck, ...]:
    """Every rule that a validation with these settings judges."""
    return (*image_checks(config), *caption_checks(config), *region_checks(config), *set_checks(config))


def _text_checks(config: Config, *, table: str, thing: str) -> tuple[RowCheck, ...]:
    mostly, words = config.validation.mostly, config.validation.max_caption_words
    return (
        _row(
            gxe.ExpectColumnValuesToNotBeNull(column="key", mostly=mostly),
            id=f"{table}/key_set",
            name=f"Every {thing} names an image",
            columns=("text",),
        ),
        _row(
            gxe.ExpectColumnValuesToBeBetween(column="images_with_key", min_value=1, mostly=mostly),
            id=f"{table}/key_known",
            name=f"Every {thing} belongs to an image of its shard",
            columns=("text",),
            hint="These labels were made from other images, or the shards were made again since.",
        ),
        _row(
            gxe.ExpectColumnValuesToMatchRegex(column="text", regex=r"\S", mostly=mostly),
            id=f"{table}/text_set",
            name=f"Every {thing} has text",
        ),
        _row(
            gxe.ExpectColumnValuesToBeBetween(column="words", max_value=words, mostly=mostly),
            id=f"{table}/text_length",
            name=f"Text of a {thing} has at most {words} words",
            columns=("words", "text"),
        ),
    )


def _row(expectation: Any, *, id: str, name: str, columns: tuple[str, ...] | None = None, hint: str = "") -> RowCheck:
    expectation.meta = {"check": id}
    return RowCheck(id=id, name=name, expectation=expectation, columns=columns or (expectation.column,), hint=hint)
