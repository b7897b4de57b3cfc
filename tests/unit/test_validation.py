"""The validation stage: good data passes, each planted fault is named, the page is safe."""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloc.config import Config
from cloc.config.schema import ValidationConfig
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.schema import Table
from cloc.data.shards import Sample
from cloc.data.storage import open_storage
from cloc.data.tables import read_table, write_table
from cloc.errors import ConfigError, DataError, GateFailed
from cloc.stage import StageResult

pytest.importorskip("great_expectations")

from cloc.validation import engine, passes, stage
from cloc.validation.sketches import CommonTexts

IMAGES, SHARD = 120, 40
Rows = list[dict[str, Any]]
Change = Callable[[Rows], Rows]


@pytest.fixture
def good(tmp_path: Path, make_dataset: Callable[..., str]) -> Path:
    return Path(make_dataset(tmp_path / "good", IMAGES, shard_size=SHARD))


def run(data: Path, *, config: Config | None = None, captions: Path | None = None) -> StageResult:
    inputs = stage.Inputs(data=str(data), captions=str(captions or data), regions=str(data))
    return stage.run(config or Config(), inputs=inputs, outputs=stage.Outputs(str(data.parent / "report")))


def read_report(data: Path) -> dict[str, Any]:
    return json.loads((data.parent / "report" / "validation.json").read_text())


def failed_checks(data: Path, *, config: Config | None = None) -> set[str]:
    with pytest.raises(GateFailed):
        run(data, config=config)
    return {check["id"] for check in read_report(data)["checks"] if not check["passed"] and check["level"] == "fail"}


def change_table(data: Path, table: Table, change: Change) -> None:
    storage = open_storage(data)
    for shard in Dataset.open(data).manifest.shards:
        write_table(storage, table, shard.name, change(read_table(storage, table, shard.name).to_pylist()))


def every(step: int, **values: Any) -> Change:
    """Overwrites columns of every `step`-th row."""
    return lambda rows: [{**row, **values} if number % step == 0 else row for number, row in enumerate(rows)]


