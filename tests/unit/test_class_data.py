"""Classification sets of both kinds give the same images and classes; what is unclear or broken is one line."""

import io
import json
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cloc.errors import DataError
from cloc.evaluation import class_parts
from cloc.evaluation.class_data import ClassSet, check_refused, open_classes


def jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "JPEG")
    return sink.getvalue()


def folders(root: Path, tree: Mapping[str, int]) -> Path:
    """Class folders with so many pictures each; the pictures differ."""
    for number, (folder, images) in enumerate(tree.items()):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(images):
            (root / folder / f"{index}.JPEG").write_bytes(jpeg(100 * number + index))
    return root


def tar(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))


def names(root: Path, *lines: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "classnames.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def content(found: ClassSet, part: str = "test") -> list[tuple[str, int, bytes]]:
    opened = getattr(found, part)
    images = [image for chunk in opened.chunks for image in chunk.read()]
    assert tuple(image.key for image in images) == opened.keys
    assert [image.label for image in images] == opened.labels.tolist()
    return [(image.key, image.label, image.body) for image in images]


# --- what is there


def test_class_folders(tmp_path: Path) -> None:
    found = open_classes(folders(tmp_path / "pets", {"maine_coon": 2, "beagle": 1}))
    assert (found.name, found.classes, found.templates, found.notes) == ("pets", ("beagle", "maine coon"), (), ())
    assert content(found) == [
        ("beagle/0.JPEG", 0, jpeg(100)),
        ("maine_coon/0.JPEG", 1, jpeg(0)),
        ("maine_coon/1.JPEG", 1, jpeg(1)),
    ]
    assert (found.test.name, found.test.images, found.train) == ("test", 3, None)


@pytest.mark.parametrize("evaluated", ["test", "val"])
def test_parts(tmp_path: Path, evaluated: str) -> None:
    root = folders(tmp_path, {f"{evaluated}/cat": 1, f"{evaluated}/dog": 1, "train/cat": 3, "train/dog": 2})
    found = open_classes(root, train_images=100)
    assert (found.test.name, found.test.images) == (evaluated, 2)
    assert [(key, label) for key, label, _ in content(found)] == [
        (f"{evaluated}/cat/0.JPEG", 0),
        (f"{evaluated}/dog/0.JPEG", 1),
    ]
    assert [label for _, label, _ in content(found, "train")] == [0, 0, 0, 1, 1]
    assert open_classes(root).train is None
    assert open_classes(root).digest == found.digest


def test_test_comes_before_val_and_classes_may_be_called_like_a_part(tmp_path: Path) -> None:
    found = open_classes(folders(tmp_path / "a", {"val/cat": 1, "test/cat": 2, "test/dog": 1}))
    assert (found.test.name, found.test.images) == ("test", 3)
    vehicles = open_classes(folders(tmp_path / "b", {"train": 2, "plane": 1}))
    assert (vehicles.classes, vehicles.test.images) == (("plane", "train"), 3)


def test_a_probe_is_given_some_of_the_training_images_always_the_same(tmp_path: Path) -> None:
    root = folders(tmp_path, {"test/cat": 1, "test/dog": 1, "train/cat": 20, "train/dog": 20})
    drawn = [open_classes(root, train_images=10, seed=seed).train for seed in (0, 0, 1)]
    assert [part.images for part in drawn if part] == [10, 10, 10]
    keys = [part.keys for part in drawn if part]
    assert keys[0] == keys[1] != keys[2]
    assert drawn[0] is not None
    assert set(drawn[0].labels.tolist()) == {0, 1}


def test_tars_with_class_numbers_names_and_json(tmp_path: Path) -> None:
    root = names(tmp_path / "wds", "cat", "great dane")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nart of the {c}.\n")
    files = {"a.jpg": jpeg(0), "a.cls": b"1\n", "b.webp": jpeg(1), "b.cls": b"great dane"}
    tar(root / "test/0.tar", files)
    tar(
        root / "test/1.tar",
        {"a.png": jpeg(2), "a.json": b'{"label": 0}', "b.jpg": jpeg(3), "b.json": b'{"cls": "cat"}'},
    )
    tar(root / "train/0.tar", {"a.jpg": jpeg(4), "a.cls": b"0"})
    (root / "test/nshards.txt").write_text("2\n")
    found = open_classes(root, train_images=5)
    assert found.classes == ("cat", "great dane")
    assert found.templates == ("a photo of a {c}.", "art of the {c}.")
    assert content(found) == [
        ("test/0.tar/a", 1, jpeg(0)),
        ("test/0.tar/b", 1, jpeg(1)),
        ("test/1.tar/a", 0, jpeg(2)),
        ("test/1.tar/b", 0, jpeg(3)),
    ]
    assert [label for _, label, _ in content(found, "train")] == [0]
    assert len(found.test.chunks) == 2


def test_names_of_folders(tmp_path: Path) -> None:
    root = folders(tmp_path, {"n02119789": 1, "n02100735": 1})
    (root / "classes.json").write_text(json.dumps({"n02119789": "kit_fox", "n02100735": "English setter", "n9": "x"}))
    assert open_classes(root).classes == ("English setter", "kit fox")
    (root / "classes.json").unlink()
    names(root, "setter", "fox")
    assert open_classes(root).classes == ("setter", "fox")


def test_chunks_are_values_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_parts, "CHUNK_IMAGES", 3)
    root = folders(tmp_path, {"cat": 4, "dog": 3})
    found = open_classes(root)
    assert [len(chunk.keys) for chunk in found.test.chunks] == [3, 3, 1]
    assert [label for _, label, _ in content(found)] == [0, 0, 0, 0, 1, 1, 1]
    again = pickle.loads(pickle.dumps(found.test.chunks))
    assert [list(chunk.read()) for chunk in again] == [list(chunk.read()) for chunk in found.test.chunks]


