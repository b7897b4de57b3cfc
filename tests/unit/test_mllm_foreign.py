"""Conversations and referring expressions of others: every format by hand, and every mistake in one line."""

import json
from collections import Counter
from functools import partial

import numpy as np
import pytest
from PIL import Image

from cloc.boxes import Letterbox
from cloc.errors import DataError
from cloc.mllm.boxtext import frame_problem, text_to_box
from cloc.mllm.conversation import Task, Turn
from cloc.mllm.foreign import BoxFrame, ConversationStore, read_conversations, read_referring

FRAME_OF = partial(Letterbox, size=100)
WIDE = (200, 100)  # the image: the lower half of the padded square is padding


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "coco").mkdir(parents=True)
    Image.new("RGB", WIDE).save(folder / "coco" / "1.jpg")
    Image.new("RGB", WIDE).save(folder / "2.png")
    return folder


def write(tmp_path, items, name="file.json"):
    path = tmp_path / name
    lines = name.endswith(".jsonl")
    path.write_text("\n".join(map(json.dumps, items)) if lines else json.dumps(items, indent=1))
    return path


def said(*texts):
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def an_item(*texts, image="coco/1.jpg", **others):
    return {"id": "7", "image": image, "conversations": said(*texts), **others}


def read_one(tmp_path, images, item, **options):
    [found] = read_conversations(write(tmp_path, [item]), images=images, frame_of=FRAME_OF, **options)
    [conversation] = found.conversations
    return conversation


@pytest.mark.parametrize("name", ["file.json", "file.jsonl"])
def test_llava_turns_are_read_without_the_image_token(tmp_path, images, name):
    items = [
        an_item("<image>\nWhat is this?", "A key.", "And its colour?", "Red."),
        an_item("What is this?\n<image>", "A cat.", image="2.png"),
    ]
    first, second = read_conversations(write(tmp_path, items, name), images=images, frame_of=FRAME_OF)
    assert first.key == "coco_1"
    assert first.image == images / "coco" / "1.jpg"
    [conversation] = first.conversations
    assert conversation.task is Task.OTHER
    assert conversation.turns == (Turn("What is this?", "A key."), Turn("And its colour?", "Red."))
    assert conversation.regions.shape == conversation.truth.shape == (0, 4)
    assert second.conversations[0].turns == (Turn("What is this?", "A cat."),)


def test_an_image_is_found_without_the_folders_of_its_name(tmp_path, images):
    [item] = read_conversations(
        write(tmp_path, [an_item("a?", "b", image="vg/part/2.png")]), images=images, frame_of=FRAME_OF
    )
    assert item.image == images / "2.png"


def test_text_alone_is_left_out_and_counted(tmp_path, images):
    items = [
        {"conversations": said("hello", "see [1, 2, 3, 4]")},
        an_item("a?", "b", image=["2.png", "coco/1.jpg"]),
        an_item("a?", "b", image=["2.png"]),
    ]
    left_out = Counter()
    found = list(read_conversations(write(tmp_path, items), images=images, frame_of=FRAME_OF, left_out=left_out))
    assert len(found) == 1
    assert left_out == {"no image": 1, "several images": 1}


def test_shares_of_the_image_become_our_boxes(tmp_path, images):
    item = an_item("what is in [0.1, 0.2, 0.5, 0.6]?", "key [0.25,0.5,0.75,1.0] and [0, 0, 1, 1]")
    conversation = read_one(tmp_path, images, item)
    assert conversation.turns == (Turn("what is in [10 10 49 29]?", "key [25 25 74 49] and [0 0 99 49]"),)
    assert conversation.regions.shape == (0, 4)
    np.testing.assert_allclose(conversation.truth, [[0.25, 0.25, 0.75, 0.5], [0, 0, 1, 0.5]])


def test_region_tokens_stand_behind_the_boxes_of_questions_alone(tmp_path, images):
    item = an_item("is [0.1, 0.2, 0.5, 0.6] like [0, 0, 1, 1]?", "as [0, 0, 1, 1]", "and [0.5, 0, 1, 1]?", "yes")
    conversation = read_one(tmp_path, images, item, region_tokens=True)
    assert conversation.turns[0] == Turn("is [10 10 49 29] <region> like [0 0 99 49] <region>?", "as [0 0 99 49]")
    assert conversation.turns[1].question == "and [50 0 99 49] <region>?"
    np.testing.assert_allclose(conversation.regions, [[0.1, 0.1, 0.5, 0.3], [0, 0, 1, 0.5], [0.5, 0, 1, 0.5]])
    assert len(conversation.truth) == 0  # of the last answer