def replace_shard(data: Path, samples: list[Sample], *, claimed: int | None = None) -> None:
    """Rewrites the first shard's tar as it is told, whatever the contract says."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for sample in samples:
            info = tarfile.TarInfo(f"{sample.key}.{sample.suffix}")
            info.size = len(sample.image)
            tar.addfile(info, io.BytesIO(sample.image))
    manifest = Dataset.open(data).manifest
    first = replace(manifest.shards[0], images=len(samples) if claimed is None else claimed)
    open_storage(data).write_bytes(first.path, stream.getvalue())
    write_manifest(open_storage(data), replace(manifest, shards=(first, *manifest.shards[1:])))


def first_samples(data: Path) -> list[Sample]:
    return list(Dataset.open(data).read_samples(Dataset.open(data).manifest.shards[0]))


def test_good_data_passes_with_its_numbers(good: Path) -> None:
    result = run(good)
    assert result.stage == "validation"
    assert result.metrics["labels/caption_coverage"] == 1.0
    assert result.metrics["labels/regions_per_image"] == 2.0
    assert result.metrics["checks/failed"] == 0.0
    assert result.counts == {
        "shards": 3, "images": 120, "captions": 120, "alt_texts": 120, "regions": 240, "quarantined": 0,
    }  # fmt: skip
    report = good.parent / "report"
    assert set(result.artifacts.values()) == {
        str(report / name) for name in ("index.html", "data_docs.html", "validation.json", "data_card.md")
    }
    assert (report / "data_docs" / "index.html").is_file()
    body = read_report(good)
    assert body["passed"] is True
    verdicts = [result.metrics[f"checks/{verdict}"] for verdict in ("passed", "warned", "failed")]
    assert sum(verdicts) == len(body["checks"])
    warned = {check["id"] for check in body["checks"] if not check["passed"]}
    assert warned == {"set/duplicate_images"}  # there are no fingerprints
    assert sum(body["histograms"]["regions_per_image"]["counts"]) == IMAGES
    assert body["histograms"]["regions_per_image"]["counts"][2] == IMAGES
    assert (report / "index.html").read_text().count("data:image/jpeg;base64,") == 6


@dataclass(frozen=True)
class Fault:
    table: Table
    change: Change
    named: set[str]


FAULTS = {
    "box outside": Fault("regions", every(20, x2=1.3), {"regions/box_inside"}),
    "negative box": Fault("regions", every(20, y1=-0.2), {"regions/box_inside"}),
    "no score": Fault("regions", every(20, score=None), {"regions/score_range"}),
    "region without text": Fault("regions", every(20, text=""), {"regions/text_set"}),
    "region without key": Fault("regions", every(20, key=None), {"regions/key_set", "regions/key_known"}),
    "few regions": Fault("regions", lambda rows: rows[:20], {"set/region_coverage", "set/regions_per_image"}),
    "blank caption": Fault("captions", every(50, text=" \n"), {"captions/text_set"}),
    "null caption": Fault("captions", every(50, text=None), {"captions/text_set"}),
    "caption of an unknown image": Fault("captions", every(50, key="nobody"), {"captions/key_known"}),
    "endless caption": Fault("captions", every(50, text="word " * 301), {"captions/text_length"}),
    "caption of an unknown kind": Fault("captions", every(50, kind="ocr"), {"captions/kind_known"}),
    "alt-text alone": Fault(
        "captions",
        lambda rows: [row for row in rows if row["kind"] == "alt_text"],
        {"set/caption_coverage", "set/empty_shards"},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_planted_fault_is_named_and_nothing_else(good: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "build_docs", lambda *_, **__: None)  # slow, and tested elsewhere
    fault = FAULTS[name]
    change_table(good, fault.table, fault.change)
    assert failed_checks(good) == fault.named


def test_duplicate_image_keys_fail(good: Path) -> None:
    samples = first_samples(good)
    replace_shard(good, [*samples[:-1], samples[0]])
    assert "images/key_unique" in failed_checks(good)


def test_unreadable_and_tiny_images_fail(good: Path, make_dataset: Callable[..., str]) -> None:
    small = Path(make_dataset(good.parent / "small", 2, sizes=[(12, 40)]))
    samples = first_samples(good)
    samples[3] = replace(samples[3], image=b"GIF? no")
    samples[5] = replace(samples[5], image=first_samples(small)[0].image)
    replace_shard(good, samples)
    assert failed_checks(good) == {"images/readable", "images/min_side"}
    example = next(item for item in read_report(good)["checks"] if item["id"] == "images/readable")["examples"][0]
    assert (example["shard"], example["key"]) == ("00000", samples[3].key)


def test_quarantined_at_ingest_fails(good: Path) -> None:
    manifest = Dataset.open(good).manifest
    write_manifest(open_storage(good), replace(manifest, quarantined=30))
    assert failed_checks(good) == {"set/quarantined"}
    assert read_report(good)["numbers"]["quarantined_share"] == pytest.approx(0.2)


def test_quarantined_by_a_labelling_stage_counts_images_it_gave_up(good: Path) -> None:
    storage = open_storage(good)
    for shard in Dataset.open(good).manifest.shards:
        rows = read_table(storage, "regions", shard.name).to_pylist()
        lost, kept = (sorted({row["key"] for row in rows})[part] for part in (slice(0, 8), slice(8, 12)))
        write_table(storage, "regions", shard.name, [row for row in rows if row["key"] not in lost])
        reasons = [{"key": key, "stage": "grounding", "reason": "box too small"} for key in (*lost, *kept)]
        write_table(storage, "quarantine", shard.name, reasons)
    assert failed_checks(good) == {"set/quarantined"}
    assert read_report(good)["counts"]["quarantined"] == 24  # those that kept their regions are not lost


def test_too_few_images_fail(tmp_path: Path, make_dataset: Callable[..., str]) -> None:
    data = Path(make_dataset(tmp_path / "tiny", 8))
    assert failed_checks(data) == {"set/images"}


def test_gate_message_is_one_line_that_names_the_worst_and_the_report(good: Path) -> None:
    change_table(good, "regions", every(20, x2=1.3))
    with pytest.raises(GateFailed) as error:
        run(good)
    message = str(error.value)
    assert "\n" not in message
    assert re.search(r"1 of \d+ checks failed", message)
    assert "coordinates from 0 to 1: 12 of 240 rows break it (5%), limit at most 0.1% of rows" in message
    assert str(good.parent / "report" / "index.html") in message


def test_a_share_of_bad_rows_below_the_limit_passes_and_is_shown(good: Path) -> None:
    change_table(good, "regions", lambda rows: [{**rows[0], "x2": 1.25}, *rows[1:]])
    result = run(good, config=Config(validation=ValidationConfig(mostly=0.98)))
    check = next(item for item in read_report(good)["checks"] if item["id"] == "regions/box_inside")
    assert check["passed"] is True
    assert (check["unexpected"], check["elements"]) == (3, 240)
    assert [item["shard"] for item in check["examples"]] == ["00000", "00001", "00002"]
    assert "x2 1.25" in check["examples"][0]["value"]
    page = Path(result.artifacts["validation report"]).read_text()
    assert page.count("data:image/jpeg;base64,") > 6  # the random samples, and the finding


def test_batches_of_rows_change_nothing(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_table(good, "regions", every(20, x2=1.3))
    failed_checks(good)
    at_once = read_report(good)
    monkeypatch.setattr(engine, "_BATCH_ROWS", 1)
    failed_checks(good)
    assert read_report(good) == at_once


def test_hostile_text_is_escaped_everywhere(good: Path) -> None:
    hostile = "<script>alert('x')</script><img src=x onerror=alert(1)>"
    change_table(good, "captions", every(1, text=hostile))
    change_table(good, "regions", every(1, text=hostile + "\u202e\x00", x2=1.4))
    failed_checks(good)
    page = (good.parent / "report" / "index.html").read_text()
    assert "&lt;script&gt;alert" in page
    assert "<script" not in page
    assert "<img src=x" not in page
    assert not re.search(r"(src|href)=\"?https?:", page)
    for document in (good.parent / "report" / "data_docs").rglob("*.html"):
        assert "alert('x')" not in document.read_text()


def test_a_second_run_replaces_the_report(good: Path) -> None:
    run(good)
    first = sorted((good.parent / "report").rglob("*.html"))
    run(good)
    assert len(sorted((good.parent / "report").rglob("*.html"))) == len(first)
    assert not list((good.parent / "report").glob(".tmp*"))


def test_split_of_a_collection_is_found(good: Path) -> None:
    collection = good.parent / "collection"
    shutil.copytree(good, collection / "train")
    inputs = stage.Inputs(data=str(collection), captions=str(good), regions=str(good))
    result = stage.run(Config(), inputs=inputs, outputs=stage.Outputs(str(good.parent / "report")))
    assert result.counts["images"] == IMAGES


def test_missing_table_is_one_clear_line(good: Path) -> None:
    (good / "captions" / "00001.parquet").unlink()
    with pytest.raises(DataError, match=r"there is no captions/00001\.parquet; run captioning to its end"):
        run(good)


def test_empty_data_set_and_empty_shard_are_refused(good: Path) -> None:
    replace_shard(good, [], claimed=SHARD)
    with pytest.raises(DataError, match=r"00000\.tar: empty shard"):
        run(good)
    write_manifest(open_storage(good), replace(Dataset.open(good).manifest, shards=()))
    with pytest.raises(DataError, match="has no images"):
        run(good)


def test_shard_that_lost_images_is_refused(good: Path) -> None:
    replace_shard(good, first_samples(good)[:-1], claimed=SHARD)
    with pytest.raises(DataError, match=r"00000\.tar: 39 samples, the manifest says 40"):
        run(good)


def test_most_common_text_is_found_in_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    common = CommonTexts(capacity=50)
    for _ in range(40):
        texts = ["the same"] * 100 + [f"unique {number}" for number in rng.integers(0, 2**40, 400)]
        common.add(rng.permutation(texts))
        assert len(common.counts) <= 50
    text, count = common.top()
    assert text == "the same"
    assert 4000 - 20_000 / 50 <= count <= 4000


def verdicts(data: Path) -> dict[str, Any]:
    report = data.parent / "report"
    return {
        **{name: value for name, value in read_report(data).items() if name in ("checks", "numbers", "counts")},
        "page": (report / "index.html").read_text(),
    }


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Blocks of one shard, in this process; gives the names of the shards that are checked, as they are."""
    checked: list[str] = []
    check = passes._check_block
    monkeypatch.setattr(passes, "_BLOCK_IMAGES", 1)
    monkeypatch.setattr(
        passes, "_check_block", lambda block: checked.extend(item.name for item in block.shards) or check(block)
    )
    return checked