def test_hashes_follow_content(tmp_path: Path) -> None:
    first = open_classes(folders(tmp_path / "a", {"cat": 2, "dog": 1}))
    same = open_classes(folders(tmp_path / "b", {"cat": 2, "dog": 1}))
    assert (first.digest, first.test.chunks[0].digest) == (same.digest, same.test.chunks[0].digest)
    renamed = open_classes(names(tmp_path / "b", "kitten", "puppy"))
    assert renamed.digest != first.digest
    assert renamed.test.chunks[0].digest == first.test.chunks[0].digest  # features of images are the same
    (tmp_path / "a/cat/1.JPEG").write_bytes(jpeg(9))
    changed = open_classes(tmp_path / "a")
    assert changed.digest != first.digest
    assert changed.test.chunks[0].digest != first.test.chunks[0].digest


# --- what a person should know


def test_classes_without_images_and_names_that_stand_twice_are_noted(tmp_path: Path) -> None:
    root = folders(tmp_path, {"crane_bird": 1, "crane_machine": 1, "dog": 0, "cow": 0, "horse": 1})
    (root / "cow/notes.txt").write_text("none yet")
    (root / "horse/.DS_Store").write_text("")
    (root / "README.md").write_text("a set")
    names(root, "cow", "crane", "crane", "dog", "horse")
    found = open_classes(root)
    assert found.notes == (
        "2 of 5 classes have no images: 'cow', 'dog'",
        "1 class names stand twice, which no text can tell apart: 'crane'",
        "1 files in class folders are no images: 'cow/notes.txt'",
    )
    assert found.test.labels.tolist() == [1, 2, 4]


def test_samples_that_cannot_be_used_are_refused_with_their_reason(tmp_path: Path) -> None:
    root = names(tmp_path, "cat", "dog")
    files = {
        "a.jpg": jpeg(0),
        "a.cls": b"1",
        "b.jpg": jpeg(1),
        "c.cls": b"0",
        "d.jpg": jpeg(2),
        "d.json": b"{",
        "e.jpg": b"",
    }
    tar(root / "0.tar", {**files, "e.cls": b"0"})
    found = open_classes(root)
    assert dict(found.test.refused) == {
        "0.tar/b": "no .cls, and no label in its JSON",
        "0.tar/c": "it has no image",
        "0.tar/d": "no .cls, and no label in its JSON",
    }
    assert [key for key, _, _ in content(found)] == ["0.tar/a", "0.tar/e"]
    check_refused(found, [], limit=0.6)
    with pytest.raises(DataError, match=r"3 of 5 images of 'test' cannot be used, .* 0\.5 \(first: 0\.tar/b: no \.cls"):
        check_refused(found, [], limit=0.5)
    with pytest.raises(DataError, match="4 of 5 images"):
        check_refused(found, [("0.tar/e", "empty file")], limit=0.6)
    with pytest.raises(DataError, match="5 of 5 images"):  # whatever the limit: nothing is left
        check_refused(found, [("0.tar/a", "x"), ("0.tar/e", "x")], limit=1.0)


def test_a_set_that_changes_after_it_was_opened_is_told(tmp_path: Path) -> None:
    root = names(tmp_path, "cat", "dog")
    tar(root / "0.tar", {"a.jpg": jpeg(0), "a.cls": b"1", "b.jpg": jpeg(1), "b.cls": b"1"})
    found = open_classes(root)
    tar(root / "0.tar", {"a.jpg": jpeg(0), "a.cls": b"1"})
    with pytest.raises(DataError, match=r"0\.tar: 1 images, 2 when it was opened"):
        content(found)


