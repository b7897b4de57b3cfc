"""Duplicates: the search against comparing each with each, its tables, what ingest leaves out, and leakage."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cloc.cli import cloc
from cloc.config import parse
from cloc.data import fingerprints, tables
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.duplicates import DuplicateCounts, KnownImages, count_duplicates, count_leaked
from cloc.data.duplicates import stage as duplicates_stage
from cloc.data.duplicates.hamming import HashIndex, best, distances, masks, near_pairs
from cloc.data.duplicates.search import search
from cloc.data.images import CheckedImage, check_image
from cloc.data.ingest import stage as ingest_stage
from cloc.data.schema import Manifest, Shard
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import open_storage
from cloc.errors import DataError
from cloc.evaluation import leakage
from cloc.evaluation.truth import Split

CONFIG = parse({"data": {"processes": 1, "images_per_shard": 4, "quarantine_limit": 0.0}}, source="test")
Prints = tuple[Any, Any]  # perceptual hashes and files' hashes


def random_prints(images: int, *, seed: int) -> Prints:
    """Hashes with equal files, near pictures at 0 to 7 bits, and many equal ones."""
    rng = np.random.default_rng(seed)
    phash = rng.integers(0, 1 << 63, images, dtype=np.uint64)
    sha256 = rng.integers(0, 1 << 63, (images, 4), dtype=np.uint64)
    for of, copy in rng.integers(0, images, (images // 5, 2)):
        flipped = rng.choice(64, rng.integers(0, 8), replace=False)
        phash[copy] = np.uint64(int(phash[of]) ^ sum(1 << int(bit) for bit in flipped))
    for of, copy in rng.integers(0, images, (images // 20, 2)):
        phash[copy], sha256[copy] = phash[of], sha256[of]
    phash[rng.integers(0, images, images // 20)] = 1 << 63
    return phash, sha256


def write_prints(folder: Path, prints: Prints, *, per_shard: int, prefix: str = "k") -> Dataset:
    """A data set of fingerprints alone."""
    storage, shards = open_storage(folder), []
    for number, start in enumerate(range(0, len(prints[0]), per_shard)):
        count = len(prints[0][start : start + per_shard])
        shard = Shard(f"{number:05d}", f"images/{number:05d}.tar", count, 1, f"{number:064x}")
        rows = [
            {"key": f"{prefix}{index}", "sha256": prints[1][index].tobytes(), "phash": int(prints[0][index])}
            for index in range(start, start + count)
        ]
        fingerprints.write(storage, shard, rows)
        shards.append(shard)
    write_manifest(storage, Manifest(shards=tuple(shards)))
    return Dataset.open(folder)


def compare_all(prints: Prints, of: Prints | None, *, bits: int) -> dict[int, tuple[int, int, bool]]:
    """Each image with each: (what it duplicates, distance, exact) by image."""
    found = {}
    for index, (phash, sha256) in enumerate(zip(*prints, strict=True)):
        phash_R, sha256_R4 = (part[:index] for part in prints) if of is None else of
        if not len(phash_R):
            continue
        distance = np.bitwise_count(phash_R ^ phash)
        equal = (sha256_R4 == sha256).all(axis=1)
        if equal.any():
            found[index] = (int(np.argmax(equal)), 0, True)
        elif distance.min() <= bits:
            found[index] = (int(np.argmin(distance)), int(distance.min()), False)
    return found


def searched(dataset: Dataset, **options: Any) -> dict[int, tuple[int, int, bool]]:
    found = {}
    for shard, duplicates in search(dataset, **options):
        keys = set(fingerprints.read(dataset, shard).keys_N.to_pylist())
        for duplicate in duplicates:
            assert duplicate.key in keys
            of = options.get("other") or dataset
            of_shard = next(item for item in of.manifest.shards if item.name == duplicate.of_shard)
            assert duplicate.of_key in fingerprints.read(of, of_shard).keys_N.to_pylist()
            found[int(duplicate.key[1:])] = (int(duplicate.of_key[1:]), duplicate.distance, duplicate.exact)
    return found


@pytest.mark.parametrize("memory", [1 << 29, 60_000, 4_000])
@pytest.mark.parametrize("bits", [0, 4, 7])
def test_search_finds_what_comparing_each_with_each_finds(tmp_path: Path, bits: int, memory: int) -> None:
    own, other = random_prints(900, seed=0), random_prints(300, seed=1)
    other[0][:60], other[1][:30] = own[0][:60], own[1][:30]
    other[0][100:150] = own[0][100:150] ^ np.uint64(0b101)
    train = write_prints(tmp_path / "train", own, per_shard=110)
    test = write_prints(tmp_path / "test", other, per_shard=70, prefix="t")
    inside = searched(train, bits=bits, memory=memory)
    assert inside == compare_all(own, None, bits=bits)
    assert len(inside) > 50
    across = searched(test, other=train, bits=bits, memory=memory)
    assert across == compare_all(other, own, bits=bits)
    assert len(across) > 50


def test_known_images_are_those_of_the_search(tmp_path: Path) -> None:
    own, other = random_prints(500, seed=2), random_prints(200, seed=3)
    other[0][:60], other[1][:30] = own[0][:60] ^ np.uint64(0b11), own[1][:30]
    write_prints(tmp_path / "test", own, per_shard=110)
    known = KnownImages.load((str(tmp_path / "test"),), bits=4)
    found = {}
    for index in range(200):
        match = known.match(sha256=other[1][index].tobytes(), phash=int(other[0][index]))
        if match is not None:
            assert match.data == str(tmp_path / "test")
            found[index] = (int(match.key[1:]), match.distance, match.exact)
    assert found == compare_all(other, own, bits=4)
    assert len(found) >= 60


@pytest.mark.parametrize("bits", [1, 4, 6, 9])
def test_near_hashes_agree_under_a_mask(bits: int) -> None:
    rng = np.random.default_rng(bits)
    hashes = rng.integers(0, 1 << 63, 200, dtype=np.uint64)
    flips = np.array([sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False)) for _ in hashes], np.uint64)
    for count in (100, 10_000_000):
        chosen = masks(bits, count=count)
        agree = [(hashes & mask) == ((hashes ^ flips) & mask) for mask in chosen]
        assert np.any(agree, axis=0).all()


def test_hashes_that_crowd_are_searched_in_linear_memory_and_found() -> None:
    """What a mask keeps is equal for all of them, as of pictures that differ in details alone."""
    crowd = np.unique(np.random.default_rng(0).integers(0, 1 << 22, 6000, dtype=np.uint64)) << np.uint64(20)
    crowd[1] = crowd[0] ^ np.uint64(1 << 30)
    crowd = np.unique(crowd)
    pairs = best(list(near_pairs(crowd, mask=np.uint64((1 << 20) - 1), bits=2)))
    found = set(zip(pairs.first_P.tolist(), pairs.second_P.tolist(), strict=True))
    every = distances(crowd[:, None], crowd[None])
    first, second = np.nonzero(np.triu(every <= 2, 1))
    expected = {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)}
    assert {frozenset(pair) for pair in found} <= expected
    reached = {index for pair in found for index in pair}
    assert expected
    assert all(pair & reached for pair in expected)
    nearest = HashIndex(crowd, bits=2).nearest(crowd)
    assert (nearest.first_P == nearest.second_P).all()
    assert len(nearest.first_P) == len(crowd)


def test_blank_pages_do_not_take_quadratic_time(tmp_path: Path) -> None:
    phash, sha256 = random_prints(60_000, seed=4)
    phash[:] = 1 << 63
    found = count_duplicates(write_prints(tmp_path, (phash, sha256), per_shard=20_000), bits=6)
    assert found is not None
    assert found.exact + found.near == 59_999


# ---- pictures


def photograph(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((4, 3, image.width - 4, image.height - 3))


def save(folder: Path, name: str, image: Image.Image, **options: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name, **options)


def ingest(tmp_path: Path, name: str, **inputs: Any) -> Any:
    given = ingest_stage.Inputs(source="folder", images=str(tmp_path / name), **inputs)
    return ingest_stage.run(CONFIG, inputs=given, outputs=ingest_stage.Outputs(data=str(tmp_path / "data" / name)))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten training pictures, two of them twice; a test set: a copy, a compressed, a small, a cropped one, a new one."""
    for number in range(10):
        save(tmp_path / "train", f"{number:02d}.jpg", photograph(number), quality=95)
    save(tmp_path / "train", "10.jpg", photograph(0), quality=95)
    save(tmp_path / "train", "11.jpg", photograph(1).resize((160, 120)), quality=90)
    save(tmp_path / "test", "copy.jpg", photograph(2), quality=95)
    save(tmp_path / "test", "compressed.jpg", photograph(3), quality=30)
    save(tmp_path / "test", "small.png", photograph(4).resize((200, 150)))
    save(tmp_path / "test", "cropped.jpg", cropped(photograph(5)), quality=90)
    save(tmp_path / "test", "new.jpg", photograph(100), quality=95)
    ingest(tmp_path, "train")
    ingest(tmp_path, "test")
    return tmp_path


