"""The rules that rows of the three tables keep.

Thresholds come from the `validation` section of the settings, and from the limits that ingest and grounding promise to
keep: `data.min_side`, `data.max_pixels`, `grounding.min_box_side`.
"""

from typing import Any

from cloc.config import Config
from cloc.data.schema import CAPTION_KINDS
from cloc.validation.checks import RowCheck
from cloc.validation.expectations import (
    BOX,
    ExpectBoxesFinite,
    ExpectBoxesInsideImage,
    ExpectBoxesOrdered,
    ExpectKeysKnown,
    ExpectTextComplete,
    ExpectTextNotGarbled,
    ExpectTextWithoutMarkup,
)
from cloc.validation.frames import SHARD

import great_expectations.expectations as gxe  # isort: skip  # after the above, which settles what it reads

# Coordinates are stored as float32: a side of exactly the limit may come back this much shorter.
_FLOAT32_SLACK = 1e-6


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
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["key", SHARD], mostly=mostly),
            id="images/key_unique",
            name="Every image of a shard has a key of its own",
            columns=("key",),
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
            gxe.ExpectColumnPairValuesToBeEqual(
                column_A="suffix", column_B="format", ignore_row_if="either_value_is_missing", mostly=mostly
            ),
            id="images/suffix_true",
            name="Images are of the format that their suffix says",
            columns=("suffix", "format"),
            hint="Files were renamed and not converted; ingest names them by their content.",
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
    """Rules for the captions table. Alt-texts are what the web says: of them only structure and length are judged."""
    limits = config.validation
    kinds = ", ".join(CAPTION_KINDS)
    return (
        *_text_checks(config, table="captions", thing="caption", words=limits.max_caption_words),
        _row(
            gxe.ExpectColumnValuesToBeBetween(
                column="described_words", min_value=limits.min_caption_words, mostly=limits.mostly
            ),
            id="captions/text_short",
            name=f"A caption has at least {limits.min_caption_words} words",
            columns=("words", "text"),
        ),
        _row(
            ExpectTextComplete(column="described", language=limits.language, mostly=1 - limits.max_incomplete),
            id="captions/text_complete",
            name="Captions do not end in the middle",
            hint="Generation stopped at its limit (captioning.generation.max_new_tokens), or a column was cut.",
        ),
        _row(
            gxe.ExpectColumnValuesToBeInSet(column="kind", value_set=list(CAPTION_KINDS), mostly=limits.mostly),
            id="captions/kind_known",
            name=f"Kind of a caption is one of {kinds}",
        ),
        _row(
            gxe.ExpectCompoundColumnsToBeUnique(
                column_list=["key", "kind", "model", "text", SHARD], mostly=1 - limits.max_repeated_rows
            ),
            id="captions/row_unique",
            name="No caption stands twice for an image",
            columns=("kind", "text"),
            hint="A labelling stage wrote its rows more than once.",
        ),
    )


def region_checks(config: Config) -> tuple[RowCheck, ...]:
    """Rules for the regions table."""
    limits, min_side = config.validation, config.grounding.min_box_side
    mostly = limits.mostly
    return (
        *_text_checks(config, table="regions", thing="region", words=limits.max_region_words),
        _row(
            ExpectBoxesFinite(column_list=BOX, mostly=mostly),
            id="regions/box_finite",
            name="Boxes have four finite coordinates",
        ),
        _row(
            ExpectBoxesInsideImage(column_list=BOX, mostly=mostly),
            id="regions/box_inside",
            name="Boxes lie inside their image: coordinates from 0 to 1",
            hint="Boxes are shares of the original image; values far above 1 are pixels that were never divided.",
        ),
        _row(
            ExpectBoxesOrdered(column_list=BOX, mostly=mostly),
            id="regions/box_ordered",
            name="Corners of a box are in order: x1 below x2, y1 below y2",
            hint="Boxes are left, top, right, bottom; swapped corners or x, y, width, height look like this.",
        ),
        _row(
            gxe.ExpectColumnValuesToBeBetween(
                column="side", min_value=min_side - _FLOAT32_SLACK, mostly=1 - limits.max_small_boxes
            ),
            id="regions/min_side",
            name=f"Shorter side of a box is at least {min_side:.1%} of the image",
            columns=tuple(BOX),
        ),
        _row(
            gxe.ExpectColumnValuesToBeBetween(column="score", min_value=0, max_value=1, mostly=mostly),
            id="regions/score_range",
            name="Scores lie from 0 to 1",
        ),
        _row(
            gxe.ExpectCompoundColumnsToBeUnique(
                column_list=["key", *BOX, "text", SHARD], mostly=1 - limits.max_repeated_rows
            ),
            id="regions/row_unique",
            name="No region stands twice for an image",
            columns=(*BOX, "text"),
            hint="A labelling stage wrote its rows more than once.",
        ),
    )


def _text_checks(config: Config, *, table: str, thing: str, words: int) -> tuple[RowCheck, ...]:
    limits = config.validation
    return (
        _row(
            gxe.ExpectColumnValuesToNotBeNull(column="key", mostly=limits.mostly),
            id=f"{table}/key_set",
            name=f"Every {thing} names an image",
            columns=("text",),
        ),
        _row(
            ExpectKeysKnown(column="images_with_key", mostly=limits.mostly),
            id=f"{table}/key_known",
            name=f"Every {thing} belongs to an image of its shard",
            columns=("text",),
            hint="These labels were made from other images, or the shards were made again since.",
        ),
        _row(
            gxe.ExpectColumnValuesToMatchRegex(column="text", regex=r"\S", mostly=limits.mostly),
            id=f"{table}/text_set",
            name=f"Every {thing} has text",
        ),
        _row(
            gxe.ExpectColumnValuesToBeBetween(column="words", max_value=words, mostly=limits.mostly),
            id=f"{table}/text_length",
            name=f"Text of a {thing} has at most {words} words",
            columns=("words", "text"),
        ),
        _row(
            ExpectTextNotGarbled(column="described", mostly=1 - limits.max_garbled),
            id=f"{table}/text_encoded",
            name=f"Text of a {thing} is in its right encoding",
            hint="Text was decoded with the wrong encoding somewhere before; ftfy can mend most of it.",
        ),
        _row(
            ExpectTextWithoutMarkup(column="described", mostly=1 - limits.max_markup),
            id=f"{table}/text_plain",
            name=f"Text of a {thing} holds no control characters, markup or web addresses",
        ),
    )


def _row(expectation: Any, *, id: str, name: str, columns: tuple[str, ...] | None = None, hint: str = "") -> RowCheck:
    expectation.meta = {"check": id}
    own = tuple(getattr(expectation, "column_list", ())) or (getattr(expectation, "column", ""),)
    return RowCheck(
        id=id, name=name, expectation=expectation, columns=columns or own, mostly=expectation.mostly, hint=hint
    )
