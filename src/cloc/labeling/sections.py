"""What stands in the sections of the labelling report, as values that its template only has to place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloc.config.schema import CaptioningConfig, Config, GroundingConfig
from cloc.data.schema import Table
from cloc.labeling import quality
from cloc.labeling.statistics import ShardStats, Totals

# The paper's Table 1 (METHOD, VESL): means over WiT-300M, and regions by the alt-text's n-grams.
PAPER_CAPTION_TOKENS = 44.9
PAPER_REGIONS = 11.6
PAPER_REGION_TOKENS = 2.1
PAPER_NGRAM_REGIONS = 5.1

DASH = "\u2013"
_REASONS = 15
_REASON_CUT = 300


@dataclass(frozen=True)
class Kind:
    """Words of a stage.

    Attributes:
        stage: its name.
        title: heading of the page.
        table: the table that it makes.
        one, many: what a row is called.
        done: what an image is with at least one row.
        item: what is left out without the image.
    """

    stage: str
    title: str
    table: Table
    one: str
    many: str
    done: str
    item: str


CAPTIONING = Kind("captioning", "Captions", "captions", "caption", "captions", "captioned", "captions")
GROUNDING = Kind("grounding", "Regions", "regions", "region", "regions", "grounded", "boxes")


@dataclass(frozen=True)
class Tile:
    """A number with its label; `exact` where the number is shortened."""

    value: str
    label: str
    exact: str = ""


@dataclass(frozen=True)
class Comparison:
    """A row beside the paper's."""

    measure: str
    here: str
    paper: str
    ngrams: str


@dataclass(frozen=True)
class Meter:
    """A rate in [0, 1] as a bar."""

    label: str
    value: float


@dataclass(frozen=True)
class Section:
    """A group of meters."""

    title: str
    note: str
    meters: tuple[Meter, ...]


@dataclass(frozen=True)
class ReasonLine:
    """Why something was refused, how often; `width` in percent of the commonest reason's."""

    text: str
    count: int
    width: float


@dataclass(frozen=True)
class ShardLine:
    """A row of the table of shards."""

    name: str
    cells: tuple[str, ...]


def compact(number: int) -> str:
    """A count that fits a tile: whole up to ten millions, then in millions and billions."""
    for unit, size in (("billion", 10**9), ("million", 10**6)):
        if number >= 10**7 and number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number:,}"


def tiles(kind: Kind, totals: Totals, *, all_shards: int) -> list[Tile]:
    """The numbers at the top."""
    shards = f"{totals.shards:,} shard{'' if totals.shards == 1 else 's'}"
    if totals.shards != all_shards:
        shards = f"{totals.shards:,} of {all_shards:,} shards"
    counted = [
        (totals.images, f"images in {shards}"),
        (totals.rows, kind.many),
        (totals.refused_items, f"{kind.item} left out"),
        (totals.quarantined, f"images refused ({_share(totals.quarantined, totals.images)})"),
    ]
    images, rows, left_out, refused = (Tile(compact(number), label, f"{number:,}") for number, label in counted)
    return [
        images,
        Tile(_share(totals.labelled, totals.images), f"images {kind.done}", f"{totals.labelled:,}"),
        rows,
        Tile(_mean(totals.rows_per_image, totals.images), f"{kind.many} an image"),
        Tile(_mean(totals.words_per_row, totals.rows), f"words a {kind.one}"),
        left_out,
        refused,
    ]


def compared(kind: Kind, totals: Totals) -> list[Comparison]:
    """Numbers beside the paper's Table 1; the paper counts tokens where words are counted here."""
    per_image = _mean(totals.rows_per_image, totals.images)
    words = _words(totals.words_per_row) if totals.rows else DASH
    if kind is CAPTIONING:
        return [
            Comparison("Length of a caption", words, f"{PAPER_CAPTION_TOKENS} tokens", DASH),
            Comparison("Captions an image, without the alt-text", per_image, "1", DASH),
        ]
    return [
        Comparison("Regions an image", per_image, f"{PAPER_REGIONS}", f"{PAPER_NGRAM_REGIONS}"),
        Comparison("Length of a region's text", words, f"{PAPER_REGION_TOKENS} tokens", DASH),
    ]