def open_both(folder: Path) -> tuple[Dataset, Dataset]:
    return Dataset.open(folder / "data" / "train"), Dataset.open(folder / "data" / "test")


def test_copies_are_counted(pictures: Path) -> None:
    train, test = open_both(pictures)
    assert count_duplicates(train, bits=6) == DuplicateCounts(12, 1, 1, (("10", "00"), ("11", "01")))
    leaked = count_leaked(train, test, bits=6)
    assert leaked is not None
    assert (leaked.images, leaked.exact, leaked.near) == (5, 1, 3)
    assert dict(leaked.examples) == {"copy": "02", "compressed": "03", "small": "04", "cropped": "05"}
    assert leaked.share == pytest.approx(0.8)
    open_storage(pictures / "data" / "train").delete(tables.table_path("fingerprints", "00001"))
    assert count_duplicates(train, bits=6) is None
    assert count_leaked(train, test, bits=6) is None
    assert count_duplicates(test, bits=6) is not None


def test_ingest_leaves_out_what_a_test_set_has(pictures: Path) -> None:
    test = str(pictures / "data" / "test")
    result = ingest(pictures, "train", not_in=(test,))
    assert result.counts["leaked"] == result.counts["quarantined"] == 4
    assert result.counts["images"] == 8
    rows = [
        row
        for name in ("00000", "00001", "00002")
        for row in tables.read_table(open_storage(pictures / "data" / "train"), "quarantine", name).to_pylist()
    ]
    reasons = {row["key"]: row["reason"] for row in rows}
    assert reasons["02"] == f"image: occurs in {test} as 'copy' (exact)"
    assert reasons["03"].startswith(f"image: occurs in {test} as 'compressed' (near, ")
    train, other = open_both(pictures)
    assert train.manifest.quarantined == 0, "they are good: no gate on bad images counts them"
    assert count_leaked(train, other, bits=6) == DuplicateCounts(5, 0, 0, ())
    again = ingest(pictures, "train", not_in=(test,))
    assert again.counts["skipped_shards"] == again.counts["shards"]
    assert open_both(pictures)[0].manifest.quarantined == 0
    save(pictures / "test", "late.jpg", photograph(9), quality=95)
    ingest(pictures, "test")
    assert ingest(pictures, "train", not_in=(test,)).counts["leaked"] == 5, "the test set changed"