# --- what is unclear or broken


def _nothing(root: Path) -> None:
    (root / "a.jpg").write_bytes(jpeg(0))


def _one_class(root: Path) -> None:
    folders(root, {"cat": 2})


def _only_train(root: Path) -> None:
    folders(root, {"train/cat": 1, "train/dog": 1})


def _no_images(root: Path) -> None:
    folders(root, {"cat": 0, "dog": 0})


def _no_names(root: Path) -> None:
    tar(root / "0.tar", {"a.jpg": jpeg(0), "a.cls": b"0"})


def _wordnet(root: Path) -> None:
    folders(root, {"n02119789": 1, "n02100735": 1})


def _out_of_range(root: Path) -> None:
    tar(names(root, "cat", "dog") / "0.tar", {"a.jpg": jpeg(0), "a.cls": b"2"})


def _negative(root: Path) -> None:
    tar(names(root, "cat", "dog") / "0.tar", {"a.jpg": jpeg(0), "a.json": b'{"cls": -1}'})


def _unknown_name(root: Path) -> None:
    tar(names(root, "cat", "dog") / "0.tar", {"a.jpg": jpeg(0), "a.cls": b"cow"})


def _too_few_names(root: Path) -> None:
    names(folders(root, {"cat": 1, "dog": 1}), "cat")


def _gap(root: Path) -> None:
    tar(names(root, "cat", "", "dog") / "0.tar", {"a.jpg": jpeg(0), "a.cls": b"0"})


def _json_gap(root: Path) -> None:
    (folders(root, {"cat": 1, "dog": 1}) / "classes.json").write_text('{"cat": "cat"}')


def _json_list(root: Path) -> None:
    (folders(root, {"cat": 1, "dog": 1}) / "classes.json").write_text("[1]")


def _json_broken(root: Path) -> None:
    (folders(root, {"cat": 1, "dog": 1}) / "classes.json").write_text("{")


def _template(root: Path) -> None:
    folders(root, {"cat": 1, "dog": 1})
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\na photo\n")


def _not_utf8(root: Path) -> None:
    folders(root, {"cat": 1, "dog": 1})
    (root / "classnames.txt").write_bytes(b"cat\n\xff\n")


def _both_kinds(root: Path) -> None:
    tar(folders(root, {"cat": 1, "dog": 1}) / "0.tar", {"a.jpg": jpeg(0), "a.cls": b"0"})


def _cut_tar(root: Path) -> None:
    tar(names(root, "cat", "dog") / "0.tar", {"a.jpg": jpeg(0), "a.cls": b"0"})
    (root / "0.tar").write_bytes((root / "0.tar").read_bytes()[:700])


def _data_set(root: Path) -> None:
    (root / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (_nothing, "there is no classification set: neither class folders nor tars"),
        (_one_class, r"1 class \(cat\): there is nothing to choose from"),
        (_only_train, "has nothing but 'train'; what is evaluated lies in 'test' or 'val'"),
        (_no_images, "there are no images to evaluate"),
        (_no_names, "no class names: there is no classnames.txt with a line for each class number"),
        (_wordnet, r'no class names: the folders have WordNet.s numbers; write classes.json with \{"n02100735"'),
        (_out_of_range, r"0\.tar: 'a': class '2' is not one of the set's: a number from 0 to 1"),
        (_negative, r"0\.tar: 'a': class '-1' is not one of the set's"),
        (_unknown_name, r"0\.tar: 'a': class 'cow' is not one of the set's"),
        (_too_few_names, r"classnames\.txt: 1 names for 2 class folders"),
        (_gap, r"classnames\.txt: line 2 is empty"),
        (_json_gap, r"classes\.json: no class name for 1 class folders \(first: 'dog'\)"),
        (_json_list, r"classes\.json: expected an object of names by folder"),
        (_json_broken, r"classes\.json: not valid JSON"),
        (_template, r"templates\.txt: line 2 has no \{c\} where the class name goes: 'a photo'"),
        (_not_utf8, r"classnames\.txt is not UTF-8 \(byte 4\)"),
        (_both_kinds, r"has class folders and tars \(0\.tar\)"),
        (_cut_tar, r"0\.tar: .*write this tar again"),
        (_data_set, "a data set by the contract"),
    ],
)
def test_what_is_unclear_or_broken_is_one_line(make: Any, line: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=line) as caught:
        open_classes(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: there is no classification set"):
        open_classes(tmp_path / "gone")
