"""Hard negatives of FG-OVD's files and of JSON lines become a data set's table; what is broken or missing is told."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cloc.cli import cloc as command_line
from cloc.config import parse
from cloc.data import tables
from cloc.data.attributes.stage import Inputs, Outputs, run
from cloc.data.dataset import Dataset
from cloc.data.ingest import stage as ingest
from cloc.data.storage import FolderStorage
from cloc.errors import ClocError, DataError
from cloc.stage import StageResult

COCO = Path(__file__).parents[3] / "shared/data/coco_val2017_dev"
SIZE = (60, 40)
QUESTION = {"box": [6, 4, 30, 20], "text": "a red mug", "negatives": {"1_attributes": ["a blue mug", "a red pan"]}}


def settings(**data: Any) -> Any:
    return parse({"data": {"processes": 1, "images_per_shard": 2, **data}}, source="test")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures a.jpg to d.jpg of `SIZE` in two shards; d lies in a folder of its own."""
    for index, name in enumerate(("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg")):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    inputs = ingest.Inputs(images=str(tmp_path / "images"))
    ingest.run(settings(), inputs=inputs, outputs=ingest.Outputs(data=str(tmp_path / "data")))
    return tmp_path / "data"


def fg_ovd(path: Path, *, images: Any = None, annotations: Any = None, categories: Any = None) -> Path:
    """A file as FG-OVD has it: on COCO's picture a, a box with the text 7 and two others."""
    image = {"id": 3, "width": 60, "height": 40, "file_name": "train2017/a.jpg", "coco_url": "http://x/train2017/a.jpg"}
    box = {"id": 1, "image_id": 3, "bbox": [6, 4, 24, 16], "category_id": 7, "neg_category_ids": [8, 9]}
    texts = {7: "a red mug", 8: "a blue mug", 9: "a red pan"}
    tree = {
        "images": [{**image, "neg_category_ids": [8], "not_exhaustive_category_ids": [7]}]
        if images is None
        else images,
        "annotations": [{**box, "segmentation": [[1, 2, 3, 4]]}] if annotations is None else annotations,
        "categories": categories or [{"id": id_, "name": text, "synset": ""} for id_, text in texts.items()],
    }
    path.write_text(json.dumps(tree))
    return path


def json_lines(path: Path, *items: dict[str, Any]) -> Path:
    whole = [{"file": "a.jpg", "width": 60, "height": 40, "regions": [QUESTION], **item} for item in items]
    path.write_text("".join(json.dumps(item) + "\n" for item in whole))
    return path


def add(data: Path, *files: Path, **config: Any) -> StageResult:
    inputs = Inputs(files=tuple(map(str, files)))
    return run(settings(**config), inputs=inputs, outputs=Outputs(data=str(data)))


def rows(data: Path) -> list[dict[str, Any]]:
    opened = Dataset.open(data)
    for item in opened.manifest.shards:
        opened.check(item)
    found = [opened.rows("attributes", item) for item in opened.manifest.shards]
    return [row for by_key in found for group in by_key.values() for row in group]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


ROW = {"key": "a", "x1": 0.1, "y1": 0.1, "x2": 0.5, "y2": 0.5, "text": "a red mug", "level": "1_attributes"} | {
    "negatives": ["a blue mug", "a red pan"]
}


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in row.items()}


def test_both_kinds_of_files_give_the_same_questions(data: Path, tmp_path: Path) -> None:
    add(data, fg_ovd(tmp_path / "1_attributes.json"))
    assert [rounded(row) for row in rows(data)] == [{**ROW, "source": "1_attributes.json"}]
    add(data, json_lines(tmp_path / "x.jsonl", {}))
    assert [rounded(row) for row in rows(data)] == [{**ROW, "source": "x.jsonl"}]