def test_shares_of_the_square_of_llava(tmp_path, images):
    conversation = read_one(tmp_path, images, an_item("a?", "[0.1, 0.25, 0.5, 0.75]"), box_frame=BoxFrame.SQUARE)
    assert conversation.turns[0].answer == "[10 0 49 49]"  # the image is the middle half of that square


def test_pixels_of_the_size_that_the_item_gives(tmp_path, images):
    item = an_item("a?", "[100, 50, 200, 100]", image_w=400, image_h=200)
    assert read_one(tmp_path, images, item).turns[0].answer == "[25 12 49 24]"
    item = an_item("a?", "[100.0, 50.0, 200.0, 100.0]", width=400, height=200)
    assert read_one(tmp_path, images, item).turns[0].answer == "[25 12 49 24]"


def test_bins_of_ferret_where_no_size_is_given(tmp_path, images):
    assert read_one(tmp_path, images, an_item("a?", "[250, 500, 500, 1000]")).turns[0].answer == "[25 25 49 49]"
    item = an_item("a?", "[250, 500, 500, 1000]", width=200, height=100)
    conversation = read_one(tmp_path, images, item, box_frame=BoxFrame.BINS)
    assert conversation.turns[0].answer == "[25 25 49 49]"


def test_placeholders_of_ferret_take_the_boxes_of_their_message(tmp_path, images):
    item = an_item(
        "<image>\nis <bbox_location1> <region_fea> beside <bbox_location0>?",
        "no",
        "what is <bbox_location0>?",
        "a key <bbox_location0>",
        image_w=200,
        image_h=100,
        box_x1y1x2y2=[[[0, 0, 100, 50], [100, 50, 199, 99]], [], [[20, 10, 40, 20]], [[20, 10, 40, 20]]],
    )
    conversation = read_one(tmp_path, images, item, region_tokens=True)
    assert conversation.turns == (
        Turn("is [50 25 99 49] <region> beside [0 0 49 24] <region>?", "no"),
        Turn("what is [10 5 19 9] <region>?", "a key [10 5 19 9]"),
    )
    assert len(conversation.regions) == 3
    np.testing.assert_allclose(conversation.truth, [[0.1, 0.05, 0.2, 0.1]])


def test_placeholders_without_lists_for_messages_share_the_items_boxes(tmp_path, images):
    boxes = [[0, 0, 100, 50], [100, 50, 200, 100]]
    numbered = an_item("is <bbox1> like <bbox0>?", "see <bbox0>", bboxes=boxes)
    assert read_one(tmp_path, images, numbered).turns == (
        Turn("is [50 25 99 49] like [0 0 49 24]?", "see [0 0 49 24]"),
    )
    in_order = an_item("what is <region>?", "key", "and <region>?", "cat", bbox=boxes)
    assert [turn.question for turn in read_one(tmp_path, images, in_order).turns] == [
        "what is [0 0 49 24]?",
        "and [50 25 99 49]?",
    ]
    one = an_item("what is <bbox>?", "key", bbox=[0.5, 0.5, 1, 1])
    assert read_one(tmp_path, images, one).turns[0].question == "what is [50 25 99 49]?"