def quality_sections(counts: Mapping[str, int]) -> list[Section]:
    """Rates against people's boxes; none where nothing was judged."""
    found = quality.quality_metrics(counts)
    sections = []
    if quality.RECALL in found:
        boxes = (
            f"{counts['found_boxes']:,} boxes found and {counts['human_boxes']:,} drawn by people in "
            f"{counts['judged_images']:,} images; {counts['matched']:,} match at an IoU of {quality.IOU}"
        )
        named = f"{counts['matched_label']:,} of these are named as people named them"
        names = f"of the {counts['matched']:,} boxes that match: the class in the text, and the text as a whole"
        sections += [
            _section("Boxes", boxes, found, (quality.PRECISION, quality.RECALL, quality.F1)),
            _section(
                "Boxes with the right name",
                named,
                found,
                (quality.LABELLED_PRECISION, quality.LABELLED_RECALL, quality.LABELLED_F1),
            ),
            _section("Names of matched boxes", names, found, (quality.LABEL_ACCURACY, quality.TEXT_ACCURACY)),
        ]
    if quality.NAMED_OBJECTS in found:
        note = f"of {counts['human_classes']:,} classes in {counts['judged_images']:,} images, each once an image"
        metrics = [name for name in (quality.NAMED_OBJECTS, quality.ALT_TEXT_NAMED_OBJECTS) if name in found]
        sections.append(_section("Objects that are named", note, found, metrics))
    return sections


_METERS = {
    quality.PRECISION: "Precision",
    quality.RECALL: "Recall",
    quality.F1: "F1",
    quality.LABELLED_PRECISION: "Precision",
    quality.LABELLED_RECALL: "Recall",
    quality.LABELLED_F1: "F1",
    quality.LABEL_ACCURACY: "Class right",
    quality.TEXT_ACCURACY: "Text right",
    quality.NAMED_OBJECTS: "By a caption",
    quality.ALT_TEXT_NAMED_OBJECTS: "By the alt-text",
}


def _section(title: str, note: str, found: Mapping[str, float], names: Sequence[str]) -> Section:
    return Section(title, note, tuple(Meter(_METERS[name], found[name]) for name in names))


def reason_lines(reasons: Mapping[str, int]) -> list[ReasonLine]:
    """The commonest reasons, the others as one."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    shown, others = ordered[:_REASONS], ordered[_REASONS:]
    if others:
        shown.append((f"{len(others):,} other reasons", sum(count for _, count in others)))
    highest = max((count for _, count in shown), default=1)
    return [ReasonLine(text[:_REASON_CUT], count, 100 * count / highest) for text, count in shown]


def shard_columns(kind: Kind, *, judged: bool) -> list[str]:
    """Headings of the table of shards."""
    own = ["Images", kind.done.capitalize(), kind.many.capitalize(), "An image", "Words", "Left out", "Refused"]
    if not judged:
        return own
    return [*own, "Named objects"] if kind is CAPTIONING else [*own, "Precision", "Recall", "Named P", "Named R"]


def shard_line(kind: Kind, name: str, stats: ShardStats, *, judged: bool) -> ShardLine:
    """A shard in the table."""
    totals = Totals()
    totals.add(stats)
    own = [
        f"{stats.images:,}",
        f"{stats.labelled:,}",
        f"{stats.rows:,}",
        _mean(totals.rows_per_image, stats.images),
        _mean(totals.words_per_row, stats.rows),
        f"{stats.refused_items:,}",
        f"{stats.quarantined:,}",
    ]
    if judged:
        found = quality.quality_metrics(stats.counts)
        regions = (quality.PRECISION, quality.RECALL, quality.LABELLED_PRECISION, quality.LABELLED_RECALL)
        names = (quality.NAMED_OBJECTS,) if kind is CAPTIONING else regions
        own += [f"{found[metric]:.2f}" if metric in found else DASH for metric in names]
    return ShardLine(name, tuple(own))


def settings_of(kind: Kind, config: Config) -> dict[str, str]:
    """The settings that say most about the labels."""
    return _captioning(config.captioning) if kind is CAPTIONING else _grounding(config.grounding)


def _captioning(section: CaptioningConfig) -> dict[str, str]:
    if section.backend == "annotations":
        return {"backend": section.backend}
    found = {"backend": section.backend, "model": _model(section.model)}
    for name in ("prompt", "alt_text_prompt"):
        if text := getattr(section, name):
            found[name.replace("_", " ")] = text
    return found


def _grounding(section: GroundingConfig) -> dict[str, str]:
    found: dict[str, str] = {"backend": section.backend}
    if section.backend != "annotations":
        found |= {
            "model": _model(section.model),
            "score at least": f"{section.score_threshold:g}",
            "NMS at IoU": f"{section.nms_iou:g}",
        }
    if section.phrases == "alt_text_ngrams":
        return {**found, "phrases": "n-grams of the alt-text"}
    of = {"captions": "of captions", "captions_and_alt_text": "of captions and alt-text"}[section.phrases]
    return {**found, "phrases": of, "tagger": section.tagger, "phrases at most": f"{section.max_phrases}"}


def _model(model: str) -> str:
    return model or "made by cloc teachers fit"


def _mean(value: float, of: int) -> str:
    return f"{value:.2f}" if of else DASH


def _words(value: float) -> str:
    return f"{value:.1f} words"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else DASH