def test_all_files_are_taken_together_and_nothing_else_changes(data: Path, tmp_path: Path) -> None:
    before = files(data)
    more = {"negatives": {"2_attributes": ["a blue pan"], "3_attributes": ["a green pot"]}}
    lines = json_lines(
        tmp_path / "x.jsonl", {"file": "c.jpg", "regions": [{**QUESTION, **more}, {"text": "no question"}]}
    )
    result = add(data, fg_ovd(tmp_path / "1_attributes.json"), fg_ovd(tmp_path / "color.json"), lines)
    assert [(row["key"], row["level"]) for row in rows(data)] == [
        ("a", "1_attributes"),
        ("a", "color"),
        ("c", "2_attributes"),
        ("c", "3_attributes"),
    ]
    assert (result.counts["questions"], result.counts["images"], result.counts["refused"]) == (4, 2, 0)
    after = files(data)
    assert {name: body for name, body in after.items() if not name.startswith("attributes/")} == before
    assert sorted(name for name in after if name not in before) == [f"attributes/{n:05d}.parquet" for n in range(2)]


def test_images_are_found_by_file_name_wherever_they_lie(data: Path, tmp_path: Path) -> None:
    assert [item.sample.key for item in Dataset.open(data).read_all()] == ["a", "b", "c", "sub_d"]
    for name, key in (("d.jpg", "sub_d"), ("sub/d.jpg", "sub_d"), ("val2017/b.jpg", "b"), ("b.png", "b")):
        add(data, json_lines(tmp_path / "x.jsonl", {"file": name}))
        assert [row["key"] for row in rows(data)] == [key]


def test_images_that_are_not_there_are_counted_and_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strangers = [{"file": f"z{n}.jpg"} for n in range(5)]
    result = add(data, json_lines(tmp_path / "x.jsonl", {}, *strangers))
    assert (result.counts["images"], result.counts["images_not_here"]) == (1, 5)
    assert "5 images are not in" in (printed := capsys.readouterr().out)
    assert "'z0.jpg', 'z1.jpg', 'z2.jpg' and 2 more" in printed
    with pytest.raises(DataError, match=r"none of the 5 images .* is in .*\(first: 'z0\.jpg'\)"):
        add(data, json_lines(tmp_path / "x.jsonl", *strangers))


def test_a_second_run_writes_nothing_and_a_lost_table_is_made_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = json_lines(tmp_path / "x.jsonl", {}, {"file": "c.jpg"}, {"file": "z.jpg"})
    first, before = add(data, lines), files(data)
    written: list[str] = []
    write = tables.write_table

    def spy(storage: Any, table: Any, name: str, *args: Any, **kwargs: Any) -> int:
        written.append(name)
        return write(storage, table, name, *args, **kwargs)

    monkeypatch.setattr(tables, "write_table", spy)
    again = add(data, lines)
    assert written == []
    assert again.counts == {**first.counts, "skipped_shards": 2}
    (data / "attributes/00001.parquet").unlink()
    assert add(data, lines).counts["skipped_shards"] == 1
    assert (written, files(data)) == (["00001"], before)
    json_lines(tmp_path / "x.jsonl", {}, {"file": "b.jpg"})  # another content under the same name
    assert add(data, lines).counts["skipped_shards"] == 0
    assert [row["key"] for row in rows(data)] == ["a", "b"]


def test_several_processes_give_the_same_tables(data: Path, tmp_path: Path) -> None:
    lines = json_lines(tmp_path / "x.jsonl", {}, {"file": "c.jpg"})
    add(data, lines)
    before = files(data)
    for path in (data / "attributes").iterdir():
        path.unlink()
    add(data, lines, processes=2)
    assert files(data) == before