def test_a_box_without_width_is_the_bin_that_it_lies_in(tmp_path, images):
    conversation = read_one(tmp_path, images, an_item("see [1.0, 0.5, 1.0, 0.5]", "yes"), region_tokens=True)
    assert conversation.turns[0].question == "see [99 25 99 25] <region>"
    np.testing.assert_allclose(conversation.regions, [[0.99, 0.25, 1.0, 0.26]])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"conversations": said("<image>\na?", "b")}, "it names no image"),
        ({"conversations": said("what is <region>?", "b")}, "it names no image"),
        ({"conversations": said("a?", "b"), "bbox": [1, 2, 3, 4]}, "it names no image"),
        (an_item("a?", "b", image="3.jpg"), r"the image '3.jpg' is not in .*images"),
        (an_item("a?", "b", image="../images/2.png"), "is not in"),
        (an_item("a?", "[0.1, 0.2, 1.5, 0.6]"), r"\[0.1, 0.2, 1.5, 0.6\] leaves its image"),
        (an_item("a?", "[1500, 20, 1900, 60]"), "wrong frame: in .*width and height"),
        (an_item("a?", "[150, 20, 190, 160]", width=200, height=100), r"from \[150, 20, 190, 160\], read as pixels"),
        (an_item("a?", "[0.5, 0.2, 0.1, 0.6]"), "corners out of order"),
        (an_item("a?", "[10, 20, 30, 40]", width=100, height=100), "says 100x100, 1.jpg is 200x100"),
        (an_item("a?", "[10, 20, 30, 40]", width="wide", height=100), "numbers above 0"),
        (an_item("what is <bbox_location2>?", "b", box_x1y1x2y2=[[[1, 2, 3, 4]], []]), "<bbox_location2> has no box"),
        (an_item("what is <region>?", "b"), "<region> has no box: there are 0"),
        (an_item("what is <region>?", "b", bbox=[[1, 2, 3]]), "a box of four numbers"),
        (an_item("<bbox0>?", "b", box_x1y1x2y2=[[[1, 2, 3, 4]]]), "boxes for 1 messages, and 2 messages"),
        ({"image": "2.png"}, "expected `conversations`"),
        ({"image": "2.png", "conversations": said("a?")}, "expected `conversations`"),
        (
            {"image": "2.png", "conversations": [*said("a?"), *said("b?")]},
            "turn 1 is of human, gpt's is due",
        ),
        ({"image": "2.png", "conversations": said("a?", "b")[::-1]}, "turn 0 is of gpt, human's is due"),
        (an_item("a?", "b", "c?"), "turn 2, the last one, is a question without an answer"),
        ({"image": "2.png", "conversations": [{"from": "system", "value": "x"}, *said("a?")]}, "turn 0: expected"),
        ({"image": "2.png", "conversations": [{"from": "human"}, *said("a?")]}, "turn 0: expected"),
        ("text", "expected an object, got str"),
    ],
)
def test_every_mistake_is_one_line_with_file_and_item(tmp_path, images, item, message):
    path = write(tmp_path, [an_item("a?", "b"), item])
    with pytest.raises(DataError, match=message) as caught:
        list(read_conversations(path, images=images, frame_of=FRAME_OF))
    assert str(caught.value).startswith(f"{path}: item 1: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[{", r"file.json is not valid JSON"),
        ("", ""),
        ("no json", r"file.json: line 1 is not JSON"),
        ('{"a": 1}\n{"b"', r"file.json: line 1: expected `conversations`"),
    ],
)
def test_what_is_not_json_is_told(tmp_path, images, body, message):
    path = tmp_path / "file.json"
    path.write_text(body)
    if not message:
        assert list(read_conversations(path, images=images, frame_of=FRAME_OF)) == []
        return
    with pytest.raises(DataError, match=message):
        list(read_conversations(path, images=images, frame_of=FRAME_OF))


def test_a_file_that_is_not_there_and_an_image_that_is_none(tmp_path, images):
    with pytest.raises(DataError, match=r"cannot read .*none.json"):
        list(read_conversations(tmp_path / "none.json", images=images, frame_of=FRAME_OF))
    (images / "broken.jpg").write_bytes(b"no image")
    path = write(tmp_path, [an_item("a?", "[0.1, 0.2, 0.3, 0.4]", image="broken.jpg")])
    with pytest.raises(DataError, match=r"item 0: .*broken.jpg is not an image"):
        list(read_conversations(path, images=images, frame_of=FRAME_OF))


def test_json_lines_are_read_as_they_come(tmp_path, images):
    path = tmp_path / "file.jsonl"
    path.write_text(f"{json.dumps(an_item('a?', 'b'))}\nbroken\n")
    items = read_conversations(path, images=images, frame_of=FRAME_OF)
    assert next(items).key == "coco_1"
    with pytest.raises(DataError, match="line 2 is not JSON"):
        next(items)


