"""Proof that validation finds faults: each is planted into good data and named by its checks and by no other.

The good data are several hundred samples with varied captions, phrases of them with detected boxes, and, where
../shared/data is there, photographs of COCO with what people wrote and drew.
"""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cloc.config import Config
from cloc.config.schema import ValidationConfig
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.schema import Table
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import open_storage
from cloc.data.tables import read_table, write_table
from cloc.errors import GateFailed

pytest.importorskip("great_expectations")

from cloc.validation import stage
from tests.validation_data import AXES, COCO, IMAGES, Rows, picture, write_coco, write_fingerprints, write_good

Change = Callable[[Rows], Rows]


@dataclass(frozen=True)
class Found:
    """Verdict of a validation: ids of the checks that were not kept, and the report."""

    named: set[str]
    failed: bool
    report: dict[str, Any]


def validate(data: Path, *, captions: Path | None = None, regions: Path | None = None, **settings: Any) -> Found:
    report = data.parent / f"{data.name}-report"
    inputs = stage.Inputs(data=str(data), captions=str(captions or data), regions=str(regions or data))
    config = Config(validation=ValidationConfig(**{"processes": 1, **settings}))
    failed = False
    try:
        stage.run(config, inputs=inputs, outputs=stage.Outputs(str(report)))
    except GateFailed:
        failed = True
    body = json.loads((report / "validation.json").read_text())
    named = {check["id"] for check in body["checks"] if not check["passed"]}
    return Found(named, failed, body)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts alone: pages and pictures are tested elsewhere."""
    monkeypatch.setattr(stage, "build_docs", lambda *_, **__: None)
    monkeypatch.setattr(stage, "draw_findings", lambda *_, **__: {})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_good(tmp_path_factory.mktemp("good") / "data")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not COCO.is_dir():
        pytest.skip("../shared/data/coco_val2017_dev is absent")
    return write_coco(tmp_path_factory.mktemp("coco") / "data", images=300)


@pytest.fixture
def data(good: Path, tmp_path: Path) -> Path:
    """A copy of the good set, to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "data"))


def change_table(data: Path, table: Table, change: Change, *, shards: slice = slice(None)) -> None:
    storage = open_storage(data)
    for shard in Dataset.open(data).manifest.shards[shards]:
        write_table(storage, table, shard.name, change(read_table(storage, table, shard.name).to_pylist()))


def boxes(move: Callable[[float, float, float, float], tuple[float, float, float, float]]) -> Change:
    """Changes every box; those without an area afterwards are left out, as a careful tool would."""

    def change(rows: Rows) -> Rows:
        moved = [{**row, **dict(zip(AXES, move(*(row[axis] for axis in AXES)), strict=True))} for row in rows]
        return [row for row in moved if row["x1"] != row["x2"] and row["y1"] != row["y2"]]

    return change


def clipped(*values: float) -> tuple[float, ...]:
    return tuple(min(max(value, 0.0), 1.0) for value in values)


def column(name: str, value: Callable[[Any], Any], *, step: int = 1, kind: str = "") -> Change:
    """Changes a column of every `step`-th row (of a kind)."""

    def change(rows: Rows) -> Rows:
        places = [place for place, row in enumerate(rows) if not kind or row["kind"] == kind][::step]
        return [{**row, name: value(row[name])} if place in set(places) else row for place, row in enumerate(rows)]

    return change


def rotated(rows: Rows) -> Rows:
    """The labels of an image go to the next one."""
    keys = list(dict.fromkeys(row["key"] for row in rows))
    following = dict(zip(keys, [*keys[1:], keys[0]], strict=True))
    return [{**row, "key": following[row["key"]]} for row in rows]


def copied(share: float) -> Change:
    """A share of the captions repeats other images' captions."""

    def change(rows: Rows) -> Rows:
        own = [row for row in rows if row["kind"] != "alt_text"]
        many = int(share * len(own) / 2)
        texts = {row["key"]: own[place]["text"] for place, row in enumerate(own[many : 2 * many])}
        return [
            {**row, "text": texts.get(row["key"], row["text"]) if row["kind"] != "alt_text" else row["text"]}
            for row in rows
        ]

    return change


def mojibake(text: str) -> str:
    return text.encode().decode("latin-1")


