"""Ingest of tars as they are: what img2dataset wrote comes back whole; runs, reruns, and tars that changed."""

import hashlib
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cloc.data import tables
from cloc.data.dataset import Dataset
from cloc.data.foreign import read_groups
from cloc.data.ingest.stage import Inputs, Outputs, run
from cloc.data.loader import LoaderSettings, TrainLoader
from cloc.errors import DataError
from tests.tar_sets import Member, files, img2dataset, ingest, jpeg, keys, png, quarantine, sample, settings, write_tar

# --- what img2dataset wrote


def test_img2dataset_tars_are_taken_without_a_copy(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in")
    before = files(folder)
    result = ingest(tmp_path, folder)
    assert (result.counts["images"], result.counts["captions"], result.counts["quarantined"]) == (12, 12, 0)
    assert files(folder) == before
    assert not list((tmp_path / "out").rglob("*.tar"))
    dataset = Dataset.open(tmp_path / "out")
    for index, shard in enumerate(dataset.manifest.shards):
        body = (folder / f"{index:05d}.tar").read_bytes()
        assert (shard.name, shard.path) == (f"{index:05d}", str(folder / f"{index:05d}.tar"))
        assert (shard.images, shard.bytes, shard.sha256) == (4, len(body), hashlib.sha256(body).hexdigest())
    assert keys(tmp_path) == [f"{shard:05d}{index:04d}" for shard in range(3) for index in range(4)]
    for number, item in enumerate(dataset.read_all()):
        key = item.sample.key
        assert item.sample.image == jpeg(number)
        assert item.captions == ({"key": key, "text": f"caption of {key}", "kind": "alt_text", "model": ""},)
        meta = item.sample.meta
        assert meta["alt_text"] == f"caption of {key}"
        assert (meta["source"], meta["width"], meta["height"]) == (f"https://example.org/{key}.jpg", 60, 40)
    rows = tables.read_table(dataset.images, "fingerprints", "00001").to_pylist()
    assert [row["sha256"] for row in rows] == [hashlib.sha256(jpeg(seed)).digest() for seed in range(4, 8)]


def test_the_loader_trains_on_them(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in")
    body = list(sample("000010001", 0))
    write_tar(folder / "00001.tar", [Member("000010001.jpg", b"no image"), *body[1:], *sample("000010002", 6)])
    ingest(tmp_path, folder)
    loader_settings = LoaderSettings(image_size=32, batch_size=3, max_regions=2, alt_text_share=1.0, seed=0)
    texts: list[str] = []

    def tokenize(batch: list[str]) -> torch.Tensor:
        texts.extend(text for text in batch if text)
        return torch.tensor([[len(text)] for text in batch])

    batches = TrainLoader(Dataset.open(tmp_path / "out"), loader_settings, tokenize=tokenize).batches()
    for _ in range(3):  # an epoch of 9 images
        assert next(batches).pixels_BSS3.shape == (3, 32, 32, 3)
    expected = {f"caption of 0000{shard}000{index}" for shard in (0, 2) for index in range(4)}
    assert expected | {"caption of 000010002"} == set(texts)


def test_one_tar_alone_and_a_folder_without(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in")
    assert ingest(tmp_path, folder / "00001.tar").counts["images"] == 4
    assert keys(tmp_path)[0] == "000010000"
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "no.tar"):
        with pytest.raises(DataError, match=r"^tars: there is no \.tar file at .*"):
            ingest(tmp_path, where)


def test_tars_in_a_relative_folder_are_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    img2dataset(tmp_path / "in", shards=1)
    monkeypatch.chdir(tmp_path)
    ingest(tmp_path, Path("in"))
    monkeypatch.chdir("/")
    assert len(keys(tmp_path)) == 4


def test_captions_from_json_or_text(tmp_path: Path) -> None:
    members = [
        *sample("a", 0)[:2],
        Member("b.jpeg", jpeg(1)),
        Member("b.txt", b"from a  text\n"),
        Member("c.JPG", jpeg(2)),
        Member("c.txt", b"\xff\xfe\xff"),
        *sample("d", 3, caption=None)[:2],
        Member("e.jpg", jpeg(4)),
        Member("e.txt", b"x" * 5000),
        Member("f.jpg", jpeg(5)),
        Member("f.txt", b"", tarfile.SYMTYPE, "/etc/passwd"),
    ]
    result = ingest(tmp_path, write_tar(tmp_path / "in.tar", members), settings(max_text_bytes=2000))
    dataset = Dataset.open(tmp_path / "out")
    found = {item.sample.key: [row["text"] for row in item.captions] for item in dataset.read_all()}
    assert found == {"a": ["caption of a"], "b": ["from a text"], "c": [], "d": [], "e": [], "f": []}
    assert result.counts["quarantined_captions"] == 3
    assert quarantine(tmp_path) == [
        ("c", "caption: its .txt is not UTF-8"),
        ("e", "caption: its .txt has 5000 bytes, at most 2000 are read"),
        ("f", "caption: its .txt is a symbolic link"),
    ]


def test_grit_boxes_and_contract_keys(tmp_path: Path) -> None:
    chunks = [[0, 7, 0.1, 0.2, 0.5, 0.9, 0.8]]
    body = {"noun_chunks": chunks, "ref_exps": [[0, 99, 0, 0, 1, 1, 0.9]], "license": "CC0"}
    result = ingest(tmp_path, write_tar(tmp_path / "in.tar", sample("a", 0, **body)))
    (item,) = Dataset.open(tmp_path / "out").read_all()
    assert [(row["text"], round(row["x2"], 4), round(row["score"], 4), row["source"]) for row in item.regions] == [
        ("caption", 0.5, 0.8, "grit")
    ]
    assert item.sample.meta["licence"] == "CC0"
    assert result.counts["quarantined_boxes"] == 1


def test_tars_of_a_data_set_can_be_taken_as_they_are(tmp_path: Path, make_dataset: Callable[..., str]) -> None:
    made = make_dataset(tmp_path / "made", 8, shard_size=4)
    assert ingest(tmp_path, tmp_path / "made/images").counts["images"] == 8
    for old, new in zip(Dataset.open(made).read_all(), Dataset.open(tmp_path / "out").read_all(), strict=True):
        assert new.sample == old.sample
        assert [row["text"] for row in new.captions] == [old.sample.meta["alt_text"]]


def test_names_in_folders_and_in_other_scripts(tmp_path: Path) -> None:
    members = [
        *sample("./sub/a", 0),
        *sample("sub/b.x", 1),
        *sample("größe", 2),
        Member("caf\udce9.png", png(3)),
        Member("sub/", kind=tarfile.DIRTYPE),
        *sample("k" * 99, 4),
    ]
    ingest(tmp_path, write_tar(tmp_path / "in.tar", members))
    found = keys(tmp_path)
    assert found[0] == "sub_a"
    assert found[1].startswith("gr__e-")
    assert found[2].startswith("caf_-")
    assert found[3].startswith("kkk")
    assert len(found[3]) == 95
    assert quarantine(tmp_path) == [
        ("sub_b", "image: there is no jpg, png or webp among its files (.x.jpg, .x.json, .x.txt)")
    ]


def test_suffix_is_by_content(tmp_path: Path) -> None:
    ingest(tmp_path, write_tar(tmp_path / "in.tar", [Member("a.jpg", png(0)), Member("b.png", jpeg(1))]))
    assert [item.sample.suffix for item in Dataset.open(tmp_path / "out").read_all()] == ["png", "jpg"]


# --- runs and reruns


def test_rerun_skips_and_changes_are_noticed(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in")
    ingest(tmp_path, folder)
    before = files(tmp_path / "out")
    assert ingest(tmp_path, folder).counts["skipped_shards"] == 3
    assert files(tmp_path / "out") == before
    state = (folder / "00001.tar").stat()
    changed = bytearray((folder / "00001.tar").read_bytes())
    place = changed.index(b"caption of 000010002")
    changed[place : place + 7] = b"CAPTION"
    (folder / "00001.tar").write_bytes(changed)
    os.utime(folder / "00001.tar", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert ingest(tmp_path, folder).counts["skipped_shards"] == 2
    texts = [row["text"] for item in Dataset.open(tmp_path / "out").read_all() for row in item.captions]
    assert texts[6] == "CAPTION of 000010002"
    assert ingest(tmp_path, folder, settings(min_side=30)).counts["skipped_shards"] == 0


def test_other_limits_make_another_data_set(tmp_path: Path) -> None:
    """Tables made from a tar must not pass for current when other samples of the same tar are left out."""
    members = [*sample("a", 0), Member("b.jpg", jpeg(1, (30, 30))), Member("c.jpg", jpeg(2, (20, 20)))]
    source = write_tar(tmp_path / "in.tar", members)
    digests = set()
    for side in (16, 25, 35):
        ingest(tmp_path, source, settings(min_side=side))
        dataset = Dataset.open(tmp_path / "out")
        assert dataset.manifest.images == {16: 3, 25: 2, 35: 1}[side]
        digests.add(dataset.digest)
    assert len(digests) == 3


def test_processes_make_no_difference(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in", shards=5)
    (folder / "00003.tar").write_bytes(b"")
    for processes in (1, 2):
        ingest(tmp_path, folder, settings(processes=processes), output=f"out{processes}")
    assert files(tmp_path / "out1") == files(tmp_path / "out2")


def test_fewer_tars_or_another_source_leave_nothing_behind(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in")
    images = tmp_path / "images"
    images.mkdir()
    for index in range(6):
        (images / f"p{index}.jpg").write_bytes(jpeg(index))
    config = settings(images_per_shard=1)
    run(config, inputs=Inputs(images=str(images)), outputs=Outputs(data=str(tmp_path / "out")))
    (tmp_path / "out/stats/00005.json").unlink()  # as if it had been killed before the record
    ingest(tmp_path, folder)
    ingest(tmp_path, folder, output="fresh")
    assert files(tmp_path / "out") == files(tmp_path / "fresh")
    (folder / "00002.tar").unlink()
    ingest(tmp_path, folder)
    assert not [path for path in files(tmp_path / "out") if "00002" in path]


def test_equal_keys_in_two_tars_are_both_named(tmp_path: Path) -> None:
    img2dataset(tmp_path / "in/a", shards=1)
    img2dataset(tmp_path / "in/b", shards=2)
    with pytest.raises(DataError) as caught:
        ingest(tmp_path, tmp_path / "in")
    text = str(caught.value)
    assert "\n" not in text
    assert "in shard 00000 (" in text
    assert f"{tmp_path}/in/a/00000.tar) and in shard 00001 ({tmp_path}/in/b/00000.tar)" in text
    assert not (tmp_path / "out/manifest.json").exists()


def test_reasons_are_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [Member(f"x{index}.jpg", b"no image") for index in range(3)]
    tiny = [Member(f"t{side}.jpg", jpeg(1, (side, side))) for side in (8, 9)]
    ingest(tmp_path, write_tar(tmp_path / "in.tar", [*sample("a", 0), *bad, *tiny]))
    lines = capsys.readouterr().out.splitlines()
    assert "ingest: quarantined: 3 x image: not an image; 2 x image: too small" in lines


def test_tar_that_changed_since_is_told(tmp_path: Path) -> None:
    folder = img2dataset(tmp_path / "in", shards=1)
    ingest(tmp_path, folder)
    write_tar(folder / "00000.tar", [*sample("a", 0), Member("b.jpg", b"", tarfile.SYMTYPE, "a.jpg")])
    dataset = Dataset.open(tmp_path / "out")
    with pytest.raises(DataError, match=r"in/00000\.tar: sample 'b' cannot be used .*run the ingest again"):
        list(dataset.read_all())
    write_tar(folder / "00000.tar", sample("a", 0))
    with pytest.raises(DataError, match=r"in/00000\.tar: 1 samples, the manifest says 4"):
        list(dataset.read_all())
    (folder / "00000.tar").unlink()
    with pytest.raises(DataError, match=r"there is no 00000\.tar"):
        list(dataset.read_all())


def test_groups_are_streamed(tmp_path: Path) -> None:
    """A reader that stops early has read no more than it was given."""
    source = write_tar(tmp_path / "in.tar", [member for index in range(50) for member in sample(f"k{index}", index)])
    with source.open("rb") as stream:
        groups = read_groups(stream, source="x")
        assert [next(groups).key for _ in range(3)] == ["k0", "k1", "k2"]
        assert stream.tell() < 40_000
