"""Stage: boxes with texts for every image (METHOD, VESL steps 2 and 3; or labels without VESL, from the alt-text).

cloc grounding --data data --captions work/captions --regions work/regions
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from cloc import boxes
from cloc.config.schema import Config, GroundingConfig
from cloc.data.dataset import resolve_split
from cloc.data.schema import Table
from cloc.labeling.detectors import DETECTORS, Detector, Region
from cloc.labeling.settings import config_hash
from cloc.labeling.text import clean
from cloc.labeling.worker import Item, Job, Labels, run_job
from cloc.stage import StageResult

STAGE = "grounding"


@dataclass(frozen=True)
class Inputs:
    """What the stage reads.

    Attributes:
        data: a data set, or a collection whose split `data.train_split` is grounded.
        captions: root of the captions tables, as the captioning stage wrote them.
    """

    data: str
    captions: str


@dataclass(frozen=True)
class Outputs:
    """What the stage writes.

    Attributes:
        regions: root of the regions tables and of the quarantine tables.
    """

    regions: str


class RegionLabeler:
    """Rows of the regions table: the backend's regions that can be used; the others are counted, box by box.

    Args:
        detector: the backend.
        min_box_side: least side of a box, as a share of the image.
    """

    def __init__(self, detector: Detector, *, min_box_side: float) -> None:
        self._detector = detector
        self._min_box_side = min_box_side

    def label(self, batch: Sequence[Item]) -> list[Labels]:
        """See `worker.Labeler`."""
        return [self._rows(regions) for regions in self._detector.detect(batch)]

    def _rows(self, regions: Sequence[Region]) -> Labels:
        rows, refused = [], []
        for region in regions:
            text = clean(region.text) or clean(region.label)
            reason = region.left_out or (
                boxes.problem(region.box, min_side=self._min_box_side) if text else "region without text"
            )
            if reason:
                refused.append(reason)
                continue
            x1, y1, x2, y2 = region.box
            place = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
            rows.append(
                {**place, "text": text, "score": region.score, "source": region.source, "label": clean(region.label)}
            )
        return Labels(rows=rows, refused_items=refused)


def _make_labeler(config: GroundingConfig) -> RegionLabeler:
    return RegionLabeler(DETECTORS[config.backend](config), min_box_side=config.min_box_side)


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Grounds the training split; what stands already is skipped.

    Metrics are those of the paper's Table 1: regions an image, words a region's text.

    Raises:
        ConfigError: the model cannot be loaded.
        DataError: the data cannot be read, or too much of it had to be quarantined.
    """
    section = config.grounding
    human = section.backend == "annotations"
    reads: tuple[Table, ...] = ("captions",)
    if human:
        reads = ("regions", "captions") if section.phrases == "alt_text_ngrams" else ("regions",)
    job = Job(
        stage=STAGE,
        table="regions",
        data=resolve_split(inputs.data, config.data.train_split),
        captions=inputs.captions,
        output=outputs.regions,
        reads=reads,
        required=reads,
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
            "grounding/regions_per_image": totals.rows_per_image,
            "grounding/words_per_region": totals.words_per_row,
            "grounding/coverage": totals.labelled / max(1, totals.images),
        },
        counts=totals.counts,
        message=(
            f"{totals.labelled} of {totals.images} images grounded ({totals.skipped} stood already, "
            f"{totals.quarantined} quarantined): {totals.rows_per_image:.1f} regions an image, "
            f"{totals.words_per_row:.1f} words each, {totals.refused_items} boxes left out"
        ),
        artifacts={"regions": outputs.regions},
    )