GERMAN = (
    "ein kleiner Hund liegt neben dem Fenster",
    "zwei alte Fahrräder stehen vor der Wand",
    "die Lampe hängt über dem Tisch",
)


@dataclass(frozen=True)
class Fault:
    """A fault: what is done to a table, and the checks that must name it, all of them and no others.

    Attributes:
        table, change: what is done, in `shards`.
        named: ids of checks.
        settings: of the validation.
        warns: whether it only warns.
    """

    table: Table
    change: Change
    named: set[str]
    settings: dict[str, Any] = field(default_factory=dict)
    shards: tuple[int | None, int | None] = (None, None)
    warns: bool = False


MATCH = {"set/phrase_support", "set/phrase_lift"}
FAULTS = {
    "boxes shifted": Fault(
        "regions", boxes(lambda x1, y1, x2, y2: clipped(x1 + 0.2, y1, x2 + 0.2, y2)), {"set/side_bias"}
    ),
    "boxes shifted down": Fault(
        "regions", boxes(lambda x1, y1, x2, y2: clipped(x1, y1 + 0.3, x2, y2 + 0.3)), {"set/vertical_bias"}
    ),
    "boxes scaled by another size": Fault(
        "regions", boxes(lambda x1, y1, x2, y2: (x1 / 2, y1 / 2, x2 / 2, y2 / 2)), {"set/side_bias"}
    ),
    "boxes in pixels": Fault(
        "regions",
        boxes(lambda *values: tuple(64 * value for value in values)),
        {"regions/box_inside", "set/pixel_boxes"},
    ),
    "boxes as x, y, width, height": Fault(
        "regions",
        boxes(lambda x1, y1, x2, y2: (x1, y1, x2 - x1, y2 - y1)),
        {"regions/box_ordered", "regions/min_side", "set/side_bias"},
    ),
    "corners swapped": Fault(
        "regions", boxes(lambda x1, y1, x2, y2: (x2, y2, x1, y1)), {"regions/box_ordered", "regions/min_side"}
    ),
    "boxes beyond the border": Fault(
        "regions", column("x2", lambda value: value + 1, step=20), {"regions/box_inside"}
    ),
    "boxes without numbers": Fault("regions", column("y1", lambda _: float("nan"), step=50), {"regions/box_finite"}),
    "boxes of no size": Fault(
        "regions",
        boxes(lambda x1, y1, x2, y2: ((x1 + x2) / 2 - 0.002, y1, (x1 + x2) / 2 + 0.002, y2)),
        {"regions/min_side"},
    ),
    "one box for all": Fault("regions", boxes(lambda *_: (0.2, 0.3, 0.8, 0.7)), {"set/same_box", "regions/row_unique"}),
    "boxes of the whole image": Fault(
        "regions", boxes(lambda x1, y1, *_: (x1 / 50, y1 / 50, 1 - x1 / 60, 1 - y1 / 60)), {"set/whole_image_boxes"}
    ),
    "one score for all": Fault("regions", column("score", lambda _: 0.5), {"set/same_score"}),
    "scores in percent": Fault("regions", column("score", lambda value: 100 * value), {"regions/score_range"}),
    "one text for all regions": Fault(
        "regions", column("text", lambda _: "object"), {"set/region_text", "set/effective_texts", "set/phrase_support"}
    ),
    "one class for all regions": Fault("regions", column("label", lambda _: "thing"), {"set/label"}, warns=True),
    "regions of the next image": Fault("regions", rotated, MATCH),
    "captions of the next image": Fault("captions", rotated, MATCH),
    "keys of another set": Fault(
        "regions",
        column("key", lambda key: f"other-{key}"),
        {"regions/key_known", "set/region_coverage", "set/regions_per_image"},
    ),
    "regions written twice": Fault("regions", lambda rows: [*rows, *rows], {"regions/row_unique"}),
    "captions written twice": Fault(
        "captions", lambda rows: [*rows, *rows], {"captions/row_unique", "set/repeated_captions"}
    ),
    "an empty shard": Fault("regions", lambda _: [], {"set/empty_shards"}, shards=(2, 3)),
    "half the regions lost": Fault(
        "regions", lambda rows: rows[: len(rows) // 4], {"set/region_coverage", "set/regions_per_image"}
    ),
    "captions cut at 50 characters": Fault(
        "captions", column("text", lambda text: text[:50].rstrip(), kind="generated"),
        {"captions/text_complete", "set/length_pileup"},
    ),
    "captions without an end": Fault(
        "captions",
        column("text", lambda text: " ".join(text.split()[: len(text) % 4 + 4]), kind="generated"),
        {"captions/text_complete", "set/phrase_support"},
    ),
    "captions of one word": Fault(
        "captions", column("text", lambda text: text.split()[-1], step=10, kind="generated"),
        {"captions/text_short"},
    ),
    "one caption for all": Fault(
        "captions",
        column("text", lambda _: "a picture of something", kind="generated"),
        {"set/duplicate_captions", "set/repeated_captions", "set/phrase_support"},
    ),
    "30 % duplicates": Fault("captions", copied(0.6), {"set/repeated_captions"}, warns=True),
    "mojibake": Fault("captions", column("text", mojibake, kind="generated"), {"captions/text_encoded"}),
    "replacement characters": Fault(
        "captions", column("text", lambda text: text.replace("o", "\ufffd"), step=30, kind="generated"),
        {"captions/text_encoded"},
    ),
    "markup": Fault(
        "captions", column("text", lambda text: f"<p>{text}</p>", step=20, kind="generated"), {"captions/text_plain"}
    ),
    "web addresses in regions": Fault(
        "regions", column("text", lambda text: f"{text} www.example.com", step=20), {"regions/text_plain"}
    ),
    "another language": Fault(
        "captions",
        column("text", lambda text: f"{GERMAN[len(text) % 3]} und {text[::-1]}.", kind="generated"),
        {"set/language", "set/phrase_support"},
        settings={"language": "en"},
    ),
}  # fmt: skip


def test_good_data_keep_every_check(good: Path) -> None:
    found = validate(good, language="en")
    assert (found.named, found.failed) == (set(), False)
    ids = {check["id"] for check in found.report["checks"]}
    named = set().union(*(fault.named for fault in FAULTS.values()))
    assert named <= ids


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_named_and_nothing_else(data: Path, name: str) -> None:
    fault = FAULTS[name]
    change_table(data, fault.table, fault.change, shards=slice(*fault.shards))
    found = validate(data, **fault.settings)
    assert found.named == fault.named
    assert found.failed is not fault.warns


def rewrite_shard(data: Path, change: Callable[[Sample], Sample]) -> None:
    """Rewrites the images of the first shard."""
    dataset, writer = Dataset.open(data), ShardWriter()
    first = dataset.manifest.shards[0]
    for sample in list(dataset.read_samples(first)):
        writer.add(change(sample))
    shard = writer.write(open_storage(data), first.name)
    write_fingerprints(data, shard)
    write_manifest(open_storage(data), replace(dataset.manifest, shards=(shard, *dataset.manifest.shards[1:])))


def test_files_of_another_format_are_named(data: Path) -> None:
    rng = random.Random(0)
    rewrite_shard(data, lambda sample: replace(sample, image=picture(rng, format="PNG")))
    assert validate(data).named == {"images/suffix_true"}


def test_shard_listed_twice_is_named(data: Path) -> None:
    manifest = Dataset.open(data).manifest
    again = replace(manifest.shards[0], name="00009")
    for table in ("captions", "regions", "fingerprints"):
        shutil.copy(data / table / "00000.parquet", data / table / "00009.parquet")
    write_manifest(open_storage(data), replace(manifest, shards=(*manifest.shards, again)))
    assert validate(data).named == {"set/repeated_keys", "set/duplicate_images"}


def test_images_that_stand_twice_are_named(data: Path) -> None:
    storage, first = open_storage(data), read_table(open_storage(data), "fingerprints", "00000").to_pylist()
    rows = read_table(storage, "fingerprints", "00002").to_pylist()
    near = [{**row, "phash": other["phash"] ^ 0b101} for row, other in zip(rows[:30], first[:30], strict=True)]
    exact = [{**row, "sha256": other["sha256"]} for row, other in zip(rows[30:60], first[30:60], strict=True)]
    shard = Dataset.open(data).manifest.shards[2]
    write_table(storage, "fingerprints", "00002", [*near, *exact, *rows[60:]], input_hash=shard.sha256)
    found = validate(data)
    assert (found.named, found.failed) == ({"set/duplicate_images"}, False)
    assert found.report["numbers"]["duplicate_images"] == pytest.approx(60 / IMAGES)
    check = next(item for item in found.report["checks"] if item["id"] == "set/duplicate_images")
    assert check["examples"][0]["key"] == rows[0]["key"]
    assert first[0]["key"] in check["examples"][0]["value"]
    shutil.rmtree(data / "fingerprints")
    check = next(item for item in validate(data).report["checks"] if item["id"] == "set/duplicate_images")
    assert (check["observed"], check["level"], check["passed"]) == ("not known", "warn", False)


def test_test_images_in_the_training_data_are_named(data: Path, good: Path) -> None:
    collection = data.parent / "collection"
    shutil.copytree(data, collection / "train")
    shutil.copytree(good, collection / "test")
    manifest = Dataset.open(data).manifest
    write_manifest(open_storage(collection / "train"), replace(manifest, shards=manifest.shards[:3]))
    write_manifest(open_storage(collection / "test"), replace(manifest, shards=manifest.shards[3:]))
    inputs = {"captions": data, "regions": data}
    assert validate(collection, **inputs).named == set()
    write_manifest(open_storage(collection / "test"), replace(manifest, shards=manifest.shards[2:]))
    found = validate(collection, **inputs)
    assert (found.named, found.failed) == ({"set/leaked_images"}, False)
    assert found.report["numbers"]["leaked_images"] == 0.5
    assert validate(collection, **inputs, fail=("set/leaked_images",)).failed


DRIFTS = {
    "x and y swapped": (
        boxes(lambda x1, y1, x2, y2: (y1, x1, y2, x2)),
        {"drift/box_width", "drift/box_height", "drift/box_aspect", "drift/mean_box_width", "drift/mean_box_height",
         "drift/mean_box_aspect"},
    ),
    "boxes shifted a little": (
        boxes(lambda x1, y1, x2, y2: clipped(x1 + 0.06, y1, x2 + 0.06, y2)),
        {"drift/box_center_x"},
    ),
    "boxes grown": (
        boxes(lambda x1, y1, x2, y2: clipped(x1 - 0.05, y1 - 0.05, x2 + 0.05, y2 + 0.05)),
        {"drift/box_area", "drift/box_width", "drift/mean_box_area", "drift/mean_box_width"},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def reference(good: Path) -> str:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(stage, "build_docs", lambda *_, **__: None)
        validate(good)
    return str(good.parent / "data-report")


@pytest.mark.parametrize("name", DRIFTS)
def test_what_keeps_every_rule_but_looks_otherwise_is_named_by_drift(data: Path, reference: str, name: str) -> None:
    change, named = DRIFTS[name]
    change_table(data, "regions", change)
    found = validate(data, reference=reference)
    assert named <= found.named
    assert all(id.startswith("drift/") and "box" in id for id in found.named)


def test_another_draw_of_the_same_data_does_not_drift(good: Path, reference: str, tmp_path: Path) -> None:
    half = Path(shutil.copytree(good, tmp_path / "half"))
    manifest = Dataset.open(half).manifest
    write_manifest(open_storage(half), replace(manifest, shards=manifest.shards[:2]))
    found = validate(half, reference=reference)
    assert (found.named, found.failed) == (set(), False)
    assert {"drift/box_width", "drift/mean_score"} <= {check["id"] for check in found.report["checks"]}


def test_coco_photographs_keep_every_check(coco: Path) -> None:
    found = validate(coco, language="en")
    assert (found.named, found.failed) == (set(), False)


@pytest.mark.parametrize("name", ["boxes shifted", "boxes in pixels", "corners swapped", "one box for all"])
def test_fault_planted_into_coco_is_named(coco: Path, tmp_path: Path, name: str) -> None:
    data = Path(shutil.copytree(coco, tmp_path / "data"))
    change_table(data, "regions", FAULTS[name].change)
    assert validate(data).named == FAULTS[name].named


def test_labels_of_other_photographs_are_named(coco: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(coco, tmp_path / "data"))
    change_table(data, "regions", rotated)
    assert validate(data).named == {"set/phrase_lift"}


def test_captions_of_photographs_that_end_in_the_middle_are_named(coco: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(coco, tmp_path / "data"))
    change_table(data, "captions", column("text", lambda text: text[:40].rstrip(), kind="human"))
    assert validate(data).named == {"captions/text_complete", "set/length_pileup"}
