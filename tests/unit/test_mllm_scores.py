"""Judging answers, figures side by side, and their report: cases where the right number is known."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cloc.boxes import Letterbox
from cloc.errors import ConfigError, DataError
from cloc.mllm import report, scores
from cloc.mllm.conversation import NONE, Conversation, Task, Turn
from cloc.mllm.judging import Prediction, judge, read_predictions, word_f1, write_predictions

SQUARE = Letterbox(100, 100, 100)
BOX = np.array([[0.2, 0.2, 0.4, 0.4]])


def asked(task: Task, answer: str, *, truth: np.ndarray | None = None, label: str = "") -> Conversation:
    boxes = np.zeros((0, 4)) if truth is None else truth
    return Conversation(task, (Turn("what?", answer),), truth=boxes, label=label)


def judged(conversation: Conversation, answer: str) -> Prediction:
    return judge(conversation, answer, key="k", frame=SQUARE)


@pytest.mark.parametrize(
    ("answer", "value", "noun"),
    [("Red key", 1, True), ("a red key.", 1, True), ("blue key", 0, True), ("key chain", 0, False), ("", 0, False)],
)
def test_referring_is_word_for_word_and_by_noun(answer: str, value: float, noun: bool) -> None:
    item = judged(asked(Task.REFER, "red key", label="key"), answer)
    assert (item.value, item.noun) == (value, noun)


@pytest.mark.parametrize(
    ("answer", "value", "iou", "parsed"),
    [
        ("[20 20 39 39]", 1, 1.0, True),
        ("[20 20 30 39]", 1, 0.55, True),
        ("[20 20 28 39]", 0, 0.45, True),
        ("at [20 20 39 39]", 0, 0.0, False),
        ("[39 39 20 20]", 0, 0.0, False),
        (NONE, 0, 0.0, True),
        ("", 0, 0.0, False),
    ],
)
def test_grounding_is_one_box_that_overlaps(answer: str, value: float, iou: float, parsed: bool) -> None:
    item = judged(asked(Task.GROUND, "[20 20 39 39]", truth=BOX), answer)
    assert (item.value, item.parsed) == (value, parsed)
    assert item.iou == pytest.approx(iou)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("[20 20 39 39] [60 60 79 79]", 1.0),
        ("[60 60 79 79] [20 20 39 39]", 1.0),
        ("[20 20 39 39]", 2 / 3),
        ("[20 20 39 39] [20 20 39 39]", 0.5),  # one truth is found once
        (NONE, 0.0),
    ],
)
def test_all_boxes_are_matched_once(answer: str, value: float) -> None:
    both = np.array([[0.2, 0.2, 0.4, 0.4], [0.6, 0.6, 0.8, 0.8]])
    assert judged(asked(Task.GROUND_ALL, "", truth=both), answer).value == pytest.approx(value)


def test_what_is_not_there_is_hallucinated_unless_it_is_said() -> None:
    question = asked(Task.ABSENT, NONE)
    assert [judged(question, answer).value for answer in (NONE, "There is none.", "[1 2 3 4]", "")] == [1, 1, 0, 0]


def test_words_count_once_and_boxes_do_not() -> None:
    assert word_f1("a red key", "a red key [1 2 3 4] and a bed") == pytest.approx(2 * 3 / (3 + 6))
    assert word_f1("key key", "key") == pytest.approx(2 / 3)
    assert (word_f1("", "key"), word_f1("", "")) == (0.0, 1.0)


def test_boxes_are_kept_in_the_original_frame() -> None:
    wide = Letterbox(200, 100, 100)
    item = judge(asked(Task.GROUND, "", truth=BOX), "[20 20 39 39]", key="k", frame=wide)
    assert item.said == [pytest.approx((0.2, 0.4, 0.4, 0.8))]
    assert item.right == [pytest.approx((0.2, 0.4, 0.4, 0.8))]


def test_boxes_of_a_question_are_kept_with_and_without_region_tokens() -> None:
    for question in ("what is in [20 20 39 39]?", "what is in [20 20 39 39] <region>?"):
        item = judged(Conversation(Task.REFER, (Turn(question, "key"),)), "key")
        assert item.asked == [pytest.approx((0.2, 0.2, 0.4, 0.4))]


def predictions(values: list[float], *, task: Task = Task.REFER) -> list[Prediction]:
    return [
        Prediction("", f"image-{number // 2}", task.value, "what?", "said", f"truth {number}", value, noun=True)
        for number, value in enumerate(values)
    ]


def test_rows_are_compared_question_by_question() -> None:
    wrong, right = predictions([0.0] * 40), predictions([1.0] * 40)
    found = scores.compare([scores.Row("CLIP", (wrong,)), scores.Row("CLOC", (right, wrong))])
    entry = found["figures"][0]
    assert (entry["name"], entry["scores"]["CLIP"]["value"], entry["scores"]["CLOC"]["value"]) == (
        "refer/accuracy",
        0,
        0.5,
    )
    assert entry["scores"]["CLOC"]["seeds"] == [1.0, 0.0]
    assert entry["differences"]["CLOC"] == {"value": 0.5, "interval": [0.5, 0.5], "better": "a"}
    assert scores.metrics(found, "CLOC", test="val") == {
        "eval/mllm_refer/val/accuracy": 0.5,
        "eval/mllm_refer/val/noun_accuracy": 1.0,
    }
    assert scores.sentences(found) == ["CLOC is better than CLIP: refers, word for word 50.0, +50.0 (+50.0 to +50.0)."]


def test_better_is_said_only_where_the_interval_says_so() -> None:
    one, other = predictions([1.0, 0.0] * 20), predictions([0.0, 1.0] * 20)
    found = scores.compare([scores.Row("CLIP", (one,)), scores.Row("CLOC", (other,))])
    assert found["figures"][0]["differences"]["CLOC"]["better"] == ""
    assert scores.sentences(found) == ["No difference between CLOC and CLIP is shown."]


def test_less_is_better_where_it_is() -> None:
    honest, liar = predictions([1.0] * 20, task=Task.ABSENT), predictions([0.0] * 20, task=Task.ABSENT)
    found = scores.compare([scores.Row("liar", (liar,)), scores.Row("honest", (honest,))])
    (entry,) = found["figures"]
    assert (entry["name"], entry["scores"]["honest"]["value"]) == ("absent/hallucination", 0)
    assert entry["differences"]["honest"]["better"] == "a"


def test_other_questions_are_refused() -> None:
    ours = predictions([1.0] * 4)
    with pytest.raises(ConfigError, match=r"^CLOC was asked other questions than CLIP: tune both with the same data"):
        scores.compare([scores.Row("CLIP", (ours,)), scores.Row("CLOC", (ours[:2],))])
    with pytest.raises(ConfigError, match="its seeds were asked different questions"):
        scores.compare([scores.Row("CLIP", (ours, ours[:2]))])
    with pytest.raises(ConfigError, match="no adapters to compare"):
        scores.compare([])


def adapter(folder: Path, items: list[Prediction]) -> Path:
    write_predictions(items, folder / report.PREDICTIONS)
    (folder / report.ABOUT).write_text(json.dumps({"encoder": folder.name}))
    report.save_pictures({"image-0": Image.new("RGB", (90, 60), "white")}, folder)
    return folder


def test_the_report_escapes_draws_and_says(tmp_path: Path) -> None:
    box = (0.25, 0.25, 0.75, 0.75)
    evil = "<script>alert(1)</script>"
    ours = [replace(item, answer=evil, right=[box], said=[box]) for item in predictions([1.0] * 12, task=Task.GROUND)]
    theirs = [replace(item, value=0.0, iou=0.0, parsed=False) for item in ours]
    rows = {"CLIP": adapter(tmp_path / "clip", theirs), "CLOC": adapter(tmp_path / "cloc", ours)}
    found = report.write_report(rows, tmp_path / "out", title="Adapters & <b>encoders</b>")
    page = (tmp_path / "out" / report.PAGE).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "Adapters &amp; &lt;b&gt;" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "CLOC is better than CLIP" in page
    summary = (tmp_path / "out" / report.SUMMARY).read_text()
    assert "| grounds, IoU ≥ 0.5 | 0.0 (0.0\N{EN DASH}0.0) | **100.0** (100.0\N{EN DASH}100.0) |" in summary
    assert json.loads((tmp_path / "out" / report.RESULTS).read_text())["figures"] == found["figures"]
    table = json.loads((tmp_path / "out" / "examples" / "examples.json").read_text())
    assert [row[table["columns"].index("model")] for row in table["data"][:2]] == ["CLIP", "CLOC"]
    assert (tmp_path / "out" / "examples" / table["data"][0][0]).read_bytes().startswith(b"\xff\xd8")


def test_predictions_come_back_as_they_were(tmp_path: Path) -> None:
    item = judged(asked(Task.GROUND, "", truth=BOX), "[20 20 39 39]")
    write_predictions([item], tmp_path / "a.jsonl")
    (back,) = read_predictions(tmp_path / "a.jsonl")
    assert back.said[0] == pytest.approx(item.said[0])
    assert replace(back, said=[], right=[]) == replace(item, said=[], right=[])
    with pytest.raises(DataError, match=r"^no answers in .*run `cloc tune` first$"):
        read_predictions(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(DataError, match="not answers of this release"):
        read_predictions(tmp_path / "c.jsonl")
