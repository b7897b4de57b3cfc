"""Stage: boxes with texts for every image (METHOD, VESL steps 2 and 3; or labels without VESL, from the alt-text).

cloc ground --data data --captions work/captions --out work/regions
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cloc import boxes
from cloc.config.schema import Config, GroundingConfig
from cloc.data.dataset import resolve_split
from cloc.data.schema import Table
from cloc.data.selection import Selection
from cloc.labeling.detectors import DETECTORS, Detector, Region
from cloc.labeling.jobs import decode_threads, run_job
from cloc.labeling.names import Names
from cloc.labeling.quality import quality_counts, quality_metrics
from cloc.labeling.report import grounding_report
from cloc.labeling.settings import recipe, with_teacher
from cloc.labeling.text import clean
from cloc.labeling.worker import Item, Job, Labels
from cloc.stage import StageResult

STAGE = "grounding"


@dataclass(frozen=True)
class Inputs:
    """What the stage reads.

    Attributes:
        data: a data set, or a collection whose split `data.train_split` is grounded.
        captions: root of the captions tables, as the captioning stage wrote them.
        teachers: output of the stage `teachers`, whose detector is used when `grounding.model` is empty.
        shards: range of shards to label, "first:last"; "" for all.
        worker: which share of them, "i/n"; "" for all.
    """

    data: str
    captions: str
    teachers: str = ""
    shards: str = ""
    worker: str = ""


@dataclass(frozen=True)
class Outputs:
    """What the stage writes.

    Attributes:
        regions: root of the regions tables and of the quarantine tables.
        report: folder of the report; "" for none.
    """

    regions: str
    report: str = ""


@dataclass(frozen=True)
class _Prepared:
    value: Any
    human: tuple[Mapping[str, Any], ...]


class RegionLabeler:
    """Rows of the regions table: the backend's regions that can be used; the others are counted, box by box.

    Where the data have human boxes, a model's regions are held against them: that is counted, and changes nothing.

    Args:
        detector: the backend.
        min_box_side: least side of a box, as a share of the image.
        names: what the data's classes are called, to compare with human boxes; None compares with none.
    """

    def __init__(self, detector: Detector[Any], *, min_box_side: float, names: Names | None) -> None:
        self._detector = detector
        self._min_box_side = min_box_side
        self._names = names
        self.in_flight = detector.in_flight

    def prepare(self, item: Item) -> _Prepared:
        """See `worker.Labeler`."""
        human = tuple(row for row in item.sample.regions if row["source"] == "human")
        return _Prepared(self._detector.prepare(item), human)

    def bucket(self, prepared: _Prepared) -> Hashable:
        """See `worker.Labeler`."""
        return self._detector.bucket(prepared.value)

    def label(self, batch: Sequence[_Prepared]) -> list[Labels]:
        """See `worker.Labeler`."""
        found = self._detector.detect([prepared.value for prepared in batch])
        return [self._labels(regions, prepared.human) for regions, prepared in zip(found, batch, strict=True)]

    def _labels(self, regions: Sequence[Region], human: Sequence[Mapping[str, Any]]) -> Labels:
        rows, kept, refused = [], [], []
        for region in regions:
            text = clean(region.text) or clean(region.label)
            reason = region.left_out or (
                boxes.problem(region.box, min_side=self._min_box_side) if text else "region without text"
            )
            if reason:
                refused.append(reason)
                continue
            kept.append(region)
            x1, y1, x2, y2 = region.box
            place = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
            rows.append(
                {**place, "text": text, "score": region.score, "source": region.source, "label": clean(region.label)}
            )
        counts = quality_counts(kept, human, names=self._names) if self._names else {}
        return Labels(rows=rows, refused_items=refused, counts=counts)


def _make_labeler(config: GroundingConfig, classes: Sequence[str]) -> RegionLabeler:
    names = None if config.backend == "annotations" else Names(classes)
    return RegionLabeler(DETECTORS[config.backend](config), min_box_side=config.min_box_side, names=names)


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Grounds the selected shards of the training split; what stands already is skipped.

    Metrics are those of the paper's Table 1 (regions an image, words a region's text) and, where the data have human
    boxes, the labels' quality against them.

    Raises:
        ConfigError: the model cannot be loaded.
        DataError: the data cannot be read, or too much of it had to be quarantined.
    """
    data = resolve_split(inputs.data, config.data.train_split)
    section = with_teacher(config.grounding, inputs.teachers, name="detector", key=STAGE)
    made_of, human = recipe(section, config.data, stage=STAGE), section.backend == "annotations"
    reads: tuple[Table, ...] = ("captions",)
    if human:
        reads = ("regions", "captions") if section.phrases == "alt_text_ngrams" else ("regions",)
    job = Job(
        stage=STAGE,
        table="regions",
        data=data,
        captions=inputs.captions,
        output=outputs.regions,
        reads=reads,
        required=reads,
        config_hash=made_of.hash,
        made_by=made_of.made_by,
        batch_size=section.batch_size,
        min_side=config.data.min_side,
        max_pixels=config.data.max_pixels,
        threads=decode_threads(config.data.decode_threads),
    )
    done = run_job(
        job,
        partial(_make_labeler, section, job.open().manifest.classes),
        processes=config.data.processes if human else section.processes,
        quarantine_limit=config.data.quarantine_limit,
        selection=Selection.parse(shards=inputs.shards, worker=inputs.worker),
    )
    totals = done.totals
    artifacts = {"regions": outputs.regions}
    if outputs.report:
        artifacts |= grounding_report(
            outputs.report,
            config=config.model_copy(update={STAGE: section}),
            data=job.open(),
            regions=outputs.regions,
            totals=totals,
            per_shard=done.shards,
        )
    return StageResult(
        stage=STAGE,
        metrics={
            "labels/regions_per_image": totals.rows_per_image,
            "labels/words_per_region": totals.words_per_row,
            "labels/region_coverage": totals.coverage,
            **{f"speed/{name}": value for name, value in done.speed.items()},
            **quality_metrics(totals.more_counts),
        },
        counts=totals.counts,
        message=(
            f"{totals.labelled} of {totals.images} images grounded ({totals.skipped} stood already, "
            f"{totals.quarantined} quarantined): {totals.rows_per_image:.1f} regions an image, "
            f"{totals.words_per_row:.1f} words each, {totals.refused_items} boxes left out{done.share}"
        ),
        artifacts=artifacts,
    )
