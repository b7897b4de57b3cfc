"""Expectations of Great Expectations that labels of images need: boxes, keys, and text that a machine spoilt.

Each is a class like Great Expectations' own, and a metric that judges whole columns; Data Docs show its sentence.

    suite = gx.ExpectationSuite(name="regions", expectations=[
        ExpectBoxesInsideImage(column_list=BOX, mostly=0.999), ExpectTextNotGarbled(column="text"),
    ])

Missing values keep every rule: that a value is there is a rule of its own.
"""

import os
from collections.abc import Callable
from typing import Any, ClassVar, Literal

# Great Expectations reads this when it is imported; a validation sends nothing anywhere.
os.environ["GX_ANALYTICS_ENABLED"] = "false"

import numpy as np
import numpy.typing as npt
import pandas as pd
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation, MulticolumnMapExpectation
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    MulticolumnMapMetricProvider,
    column_condition_partial,
    multicolumn_condition_partial,
)
from great_expectations.render import LegacyRendererType, RenderedStringTemplateContent
from great_expectations.render.renderer.renderer import renderer
from great_expectations.render.renderer_configuration import RendererConfiguration, RendererValueType

from cloc.validation.texts import Flags, garbled, has_markup, incomplete

BOX = ["x1", "y1", "x2", "y2"]


class _Readable:
    """What Data Docs say of an expectation: `sentence`, in which $name stands for the field `name`, and its share."""

    sentence: ClassVar[str]
    named: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def _told(cls, values: dict[str, Any]) -> str:
        share = float(values.get("mostly") or 1)
        return cls.sentence + ("." if share >= 1 else f", in at least {100 * share:g} % of the rows.")

    @classmethod
    def _prescriptive_template(cls, renderer_configuration: RendererConfiguration) -> RendererConfiguration:
        for name in cls.named:
            renderer_configuration.add_param(name=name, param_type=RendererValueType.STRING)
        renderer_configuration.template_str = cls._told(renderer_configuration.kwargs or {})
        return renderer_configuration

    @classmethod
    @renderer(renderer_type=LegacyRendererType.PRESCRIPTIVE)  # type: ignore[untyped-decorator]  # theirs has no types
    def _prescriptive_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None
    ) -> list[RenderedStringTemplateContent]:
        configuration = configuration or (result.expectation_config if result else None)
        values = dict(configuration.kwargs) if configuration else {}
        template = {"template": cls._told(values), "params": {name: values.get(name, "") for name in cls.named}}
        return [RenderedStringTemplateContent(content_block_type="string_template", string_template=template)]


def _judging(function: Callable[..., Flags], *names: str) -> Any:
    """A metric's judgement of a column by a function of it, and of the expectation's fields of these names."""

    def judge(_: Any, column: pd.Series, **values: Any) -> pd.Series:
        return pd.Series(function(column, *(values[name] for name in names)), index=column.index)

    return column_condition_partial(engine=PandasExecutionEngine)(judge)


def _judging_boxes(function: Callable[[npt.NDArray[np.float64]], Any]) -> Any:
    """A metric's judgement of boxes, shape (N, 4)."""

    def judge(_: Any, columns: pd.DataFrame, **values: Any) -> pd.Series:
        return pd.Series(function(columns.to_numpy(dtype=np.float64)), index=columns.index)

    return multicolumn_condition_partial(engine=PandasExecutionEngine)(judge)


class BoxesInsideImage(MulticolumnMapMetricProvider):
    """All coordinates lie from 0 to 1."""

    condition_metric_name = "multicolumn_values.cloc_boxes_inside_image"

    _pandas = _judging_boxes(lambda boxes: ~((boxes < 0) | (boxes > 1)).any(axis=1))


class ExpectBoxesInsideImage(_Readable, MulticolumnMapExpectation):
    """Boxes lie inside their image: `column_list` names left, top, right, bottom, as shares of the image."""

    map_metric: ClassVar[str] = BoxesInsideImage.condition_metric_name
    sentence: ClassVar[str] = "boxes must lie inside their image: all coordinates from 0 to 1"