def test_an_image_that_lies_on_its_side_is_as_it_is_seen(tmp_path, images):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 200)).save(images / "turned.jpg", exif=exif)
    item = an_item("a?", "[100, 50, 200, 100]", image="turned.jpg", width=200, height=100)
    assert read_one(tmp_path, images, item).turns[0].answer == "[50 25 99 49]"


REFERRED = {"file_name": "coco/1.jpg", "sentences": ["woman in red"], "bbox": [20, 10, 40, 30], "split": "val"}


def read_expressions(tmp_path, images, items, name="refs.json", **options):
    return list(read_referring(write(tmp_path, items, name), images=images, frame_of=FRAME_OF, **options))


@pytest.mark.parametrize("name", ["refs.json", "refs.jsonl"])
def test_expressions_become_questions_for_their_box(tmp_path, images, name):
    items = [
        {**REFERRED, "sentences": ["The woman in red.", {"sent": "left woman"}, {"raw": "Her shoes"}]},
        {"image": "2.png", "expression": "cat", "bbox": [0.1, 0.2, 0.5, 0.5], "split": "test"},
    ]
    first, second = read_expressions(tmp_path, images, items, name)
    assert (first.key, first.split, second.key, second.split) == ("coco_1", "val", "2", "test")
    assert len(first.conversations) == 3
    for conversation, phrase in zip(first.conversations, ("woman in red", "left woman", "her shoes"), strict=True):
        assert conversation.task is Task.GROUND
        assert phrase in conversation.turns[0].question
        assert conversation.turns[0].answer == "[10 5 29 19]"
        np.testing.assert_allclose(conversation.truth, [[0.1, 0.05, 0.3, 0.2]])
    assert second.conversations[0].turns[0].answer == "[10 10 59 34]"


def test_a_split_and_the_format_of_boxes(tmp_path, images):
    items = [REFERRED, {**REFERRED, "split": "testA", "bbox_format": "xyxy"}]
    [only] = read_expressions(tmp_path, images, items, split="testA")
    assert only.conversations[0].turns[0].answer == "[10 5 19 14]"
    [first, _] = read_expressions(tmp_path, images, items, box_format="xyxy")
    assert first.conversations[0].turns[0].answer == "[10 5 19 14]"


def test_wordings_of_expressions_follow_the_seed(tmp_path, images):
    items = [REFERRED] * 12

    def questions(seed):
        return [
            item.conversations[0].turns[0].question for item in read_expressions(tmp_path, images, items, seed=seed)
        ]

    assert questions(0) == questions(0) != questions(1)
    assert len(set(questions(0))) > 2


@pytest.mark.parametrize("indent", [None, 1])
def test_refcoco_as_coco_has_it(tmp_path, images, indent):
    path = tmp_path / "refs.json"
    body = {
        "refs": [
            {"ref_id": 5, "ann_id": 9, "image_id": 3, "split": "val", "file_name": "COCO_1_9.jpg", "sentences": ["key"]}
        ],
        "annotations": [{"id": 9, "image_id": 3, "bbox": [20, 10, 40, 30], "segmentation": [[1, 2, 3]]}],
        "images": [{"id": 3, "file_name": "1.jpg", "width": 200, "height": 100}],
    }
    (images / "1.jpg").write_bytes((images / "coco" / "1.jpg").read_bytes())
    path.write_text(json.dumps(body, indent=indent))
    [item] = read_referring(path, images=images, frame_of=FRAME_OF)
    assert (item.image.name, item.split) == ("1.jpg", "val")
    assert item.conversations[0].turns[0].answer == "[10 5 29 19]"
    body["refs"][0] |= {"image_id": 4}
    path.write_text(json.dumps(body, indent=indent))
    with pytest.raises(DataError, match=r"refs\[0\]: its image 4 is not among the images"):
        list(read_referring(path, images=images, frame_of=FRAME_OF))


