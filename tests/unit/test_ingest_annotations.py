"""Ingest of regions and captions in the formats that data sets come in: COCO's JSON streamed, LVIS, Flickr30k Entities,
Visual Genome, GRIT. Each test writes tiny files as the data set itself has them.
"""

import io
import json
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import ijson
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cloc.config import parse
from cloc.data import tables
from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.ingest import json_stream
from cloc.data.ingest.coco import CocoLabels
from cloc.data.ingest.grit import labels_of_json
from cloc.data.ingest.json_stream import entries_of_list, entries_of_object
from cloc.data.ingest.lvis import readable
from cloc.data.ingest.stage import Inputs, Outputs, run
from cloc.data.storage import FolderStorage
from cloc.errors import DataError
from cloc.stage import StageResult

SIZE = (60, 40)


def put_image(path: Path, *, size: tuple[int, int] = SIZE) -> None:
    noise = np.random.default_rng(len(str(path))).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sink.getvalue())


def ingest(tmp_path: Path, source: str, **inputs: Any) -> StageResult:
    config = parse({"data": {"processes": 1, "images_per_shard": 4, "quarantine_limit": 0.9}}, source="test")
    given = {name: str(value) for name, value in inputs.items()}
    return run(config, inputs=Inputs(source=source, **given), outputs=Outputs(data=str(tmp_path / "out")))


def samples(tmp_path: Path) -> dict[str, LabeledSample]:
    return {item.sample.key: item for item in Dataset.open(tmp_path / "out").read_all()}


def regions(sample: LabeledSample) -> list[tuple[str, list[float]]]:
    """Text and xyxy in pixels of `SIZE`, to a thousandth."""
    scale = [*SIZE, *SIZE]
    return [
        (row["text"], [round(row[side] * by, 3) for side, by in zip(("x1", "y1", "x2", "y2"), scale, strict=True)])
        for row in sample.regions
    ]


def captions(sample: LabeledSample, kind: str) -> list[str]:
    assert {row["kind"] for row in sample.captions} <= {kind}
    return [row["text"] for row in sample.captions]