class BoxesOrdered(MulticolumnMapMetricProvider):
    """Left is smaller than right, and top than bottom."""

    condition_metric_name = "multicolumn_values.cloc_boxes_ordered"

    _pandas = _judging_boxes(lambda boxes: ~(boxes[:, :2] >= boxes[:, 2:]).any(axis=1))


class ExpectBoxesOrdered(_Readable, MulticolumnMapExpectation):
    """Corners are in order: `column_list` names left, top, right, bottom."""

    map_metric: ClassVar[str] = BoxesOrdered.condition_metric_name
    sentence: ClassVar[str] = "corners of boxes must be in order: left below right, top below bottom"


class BoxesFinite(MulticolumnMapMetricProvider):
    """All coordinates are numbers."""

    condition_metric_name = "multicolumn_values.cloc_boxes_finite"

    _pandas = _judging_boxes(lambda boxes: np.isfinite(boxes).all(axis=1))


class ExpectBoxesFinite(_Readable, MulticolumnMapExpectation):
    """Boxes have four finite coordinates; here a missing one breaks the rule."""

    map_metric: ClassVar[str] = BoxesFinite.condition_metric_name
    ignore_row_if: Literal["never"] = "never"
    sentence: ClassVar[str] = "boxes must have four finite coordinates"


class KeysKnown(ColumnMapMetricProvider):
    """The number of images that have the row's key is one or more."""

    condition_metric_name = "column_values.cloc_keys_known"

    _pandas = _judging(lambda counts: counts.to_numpy() >= 1)


class ExpectKeysKnown(_Readable, ColumnMapExpectation):
    """Every row belongs to an image: `column` counts the images of the row's shard that have its key."""

    map_metric: ClassVar[str] = KeysKnown.condition_metric_name
    sentence: ClassVar[str] = "every row must belong to an image of its shard"


class TextNotGarbled(ColumnMapMetricProvider):
    """The text was decoded rightly."""

    condition_metric_name = "column_values.cloc_text_not_garbled"

    _pandas = _judging(lambda texts: ~garbled(texts))


class ExpectTextNotGarbled(_Readable, ColumnMapExpectation):
    """Texts are in their right encoding: no mojibake ("cafÃ©") as ftfy finds it, no replacement characters."""

    map_metric: ClassVar[str] = TextNotGarbled.condition_metric_name
    sentence: ClassVar[str] = "$column must hold no text in a wrong encoding, and no replacement characters"
    named: ClassVar[tuple[str, ...]] = ("column",)


class TextWithoutMarkup(ColumnMapMetricProvider):
    """The text is plain."""

    condition_metric_name = "column_values.cloc_text_without_markup"

    _pandas = _judging(lambda texts: ~has_markup(texts))


class ExpectTextWithoutMarkup(_Readable, ColumnMapExpectation):
    """Texts hold no control characters, tags, entities or web addresses."""

    map_metric: ClassVar[str] = TextWithoutMarkup.condition_metric_name
    sentence: ClassVar[str] = "$column must hold no control characters, HTML or web addresses"
    named: ClassVar[tuple[str, ...]] = ("column",)


class TextComplete(ColumnMapMetricProvider):
    """The text does not end in the middle."""

    condition_metric_name = "column_values.cloc_text_complete"
    condition_value_keys = ("language",)

    _pandas = _judging(lambda texts, language: ~incomplete(texts, language=language), "language")


class ExpectTextComplete(_Readable, ColumnMapExpectation):
    """Texts do not end in the middle: in an open bracket, a comma, dots, or a word that leads on to another one.

    Attributes:
        language: code of the texts' language; "" takes English. Of others only the punctuation is looked at.
    """

    map_metric: ClassVar[str] = TextComplete.condition_metric_name
    success_keys: ClassVar[tuple[str, ...]] = ("mostly", "language")
    language: str = ""
    sentence: ClassVar[str] = "$column must hold no text that ends in the middle"
    named: ClassVar[tuple[str, ...]] = ("column",)
