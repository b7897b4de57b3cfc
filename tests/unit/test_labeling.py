"""Captioning and grounding from annotations, and the resumable shard worker behind them."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from cloc.config import Config
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.schema import Manifest
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import open_storage
from cloc.data.tables import write_table
from cloc.errors import DataError
from cloc.labeling import captioning, grounding
from cloc.labeling.images import BadImageError, decode
from cloc.labeling.jobs import run_job
from cloc.labeling.progress import Progress
from cloc.labeling.text import clean
from tests.labelers import Echo, job, png, quarantine, tables_of


def settings(**changes) -> Config:
    """The annotations backends in this process, with `section__key=value` changes."""
    tree = {
        "captioning": {"backend": "annotations", "batch_size": 3},
        "grounding": {"backend": "annotations", "batch_size": 3},
        "data": {"processes": 1, "quarantine_limit": 0.3},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        tree[section][key] = value
    return Config.model_validate(tree)


def caption(config: Config, data: str, out) -> dict[str, int]:
    result = captioning.run(config, inputs=captioning.Inputs(data=data), outputs=captioning.Outputs(captions=str(out)))
    return dict(result.counts)


def ground(config: Config, data: str, captions, out):
    return grounding.run(
        config,
        inputs=grounding.Inputs(data=data, captions=str(captions)),
        outputs=grounding.Outputs(regions=str(out)),
    )


def test_both_stages_join_back_to_the_images(tmp_path, make_dataset):
    make_dataset(tmp_path / "data/train", 8)
    config, data = settings(), str(tmp_path / "data")
    assert caption(config, data, tmp_path / "captions") == {
        "images": 8,
        "skipped": 0,
        "labelled": 8,
        "quarantined": 0,
        "refused_items": 0,
    }
    result = ground(config, data, tmp_path / "captions", tmp_path / "regions")
    assert result.metrics["labels/regions_per_image"] == 2
    assert result.metrics["labels/words_per_region"] == 2
    original = list(Dataset.open(tmp_path / "data/train").read_all())
    labelled = Dataset.open(tmp_path / "data/train", captions=tmp_path / "captions", regions=tmp_path / "regions")
    assert [(sample.captions, sample.regions) for sample in labelled.read_all()] == [
        (sample.captions, sample.regions) for sample in original
    ]


def test_statistics_do_not_count_the_alt_text(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 4)
    result = captioning.run(
        settings(), inputs=captioning.Inputs(data=data), outputs=captioning.Outputs(captions=str(tmp_path / "out"))
    )
    assert result.metrics["labels/captions_per_image"] == 1
    assert result.metrics["labels/words_per_caption"] == 8
    assert result.metrics["labels/caption_coverage"] == 1


def test_alt_text_of_the_sample_is_kept_when_the_table_has_none(tmp_path):
    data = one_shard(tmp_path / "data", [("a", png(), {"alt_text": "  web\x00 words "})])
    write_table(
        open_storage(data),
        "captions",
        "00000",
        [{"key": "a", "text": text, "kind": "human", "model": ""} for text in ("one dog", "a dog", "one  dog", " ")],
    )
    caption(settings(), data, tmp_path / "out")
    (sample,) = Dataset.open(data, captions=tmp_path / "out").read_all()
    assert [(row["text"], row["kind"]) for row in sample.captions] == [
        ("one dog", "human"),
        ("a dog", "human"),
        ("web words", "alt_text"),
    ]


def test_rerun_redoes_only_the_shard_whose_table_is_missing(tmp_path, make_dataset):
    data, out = make_dataset(tmp_path / "data", 12), tmp_path / "out"
    caption(settings(), data, out)
    before = tables_of(out, "captions")
    stamps = {name: (out / "captions" / name).stat().st_mtime_ns for name in before}
    (out / "captions/00001.parquet").unlink()
    assert caption(settings(), data, out)["skipped"] == 8
    assert tables_of(out, "captions") == before
    changed = [name for name, stamp in stamps.items() if (out / "captions" / name).stat().st_mtime_ns != stamp]
    assert changed == ["00001.parquet"]


def test_rerun_of_a_complete_output_makes_no_labeler_and_changes_nothing(tmp_path, make_dataset):
    data, out = make_dataset(tmp_path / "data", 8, broken=[3]), tmp_path / "out"
    whole = job(data, out)
    first = run_job(whole, Echo, processes=1, quarantine_limit=0.2)
    before = tables_of(out, "captions") | tables_of(out, "quarantine")

    def never():
        raise AssertionError("a model would have been loaded for nothing")

    again = run_job(whole, never, processes=1, quarantine_limit=0.2)
    assert again.totals.counts == {**first.totals.counts, "skipped": 8}
    assert tables_of(out, "captions") | tables_of(out, "quarantine") == before


def test_changed_settings_and_changed_input_are_redone_and_speed_is_not(tmp_path, make_dataset):
    data, out = make_dataset(tmp_path / "data", 8), tmp_path / "out"
    ground(settings(), data, data, out)
    assert ground(settings(grounding__batch_size=1), data, data, out).counts["skipped"] == 8
    assert ground(settings(grounding__min_box_side=0.02), data, data, out).counts["skipped"] == 0
    write_table(open_storage(data), "regions", "00001", [])
    again = ground(settings(grounding__min_box_side=0.02), data, data, out)
    assert again.counts["skipped"] == 4
    assert again.metrics["labels/regions_per_image"] == 1


def test_a_damaged_table_is_made_again(tmp_path, make_dataset):
    data, out = make_dataset(tmp_path / "data", 8), tmp_path / "out"
    caption(settings(), data, out)
    before = tables_of(out, "captions")
    (out / "captions/00000.parquet").write_bytes(before["00000.parquet"][:100])
    assert caption(settings(), data, out)["skipped"] == 4
    assert tables_of(out, "captions") == before


def test_processes_give_the_same_tables(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 12, broken=[5])
    caption(settings(), data, tmp_path / "one")
    assert caption(settings(data__processes=2), data, tmp_path / "two")["quarantined"] == 1
    for table in ("captions", "quarantine"):
        assert tables_of(tmp_path / "one", table) == tables_of(tmp_path / "two", table)


def test_a_bad_image_goes_to_quarantine_and_the_rest_is_labelled(tmp_path, make_dataset):
    data, out = make_dataset(tmp_path / "data", 8, broken=[1]), tmp_path / "out"
    counts = caption(settings(), data, out)
    assert (counts["labelled"], counts["quarantined"]) == (7, 1)
    ((key, stage, reason),) = quarantine(out)
    assert (key, stage) == ("000001", "captioning")
    assert "undecodable" in reason
    assert quarantine(out, "00001") == []


def test_too_many_bad_images_stop_the_stage_again_and_again(tmp_path, make_dataset):
    data, out = make_dataset(tmp_path / "data", 8, broken=[1, 4, 6]), tmp_path / "out"
    for _ in range(2):
        with pytest.raises(DataError, match=r"captioning: 3 of 8 images .* data.quarantine_limit 0.3 .*undecodable"):
            caption(settings(), data, out)


def test_an_image_without_human_caption_is_quarantined(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 4, captions=False)
    row = {"text": "a dog", "kind": "human", "model": ""}
    write_table(open_storage(data), "captions", "00000", [{"key": f"00000{number}", **row} for number in range(3)])
    assert caption(settings(), data, tmp_path / "out")["labelled"] == 3
    assert quarantine(tmp_path / "out") == [("000003", "captioning", "no human caption")]


@pytest.mark.parametrize("missing", ["captions", "regions"])
def test_a_missing_table_is_one_clear_line(tmp_path, make_dataset, missing):
    data = make_dataset(tmp_path / "data", 4, **{missing: False})
    arguments = (settings(), data) if missing == "captions" else (settings(), data, data)
    with pytest.raises(DataError, match=f"shard 00000 of .* has no {missing} table"):
        (caption if missing == "captions" else ground)(*arguments, tmp_path / "out")


def test_boxes_that_cannot_be_used_are_counted_and_the_image_stays(tmp_path):
    data = one_shard(tmp_path / "data", [("a", png(), {})])
    boxes = {
        "good": (0.1, 0.1, 0.5, 0.5),
        "thin": (0.1, 0.1, 0.105, 0.9),
        "out": (0.5, 0.5, 1.1, 0.9),
        "flat": (0.5, 0.5, 0.5, 0.9),
        "": (0.2, 0.2, 0.6, 0.6),
    }
    rows = [
        {"key": "a", **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)), "text": name, "score": 1.0}
        | {"source": "human", "label": "kind" if name else ""}
        for name, box in boxes.items()
    ]
    write_table(open_storage(data), "regions", "00000", rows)
    result = ground(settings(), data, data, tmp_path / "out")
    assert (result.counts["quarantined"], result.counts["refused_items"]) == (0, 4)
    (sample,) = Dataset.open(data, regions=tmp_path / "out").read_all()
    assert [(row["text"], row["label"]) for row in sample.regions] == [("good", "kind")]
    assert [row[1:] for row in quarantine(tmp_path / "out")] == [
        ("grounding/item", "box too small"),
        ("grounding/item", "box outside its image"),
        ("grounding/item", "degenerate box"),
        ("grounding/item", "region without text"),
    ]


def regions_named_by_the_alt_text(tmp_path, alt_texts: list[str], *, in_table: bool) -> list[list[str]]:
    """Texts of the regions that are kept, an image: each shows a large red key, a blue pizza slice and a thing."""
    names = {"large red key": "key", "blue pizza slice": "pizza slice", "striped ball": ""}
    keys = [str(number) for number in range(len(alt_texts))]
    meta = [{} if in_table else {"alt_text": alt_text} for alt_text in alt_texts]
    data = one_shard(tmp_path / "data", [(key, png(), each) for key, each in zip(keys, meta, strict=True)])
    box = {"x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.5, "score": 1.0, "source": "human"}
    rows = [{"key": key, **box, "text": text, "label": label} for key in keys for text, label in names.items()]
    write_table(open_storage(data), "regions", "00000", rows)
    captions = [{"key": key, "text": "a key left of a ball", "kind": "human", "model": ""} for key in keys]
    if in_table:
        captions += [
            {"key": key, "text": alt_text, "kind": "alt_text", "model": ""}
            for key, alt_text in zip(keys, alt_texts, strict=True)
        ]
    write_table(open_storage(data), "captions", "00000", captions)
    result = ground(settings(grounding__phrases="alt_text_ngrams"), data, data, tmp_path / "out")
    kept = [
        [row["text"] for row in sample.regions] for sample in Dataset.open(data, regions=tmp_path / "out").read_all()
    ]
    left_out = [row[1:] for row in quarantine(tmp_path / "out")]
    assert left_out == [("grounding/item", "not named in the alt-text")] * (len(rows) - sum(map(len, kept)))
    assert result.counts["refused_items"] == len(left_out)
    return kept


@pytest.mark.parametrize("in_table", [True, False])
def test_without_vesl_regions_are_those_that_the_alt_text_names(tmp_path, in_table):
    alt_texts = {
        "Free photo of a red key": ["red key"],
        "key with red paint": ["key"],
        "red paint": [],
        "a slice of pizza": [],
        "Pizza slice - striped ball": ["pizza slice", "striped ball"],
        "keys": [],
        "IMG_20.jpg": [],
    }
    kept = regions_named_by_the_alt_text(tmp_path, list(alt_texts), in_table=in_table)
    assert kept == list(alt_texts.values())


def test_labels_without_vesl_need_the_captions_tables(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 4, captions=False)
    with pytest.raises(DataError, match=r"shard 00000 of .* has no captions table"):
        ground(settings(grounding__phrases="alt_text_ngrams"), data, data, tmp_path / "out")


def test_stages_that_share_an_output_keep_each_others_quarantine(tmp_path, make_dataset):
    data, out = make_dataset(tmp_path / "data", 4, broken=[2]), tmp_path / "labels"
    caption(settings(), data, out)
    ground(settings(), data, out, out)
    assert [row[:2] for row in quarantine(out)] == [("000002", "captioning"), ("000002", "grounding")]


def test_the_data_set_itself_is_no_output(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 4)
    with pytest.raises(DataError, match="is the data set itself"):
        caption(settings(), data, data)


def test_a_truncated_shard_is_one_clear_line(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 4)
    tar = tmp_path / "data/images/00000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"00000\.tar"):
        caption(settings(), data, tmp_path / "out")
    assert tables_of(tmp_path / "out", "captions") == {}


def test_killed_in_the_middle_then_finished_equals_an_uninterrupted_run(tmp_path, make_dataset):
    """A labeler that takes its time, killed -9 twice, loses nothing that was committed."""
    data = make_dataset(tmp_path / "data", 16)
    run_slowly(data, tmp_path / "whole", delay=0.0)
    for _ in range(2):
        before = len(tables_of(tmp_path / "killed", "captions"))
        process = start_slowly(data, tmp_path / "killed", delay=0.25)
        deadline = time.monotonic() + 30
        while len(tables_of(tmp_path / "killed", "captions")) <= before and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert before < len(tables_of(tmp_path / "killed", "captions")) < 4
    report = run_slowly(data, tmp_path / "killed", delay=0.0)
    assert 8 <= report["skipped"] < 16
    assert tables_of(tmp_path / "killed", "captions") == tables_of(tmp_path / "whole", "captions")
    assert tables_of(tmp_path / "killed", "quarantine") == tables_of(tmp_path / "whole", "quarantine")


SLOW = """
import json, sys, time
from cloc.labeling.jobs import run_job
from cloc.labeling.worker import Job, Labels
data, out, delay = sys.argv[1], sys.argv[2], float(sys.argv[3])
class Slow:
    in_flight = 1
    def prepare(self, item):
        return item.key
    def bucket(self, key):
        return int(key) % 2
    def label(self, batch):
        time.sleep(delay)
        return [Labels(rows=[{"text": key, "kind": "generated", "model": "slow"}]) for key in batch]