def quarantine(tmp_path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted((tmp_path / "out/quarantine").glob("*.parquet")):
        for row in tables.read_table(FolderStorage(tmp_path / "out"), "quarantine", path.stem).to_pylist():
            found.setdefault(row["key"], []).append(row["reason"])
    return found


def refused(tmp_path: Path, source: str, **inputs: Any) -> str:
    """The one line of an ingest that fails."""
    with pytest.raises(DataError) as caught:
        ingest(tmp_path, source, **inputs)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


# --- JSON of any size


@pytest.fixture(params=["yajl2_c", "python"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The C parser where it is built, and the one in Python that stands in elsewhere."""
    try:
        monkeypatch.setattr(ijson, "basic_parse_coro", ijson.get_backend(request.param).basic_parse_coro)
    except ImportError:
        pytest.skip(f"ijson has no {request.param} here")
    return str(request.param)


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind < 6:
        return [None, True, rng.randrange(-5, 10**12), rng.uniform(-9, 9), 'ä"\\ ]}', ""][kind]
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {rng.choice("abcs"): value(rng, depth + 1) for _ in range(rng.randrange(5))}


def without(item: Any, key: str) -> Any:
    if isinstance(item, dict):
        return {name: without(child, key) for name, child in item.items() if name != key}
    return [without(child, key) for child in item] if isinstance(item, list) else item


@pytest.mark.parametrize("chunk", [4, 7, 2**16])
def test_streamed_entries_are_those_of_json(
    tmp_path: Path, backend: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    rng = random.Random(chunk)
    for trial in range(20):
        tree = {"x": value(rng), "one": [value(rng) for _ in range(5)], "y": [value(rng)], "two": [value(rng)]}
        path = tmp_path / f"{trial}.json"
        path.write_text(json.dumps(tree), encoding="utf-8-sig" if trial % 2 else "utf-8")
        entries = list(entries_of_object(str(path), what="w", lists=("one",), optional=("two", "three"), skip=("s",)))
        assert [(item.name, item.index) for item in entries] == [*(("one", index) for index in range(5)), ("two", 0)]
        assert [item.value for item in entries] == without([*tree["one"], *tree["two"]], "s")
        (tmp_path / "list.json").write_text(json.dumps(tree["one"]))
        assert [item.value for item in entries_of_list(str(tmp_path / "list.json"), what="w")] == tree["one"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "x.json is not valid JSON"),
        (b"[1]", "expected an object with a, got list"),
        (b"7", "expected an object with a, got int"),
        (b"{}", "the key 'a' is missing"),
        (b'{"a": {}}', "a must be of type list, got dict"),
        (b'{"a": [], "a": []}', "the key 'a' stands twice"),
        (b'{"a": [1, {"b": NaN}]}', "not valid JSON in a[1]"),
        (b'{"a": [1, -Infinity]}', "not valid JSON in a[1]"),
        (b'{"a": [1, 2, 1e999]}', "not valid JSON in a[2]"),
        (b'{"a": [' + b"9" * 5000 + b"]}", "not valid JSON in a[0]"),
        (b'{"a": [1], "b": [2}', "not valid JSON in b"),
        (b'{"a": [{"b": "\xff"}]}', "not valid JSON"),
        (b'{"a": [1]} x', "not valid JSON"),
        (b'{"a": [1, 2', "not valid JSON in a[2]"),
        (b'{"a": [' + b"[" * 100_000, "a[0] is nested more than 64 deep"),
        (b'{"b": ' + b'{"c":' * 100_000, "b is nested more than 64 deep"),
        (b'{"a": [{"s": ' + b"[" * 100_000, "a[0] is nested more than 64 deep"),
    ],
)
def test_broken_json_is_one_line(tmp_path: Path, backend: str, body: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(body)
    with pytest.raises(DataError) as caught:
        list(entries_of_object(str(tmp_path / "x.json"), what="w", lists=("a",), skip=("s",)))
    assert str(caught.value).startswith(f"w: {tmp_path}/x.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_list_with_something_behind_it(tmp_path: Path, backend: str) -> None:
    (tmp_path / "x.json").write_text("[1] 2")
    with pytest.raises(DataError, match="not valid JSON"):
        list(entries_of_list(str(tmp_path / "x.json"), what="w"))


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.json", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError, match=rf"^w: cannot read {path} \({reason}\)$"):
            list(entries_of_list(str(path), what="w"))


_MEASURE = """
import resource, sys
from cloc.data.ingest.json_stream import entries_of_object
from cloc.errors import DataError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for entry in entries_of_object(sys.argv[1], what="w", lists=("a",)):
        pass
except DataError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    ("start", "filler", "end", "message"),
    [
        (b'{"a": ["', b"x", b'"]}', "one text or number in a[0] has more than 8 MiB"),
        (b'{"b": "', b"x", b'"}', "one text or number in b has more than 8 MiB"),
        (b'{"a": [[1', b",1", b"]]}", "a[0] is larger than 8 MiB"),
        (b'{"a": [{"k":[{}', b",{}", b"]}]}", "a[0] is larger than 8 MiB"),
        (b"[0", b",0", b"]", "expected an object with a, got list"),
    ],
)
def test_100_mb_of_anything_stay_small_in_memory(
    tmp_path: Path, start: bytes, filler: bytes, end: bytes, message: str
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(start + filler * (100_000_000 // len(filler)) + end)
    run_ = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True)
    path.unlink()
    *lines, megabytes = run_.stdout.splitlines()
    assert lines[0].startswith(f"w: {path}: {message}")
    assert len(lines) == 1
    assert int(megabytes) < 400


def test_coco_columns_take_little_memory(tmp_path: Path) -> None:
    """Polygons leave no trace, and a box stays below 200 bytes (with its image's share of names and URLs)."""
    count = 20_000
    size = {"width": 640, "height": 480, "license": 1}
    tree = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "coco_url": f"http://x/{i:012d}.jpg", **size}
                   for i in range(count // 20)],
        "annotations": [{"id": i, "image_id": i // 20, "category_id": 1, "bbox": [1.5, 2, 3, 4], "iscrowd": 0,
                         "segmentation": [[float(v) for v in range(40)]]} for i in range(count)],
        "categories": [{"id": 1, "name": "zebra"}],
    }  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(tree))
    labels = CocoLabels(file_name=lambda item, _: str(item["file_name"]), class_name=str)
    tracemalloc.start()
    labels.read_instances(str(tmp_path / "x.json"), what="w")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200 * count
    assert sum(len(record.boxes) for record in labels.records()) == count


# --- COCO


def test_coco_lists_in_any_order_with_both_parsers(tmp_path: Path, backend: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        put_image(tmp_path / "images" / name)
    size = {"width": 60, "height": 40}
    tree = {
        "categories": [{"id": 2, "name": "cat"}],
        "annotations": [
            {"image_id": 8, "category_id": 2, "bbox": [6, 4, 30, 20]},
            {"image_id": 9, "category_id": 2, "bbox": [0, 0, 60.5, 40]},
            {"image_id": 8, "category_id": 2, "bbox": [0, 0, 6, 4], "segmentation": {"counts": [1] * 9}},
            {"image_id": 8, "category_id": 2, "bbox": [0, 0, 6, 4], "iscrowd": 1},
        ],
        "images": [{"id": 9, "file_name": "a.jpg", **size}, {"id": 8, "file_name": "b.jpg", "license": 3, **size}],
        "licenses": [{"id": 3, "url": "http://cc"}, {"id": [3]}, 7],
    }
    (tmp_path / "i.json").write_text(json.dumps(tree))
    result = ingest(tmp_path, "coco", images=tmp_path / "images", coco_instances=tmp_path / "i.json")
    found = samples(tmp_path)
    assert regions(found["a"]) == [("cat", [0, 0, 60, 40])]
    assert regions(found["b"]) == [("cat", [6, 4, 36, 24]), ("cat", [0, 0, 6, 4])]
    assert found["b"].sample.meta["licence"] == "http://cc"
    assert found["a"].sample.meta["licence"] == ""
    assert result.counts["crowd_boxes"] == 1


def test_coco_captions_alone_may_have_images_without_any(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        put_image(tmp_path / "images" / name)
    size = {"width": 60, "height": 40}
    tree = {
        "annotations": [{"image_id": 8, "caption": "x"}, {"image_id": 8, "caption": "y"}],
        "images": [{"id": 9, "file_name": "a.jpg", **size}, {"id": 8, "file_name": "b.jpg", **size}],
    }
    (tmp_path / "c.json").write_text(json.dumps(tree))
    ingest(tmp_path, "coco", images=tmp_path / "images", coco_captions=tmp_path / "c.json")
    found = samples(tmp_path)
    assert (captions(found["a"], "human"), captions(found["b"], "human")) == ([], ["x", "y"])
    (tmp_path / "c.json").write_text(json.dumps({**tree, "images": []}))
    message = refused(tmp_path, "coco", images=tmp_path / "images", coco_captions=tmp_path / "c.json")
    assert "c.json: annotations[0]: image_id 8 is not among its images" in message
    tree["images"][0]["id"] = 2**70
    (tmp_path / "c.json").write_text(json.dumps(tree))
    message = refused(tmp_path, "coco", images=tmp_path / "images", coco_captions=tmp_path / "c.json")
    assert "images[0]" in message


# --- LVIS


def lvis() -> dict[str, Any]:
    size = {"width": 60, "height": 40, "license": 4, "neg_category_ids": [2], "not_exhaustive_category_ids": [1]}
    return {
        "info": {"version": "1.0"},
        "images": [
            {"id": 391895, "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg", **size},
            {"id": 522418, "coco_url": "http://images.cocodataset.org/val2017/000000522418.jpg", **size},
        ],
        "annotations": [
            {"id": 1, "image_id": 391895, "category_id": 1, "bbox": [6.0, 4.0, 30.0, 20.0], "area": 9.5,
             "segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]},
            {"id": 2, "image_id": 522418, "category_id": 2, "bbox": [0, 0, 30, 20], "area": 9.5, "segmentation": []},
        ],
        "licenses": [{"id": 4, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"}],
        "categories": [
            {"id": 2, "name": "bat_(animal)", "synset": "bat.n.01", "synonyms": ["bat_(animal)"], "def": "nocturnal",
             "frequency": "r", "image_count": 1, "instance_count": 1},
            {"id": 1, "name": "baseball_bat", "synset": "bat.n.05", "synonyms": ["baseball_bat"], "def": "an implement",
             "frequency": "f", "image_count": 1, "instance_count": 1},
        ],
    }  # fmt: skip


@pytest.mark.parametrize("folders", [True, False])
def test_lvis_on_either_spread_of_the_images(tmp_path: Path, folders: bool) -> None:
    for name in ("train2017/000000391895.jpg", "val2017/000000522418.jpg"):
        put_image(tmp_path / "images" / (name if folders else Path(name).name))
    (tmp_path / "lvis.json").write_text(json.dumps(lvis()))
    ingest(tmp_path, "lvis", images=tmp_path / "images", annotations=tmp_path / "lvis.json")
    found = samples(tmp_path)
    assert list(found) == ["000000391895", "000000522418"]
    assert regions(found["000000391895"]) == [("baseball bat", [6, 4, 36, 24])]
    assert regions(found["000000522418"]) == [("bat (animal)", [0, 0, 30, 20])]
    assert found["000000522418"].regions[0]["label"] == "bat (animal)"
    assert found["000000391895"].sample.meta["licence"] == "http://creativecommons.org/licenses/by/2.0/"
    assert found["000000391895"].sample.meta["source"].endswith("train2017/000000391895.jpg")
    assert Dataset.open(tmp_path / "out").manifest.classes == ("baseball bat", "bat (animal)")


def test_lvis_splits_missing_files_and_faults(tmp_path: Path) -> None:
    put_image(tmp_path / "images/train2017/000000391895.jpg")
    inputs = {"images": tmp_path / "images", "annotations": tmp_path / "lvis.json"}
    (tmp_path / "lvis.json").write_text(json.dumps(lvis()))
    ingest(tmp_path, "lvis", **inputs)
    assert quarantine(tmp_path) == {"000000522418": ["image: the file is missing"]}
    for line in ("000000391895", "000000391895.jpg", "train2017/000000391895.jpg"):
        (tmp_path / "only.txt").write_text(f"{line}\n")
        ingest(tmp_path, "lvis", only=tmp_path / "only.txt", **inputs)
        assert list(samples(tmp_path)) == ["000000391895"]
    (tmp_path / "only.txt").write_text("000000391895\n000000000001.jpg\n")
    message = refused(tmp_path, "lvis", only=tmp_path / "only.txt", **inputs)
    assert "lists 1 images that the source lacks (first: '000000000001')" in message
    old = lvis()
    old["images"][0] = {"id": 391895, "file_name": "train2017/000000391895.jpg", "width": 60, "height": 40}
    old["images"][1]["coco_url"] = "http://x/../../etc/passwd"
    (tmp_path / "lvis.json").write_text(json.dumps(old))
    ingest(tmp_path, "lvis", **inputs)
    assert list(samples(tmp_path)) == ["000000391895"]
    assert quarantine(tmp_path) == {"passwd": ["image: the file is missing"]}
    del old["images"][0]["file_name"]
    (tmp_path / "lvis.json").write_text(json.dumps(old))
    assert "images[0]: the key 'file_name' is missing" in refused(tmp_path, "lvis", **inputs)


def test_names_of_lvis_read_as_text() -> None:
    assert readable("bow_(decorative_ribbons)") == "bow (decorative ribbons)"
    assert readable("Band_Aid") == "Band Aid"


# --- Flickr30k Entities

_XML = """<annotation>
  <filename>36979.jpg</filename>
  <size><width>60</width><height>40</height><depth>3</depth></size>
  <object><name>1</name><name>5</name><bndbox><xmin>7</xmin><ymin>5</ymin><xmax>36</xmax><ymax>24</ymax></bndbox></object>
  <object><name>1</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>60</xmax><ymax>40</ymax></bndbox></object>
  <object><name>2</name><scene>1</scene><nobndbox>0</nobndbox></object>
  <object><name>3</name><scene>0</scene><nobndbox>1</nobndbox></object>
</annotation>
"""
_SENTENCES = """[/EN#1/people A group of friends] playing [/EN#3/other cards] and [/EN#0/notvisual each other] .
[/EN#1/people A group of friends] in [/EN#2/scene a park] .
[/EN#1/people Several men] with [/EN#5/bodyparts/people an arm] .
[/EN#4/other Cards] lie there .
No mark at all .
"""


def put_entities(root: Path, name: str, *, xml: str = _XML, sentences: str = _SENTENCES) -> None:
    for part, suffix, body in (("Annotations", "xml", xml), ("Sentences", "txt", sentences)):
        (root / part).mkdir(parents=True, exist_ok=True)
        (root / part / f"{name}.{suffix}").write_text(body)


def test_flickr30k_entities(tmp_path: Path) -> None:
    put_image(tmp_path / "images/36979.jpg")
    put_entities(tmp_path / "f30k", "36979")
    ingest(tmp_path, "flickr30k", images=tmp_path / "images", annotations=tmp_path / "f30k")
    sample = samples(tmp_path)["36979"]
    assert captions(sample, "human") == [
        "A group of friends playing cards and each other .",
        "A group of friends in a park .",
        "Several men with an arm .",
        "Cards lie there .",
        "No mark at all .",
    ]
    group, whole = [6, 4, 36, 24], [0, 0, 60, 40]  # pixels of the files count from 1, the far ones belong to the box
    assert regions(sample) == [
        ("A group of friends", group),
        ("A group of friends", whole),
        ("Several men", group),
        ("Several men", whole),
        ("an arm", group),
    ]
    assert {row["source"] for row in sample.regions} == {"human"}
    assert quarantine(tmp_path) == {}


def test_flickr30k_entities_with_faults_in_single_images(tmp_path: Path) -> None:
    laughs = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>' + _XML
    bodies = {"1": laughs, "2": _XML[:200], "3": _XML.replace(">60<", ">x<"), "4": _XML.replace(">7<", "><")}
    for name in ("1", "2", "3", "4", "5", "6"):
        put_image(tmp_path / f"images/{name}.jpg")
        put_entities(tmp_path / "f30k", name, xml=bodies.get(name, _XML))
    (tmp_path / "f30k/Annotations/5.xml").unlink()
    (tmp_path / "f30k/Sentences/6.txt").write_bytes(b"[/EN#1/people A man] .\n[/EN#1/people A [b man] .\n")
    ingest(tmp_path, "flickr30k", images=tmp_path / "images", annotations=tmp_path / "f30k")
    reasons = quarantine(tmp_path)
    assert reasons["1"] == ["box: 1.xml cannot be read (EntitiesForbidden: XML with entities or a DTD)"]
    assert reasons["2"][0].startswith("box: 2.xml cannot be read (")
    assert reasons["3"] == ["box: 3.xml cannot be read (size/width is 'x', not a number of pixels)"]
    assert reasons["4"] == ["box: 4.xml: xmin is '', not a number of pixels"]
    assert reasons["5"] == ["box: 5.xml cannot be read (No such file or directory)"]
    assert reasons["6"] == ["caption: 6.txt, line 2: a mark that cannot be read ('[/EN#1/people A [b man] .')"]
    found = samples(tmp_path)
    assert sorted(found) == ["1", "2", "3", "4", "5", "6"], "a fault in its labels does not cost an image"
    assert captions(found["6"], "human") == ["A man ."]
    assert regions(found["4"])[0] == ("A group of friends", [0, 0, 60, 40])


def test_flickr30k_sentences_that_are_hostile_end_soon(tmp_path: Path) -> None:
    put_image(tmp_path / "images/1.jpg")
    put_entities(tmp_path / "f30k", "1", sentences="[/EN#1" + "/a" * 100_000 + "\n" + "[/EN#2/x " * 50_000)
    start = time.monotonic()
    ingest(tmp_path, "flickr30k", images=tmp_path / "images", annotations=tmp_path / "f30k")
    assert time.monotonic() - start < 10
    assert [reason[:22] for reason in quarantine(tmp_path)["1"]] == ["caption: 1.txt, line 1", "caption: 1.txt, line 2"]


def test_flickr30k_splits_are_lists_of_ids(tmp_path: Path) -> None:
    for name in ("36979", "65567"):
        put_image(tmp_path / f"images/{name}.jpg")
        put_entities(tmp_path / "f30k", name)
    (tmp_path / "val.txt").write_text("65567\n")
    inputs = {"images": tmp_path / "images", "annotations": tmp_path / "f30k"}
    ingest(tmp_path, "flickr30k", only=tmp_path / "val.txt", **inputs)
    assert list(samples(tmp_path)) == ["65567"]
    message = refused(tmp_path, "flickr30k", images=tmp_path / "images", annotations=tmp_path / "images")
    assert message.startswith("annotations: ")
    assert "no folder of Flickr30k Entities: there is no" in message


def mdetr() -> dict[str, Any]:
    first, second = "Two men play cards .", "Men near a table ."
    image = {"file_name": "10002456.jpg", "width": 60, "height": 40, "dataset_name": "flickr"}
    box = {"area": 600, "iscrowd": 0, "category_id": 1}
    return {
        "info": [],
        "licenses": [],
        "images": [
            {**image, "id": 0, "caption": first, "tokens_negative": [[0, 20]], "sentence_id": 0},
            {**image, "id": 1, "caption": second, "tokens_negative": [[0, 18]], "sentence_id": 1},
        ],
        "annotations": [
            {**box, "id": 0, "image_id": 0, "bbox": [6, 4, 30, 20], "tokens_positive": [[0, 7]]},
            {**box, "id": 1, "image_id": 1, "bbox": [6, 4, 30, 20], "tokens_positive": [[0, 3]]},
            {**box, "id": 2, "image_id": 1, "bbox": [0, 0, 60, 40], "tokens_positive": [[0, 3], [9, 16]]},
            {**box, "id": 3, "image_id": 1, "bbox": [6, 4, 30, 20], "tokens_positive": [[0, 3]]},
        ],
        "categories": [{"id": 1, "name": "object", "supercategory": "object"}],
    }


def test_flickr30k_as_mdetr_has_it(tmp_path: Path) -> None:
    put_image(tmp_path / "images/10002456.jpg")
    inputs = {"images": tmp_path / "images", "annotations": tmp_path / "train.json"}
    tree = mdetr()
    tree["annotations"].append({**tree["annotations"][0], "id": 4, "tokens_positive": [[15, 50]]})
    (tmp_path / "train.json").write_text(json.dumps(tree))
    ingest(tmp_path, "flickr30k", **inputs)
    sample = samples(tmp_path)["10002456"]
    assert captions(sample, "human") == ["Two men play cards .", "Men near a table ."]
    men, all_ = [6, 4, 36, 24], [0, 0, 60, 40]
    assert regions(sample) == [("Two men", men), ("Men", men), ("Men a table", all_)]
    assert quarantine(tmp_path) == {"10002456": ["box: (15, 50) is no part of 'Two men play cards .'"]}
    for change, message in (
        ({"tokens_positive": [[0, "7"]]}, "annotations[0]: tokens_positive must be a list of [start, end]"),
        ({"tokens_positive": [0, 7]}, "annotations[0]: tokens_positive must be a list of [start, end]"),
        ({"image_id": 5}, "annotations[0]: image_id 5 is not among its images"),
    ):
        broken = mdetr()
        broken["annotations"][0].update(change)
        (tmp_path / "train.json").write_text(json.dumps(broken))
        assert message in refused(tmp_path, "flickr30k", **inputs)
    broken = mdetr()
    broken["images"][1]["id"] = 0
    (tmp_path / "train.json").write_text(json.dumps(broken))
    assert "images[1]: id 0 stands twice" in refused(tmp_path, "flickr30k", **inputs)


# --- Visual Genome


def put_genome(root: Path, *, regions_of_1: list[Any] | None = None) -> None:
    at = {"region_id": 1382, "image_id": 1}
    url = "https://cs.stanford.edu/people/rak248"
    size = {"width": 60, "height": 40, "coco_id": None, "flickr_id": None}
    images = [
        {"image_id": 1, "url": f"{url}/VG_100K_2/1.jpg", **size},
        {"image_id": 2, "url": f"{url}/VG_100K/2.jpg", **size},
    ]
    described = [
        {"regions": [{**at, "x": 6, "y": 4, "width": 30, "height": 20, "phrase": "the clock is\n green"},
                     {**at, "x": 0, "y": 0, "width": 60, "height": 40.0, "phrase": "a street"},
                     {**at, "x": 0, "y": 0, "width": 60, "height": 40, "phrase": "a street"},
                     *(regions_of_1 or [])], "id": 1},
        {"regions": [], "id": 2},
    ]  # fmt: skip
    root.mkdir(exist_ok=True)
    (root / "image_data.json").write_text(json.dumps(images))
    (root / "region_descriptions.json").write_text(json.dumps(described))


@pytest.mark.parametrize("spread", [("VG_100K_2/1.jpg", "VG_100K/2.jpg"), ("1.jpg", "2.jpg"), ("VG_100K/1.jpg",) * 2])
def test_visual_genome_on_any_spread_of_the_images(tmp_path: Path, spread: tuple[str, str]) -> None:
    for name in spread:
        put_image(tmp_path / "images" / name)
    put_genome(tmp_path / "vg")
    result = ingest(tmp_path, "visual_genome", images=tmp_path / "images", annotations=tmp_path / "vg")
    found = samples(tmp_path)
    assert regions(found["1"]) == [("the clock is green", [6, 4, 36, 24]), ("a street", [0, 0, 60, 40])]
    assert found["1"].sample.meta["source"].endswith("/VG_100K_2/1.jpg")
    assert found["1"].sample.meta["file"] == spread[0]
    missing = spread[0] == spread[1]
    assert result.counts["images"] == 2 - missing
    assert quarantine(tmp_path) == ({"2": ["image: the file is missing"]} if missing else {})


def test_visual_genome_with_faults(tmp_path: Path) -> None:
    put_image(tmp_path / "images/1.jpg")
    put_image(tmp_path / "images/2.jpg")
    good = {"x": 0, "y": 0, "width": 10, "height": 10, "phrase": "p"}
    put_genome(tmp_path / "vg", regions_of_1=[{**good, "width": 90}, {**good, "phrase": None}, {"x": 0}, 7])
    file = tmp_path / "vg/region_descriptions.json"
    inputs = {"images": tmp_path / "images", "annotations": file}
    ingest(tmp_path, "visual_genome", **inputs)
    assert sorted(reason.partition(" (")[0] for reason in quarantine(tmp_path)["1"]) == [
        "box: box outside its image by 30.0 pixels",
        "box: regions[4]: phrase must be of type str, got 'None'",
        "box: regions[5]: the key 'y' is missing",
        "box: regions[6]: expected an object, got int",
    ]
    (tmp_path / "only.txt").write_text("2.jpg\n")
    ingest(tmp_path, "visual_genome", only=tmp_path / "only.txt", **inputs)
    assert list(samples(tmp_path)) == ["2"]
    file.write_text(json.dumps([{"id": 3, "regions": []}]))
    assert "[0]: the image 3 is not in image_data.json beside it" in refused(tmp_path, "visual_genome", **inputs)
    file.write_text(json.dumps([{"id": 1}]))
    assert "[0]: the key 'regions' is missing" in refused(tmp_path, "visual_genome", **inputs)
    file.write_text(json.dumps({"id": 1}))
    assert "region_descriptions.json: expected a list, got dict" in refused(tmp_path, "visual_genome", **inputs)
    (tmp_path / "vg/image_data.json").unlink()
    message = refused(tmp_path, "visual_genome", **inputs)
    assert message == f"annotations: cannot read {tmp_path}/vg/image_data.json (No such file or directory)"


# --- GRIT

_CAPTION = "a wire hanger with a paper cover"
_CHUNKS = [[0.0, 13.0, 0.1, 0.1, 0.6, 0.6, 0.79], [19.0, 32.0, 0.0, 0.0, 1.0, 1.0, 0.5]]
_EXPRESSIONS = [[0.0, 32.0, 0.1, 0.1, 0.6, 0.6, 0.79], [19.0, 32.0, 0.0, 0.0, 1.0, 1.0, 0.75]]
_EXPECTED = [
    ("a wire hanger", [6, 4, 36, 24]),
    ("a paper cover", [0, 0, 60, 40]),
    ("a wire hanger with a paper cover", [6, 4, 36, 24]),
]


def grit_row(**more: Any) -> dict[str, Any]:
    scores = {"clip_similarity_vitb32": 0.28, "clip_similarity_vitl14": 0.22}
    lists = {"noun_chunks": _CHUNKS, "ref_exps": _EXPRESSIONS}
    return {**scores, "caption": _CAPTION, "url": "http://x/1.jpg", "width": 600, "height": 400, **lists, **more}


@pytest.mark.parametrize("layout", ["parquet", "jsonl", "img2dataset"])
def test_grit(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "images"
    annotations = tmp_path / f"grit.{layout}"
    if layout == "img2dataset":  # its `files`: Parquet beside folders of images, with a key and what became of a row
        put_image(folder / "00000/000000001.jpg")
        fetched = {"status": "success", "error_message": None, "original_width": 1200, "original_height": 800}
        rows = [
            grit_row(key="000000001", **fetched),
            grit_row(key="000000002", **{**fetched, "status": "failed_to_download"}),
        ]
        annotations = folder
        pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    elif layout == "parquet":  # as published: a number for an id
        put_image(folder / "1795296605919.png")
        rows = [grit_row(id=1795296605919), grit_row(id=2)]
        pq.write_table(pa.Table.from_pylist(rows), annotations)
    else:
        put_image(folder / "x-1.jpg")
        annotations.write_text("\n".join(json.dumps(row) for row in (grit_row(key="x-1"), grit_row(key="y"))) + "\n\n")
    ingest(tmp_path, "grit", images=folder, annotations=annotations)
    ((key, sample),) = samples(tmp_path).items()
    assert key in ("000000001", "1795296605919", "x-1")
    assert captions(sample, "alt_text") == [_CAPTION]
    assert sample.sample.meta["alt_text"] == _CAPTION
    assert sample.sample.meta["source"] == "http://x/1.jpg"
    assert regions(sample) == _EXPECTED
    np.testing.assert_allclose([row["score"] for row in sample.regions], [0.79, 0.75, 0.79], atol=1e-6)
    assert {row["source"] for row in sample.regions} == {"grit"}
    assert [reason for reasons in quarantine(tmp_path).values() for reason in reasons] == ["image: the file is missing"]


def test_grit_in_a_samples_json() -> None:
    labels = labels_of_json({**grit_row(), "noun_chunks": json.dumps(_CHUNKS)})
    assert labels.alt_text == (_CAPTION,)
    assert [(box.text, box.score) for box in labels.boxes] == [
        ("a wire hanger", 0.79),
        ("a paper cover", 0.75),
        (_CAPTION, 0.79),
    ]
    assert labels.problems == ()
    assert labels_of_json({"caption": "x"}).alt_text == ("x",)
    for nothing in ({}, {"caption": None}, {"caption": " ", "noun_chunks": []}):
        assert labels_of_json(nothing) == type(labels)()
    assert labels_of_json({"noun_chunks": _CHUNKS}).problems == ("box: there is no caption for its 2 regions",)
    assert labels_of_json({"caption": ["x"]}).problems == ("caption: expected a text, got list",)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ([0, 13, 0.1, 0.1, 0.6, 0.6], "expected [start, end, x1, y1, x2, y2, score]"),
        ([0, 13, 0.1, 0.1, 0.6, float("nan"), 0.7], "expected [start, end, x1, y1, x2, y2, score]"),
        ([0, 13, 0.1, 0.1, 0.6, 10**400, 0.7], "expected [start, end, x1, y1, x2, y2, score]"),
        ([0, 13, 0.1, 0.1, 0.6, "0.6", 0.7], "expected [start, end, x1, y1, x2, y2, score]"),
        ([0, 99, 0.1, 0.1, 0.6, 0.6, 0.7], "[0, 99] is no part of its caption of 32 letters"),
        ([13, 0, 0.1, 0.1, 0.6, 0.6, 0.7], "[13, 0] is no part of its caption of 32 letters"),
        ("text", "expected [start, end, x1, y1, x2, y2, score]"),
    ],
)
def test_grit_regions_that_are_none(entry: Any, reason: str) -> None:
    labels = labels_of_json(grit_row(ref_exps=[entry]))
    assert [box.text for box in labels.boxes] == ["a wire hanger", "a paper cover"]
    (problem,) = labels.problems
    assert problem.startswith(f"box: ref_exps[0]: {reason}")


def test_grit_with_faults(tmp_path: Path) -> None:
    put_image(tmp_path / "images/a.jpg")
    put_image(tmp_path / "images/c.jpg", size=(40, 60))
    put_image(tmp_path / "secret.jpg")
    rows = [
        grit_row(key="a", noun_chunks=[[0, 13, 0.1, 0.1, 0.6, 0.6, 7.5], [0, 13, 0.1, 0.1, 1.6, 0.6, 0.5]]),
        grit_row(key="c"),
        grit_row(key="../secret"),
    ]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    ingest(tmp_path, "grit", images=tmp_path / "images", annotations=file)
    reasons = quarantine(tmp_path)
    assert reasons["a"][0].startswith("box: score 7.5 is not in [0, 1]")
    assert reasons["a"][1].startswith("box: box outside its image by")
    assert reasons["c"] == ["image: is 40x60 pixels, its annotations are for 600x400"]
    assert [key for key in reasons if "secret" in key and "points outside" in reasons[key][0]]
    assert list(samples(tmp_path)) == ["a"]


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("x.parquet", b"PAR1 no", "x.parquet is not a Parquet file"),
        ("x.parquet", {"key": ["a"], "noun_chunks": [[]]}, "x.parquet has no caption: not GRIT (there are: key, noun"),
        ("x.parquet", {"caption": ["a"], "noun_chunks": [[]]}, "x.parquet has no key or id: not GRIT"),
        ("x.parquet", {"key": ["a"], "caption": ["b"]}, "x.parquet has no noun_chunks or ref_exps: not GRIT"),
        ("x.parquet", {"key": [None], "caption": ["b"], "ref_exps": [[]]}, "row 0: the key must be a text or a number"),
        ("x.jsonl", b'{"key": "a"}\n', "line 1 has no caption"),
        ("x.jsonl", b'{"key": 1, "caption": "b", "ref_exps": []}\n[1]', "line 2: expected an object, got list"),
        ("x.jsonl", b"{\n", "line 1 is not valid JSON"),
        ("x.jsonl", b'{"a": "\xff"}\n', "line 1 is not UTF-8"),
        ("x.jsonl", b"[" * 3_000_000, "line 1 is longer than 1 MiB"),
        ("x.csv", b"", "expected a folder or a file of the kind .parquet, .jsonl"),
        ("none/x.csv", b"", "there are no files of the kind .parquet, .jsonl in"),
    ],
)
def test_files_that_are_not_grit(tmp_path: Path, name: str, body: Any, message: str) -> None:
    put_image(tmp_path / "images/1.jpg")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(body, dict):
        pq.write_table(pa.table(body), path)
    else:
        path.write_bytes(body)
    annotations = path.parent if "/" in name else path
    assert message in refused(tmp_path, "grit", images=tmp_path / "images", annotations=annotations)
    if name == "x.csv":
        missing = tmp_path / "none.parquet"
        message = refused(tmp_path, "grit", images=tmp_path / "images", annotations=missing)
        assert message == f"annotations: cannot read {missing} (No such file or directory)"