def test_making_the_images_again_takes_their_questions_away(data: Path, tmp_path: Path) -> None:
    add(data, json_lines(tmp_path / "x.jsonl", {}))
    (tmp_path / "images/a.jpg").write_bytes((tmp_path / "images/b.jpg").read_bytes())
    inputs = ingest.Inputs(images=str(tmp_path / "images"))
    ingest.run(settings(), inputs=inputs, outputs=ingest.Outputs(data=str(data)))
    assert not tables.has_table(FolderStorage(data), "attributes", "00000")
    assert tables.has_table(FolderStorage(data), "attributes", "00001")  # of images that did not change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"box": [6, 4, 6, 20]}, "degenerate box"),
        ({"box": [6, 4, 80, 20]}, "box outside its image"),
        ({"box": [6, 4, float("nan"), 20]}, "box is not finite"),
        ({"text": "  "}, "empty text"),
        ({"negatives": {"x": []}}, "no negatives that differ from the text"),
        ({"negatives": {"x": ["A red  mug", ""]}}, "no negatives that differ from the text"),
        ({}, "stands twice"),
    ],
)
def test_questions_that_cannot_be_used_are_counted(
    change: dict[str, Any], reason: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = json_lines(tmp_path / "x.jsonl", {"regions": [QUESTION, {**QUESTION, **change}]})
    result = add(data, lines, quarantine_limit=0.5)
    assert (result.counts["questions"], result.counts["refused"], len(rows(data))) == (1, 1, 1)
    assert f"refused: 1 x {reason}" in capsys.readouterr().out
    for _ in range(2):  # a run that finds the table made says so, too
        with pytest.raises(DataError, match=rf"1 of 2 questions \(50\.0%\).*first: a\.jpg: '.*': {reason}"):
            add(data, lines, quarantine_limit=0.4)


def test_negatives_that_say_the_same_are_taken_once(data: Path, tmp_path: Path) -> None:
    negatives = {"x": ["a blue  mug", "A RED MUG", "a blue mug", "a pan"]}
    add(data, json_lines(tmp_path / "x.jsonl", {"regions": [{**QUESTION, "negatives": negatives}]}))
    assert [row["negatives"] for row in rows(data)] == [["a blue mug", "a pan"]]


def test_a_box_drawn_on_another_shape_does_not_fit(data: Path, tmp_path: Path) -> None:
    turned = json_lines(
        tmp_path / "x.jsonl", {"width": 40, "height": 60}, {"file": "b.jpg", "width": 120, "height": 80}
    )
    result = add(data, turned, quarantine_limit=0.5)
    assert [(row["key"], round(row["x2"], 6)) for row in rows(data)] == [
        ("b", 0.25)
    ]  # twice the size is the same shape
    assert result.counts["refused"] == 1
    with pytest.raises(DataError, match="is 60x40 pixels, its annotations are for 40x60"):
        add(data, turned, quarantine_limit=0.4)


BROKEN_JSON: list[tuple[dict[str, Any], str]] = [
    ({"annotations": []}, "has no boxes with negatives"),
    ({"annotations": [{"image_id": 4}]}, r"annotations\[0\]: image_id 4 is not among its images"),
    ({"annotations": [{"image_id": 3, "bbox": [1, 2]}]}, r"annotations\[0\]: bbox must be \[x, y, width, height\]"),
    (
        {"annotations": [{"image_id": 3, "bbox": [6, 4, 24, 16], "category_id": 7}]},
        r"annotations\[0\]: the key 'neg_category_ids' is missing",
    ),
    (
        {"annotations": [{"image_id": 3, "bbox": [6, 4, 24, 16], "category_id": 7, "neg_category_ids": [70]}]},
        r"annotations\[0\]: category 70 is not among its categories",
    ),
    ({"images": [{"id": 3, "width": 0, "height": 9, "file_name": "a.jpg"}]}, "must be at least 1, got 0x9"),
    (
        {"images": [{"id": 3, "width": 9, "height": 9, "file_name": ".."}]},
        r"images\[0\]: '..' is not the name of a file",
    ),
    ({"categories": [{"id": 7}]}, r"categories\[0\]: the key 'name' is missing"),
]


@pytest.mark.parametrize(("change", "line"), BROKEN_JSON)
def test_broken_json_is_one_line(change: dict[str, Any], line: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=line) as caught:
        add(data, fg_ovd(tmp_path / "1_attributes.json", **change))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "1_attributes.json") in str(caught.value)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("", "has no boxes with negatives"),
        ("[]", "line 1: expected an object, got list"),
        ('\n{"file": "a.jpg"', r"line 2 is not valid JSON \(line 1, column 17"),
        (json.dumps({"file": "a.jpg", "width": 60}), "line 1: the key 'height' is missing"),
        (
            json.dumps({"file": "a", "width": 6, "height": 4, "regions": [3]}),
            r"regions\[0\]: expected an object, got int",
        ),
        (
            json.dumps({"file": "a", "width": 6, "height": 4, "regions": [{**QUESTION, "negatives": {"x": [3]}}]}),
            r"regions\[0\]: negatives of 'x' must be a list of texts",
        ),
        (
            json.dumps({"file": "a", "width": 6, "height": 4, "regions": [{**QUESTION, "box": "all"}]}),
            r"regions\[0\]: box must be of type list",
        ),
    ],
)
def test_broken_json_lines_are_one_line(body: str, line: str, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(body)
    with pytest.raises(DataError, match=rf"^attributes: {re.escape(str(path))}.*{line}"):
        add(data, path)


def test_files_that_cannot_be_told_apart_read_or_known(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"attributes: cannot read .*/none\.json \(No such file"):
        add(data, tmp_path / "none.json")
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(DataError, match=r"x\.csv: expected FG-OVD's \.json or \.jsonl"):
        add(data, tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"'t/a\.jpg' and 'v/a\.jpg' cannot be told apart"):
        add(data, json_lines(tmp_path / "x.jsonl", {"file": "t/a.jpg"}, {"file": "v/a.jpg"}))
    with pytest.raises(DataError, match=r"'a\.jpg' is 80x40, elsewhere it is \(60, 40\)"):
        add(data, json_lines(tmp_path / "x.jsonl", {}, {"width": 80}))
    with pytest.raises(DataError, match="no data set here"):
        add(tmp_path, json_lines(tmp_path / "x.jsonl", {}))


def test_one_name_that_two_images_have_is_told(tmp_path: Path) -> None:
    for name in ("u/a.jpg", "v/a.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        sink = io.BytesIO()
        Image.new("RGB", SIZE, (len(name), 3, 2)).save(sink, "JPEG")
        (tmp_path / "images" / name).write_bytes(sink.getvalue())
    for images_per_shard in (1, 2):
        place = tmp_path / f"data{images_per_shard}"
        config = settings(images_per_shard=images_per_shard)
        ingest.run(
            config, inputs=ingest.Inputs(images=str(tmp_path / "images")), outputs=ingest.Outputs(data=str(place))
        )
        with pytest.raises(DataError, match=r"'a\.jpg' may be 'u_a' or 'v_a' of the data set; rename one"):
            add(place, json_lines(tmp_path / "x.jsonl", {}))


def test_command_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fg_ovd(tmp_path / "1_attributes.json")
    fg_ovd(tmp_path / "color.json")
    given = ["data", "attributes", str(data), "1_attributes.json", "color.json", "--preset", "demo"]
    command_line.main(
        [*given, "-S", "data.processes=1", "-S", "tracking.uri=sqlite:///mlflow.db"], standalone_mode=False
    )
    assert sorted(row["level"] for row in rows(data)) == ["1_attributes", "color"]
    with pytest.raises(ClocError, match=r"cannot read gone\.json"):
        command_line.main(
            [*given[:3], "gone.json", "--preset", "demo", "-S", "tracking.uri=sqlite:///mlflow.db"],
            standalone_mode=False,
        )


def test_photographs_with_their_own_questions(tmp_path: Path) -> None:
    if not COCO.exists():
        pytest.skip(f"{COCO} is absent")
    inputs = ingest.Inputs(
        source="coco",
        images=str(COCO / "images"),
        coco_instances=str(COCO / "instances.json"),
        only=str(COCO / "mini32.txt"),
    )
    ingest.run(settings(images_per_shard=20), inputs=inputs, outputs=ingest.Outputs(data=str(tmp_path / "data")))
    result = add(tmp_path / "data", COCO / "annotations.jsonl")
    lines = [json.loads(line) for line in (COCO / "annotations.jsonl").read_text().splitlines()]
    names = set((COCO / "mini32.txt").read_text().split())
    asked = {
        (Path(line["file"]).stem, region["text"], level, tuple(negatives))
        for line in lines
        if line["file"] in names
        for region in line["regions"]
        for level, negatives in region.get("negatives", {}).items()
    }
    assert asked
    assert {
        (row["key"], row["text"], row["level"], tuple(row["negatives"])) for row in rows(tmp_path / "data")
    } == asked
    assert result.counts["refused"] == 0