def test_expressions_in_the_captions_of_images(tmp_path, images):
    path = tmp_path / "mdetr.json"
    body = {
        "images": [{"id": 3, "file_name": "2.png", "width": 200, "height": 100, "caption": "two keys"}],
        "annotations": [{"id": 9, "image_id": 3, "bbox": [20, 10, 40, 30]}],
    }
    path.write_text(json.dumps(body))
    [item] = read_referring(path, images=images, frame_of=FRAME_OF)
    assert "two keys" in item.conversations[0].turns[0].question


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": None}, "it names no image"),
        ({"file_name": "no.jpg"}, "is not in"),
        ({"sentences": []}, "expected `sentences` or an `expression`"),
        ({"sentences": ["..."]}, "expected `sentences` or an `expression`"),
        ({"bbox": None}, "a box of four numbers"),
        ({"bbox": [150, 10, 190, 30]}, r"read as pixels"),
        ({"bbox": [50, 10, 20, 30], "bbox_format": "xyxy"}, "corners out of order"),
        ({"bbox_format": "cxcywh"}, "bbox_format must be xywh or xyxy"),
    ],
)
def test_every_mistake_in_expressions(tmp_path, images, change, message):
    with pytest.raises(DataError, match=message) as caught:
        read_expressions(tmp_path, images, [REFERRED, {**REFERRED, **change}])
    assert "refs.json: item 1: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0, 0, 1, 1], None),
        ([0.5, 0.5, 0.5, 0.5], None),
        ([100, 20, 300, 40], "in pixels or bins"),
        ([-0.1, 0.2, 0.3, 0.4], "leaves its image"),
        ([0.1, 0.2, 1.3, 0.4], "leaves its image"),
        ([0.5, 0.2, 0.3, 0.4], "out of order"),
        ([0.1, float("nan"), 0.3, 0.4], "not finite"),
    ],
)
def test_a_box_in_the_wrong_frame_is_told(box, message):
    problem = frame_problem(box)
    assert problem is None if message is None else message in problem


def test_boxes_of_files_can_be_read_back(tmp_path, images):
    rng = np.random.default_rng(0)
    for _ in range(20):
        low = rng.uniform(0, 0.8, 2)
        box = np.concatenate([low, low + rng.uniform(0.05, 0.2, 2)]).round(3)
        conversation = read_one(tmp_path, images, an_item("a?", str(box.tolist())))
        back = text_to_box(conversation.turns[0].answer)
        assert back is not None
        assert np.abs(back - conversation.truth[0]).max() <= 0.0101


# Items in any order


def a_store(tmp_path, images, items, **options):
    given = {"region_tokens": False, "box_frame": BoxFrame.AUTO, **options}
    return ConversationStore([write(tmp_path, items)], images=images, frame_of=FRAME_OF, **given)


def test_a_store_gives_what_reading_gives(tmp_path, images):
    items = [
        an_item("<image>\nwhere is it? [0.1, 0.2, 0.5, 0.6]", "At [0.1, 0.2, 0.5, 0.6]."),
        {"conversations": said("hello", "hi")},
        an_item("Was ist das?", "Ein Schlüssel.", image="2.png"),
    ]
    store = a_store(tmp_path, images, items, region_tokens=True)
    read = list(read_conversations(write(tmp_path, items), images=images, frame_of=FRAME_OF, region_tokens=True))
    assert len(store) == len(read) == 2
    assert store.left_out == {"no image": 1}
    for one, other in zip((store[1], store[0]), read[::-1], strict=True):
        assert (one.key, one.image) == (other.key, other.image)
        [mine], [theirs] = one.conversations, other.conversations
        assert mine.turns == theirs.turns
        np.testing.assert_array_equal(mine.regions, theirs.regions)


def test_a_store_holds_no_test_image(tmp_path, images):
    items = [an_item("a?", "b"), an_item("a?", "b", image="2.png")]
    store = a_store(tmp_path, images, items, test_keys={"coco_1"})
    assert [store[number].key for number in range(len(store))] == ["2"]
    assert store.left_out == {"a test image": 1}
    with pytest.raises(DataError, match=r"no item of it can be trained on \(2 a test image\)"):
        a_store(tmp_path, images, items, test_keys={"coco_1", "2"})


def test_a_store_tells_of_what_is_not_there_at_once_and_of_boxes_when_they_are_read(tmp_path, images):
    with pytest.raises(DataError, match=r"item 1: the image '3.png' is not in"):
        a_store(tmp_path, images, [an_item("a?", "b"), an_item("a?", "b", image="3.png")])
    store = a_store(tmp_path, images, [an_item("what is in [0.5, 0.5, 0.4, 0.9]?", "b")])
    with pytest.raises(DataError, match=r"item 0: .*0\.5"):
        store[0]
