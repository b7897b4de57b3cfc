"""Stage: a caption for every image (METHOD, VESL step 1). The alt-text is kept as a second caption.

cloc captioning --data data --captions work/captions
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cloc.config.schema import CaptioningConfig, Config
from cloc.data.dataset import resolve_split
from cloc.labeling.captioners import CAPTIONERS, Captioner
from cloc.labeling.settings import config_hash
from cloc.labeling.text import clean
from cloc.labeling.worker import Item, Job, Labels, run_job
from cloc.stage import StageResult

STAGE = "captioning"


@dataclass(frozen=True)
class Inputs:
    """What the stage reads.

    Attributes:
        data: a data set, or a collection whose split `data.train_split` is captioned.
    """

    data: str


@dataclass(frozen=True)
class Outputs:
    """What the stage writes.

    Attributes:
        captions: root of the captions tables and of the quarantine tables.
    """

    captions: str


class CaptionLabeler:
    """Rows of the captions table: the backend's captions, then the alt-text."""

    def __init__(self, captioner: Captioner) -> None:
        self._captioner = captioner

    def label(self, batch: Sequence[Item]) -> list[Labels]:
        """See `worker.Labeler`."""
        captions = self._captioner.caption(batch)
        return [self._rows(item, texts) for item, texts in zip(batch, captions, strict=True)]

    def _rows(self, item: Item, texts: Sequence[str]) -> Labels:
        distinct = [text for text in dict.fromkeys(clean(text) for text in texts) if text]
        if not distinct:
            return Labels(refused=self._captioner.nothing)
        rows = [_row(text, kind=self._captioner.kind, model=self._captioner.model) for text in distinct]
        alt_texts = dict.fromkeys(clean(text) for text in item.alt_texts)
        return Labels(rows=rows + [_row(text, kind="alt_text", model="") for text in alt_texts if text])


def _row(text: str, *, kind: str, model: str) -> dict[str, Any]:
    return {"text": text, "kind": kind, "model": model}


def _make_labeler(config: CaptioningConfig) -> CaptionLabeler:
    return CaptionLabeler(CAPTIONERS[config.backend](config))


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Captions the training split; what stands already is skipped.

    Metrics are those of the paper's Table 1: captions an image, words a caption; the alt-text is not counted.

    Raises:
        ConfigError: the model cannot be loaded.
        DataError: the data cannot be read, or too much of it had to be quarantined.
    """
    section = config.captioning
    human = section.backend == "annotations"
    data = resolve_split(inputs.data, config.data.train_split)
    job = Job(
        stage=STAGE,
        table="captions",
        data=data,
        captions="",
        output=outputs.captions,
        reads=("captions",),
        required=("captions",) if human else (),
        config_hash=config_hash(section, config.data, model="" if human else section.model),
        batch_size=section.batch_size,
        min_side=config.data.min_side,
        max_pixels=config.data.max_pixels,
    )
    totals = run_job(
        job,
        partial(_make_labeler, section),
        processes=config.data.processes if human else 1,
        quarantine_limit=config.data.quarantine_limit,
    )
    return StageResult(
        stage=STAGE,
        metrics={
            "captioning/captions_per_image": totals.rows_per_image,
            "captioning/words_per_caption": totals.words_per_row,
            "captioning/coverage": totals.labelled / max(1, totals.images),
        },
        counts=totals.counts,
        message=(
            f"{totals.labelled} of {totals.images} images captioned ({totals.skipped} stood already, "
            f"{totals.quarantined} quarantined): {totals.rows_per_image:.1f} captions an image, "
            f"{totals.words_per_row:.1f} words each"
        ),
        artifacts={"captions": outputs.captions},
    )