def test_workers_share_the_shards_and_the_judge_checks_none_again(good: Path, small_blocks: list[str]) -> None:
    config = Config(validation=ValidationConfig(processes=1))
    run(good, config=config)
    whole, sums = verdicts(good), str(good.parent / "sums")
    small_blocks.clear()
    for number in range(2):
        inputs = stage.Inputs(data=str(good), captions=str(good), regions=str(good), worker=f"{number}/2")
        result = stage.run(config, inputs=inputs, outputs=stage.Outputs(str(good.parent / "work"), sums=sums))
        assert "without --worker judges" in result.message
    assert small_blocks == ["00000", "00002", "00001"]
    small_blocks.clear()
    inputs = stage.Inputs(data=str(good), captions=str(good), regions=str(good))
    outputs = stage.Outputs(str(good.parent / "report"), sums=sums)
    stage.run(config, inputs=inputs, outputs=outputs)
    assert small_blocks == []
    assert verdicts(good) == whole

    storage = open_storage(good)
    rows = read_table(storage, "regions", "00001").to_pylist()
    write_table(storage, "regions", "00001", [{**row, "x2": 7.0} for row in rows])
    with pytest.raises(GateFailed):
        stage.run(config, inputs=inputs, outputs=outputs)
    assert small_blocks == ["00001"]
    small_blocks.clear()
    lenient = Config(validation=ValidationConfig(processes=1, warn=("regions/", "set/")))
    stage.run(lenient, inputs=inputs, outputs=outputs)
    assert small_blocks == ["00000", "00001", "00002"]


def test_worker_without_a_place_for_its_sums_is_told(good: Path) -> None:
    inputs = stage.Inputs(data=str(good), captions=str(good), regions=str(good), worker="0/2")
    with pytest.raises(ConfigError, match="--worker 0/2: say with --sums"):
        stage.run(Config(), inputs=inputs, outputs=stage.Outputs(str(good.parent / "report")))
