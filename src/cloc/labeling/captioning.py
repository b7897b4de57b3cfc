"""Stage: a caption for every image (METHOD, VESL step 1). The alt-text is kept as a second caption.

cloc caption --data data --out work/captions
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cloc.config.schema import CaptioningConfig, Config
from cloc.data.dataset import resolve_split
from cloc.data.selection import Selection
from cloc.labeling.captioners import CAPTIONERS, Captioner, Said
from cloc.labeling.guards import Guards
from cloc.labeling.jobs import decode_threads, run_job
from cloc.labeling.names import Names
from cloc.labeling.quality import caption_counts, quality_metrics
from cloc.labeling.report import captioning_report
from cloc.labeling.settings import recipe, with_teacher
from cloc.labeling.text import clean
from cloc.labeling.worker import Item, Job, Labels
from cloc.stage import StageResult

STAGE = "captioning"


@dataclass(frozen=True)
class Inputs:
    """What the stage reads.

    Attributes:
        data: a data set, or a collection whose split `data.train_split` is captioned.
        teachers: output of the stage `teachers`, whose captioner is used when `captioning.model` is empty.
        shards: range of shards to label, "first:last"; "" for all.
        worker: which share of them, "i/n"; "" for all.
    """

    data: str
    teachers: str = ""
    shards: str = ""
    worker: str = ""


@dataclass(frozen=True)
class Outputs:
    """What the stage writes.

    Attributes:
        captions: root of the captions tables and of the quarantine tables.
        report: folder of the report; "" for none.
    """

    captions: str
    report: str = ""


@dataclass(frozen=True)
class _Prepared:
    value: Any
    alt_texts: tuple[str, ...]
    human_regions: tuple[Mapping[str, Any], ...]


class CaptionLabeler:
    """Rows of the captions table: the backend's captions that pass the guards, then the alt-text.

    Where the data have human boxes, it is counted how many of their classes the captions name; that changes nothing.

    Args:
        captioner: the backend.
        guards: what generated captions must pass; people's are taken as they are.
        names: what the data's classes are called.
    """

    def __init__(self, captioner: Captioner[Any], guards: Guards, *, names: Names) -> None:
        self._captioner, self._guards, self._names = captioner, guards, names
        self.in_flight = captioner.in_flight

    def prepare(self, item: Item) -> _Prepared:
        """See `worker.Labeler`."""
        alt_texts = dict.fromkeys(clean(text) for text in item.alt_texts)
        return _Prepared(
            self._captioner.prepare(item),
            alt_texts=tuple(text for text in alt_texts if text),
            human_regions=tuple(row for row in item.sample.regions if row["source"] == "human"),
        )

    def bucket(self, prepared: _Prepared) -> Hashable:
        """See `worker.Labeler`."""
        return self._captioner.bucket(prepared.value)

    def label(self, batch: Sequence[_Prepared]) -> list[Labels]:
        """See `worker.Labeler`."""
        said = self._captioner.caption([prepared.value for prepared in batch])
        return [self._labels(one, prepared) for one, prepared in zip(said, batch, strict=True)]

    def _labels(self, said: Said, prepared: _Prepared) -> Labels:
        if said.refused:
            return Labels(refused=said.refused)
        rows, faults = [], []
        for text in dict.fromkeys(clean(text) for text in said.texts):
            fault = self._guards(text, prompt=said.prompt) if self._captioner.kind == "generated" else ""
            if fault:
                faults.append(fault)
            elif text:
                rows.append({"text": text, "kind": self._captioner.kind, "model": self._captioner.model})
        if not rows:
            return Labels(refused=faults[0] if faults else "no caption")
        counts = caption_counts(
            [row["text"] for row in rows], prepared.human_regions, alt_texts=prepared.alt_texts, names=self._names
        )
        rows += [{"text": text, "kind": "alt_text", "model": ""} for text in prepared.alt_texts]
        return Labels(rows=rows, refused_items=faults, counts=counts)


def _make_labeler(config: CaptioningConfig, classes: Sequence[str]) -> CaptionLabeler:
    return CaptionLabeler(CAPTIONERS[config.backend](config), Guards(config.guards), names=Names(classes))


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Captions the selected shards of the training split; what stands already is skipped.

    Metrics are those of the paper's Table 1 (captions an image, words a caption; the alt-text is not counted) and,
    where the data have human boxes, how many of their classes the captions name.

    Raises:
        ConfigError: the model cannot be loaded, or the endpoint refuses.
        DataError: the data cannot be read, or too much of it had to be quarantined.
    """
    data = resolve_split(inputs.data, config.data.train_split)
    section = with_teacher(config.captioning, inputs.teachers, name="captioner", key=STAGE)
    made_of, human = recipe(section, config.data, stage=STAGE), section.backend == "annotations"
    job = Job(
        stage=STAGE,
        table="captions",
        data=data,
        captions="",
        output=outputs.captions,
        reads=("captions",),
        required=("captions",) if human else (),
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
    artifacts = {"captions": outputs.captions}
    if outputs.report:
        artifacts |= captioning_report(
            outputs.report,
            config=config.model_copy(update={STAGE: section}),
            data=job.open(),
            captions=outputs.captions,
            totals=totals,
            per_shard=done.shards,
        )
    return StageResult(
        stage=STAGE,
        metrics={
            "labels/captions_per_image": totals.rows_per_image,
            "labels/words_per_caption": totals.words_per_row,
            "labels/caption_coverage": totals.coverage,
            **{f"speed/{name}": value for name, value in done.speed.items()},
            **quality_metrics(totals.more_counts),
        },
        counts=totals.counts,
        message=(
            f"{totals.labelled} of {totals.images} images captioned ({totals.skipped} stood already, "
            f"{totals.quarantined} quarantined): {totals.rows_per_image:.1f} captions an image, "
            f"{totals.words_per_row:.1f} words each{done.share}"
        ),
        artifacts=artifacts,
    )
