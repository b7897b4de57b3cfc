"""The labelling report: its numbers, what its page shows, and that it stays whole whatever the data holds."""

import base64
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from cloc.config import Config
from cloc.config.schema import CaptioningConfig, GroundingConfig
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.schema import Manifest
from cloc.data.storage import open_storage
from cloc.data.tables import write_table
from cloc.errors import DataError
from cloc.labeling import report
from cloc.labeling.cards import make_card
from cloc.labeling.names import Names
from cloc.labeling.report import captioning_report, grounding_report
from cloc.labeling.sections import compact
from cloc.labeling.statistics import ShardStats, Totals
from cloc.pages.pictures import COLORS

Rows = list[dict[str, Any]]
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\u202e & \"quoted\""
VOID = {"meta", "img", "br"}


@dataclass
class Page(HTMLParser):
    """A page, parsed: fails on tags that do not match."""

    text: str = ""
    tags: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def read(cls, path: str | Path) -> "Page":
        page, body = cls(), Path(path).read_text()
        page.feed(body)
        page.close()
        assert not page._open, page._open
        assert not re.search(r"(src|href)=\"?(https?:|//)", body), "a page needs no network"
        page.text = " ".join(page.text.split())
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag == "img":
            self.images.append(str(dict(attrs)["src"]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += f" {data}"


@dataclass
class Job:
    """A labelled data set: what a stage hands to its report."""

    data: str
    output: Path
    per_shard: list[tuple[str, ShardStats]] = field(default_factory=list)

    @property
    def totals(self) -> Totals:
        totals = Totals()
        for _, stats in self.per_shard:
            totals.add(stats)
        return totals

    def label(
        self,
        table: str,
        rows: Callable[[Rows, Rows], Rows],
        *,
        counts: Mapping[str, int] | None = None,
        refused: Mapping[str, str] | None = None,
        item_reasons: Sequence[str] = (),
        shards: slice = slice(None),
    ) -> "Job":
        """Writes each shard's table: `rows` makes it from the data's own captions and regions."""
        dataset, storage = Dataset.open(self.data), open_storage(self.output)
        for shard in dataset.manifest.shards[shards]:
            own = [
                [row for many in dataset.rows(name, shard).values() for row in many] for name in ("captions", "regions")
            ]
            lost = {key: why for key, why in (refused or {}).items() if any(row["key"] == key for row in own[0])}
            made = [row for row in rows(*own) if row["key"] not in lost]
            write_table(storage, table, shard.name, made)
            stage = "captioning" if table == "captions" else "grounding"
            write_table(
                storage,
                "quarantine",
                shard.name,
                [{"key": key, "stage": stage, "reason": why} for key, why in lost.items()],
            )
            stats = ShardStats.of(
                made,
                images=shard.images,
                reasons=list(lost.values()),
                item_reasons=item_reasons,
                counts=counts or {},
            )
            self.per_shard.append((shard.name, stats))
        return self

    def ground(self, folder: Path, *, config: Config | None = None) -> Page:
        arguments = {"data": Dataset.open(self.data), "totals": self.totals, "per_shard": self.per_shard}
        kept = grounding_report(folder, config=config or Config(), regions=self.output, **arguments)
        return Page.read(kept["grounding report"])

    def caption(self, folder: Path, *, config: Config | None = None) -> Page:
        arguments = {"data": Dataset.open(self.data), "totals": self.totals, "per_shard": self.per_shard}
        kept = captioning_report(folder, config=config or Config(), captions=self.output, **arguments)
        return Page.read(kept["captioning report"])


@pytest.fixture
def job(tmp_path: Path, make_dataset: Callable[..., str]) -> Job:
    return Job(make_dataset(tmp_path / "data", 12, shard_size=4), tmp_path / "out")


def as_model(rows: Rows, **values: Any) -> Rows:
    return [{**row, "source": "teachers/detector", "score": 0.7, **values} for row in rows]


def captioned(rows: Rows, text: str | None = None) -> Rows:
    """What a captioner makes of the data's captions: theirs, or `text`; the alt-text stays."""
    return [
        row if row["kind"] == "alt_text" else {**row, "text": text or row["text"], "kind": "generated", "model": "m"}
        for row in rows
    ]


QUALITY = {
    "judged_images": 4, "human_boxes": 8, "found_boxes": 10, "matched": 6, "matched_label": 4, "matched_text": 3,
}  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_grounding_report_has_the_numbers_everywhere(job: Job, tmp_path: Path) -> None:
    job.label("regions", lambda _, own: as_model(own), counts=QUALITY, item_reasons=["box too small", "box too small"])
    page = job.ground(tmp_path / "report")
    body = json.loads((tmp_path / "report" / "statistics.json").read_text())
    assert (body["images"], body["rows"], body["labelled"], body["refused_items"]) == (12, 24, 12, 6)
    assert body["metrics"]["labels/regions_per_image"] == 2.0
    assert body["metrics"]["labels/precision"] == pytest.approx(0.6)
    assert body["metrics"]["labels/labelled_recall"] == pytest.approx(0.5)
    assert body["item_reasons"] == {"box too small": 6}
    shards = lines(tmp_path / "report" / "statistics.jsonl")
    assert [row["shard"] for row in shards] == ["00000", "00001", "00002"]
    assert sum(row["rows"] for row in shards) == body["rows"]
    assert shards[1]["counts"] == QUALITY
    assert len(page.images) == 12
    for part in (
        "12 of 12 images grounded",
        "Regions an image 2.00 11.6 5.1",
        "Length of a region's text 2.0 words 2.1 tokens",
        "Precision 60.0%",
        "Class right 66.7%",
        "30 boxes found and 24 drawn by people in 12 images; 18 match",
        "All 12 images and 24 regions",
        "Boxes left out: 6 box too small 6",
        "00002 4 4 8 2.00 2.00 2 0 0.60 0.75 0.40 0.50",
        "google/owlv2-large-patch14-ensemble",
    ):
        assert part in page.text, part


def test_curves_have_names_of_their_own_and_a_point_a_shard(job: Job, tmp_path: Path) -> None:
    """The set's numbers are logged under the bare names at step 0: MLflow shows a metric's last step."""
    job.label("regions", lambda _, own: as_model(own), counts=QUALITY)
    job.ground(tmp_path / "report")
    rows = lines(tmp_path / "report" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[2]["shards/labels/regions_per_image"] == 2.0
    assert rows[2]["shards/labels/recall"] == pytest.approx(0.75)
    assert all(name == "step" or name.startswith("shards/") for name in rows[0])


def test_curves_and_the_table_of_shards_are_bounded(
    tmp_path: Path, make_dataset: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_MOST_POINTS", 4)
    monkeypatch.setattr(report, "_SHARD_ROWS", 3)
    job = Job(make_dataset(tmp_path / "data", 11, shard_size=1), tmp_path / "out")
    job.label("regions", lambda _, own: as_model(own[: 1 + int(own[0]["key"]) % 2]))
    page = job.ground(tmp_path / "report")
    rows = lines(tmp_path / "report" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 3, 6, 9]
    assert [row["shards/labels/regions_per_image"] for row in rows] == pytest.approx([4 / 3, 5 / 3, 4 / 3, 3 / 2])
    assert len(lines(tmp_path / "report" / "statistics.jsonl")) == 11
    assert "The first 3 of 11 shards; all of them stand in statistics.jsonl." in page.text
    assert page.tags.count("tr") == 3 + 4  # the shards, two headings, two rows beside the paper's


def test_only_a_few_shards_are_read(
    tmp_path: Path, make_dataset: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    before = Dataset.read_samples
    monkeypatch.setattr(Dataset, "read_samples", lambda own, shard: (read.append(shard.name), before(own, shard))[1])
    job = Job(make_dataset(tmp_path / "data", 22, shard_size=2), tmp_path / "out")
    job.label("regions", lambda _, own: as_model(own))
    page = job.ground(tmp_path / "report")
    assert read == ["00001", "00004", "00006", "00009"]
    assert len(page.images) == 8
    assert "From 4 of 11 shards, evenly spread: 8 images and 16 regions." in page.text
    assert "22 of 22 images grounded" in page.text


def test_a_part_of_the_shards_is_reported_as_a_part(job: Job, tmp_path: Path) -> None:
    job.label("regions", lambda _, own: as_model(own), shards=slice(1, 2))
    page = job.ground(tmp_path / "report")
    assert "images in 1 of 3 shards" in page.text
    assert [row["step"] for row in lines(tmp_path / "report" / "metrics.jsonl")] == [1]
    assert len(page.images) == 4


def test_equal_labels_give_equal_files(job: Job, tmp_path: Path) -> None:
    job.label("regions", lambda _, own: as_model(own), counts=QUALITY)
    job.ground(tmp_path / "one")
    job.ground(tmp_path / "two")
    one = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    files = sorted(str(path.relative_to(tmp_path / "one")) for path in one)
    assert files[:2] == ["examples/01.jpg", "examples/02.jpg"]
    assert files[-5:] == [
        "examples/examples.json",
        "index.html",
        "metrics.jsonl",
        "statistics.json",
        "statistics.jsonl",
    ]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_captioning_report_shows_the_kinds_side_by_side(job: Job, tmp_path: Path) -> None:
    counts = {"judged_images": 4, "human_classes": 8, "named_classes": 6, "alt_texts": 4, "alt_text_named_classes": 2}
    job.label("captions", lambda own, _: captioned(own, "one red thing and another"), counts=counts)
    page = job.caption(tmp_path / "report")
    body = json.loads((tmp_path / "report" / "statistics.json").read_text())
    assert body["rows"] == 12, "the alt-text is not counted"
    assert body["metrics"]["labels/named_objects"] == pytest.approx(0.75)
    assert "Length of a caption 5.0 words 44.9 tokens" in page.text
    assert "By a caption 75.0% By the alt-text 25.0%" in page.text
    assert "one red thing and another 12" in page.text, "the commonest caption"
    assert page.text.count("generated one red thing and another human a ") == 12
    assert page.text.count("alt-text free download photo ") == 12
    assert "n-grams" not in page.text
    assert len(page.images) == 12


def test_without_human_boxes_there_is_no_quality_and_no_verdict(
    tmp_path: Path, make_dataset: Callable[..., str]
) -> None:
    job = Job(make_dataset(tmp_path / "data", 4, regions=False), tmp_path / "out")
    box = {"x1": 0.1, "y1": 0.1, "x2": 0.6, "y2": 0.6, "text": "red box", "score": 0.5, "source": "m", "label": ""}
    job.label("regions", lambda captions, _: [{"key": key, **box} for key in sorted({row["key"] for row in captions})])
    page = job.ground(tmp_path / "report")
    assert "people" not in page.text
    assert "✓" not in page.text
    assert page.text.count("red box 0.50") == 4
    assert "labels/precision" not in json.loads((tmp_path / "report" / "statistics.json").read_text())["metrics"]


def test_human_boxes_are_not_held_against_themselves(job: Job, tmp_path: Path) -> None:
    job.label("regions", lambda _, own: own)
    page = job.ground(tmp_path / "report", config=Config(grounding=GroundingConfig(backend="annotations")))
    assert "drawn by people" not in page.text
    assert "owlv2" not in page.text


def test_refused_images_are_counted_and_not_shown(job: Job, tmp_path: Path) -> None:
    refused = {
        "000001": "undecodable: image file is truncated",
        "000006": "too small: 4x4 pixels",
        "000007": "too small: 4x4 pixels",
    }
    job.label("regions", lambda _, own: as_model(own), refused=refused)
    page = job.ground(tmp_path / "report")
    assert "Images refused: 3 too small: 4x4 pixels 2 undecodable: image file is truncated 1" in page.text
    assert "images refused (25.0%)" in page.text
    assert len(page.images) == 9
    assert "00000 / 000001" not in page.text
    assert "00000 / 000000" in page.text


def test_hostile_text_is_escaped_everywhere(job: Job, tmp_path: Path) -> None:
    write_manifest(open_storage(job.data), Manifest(Dataset.open(job.data).manifest.shards, classes=(HOSTILE,)))
    for name in ("captions", "regions"):
        for shard in Dataset.open(job.data).manifest.shards:
            rows = [row for own in Dataset.open(job.data).rows(name, shard).values() for row in own]
            write_table(
                open_storage(job.data), name, shard.name, [{**row, "text": HOSTILE, "label": HOSTILE} for row in rows]
            )
    config = Config(
        grounding=GroundingConfig(model=HOSTILE), captioning=CaptioningConfig(model=HOSTILE, prompt=HOSTILE)
    )
    job.label(
        "regions", lambda _, own: as_model(own, text=HOSTILE), item_reasons=[HOSTILE], refused={"000001": HOSTILE}
    )
    regions = job.ground(tmp_path / "regions", config=config)
    other = Job(job.data, tmp_path / "other").label("captions", lambda own, _: captioned(own, HOSTILE))
    captions = other.caption(tmp_path / "captions", config=config)
    for page in (regions, captions):
        assert page.text.count("<script>alert('x')</script>") >= 12
        assert not {"script", "iframe", "object", "link", "base", "form"} & set(page.tags)
        assert all(source.startswith("data:image/jpeg;base64,") for source in page.images)
        assert len(page.images) == page.tags.count("img")
    for name in ("regions", "captions"):
        body = (tmp_path / name / "index.html").read_text()
        assert "default-src 'none'" in body
        assert "<script" not in body
        assert body.startswith("<!doctype html>")


def test_long_texts_and_many_regions_are_cut(job: Job, tmp_path: Path) -> None:
    def many(_: Rows, own: Rows) -> Rows:
        return [{**row, "text": f"{number} " + "endless" * 1000} for number in range(60) for row in as_model(own)]

    job.label("regions", many, item_reasons=[f"reason {number} " + "long" * 500 for number in range(50)])
    page = job.ground(tmp_path / "report")
    assert "and 106 more" in page.text
    assert "36 other reasons" not in page.text
    assert "35 other reasons 105" in page.text
    assert len(page.text) < 60_000
    assert "endless" * 100 not in page.text
    other = Job(job.data, tmp_path / "other").label("captions", lambda own, _: captioned(own, "many words " * 2000))
    assert len(other.caption(tmp_path / "captions").text) < 20_000


def test_images_without_regions_and_captions_are_shown(job: Job, tmp_path: Path) -> None:
    job.label("regions", lambda *_: [])
    for shard in Dataset.open(job.data).manifest.shards:
        write_table(open_storage(job.data), "captions", shard.name, [])
    page = job.ground(tmp_path / "report")
    assert "0 of 12 images grounded" in page.text
    assert "All 12 images and 0 regions" in page.text
    assert "Commonest" not in page.text
    assert page.text.count("No region") == 12
    assert page.text.count("Not found:") == 12
    assert "Length of a region's text \u2013 2.1 tokens" in page.text


@pytest.mark.parametrize("stage", ["ground", "caption"])
def test_no_images_leave_the_page_whole(stage: str, tmp_path: Path) -> None:
    write_manifest(open_storage(tmp_path / "data"), Manifest(shards=()))
    page = getattr(Job(str(tmp_path / "data"), tmp_path / "out"), stage)(tmp_path / "report")
    assert "0 of 0 images" in page.text
    assert "There is nothing to look at yet." in page.text
    assert "No shard is labelled." in page.text
    assert (tmp_path / "report" / "metrics.jsonl").read_text() == ""
    assert "nan" not in page.text.lower()


def test_huge_counts_stay_readable(job: Job, tmp_path: Path) -> None:
    job.label("regions", lambda _, own: as_model(own))
    huge = {name: value * 2 * 10**9 for name, value in QUALITY.items()}
    name, _ = job.per_shard[0]
    stats = ShardStats(
        images=2 * 10**9, labelled=10**9, rows=24 * 10**9, words=48 * 10**9, quarantined=10**8,
        refused_items=10**10, reasons={"too small": 10**8}, item_reasons={"box too small": 10**10}, counts=huge,
    )  # fmt: skip
    job.per_shard[0] = (name, stats)
    page = job.ground(tmp_path / "report")
    assert "1,000,000,008 of 2,000,000,008 images grounded" in page.text
    assert "24.0 billion regions" in page.text
    assert "100.0 million images refused (5.0%)" in page.text
    assert compact(9_999_999) == "9,999,999"
    assert compact(10_000_000) == "10.0 million"


def test_a_missing_table_is_one_clear_line(job: Job, tmp_path: Path) -> None:
    job.label("regions", lambda _, own: as_model(own))
    (job.output / "regions" / "00001.parquet").unlink()
    with pytest.raises(DataError, match=r"there is no regions/00001\.parquet"):
        job.ground(tmp_path / "report")


def card_of(job: Job, *, regions: Rows, key: str = "000000", max_pixels: int = 10**6) -> Any:
    dataset = Dataset.open(job.data)
    shard = dataset.manifest.shards[0]
    sample = next(sample for sample in dataset.read_samples(shard) if sample.key == key)
    human = dataset.rows("regions", shard)[key]
    captions = dataset.rows("captions", shard)[key]
    return make_card(
        sample, shard="00000", captions=captions, regions=regions, human=human, names=Names(), max_pixels=max_pixels
    )


def test_card_says_how_each_region_stands_beside_peoples(job: Job) -> None:
    dataset = Dataset.open(job.data)
    first, second = dataset.rows("regions", dataset.manifest.shards[0])["000000"]
    right, other, none = as_model([first, second, second])
    right |= {"score": 0.5}
    other |= {"text": "zebra", "score": 0.9}
    none |= {"text": "air", "x1": 0.0, "y1": 0.0, "x2": 0.05, "y2": 0.05, "score": 0.2}
    card = card_of(job, regions=[none, right, other])
    assert [(line.number, line.text, line.verdict) for line in card.regions] == [
        (1, "zebra", "other name"),
        (2, first["text"], "right"),
        (3, "air", "no human box"),
    ]
    assert card.regions[0].told == second["label"]
    assert card.missed == ()
    alone = card_of(job, regions=[right])
    assert alone.missed == (second["label"],)
    assert card.size == "64 x 48"


def test_card_draws_found_boxes_in_their_colours_and_peoples_dashed(job: Job) -> None:
    dataset = Dataset.open(job.data)
    first, second = dataset.rows("regions", dataset.manifest.shards[0])["000000"]
    card = card_of(job, regions=as_model([first]))
    image = Image.open(io.BytesIO(base64.b64decode(card.source.partition(",")[2]))).convert("RGB")
    assert image.size == (600, 450)
    pixels = np.asarray(image).astype(int)
    middle = round((first["y1"] + first["y2"]) / 2 * 449)
    found = pixels[middle, round(first["x1"] * 599) + 1]
    assert np.abs(found - ImageColor.getrgb(COLORS[0])).max() < 60
    edge = pixels[round(second["y1"] * 449), round(second["x1"] * 599) + 4 : round(second["x2"] * 599) - 4].mean(axis=1)
    assert (edge > 200).mean() > 0.3, "white dashes"
    assert (edge < 120).mean() > 0.15, "and dark gaps"


def test_an_image_that_cannot_be_shown_says_so(job: Job, tmp_path: Path) -> None:
    assert card_of(job, regions=[], max_pixels=100).source == ""
    job.label("regions", lambda _, own: as_model(own))
    config = Config()
    small = config.model_copy(update={"data": config.data.model_copy(update={"max_pixels": 100})})
    page = job.ground(tmp_path / "report", config=small)
    assert page.text.count("This image cannot be shown") == 12
    assert page.images == []