def test_ingest_does_not_take_its_own_output_for_known(pictures: Path) -> None:
    with pytest.raises(DataError, match="is the data set that is made"):
        ingest(pictures, "train", not_in=(str(pictures / "data" / "train"),))
    with pytest.raises(DataError, match="no data set here"):
        ingest(pictures, "train", not_in=(str(pictures / "nowhere"),))


def test_stage_writes_tables_and_a_page(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = str(pictures / "data" / "train"), str(pictures / "data" / "test")
    inputs = duplicates_stage.Inputs(data=train, against=(test,))
    outputs = duplicates_stage.Outputs(report=str(pictures / "report"))
    result = duplicates_stage.run(CONFIG, inputs=inputs, outputs=outputs)
    assert result.metrics == {"data/duplicate_images": 2.0, "data/images_in_other_sets": 4.0}
    storage = open_storage(train)
    rows = [row for n in range(3) for row in tables.read_table(storage, "duplicates", f"{n:05d}").to_pylist()]
    found = {(row["key"], row["kind"], row["of_data"], row["of_shard"], row["of_key"]) for row in rows}
    assert ("10", "exact", "", "00000", "00") in found
    assert ("11", "near", "", "00000", "01") in found
    assert ("02", "exact", test, "00000", "copy") in found
    assert len(rows) == 6
    page = (pictures / "report" / "index.html").read_text()
    assert page.count("<img ") == 12
    before = {path: storage.read_bytes(path) for path in storage.list("duplicates")}
    monkeypatch.setattr(duplicates_stage, "search", None)  # tables that are current are not made again
    assert duplicates_stage.run(CONFIG, inputs=inputs, outputs=outputs).counts == result.counts
    monkeypatch.undo()
    for path in before:
        storage.delete(path)
    duplicates_stage.run(CONFIG, inputs=inputs, outputs=outputs)
    assert {path: storage.read_bytes(path) for path in storage.list("duplicates")} == before


def test_fingerprints_are_made_where_they_are_missing(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, _ = open_both(pictures)
    storage = open_storage(pictures / "data" / "train")
    before = [tables.read_table(storage, "fingerprints", f"{n:05d}").to_pylist() for n in range(3)]
    storage.delete(tables.table_path("fingerprints", "00001"))
    assert [shard.name for shard in fingerprints.missing(train)] == ["00001"]
    assert fingerprints.ensure(train, processes=2).shards == 1
    assert [tables.read_table(storage, "fingerprints", f"{n:05d}").to_pylist() for n in range(3)] == before
    assert fingerprints.ensure(train, processes=2).shards == 0


def test_an_image_that_cannot_be_decoded_has_no_fingerprint(tmp_path: Path) -> None:
    sink = io.BytesIO()
    photograph(0).save(sink, "JPEG")
    writer = ShardWriter()
    writer.add(Sample(key="good", image=sink.getvalue()))
    writer.add(Sample(key="broken", image=sink.getvalue()[:500]))
    storage = open_storage(tmp_path)
    write_manifest(storage, Manifest(shards=(writer.write(storage, "00000"),)))
    dataset = Dataset.open(tmp_path)
    assert fingerprints.ensure(dataset, processes=1) == fingerprints.MadeFingerprints(shards=1, undecodable=1)
    image = check_image(sink.getvalue(), min_side=1, max_pixels=1 << 20)
    assert isinstance(image, CheckedImage)
    rows = tables.read_table(storage, "fingerprints", "00000").to_pylist()
    digest = hashlib.sha256(sink.getvalue()).digest()
    assert rows == [{"key": "good", "sha256": digest, "phash": image.phash}]


def test_command(pictures: Path) -> None:
    arguments = ["data", "duplicates", "--preset", "demo", "--data", str(pictures / "data"), "-S", "data.processes=1"]
    arguments += ["-S", "data.near_duplicate_bits=6", "-S", f"tracking.uri=sqlite:///{pictures}/mlflow.db"]
    done = CliRunner().invoke(cloc, [*arguments, "--against", str(pictures / "data" / "test")], catch_exceptions=False)
    assert "10 is 00 (exact)" in done.output
    assert "1 exact and 1 near (up to 6 bits) duplicates of earlier ones" in done.output


def test_evaluation_tells_what_leaked(pictures: Path) -> None:
    _, test = open_both(pictures)
    split = Split(name="test", dataset=test, classes=(), truth={}, bad_boxes=0)
    found = leakage.measure(CONFIG, split, data=str(pictures / "data"))
    assert found is not None
    assert (found["split"], found["images"], found["exact"], found["near"], found["bits"]) == ("train", 5, 1, 3, 6)
    assert leakage.measure(CONFIG, split, data=str(pictures / "data" / "test")) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, rows[0]], "5 rows for 4 images"),
        (lambda rows: [{**rows[0], "phash": None}], "rows without a hash"),
    ],
)
def test_broken_fingerprints_are_told(pictures: Path, change: Callable[[Any], Any], message: str) -> None:
    train, _ = open_both(pictures)
    shard = train.manifest.shards[0]
    rows = tables.read_table(train.images, "fingerprints", shard.name).to_pylist()
    fingerprints.write(train.images, shard, change(rows))
    with pytest.raises(DataError, match=message):
        count_duplicates(train, bits=6)
