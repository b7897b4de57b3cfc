"""The report of a labelling stage: a page for people (self-contained, no network) and its numbers for programs.

    index.html         numbers beside the paper's, quality against people's boxes, what was refused, pictures
    statistics.json    the data set in numbers
    statistics.jsonl   the same, a line a shard
    metrics.jsonl      curves over the shards, which tracking turns into MLflow's
    examples/          a few of the pictures as files, and what is said of them as a table (`cloc.pages.examples`)

Equal labels give equal files: they hold no times and no speeds.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloc.config.schema import Config
from cloc.data.dataset import Dataset
from cloc.data.storage import Storage, open_storage
from cloc.labeling.cards import Card
from cloc.labeling.quality import quality_metrics
from cloc.labeling.samples import Labelled, Look, look_at
from cloc.labeling.sections import (
    CAPTIONING,
    GROUNDING,
    Kind,
    compared,
    quality_sections,
    reason_lines,
    settings_of,
    shard_columns,
    shard_line,
    tiles,
)
from cloc.labeling.statistics import ShardStats, Totals
from cloc.pages import environment
from cloc.pages.examples import FOLDER, Cell, Example, write_examples

PAGE_FILE, SET_FILE, SHARDS_FILE, CURVES_FILE = "index.html", "statistics.json", "statistics.jsonl", "metrics.jsonl"

# A curve's names begin so: a stage's result has the set's numbers under the bare names, at step 0.
CURVE_PREFIX = "shards/"
_MOST_POINTS = 1_000  # of a curve; with more shards, neighbours are taken together
_SHARD_ROWS = 200

PerShard = Sequence[tuple[str, ShardStats]]


def captioning_report(
    folder: str | Path, *, config: Config, data: Dataset, captions: str | Path, totals: Totals, per_shard: PerShard
) -> dict[str, str]:
    """Writes the report of the captioning stage.

    Args:
        folder: where to; a folder or an S3 prefix.
        config: the settings, with the captioner that was used for `captioning.model`.
        data: the data set with its own tables: people's captions are shown beside a model's.
        captions: root of the captions tables that were made.
        totals: the statistics of the labelled shards, summed.
        per_shard: names and statistics of the labelled shards, in the data set's order.

    Returns:
        Files to keep with the run, by the name to show; the curves only where they lie in a folder, as MLflow needs.

    Raises:
        DataError: a shard or a table cannot be read.
    """
    report = _Report(CAPTIONING, config, data=data, output=open_storage(captions), totals=totals, per_shard=per_shard)
    return report.write(folder)


def grounding_report(
    folder: str | Path, *, config: Config, data: Dataset, regions: str | Path, totals: Totals, per_shard: PerShard
) -> dict[str, str]:
    """Writes the report of the grounding stage; arguments and errors as in `captioning_report`.

    Args:
        folder: where to; a folder or an S3 prefix.
        config: the settings, with the detector that was used for `grounding.model`.
        data: the data set with the captions that were read; its own regions, where it has any, are people's boxes.
        regions: root of the regions tables that were made.
        totals, per_shard: as in `captioning_report`.
    """
    report = _Report(GROUNDING, config, data=data, output=open_storage(regions), totals=totals, per_shard=per_shard)
    return report.write(folder)


@dataclass(frozen=True)
class _Report:
    """What a report is made from; see `captioning_report`."""

    kind: Kind
    config: Config
    data: Dataset
    output: Storage
    totals: Totals
    per_shard: PerShard

    def write(self, folder: str | Path) -> dict[str, str]:
        """Writes the files; the page last, so that it never stands beside another run's numbers."""
        look = look_at(self._labelled(), self.per_shard)
        texts = {
            SHARDS_FILE: _lines({"shard": name, **asdict(stats)} for name, stats in self.per_shard),
            CURVES_FILE: _lines(self._curves()),
            SET_FILE: json.dumps(self._numbers(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            PAGE_FILE: self._page(look),
        }
        storage = open_storage(folder)
        examples = write_examples(storage, (self._example(card) for card in look.cards if card.source))
        for name, text in texts.items():
            # Text from the web may hold lone surrogates, which UTF-8 cannot carry.
            storage.write_bytes(name, text.encode(errors="backslashreplace"))
        kept = {f"{self.kind.stage} report": PAGE_FILE, f"{self.kind.stage} statistics": SET_FILE}
        if "://" not in storage.url:
            kept[f"{self.kind.stage} curves"] = CURVES_FILE
            kept |= {"examples": FOLDER} if examples else {}
        return {name: f"{storage.url.rstrip('/')}/{file}" for name, file in kept.items()}

    def _metrics(self, totals: Totals) -> dict[str, float]:
        own = {
            f"labels/{self.kind.many}_per_image": totals.rows_per_image,
            f"labels/words_per_{self.kind.one}": totals.words_per_row,
            f"labels/{self.kind.one}_coverage": totals.coverage,
        }
        return own | quality_metrics(totals.more_counts)

    def _numbers(self) -> dict[str, Any]:
        totals = self.totals
        return {
            "stage": self.kind.stage,
            "data": self.data.images.url,
            "shards": totals.shards,
            "all_shards": len(self.data.manifest.shards),
            "images": totals.images,
            "labelled": totals.labelled,
            "rows": totals.rows,
            "words": totals.words,
            "quarantined": totals.quarantined,
            "refused_items": totals.refused_items,
            "metrics": self._metrics(totals),
            "counts": dict(sorted(totals.more_counts.items())),
            "reasons": dict(totals.reasons.most_common()),
            "item_reasons": dict(totals.item_reasons.most_common()),
        }

    def _curves(self) -> Iterator[Mapping[str, float]]:
        """A point a shard, or for each of at most `_MOST_POINTS` groups of neighbours, at its first shard's number."""
        numbers = {shard.name: number for number, shard in enumerate(self.data.manifest.shards)}
        size = max(1, -(-len(self.per_shard) // _MOST_POINTS))
        for start in range(0, len(self.per_shard), size):
            totals = Totals()
            for _, stats in self.per_shard[start : start + size]:
                totals.add(stats)
            point = {f"{CURVE_PREFIX}{name}": value for name, value in self._metrics(totals).items()}
            yield {"step": numbers[self.per_shard[start][0]], **point}

    def _labelled(self) -> Labelled:
        return Labelled(
            stage=self.kind.stage,
            table=self.kind.table,
            data=self.data,
            output=self.output,
            max_pixels=self.config.data.max_pixels,
        )

    def _example(self, card: Card) -> Example:
        """A picture with its captions, or with its regions."""
        if self.kind.table == "captions":
            return Example(
                card.source, [{"key": card.key, "kind": row.kind, "text": row.text} for row in card.captions]
            )
        about: list[dict[str, Cell]] = [
            {
                "key": card.key, "box": row.number, "text": row.text, "score": float(row.score),
                "verdict": row.verdict, "human": row.told,
            }
            for row in card.regions
        ]  # fmt: skip
        return Example(card.source, about)

    def _page(self, look: Look) -> str:
        kind, totals, shown = self.kind, self.totals, self.per_shard[:_SHARD_ROWS]
        judged = bool(quality_metrics(totals.more_counts))
        template = environment("cloc.labeling").get_template("report.html.j2")
        return template.render(
            kind=kind,
            data=self.data.images.url,
            totals=totals,
            settings=settings_of(kind, self.config),
            tiles=tiles(kind, totals, all_shards=len(self.data.manifest.shards)),
            compared=compared(kind, totals),
            quality=quality_sections(totals.more_counts),
            look=look,
            reasons=reason_lines(totals.reasons),
            item_reasons=reason_lines(totals.item_reasons),
            shard_columns=shard_columns(kind, judged=judged),
            shard_lines=[shard_line(kind, name, stats, judged=judged) for name, stats in shown],
            shards=len(self.per_shard),
            files=(SET_FILE, SHARDS_FILE),
        )


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False, sort_keys=True) + "\n" for row in rows)