job = Job(stage="captioning", table="captions", data=data, captions="", output=out, reads=(), required=(),
          config_hash="", batch_size=2, min_side=1, max_pixels=10**6)
print(json.dumps(run_job(job, Slow, processes=1, quarantine_limit=0.0).totals.counts))
"""


def start_slowly(data, out, *, delay: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, str(data), str(out), str(delay)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env={**os.environ})


def run_slowly(data, out, *, delay: float) -> dict[str, int]:
    process = start_slowly(data, out, delay=delay)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(output)


def test_progress_speaks_while_one_batch_takes_long(tmp_path, make_dataset, capfd):
    data = make_dataset(tmp_path / "data", 4)

    class Slow(Echo):
        def label(self, batch):
            time.sleep(0.25)
            return super().label(batch)

    run_job(job(data, tmp_path / "out"), Slow, processes=1, quarantine_limit=0.0, interval=0.05)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) >= 3
    assert lines[0].startswith("captioning: 0/4 images")
    assert "4/4 images" in lines[-1]


def test_progress_line_names_rate_rows_data_wait_shards_and_time_left():
    progress = Progress("grounding", images=100, shards=4, rows="regions")
    progress._start = time.monotonic() - 10
    progress.skip(20)
    progress.advance(40, rows=100)
    progress.time(waited=1.0, worked=9.0)
    line = progress.line()
    assert line == (
        "grounding: 60/100 images, 20 stood already, 4.0 images/s, 2.5 regions/image, 10% data wait, "
        "1 of 4 shards, 10 s, 10 s left"
    )


def one_shard(path, samples) -> str:
    """A data set of one shard of (key, PNG bytes, meta)."""
    storage, writer = open_storage(path), ShardWriter()
    for key, body, meta in samples:
        writer.add(Sample(key=key, image=body, suffix="png", meta=meta))
    write_manifest(storage, Manifest(shards=(writer.write(storage, "00000"),)))
    return str(path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "undecodable: not JPEG, PNG, WEBP"),
        (b"<html>no image</html>", "undecodable: not JPEG, PNG, WEBP"),
        (png(1, 1), "too small: 1x1 pixels"),
        (png(64, 4), "too small: 64x4 pixels"),
        (png(200, 200), "too large: 200x200 pixels"),
        (png()[:60], "undecodable"),
    ],
)
def test_images_that_cannot_be_used(body, reason):
    with pytest.raises(BadImageError, match=reason):
        decode(body, min_side=16, max_pixels=10_000)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "I;16"])
def test_images_of_any_mode_become_rgb(mode):
    image = decode(png(mode=mode), min_side=16, max_pixels=10_000)
    assert (image.mode, image.size) == ("RGB", (32, 32))


def test_noise_is_never_an_image():
    rng = np.random.default_rng(0)
    for length in (10, 1000, 50_000):
        with pytest.raises(BadImageError):
            decode(b"\xff\xd8\xff" + rng.bytes(length), min_side=1, max_pixels=10**8)


def test_clean_text_is_one_line_without_control_characters():
    assert clean(" a\x00 dog\n\tand \x1b[31m <b>cat</b> ") == "a dog and [31m <b>cat</b>"
    assert len(clean("x" * 100_000)) == 20_000


def test_the_stages_import_nothing_heavy():
    code = (
        "import sys, cloc.labeling.captioning, cloc.labeling.grounding; "
        "print(sorted({'torch', 'transformers', 'nltk', 'textblob', 'pandas', 'mlflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
