"""Instructions from facts: every task with known answers, what is absent never fits, seeds, wordings; real corpora."""

import json
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloc.boxes import Letterbox
from cloc.errors import ConfigError
from cloc.mllm import instructions
from cloc.mllm.boxtext import box_to_text, texts_to_boxes, write_region
from cloc.mllm.conversation import NONE, REGION_TOKEN, Task
from cloc.mllm.instructions import PhrasePool, facts_of, plain
from cloc.mllm.instructions.captions import grounded
from cloc.mllm.instructions.phrases import may_fit, read_phrase
from cloc.mllm.instructions.relations import Relation, relation
from cloc.mllm.instructions.templates import WORDINGS, Form, fields_of
from cloc.mllm.instructions.words import plural, singular

COCO = Path(__file__).parents[3] / "shared" / "data" / "coco_val2017_dev"
ALL = {task.value: 1.0 for task in Task if task is not Task.OTHER}
COLORS = ("red", "green", "blue", "yellow")
THINGS = ("box", "ball", "key", "apple")
POOL = PhrasePool.of(f"{color} {thing}" for color in COLORS for thing in THINGS)
FRAME = Letterbox(100, 100, 100)


def facts(*regions, captions=(), kinds=None):
    """Facts of regions given as (text, label, box in hundredths) and captions of people."""
    rows = [
        dict(zip(("x1", "y1", "x2", "y2"), (side / 100 for side in box), strict=True)) | {"text": text, "label": label}
        for text, label, box in regions
    ]
    written = [{"text": text, "kind": kind} for text, kind in zip(captions, kinds or ["human"] * 9, strict=False)]
    return facts_of("a", written, rows, frame=FRAME)


SCENE = facts(
    ("a large red key", "key", (0, 0, 20, 20)),
    ("blue key", "key", (60, 0, 80, 20)),
    ("green apple", "apple", (62, 60, 78, 76)),
    captions=["a large red key left of a blue key."],
)


def ask(task, given=SCENE, *, seed=0, limit=50, pool=POOL, tokens=False):
    return instructions.training_conversations(
        given,
        tasks={task.value: 1.0},
        limit=limit,
        region_tokens=tokens,
        pool=pool,
        rng=np.random.default_rng(seed),
    )


def answers(conversations):
    return {conversation.turns[0].answer for conversation in conversations}


def evaluated(given=SCENE, *, seed=0, tasks=ALL, pool=POOL, **options):
    rng = np.random.default_rng(seed)
    return instructions.evaluation_conversations(given, tasks=tasks, region_tokens=False, pool=pool, rng=rng, **options)


def test_boxes_of_a_text():
    boxes, well_formed = texts_to_boxes("[1 2 3 4] [10 20 30 99]")
    np.testing.assert_allclose(boxes, [[0.01, 0.02, 0.04, 0.05], [0.1, 0.2, 0.31, 1.0]])
    assert well_formed
    for text, count in (("key [1 2 3 4]", 1), ("[9 2 3 4] [1 2 3 4]", 1), ("", 0), (NONE, 0), ("[1 2 3]", 0)):
        boxes, well_formed = texts_to_boxes(text)
        assert (boxes.shape, well_formed) == ((count, 4), False)


def test_a_region_is_written_with_its_token():
    assert write_region([0.1, 0.2, 0.5, 0.6], tokens=False) == "[10 20 49 59]"
    assert write_region([0.1, 0.2, 0.5, 0.6], tokens=True) == f"[10 20 49 59] {REGION_TOKEN}"


def test_facts_are_plain_and_the_best_captions_first():
    given = facts(
        ("The  Red key . .", "key", (0, 0, 50, 50)),
        ("", "key", (0, 0, 9, 9)),
        ("...", "", (0, 0, 9, 9)),
        captions=["IMG_1 a key", "A red key on a table.", " ", "A key."],
        kinds=["alt_text", "generated", "human", "human"],
    )
    assert [(region.text, region.label, region.unique) for region in given.regions] == [("red key", "key", True)]
    assert given.captions == ("a key", "a red key on a table")
    assert given.other_texts == ("img_1 a key",)
    assert facts(captions=["IMG a key"], kinds=["alt_text"]).captions == ("img a key",)


def test_placeholders_of_the_web_are_left_out():
    assert plain("A <region> red <IMAGE> key") == "red key"
    assert facts_of("k", [{"kind": "human", "text": "A <region>key."}], [], frame=Letterbox(10, 10, 10)).captions == (
        "a key",
    )


def test_regions_are_in_the_padded_frame():
    rows = [{"x1": 0, "y1": 0, "x2": 1, "y2": 1, "text": "key", "label": ""}]
    given = facts_of("a", [], rows, frame=Letterbox(200, 100, 64))
    [region] = given.regions
    np.testing.assert_allclose(region.padded, [0, 0, 1, 0.5])
    [conversation] = ask(Task.GROUND, given)
    assert conversation.turns[0].answer == "[0 0 99 49]"


def test_regions_are_referred_to_by_their_text():
    asked = ask(Task.REFER)
    assert {(item.turns[0].answer, item.label) for item in asked} == {
        ("large red key", "key"),
        ("blue key", "key"),
        ("green apple", "apple"),
    }
    assert all(re.search(r"\[\d+ \d+ \d+ \d+\]", item.turns[0].question) for item in asked)
    assert all(item.regions.shape == item.truth.shape == (0, 4) for item in asked)


def test_region_tokens_stand_for_the_boxes_in_their_order():
    seen = Counter()
    for item in (item for seed in range(10) for item in ask(Task.RELATION, seed=seed, tokens=True)):
        question = item.turns[0].question
        boxes, _ = texts_to_boxes(question)
        assert question.count(REGION_TOKEN) == len(item.regions) == len(boxes)
        assert [box_to_text(box) for box in item.regions] == [box_to_text(box) for box in boxes]
        seen[len(boxes)] += 1
    assert seen[2]
    assert seen[0]
    assert all(len(item.regions) == 1 for item in ask(Task.REFER, tokens=True))


def test_attributes_are_the_words_before_the_noun():
    given = facts(
        ("large red key", "key", (0, 0, 9, 9)),
        ("ice cream", "ice cream", (20, 0, 29, 9)),
        ("small pink ice cream", "ice cream", (40, 0, 49, 9)),
        ("brown dog", "", (60, 0, 69, 9)),
        ("white mug with a black rim", "", (80, 0, 89, 9)),
        ("slipper made of wool", "", (0, 20, 9, 29)),
        ("cat", "", (20, 20, 29, 29)),
    )
    found = {(item.turns[0].answer, item.label) for item in ask(Task.ATTRIBUTE, given)}
    assert found == {("large red", "key"), ("small pink", "ice cream"), ("brown", "")}
    assert all(
        "dog" in item.turns[0].question for item in ask(Task.ATTRIBUTE, given) if item.turns[0].answer == "brown"
    )


@pytest.mark.parametrize(
    ("text", "label", "noun", "described", "whole"),
    [
        ("large red key", "key", "key", "large red", True),
        ("red ice cream", "ice cream", "ice cream", "red", True),
        ("brown puppy", "dog", "puppy", "brown", True),
        ("man riding a horse", "", "man", "", False),
        ("woman skiing", "", "woman", "", False),
        ("truck parked on grass", "", "truck", "", False),
        ("white plate, with food", "", "plate", "", False),
        ("black and white cat", "", "cat", "black and white", True),
        ("red swimming pool", "", "pool", "red swimming", True),
        ("two dogs", "", "dogs", "", False),
    ],
)
def test_phrases_are_read(text, label, noun, described, whole):
    phrase = read_phrase(text, label)
    assert (phrase.noun, phrase.described, phrase.whole) == (noun, described, whole)


@pytest.mark.parametrize(
    ("one", "other", "fits"),
    [
        ("key", "red key", True),
        ("red key", "key", True),
        ("old key", "red key", True),
        ("red key", "blue key", False),
        ("small red key", "large red key", False),
        ("grey cup", "silver mug", True),
        ("black and white cat", "black cat", True),
        ("umbrella", "man with an umbrella", True),
        ("man with an umbrella", "umbrella", False),
        ("woman", "person", True),
        ("keys", "red key", True),
        ("red apple", "red key", False),
        ("dog", "animal", True),
    ],
)
def test_what_may_fit(one, other, fits):
    assert may_fit(read_phrase(one), read_phrase(other)) is fits


@pytest.mark.parametrize(
    ("one", "many"),
    [
        *(("key", "keys"), ("box", "boxes"), ("person", "people"), ("leaf", "leaves"), ("shoe", "shoes")),
        *(("wine bottle", "wine bottles"), ("bus", "buses"), ("baby", "babies"), ("sheep", "sheep")),
        *(("horse", "horses"), ("potato", "potatoes"), ("scissors", "scissors"), ("cross", "crosses")),
    ],
)
def test_plurals(one, many):
    assert plural(one) == plural(many) == many
    assert singular(many.split()[-1]) == one.split()[-1]


@pytest.mark.parametrize(
    "wanted", ["a red key", "an apple", "green grass", "a unicorn", "an hourglass", "red scissors", "an umbrella"]
)
def test_articles(wanted):
    assert read_phrase(plain(wanted)).indefinite == wanted
    assert plain(f"  {wanted.title()}. ") == plain(wanted)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ((0, 0, 20, 20), (60, 0, 80, 20), Relation.LEFT),
        ((60, 0, 80, 20), (0, 0, 20, 20), Relation.RIGHT),
        ((0, 0, 20, 20), (5, 60, 25, 80), Relation.ABOVE),
        ((5, 60, 25, 80), (0, 0, 20, 20), Relation.BELOW),
        ((10, 10, 20, 20), (0, 0, 40, 40), Relation.INSIDE),
        ((0, 0, 40, 40), (10, 10, 20, 20), None),
        ((0, 0, 40, 40), (20, 0, 60, 40), Relation.OVERLAPPING),
        ((0, 0, 20, 20), (60, 60, 80, 80), None),
        ((0, 0, 40, 40), (2, 2, 42, 42), None),
        ((0, 0, 40, 40), (33, 0, 73, 40), None),
        ((5, 5, 5, 5), (0, 0, 10, 10), None),
    ],
)
def test_relations_where_they_are_clear(first, second, wanted):
    assert relation(np.array(first) / 100, np.array(second) / 100) is wanted


def test_relations_are_asked_by_boxes_and_by_texts():
    wanted = {
        ("large red key", "blue key"): "left of it",
        ("blue key", "large red key"): "right of it",
        ("blue key", "green apple"): "above it",
        ("green apple", "blue key"): "below it",
    }
    seen = set()
    for item in (item for seed in range(40) for item in ask(Task.RELATION, seed=seed)):
        question, answer = item.turns[0].question, item.turns[0].answer
        named = {pair for pair in wanted if f"the {pair[1]}" in question and f"the {pair[0]}" in question}
        assert not named or answer in {wanted[pair] for pair in named}
        assert named or question.count("[") == 2
        seen.add((bool(named), answer))
    assert len(seen) == 8
    below = next(w for w in WORDINGS[Form.RELATION_PHRASES].trained if fields_of(w)[0] == "phrase")
    assert below.format(phrase="green apple", than="blue key", be="is") in {
        item.turns[0].question
        for seed in range(40)
        for item in ask(Task.RELATION, seed=seed)
        if item.turns[0].answer == "below it"
    }


def test_counting_nouns_in_the_image_and_in_regions():
    wanted = {"keys": "2", "apples": "1", "balls": "0", "boxes": "0"}
    inside = set()
    for item in (item for seed in range(40) for item in ask(Task.COUNT, seed=seed)):
        question, answer = item.turns[0].question, item.turns[0].answer
        [noun] = [noun for noun in wanted if f"{noun} " in question or f"{noun}." in question or f"{noun}?" in question]
        if "[" not in question:
            assert answer == wanted[noun]
        else:
            [box], _ = texts_to_boxes(question)
            middles = [
                region.padded.reshape(2, 2).mean(axis=0) for region in SCENE.regions if region.label == noun[:-1]
            ]
            within = sum(bool((box[:2] < middle).all() and (middle < box[2:]).all()) for middle in middles)
            assert answer == str(within)
            inside.add((noun, answer))
    assert {("keys", "2"), ("keys", "1"), ("apples", "1"), ("apples", "0")} <= inside


@pytest.mark.parametrize(
    "regions",
    [
        [("red key", "key", (0, 0, 9, 9)), ("man with a key", "", (20, 0, 40, 40))],
        [("cup", "cup", (0, 0, 9, 9)), ("mug", "", (20, 0, 40, 40))],
        [("key", "key", (0, 0, 40, 40)), ("red key", "key", (1, 1, 41, 41))],
        [("key", "key", (index * 12, 0, index * 12 + 9, 9)) for index in range(7)],
        [("red scissors", "scissors", (0, 0, 9, 9))],
        [("two keys", "", (0, 0, 9, 9))],
    ],
)
def test_what_cannot_be_counted_for_sure_is_not(regions):
    asked = ask(Task.COUNT, facts(*regions), pool=PhrasePool([]))
    assert not [item for item in asked if re.search("keys|cups|mugs|scissors", item.turns[0].question)]


def test_a_caption_with_another_number_makes_no_count():
    keys = [("red key", "key", (0, 0, 9, 9)), ("blue key", "key", (20, 0, 29, 9))]
    assert answers(ask(Task.COUNT, facts(*keys, captions=["two old keys"]), pool=PhrasePool([]))) == {"2"}
    assert answers(ask(Task.COUNT, facts(*keys, captions=["three old keys"]), pool=PhrasePool([]))) == set()


def test_only_unambiguous_texts_are_grounded():
    regions = [
        ("key", "key", (0, 0, 9, 9)),
        ("red key", "key", (20, 0, 29, 9)),
        ("green apple", "apple", (40, 0, 49, 9)),
        ("glasses", "", (60, 0, 69, 9)),
    ]
    asked = ask(Task.GROUND, facts(*regions))
    assert answers(asked) == {"[40 0 48 8]", "[60 0 68 8]"}
    assert {item.label for item in asked} == {"apple", ""}
    np.testing.assert_allclose(sorted(item.truth[0, 0] for item in asked), [0.4, 0.6])
    questions = {item.turns[0].question for seed in range(20) for item in ask(Task.GROUND, facts(*regions), seed=seed)}
    assert {"where is the green apple?", "where are the glasses?"} <= questions


def test_all_of_a_kind_are_grounded_from_left_to_right():
    given = facts(
        ("red key", "key", (60, 0, 69, 9)),
        ("red key", "key", (20, 0, 29, 9)),
        ("blue key", "key", (40, 0, 49, 9)),
        ("apple", "apple", (40, 60, 49, 69)),
    )
    found = {item.turns[0].answer: item for seed in range(9) for item in ask(Task.GROUND_ALL, given, seed=seed)}
    reds, keys = "[20 0 28 8] [60 0 68 8]", "[20 0 28 8] [40 0 48 8] [60 0 68 8]"
    assert set(found) == {reds, keys}
    assert "red keys" in found[reds].turns[0].question
    assert re.search(r"(?<!red )keys", found[keys].turns[0].question)
    np.testing.assert_allclose(found[keys].truth, texts_to_boxes(keys)[0] + [0, 0, 0, 0], atol=0.01)


def test_not_all_are_grounded_where_it_is_in_doubt():
    keys = [("red key", "key", (index * 12, 0, index * 12 + 9, 9)) for index in range(7)]
    assert not ask(Task.GROUND_ALL, facts(*keys))
    assert len(ask(Task.GROUND_ALL, facts(*keys[:6]))) == 2
    assert not ask(Task.GROUND_ALL, facts(*keys[:2], ("man with a key", "", (0, 50, 20, 99))))
    assert not ask(Task.GROUND_ALL, facts(("key", "", (0, 0, 50, 50)), ("key", "", (1, 1, 50, 50))))


def test_absent_objects_swap_an_attribute_or_a_noun():
    given = facts(("red key", "key", (0, 0, 9, 9)))
    asked = [item for seed in range(60) for item in ask(Task.ABSENT, given, seed=seed)]
    assert answers(asked) == {NONE}
    phrases = {phrase for phrase in POOL.phrases for item in asked if phrase in item.turns[0].question}
    assert {"blue key", "green key", "yellow key"} <= phrases
    assert {"red apple", "red ball", "red box"} <= phrases
    assert "red key" not in phrases
    assert all(item.truth.shape == (0, 4) for item in asked)


def test_absent_objects_are_asked_for_as_others_are():
    known = {wording for form in (Form.GROUND, Form.GROUND_ALL) for wording in WORDINGS[form].trained}
    patterns = [re.compile(re.sub(r"\\\{\w+\\\}", r"[a-z ]+", re.escape(wording))) for wording in known]
    for seed in range(20):
        for item in ask(Task.ABSENT, seed=seed):
            assert any(pattern.fullmatch(item.turns[0].question) for pattern in patterns)


@pytest.mark.parametrize(
    ("caption", "phrase", "shown"),
    [
        ("an apple on a table", "red apple", True),
        ("a green apple on a table", "red apple", False),
        ("some apples", "apple", True),
        ("a red thing and a blue key", "blue key", True),
        ("a key on a table", "blue key", False),
        ("a woman", "man", True),
    ],
)
def test_what_a_caption_says_is_not_absent(caption, phrase, shown):
    assert facts(("red key", "key", (0, 0, 9, 9)), captions=[caption]).may_show(read_phrase(phrase)) is shown


def test_alt_texts_count_as_well():
    given = facts(captions=["buy red apples", "a table"], kinds=["alt_text", "human"])
    assert given.captions == ("a table",)
    assert given.may_show(read_phrase("red apple"))


NAMES = ("hat", "ball", "key", "apple")
phrases_st = st.builds(
    lambda size, color, thing: " ".join(filter(None, (size, color, thing))),
    st.sampled_from(["", "large", "small"]),
    st.sampled_from(["", *COLORS]),
    st.sampled_from([*NAMES, "woman", "person", "mug"]),
)


@settings(max_examples=150, deadline=None)
@given(
    regions=st.lists(phrases_st, max_size=5),
    mentions=st.lists(phrases_st, max_size=3),
    pool=st.lists(phrases_st, min_size=1, max_size=30, unique=True),
    seed=st.integers(0, 2**32),
)
def test_what_is_absent_fits_nothing(regions, mentions, pool, seed):
    given_facts = facts(
        *((text, "", (index * 19, 0, index * 19 + 9, 9)) for index, text in enumerate(regions)),
        captions=[" and ".join(f"a {text}" for text in mentions)] if mentions else [],
    )
    people, cups = {"woman", "person"}, {"mug", "cup"}
    same = [*({word} for word in NAMES), people, cups]
    found = [
        item.turns[0].question
        for task in (Task.ABSENT, Task.VERIFY, Task.COUNT)
        for item in ask(task, given_facts, seed=seed, pool=PhrasePool(pool))
        if item.turns[0].answer in (NONE, "no", "0") and "[" not in item.turns[0].question
    ]
    sizes = {"large", "small"}
    for question in found:
        words = [singular(word) for word in re.findall(r"[a-z]+", question)]
        nouns = [group for group in same if group & set(words)]
        assert len(nouns) == 1
        looks = set(words) & {*COLORS, *sizes}
        for text in regions:
            other = set(text.split())
            if other & nouns[0]:
                excluded = [
                    looks & family and other & family and not looks & other & family for family in (set(COLORS), sizes)
                ]
                assert any(excluded), (question, text)
        assert not any(text.split()[-1] in nouns[0] and looks <= set(text.split()) for text in mentions)


def test_yes_and_no_are_as_often_right():
    asked = [item for seed in range(300) for item in ask(Task.VERIFY, seed=seed)]
    counts = Counter(item.turns[0].answer for item in asked)
    assert set(counts) == {"yes", "no"}
    assert abs(counts["yes"] / len(asked) - 0.5) < 0.06
    places = Counter("[" in item.turns[0].question for item in asked)
    assert min(places.values()) > len(asked) / 3
    for item in asked:
        question, answer = item.turns[0].question, item.turns[0].answer
        [box] = texts_to_boxes(question)[0] if "[" in question else [None]
        shown = [r.text for r in SCENE.regions if box is None or box_to_text(r.padded) in question]
        assert (answer == "yes") == any(text in question for text in shown), question


def test_without_anything_absent_nothing_is_verified():
    assert not ask(Task.VERIFY, facts(("red key", "key", (0, 0, 9, 9))), pool=PhrasePool(["key", "red key"]))


def test_descriptions_are_the_captions():
    assert answers(ask(Task.DESCRIBE)) == {"a large red key left of a blue key"}
    assert not ask(Task.DESCRIBE, facts(captions=[" ".join(["word"] * 61)]))


def test_captions_have_boxes_behind_what_they_name():
    [item] = ask(Task.GROUNDED_CAPTION)
    assert item.turns[0].answer == "a large red key [0 0 19 19] left of a blue key [60 0 79 19]"
    np.testing.assert_allclose(item.truth, [[0, 0, 0.2, 0.2], [0.6, 0, 0.8, 0.2]])


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("two red keys, and a cat", "two red keys [0 0 8 8] [20 0 28 8], and a cat [40 0 48 8]"),
        ("three red keys and a cat", "three red keys and a cat [40 0 48 8]"),
        ("a red key beside a cat", "a red key beside a cat [40 0 48 8]"),
        ("a cat, a dog and the cat", "a cat [40 0 48 8], a dog and the cat"),
        ("a cat food bowl", "a cat food bowl"),
        ("a black cat", "a black cat"),
        ("a large cat sitting", "a large cat [40 0 48 8] sitting"),
        ("(a cat)", "(a cat [40 0 48 8])"),
    ],
)
def test_only_what_is_surely_named_gets_a_box(caption, wanted):
    given = facts(
        ("red key", "key", (0, 0, 9, 9)), ("red key", "key", (20, 0, 29, 9)), ("white cat", "cat", (40, 0, 49, 9))
    )
    assert grounded(given, caption).text == wanted


def test_a_caption_that_names_nothing_gives_a_list():
    given = facts(("blue key", "", (60, 0, 69, 9)), ("red apple", "", (0, 0, 9, 9)), captions=["a nice picture"])
    [item] = ask(Task.GROUNDED_CAPTION, given)
    assert item.turns[0].answer == "red apple [0 0 8 8], blue key [60 0 68 8]"
    assert len(item.truth) == 2
    many = facts(*((f"{color} key", "", (index, 0, index + 5 + index, 9)) for index, color in enumerate("abcdefgh")))
    assert len(ask(Task.GROUNDED_CAPTION, many)[0].truth) == 6


def test_equal_seeds_give_equal_conversations():
    def drawn(seed, pool=POOL):
        found = instructions.training_conversations(
            SCENE, tasks=ALL, limit=12, region_tokens=True, pool=pool, rng=np.random.default_rng(seed)
        )
        return [(item.task, item.turns, item.regions.tolist(), item.truth.tolist(), item.label) for item in found]

    assert drawn(3) == drawn(3, pickle.loads(pickle.dumps(POOL)))
    assert drawn(3) != drawn(4)
    assert len(drawn(3)) == 12
    assert len({(task, turns[0].question) for task, turns, *_ in drawn(3)}) == 12
    assert [item.turns for item in evaluated(seed=3)] == [item.turns for item in evaluated(seed=3)]
    assert [item.turns for item in evaluated(seed=3)] != [item.turns for item in evaluated(seed=4)]


def test_tasks_are_drawn_by_their_weights_as_far_as_the_facts_allow():
    def drawn(**weights):
        counts = Counter()
        for seed in range(200):
            rng = np.random.default_rng(seed)
            found = instructions.training_conversations(
                SCENE, tasks=weights, limit=1, region_tokens=False, pool=POOL, rng=rng
            )
            counts.update(item.task for item in found)
        return counts

    counts = drawn(refer=3.0, ground=1.0, describe=0.0)
    assert set(counts) == {Task.REFER, Task.GROUND}
    assert 0.65 < counts[Task.REFER] / 200 < 0.85
    assert drawn(ground_all=1.0, other=1.0) == {Task.GROUND_ALL: 200}
    assert {item.task for item in ask(Task.GROUND, facts(captions=["a key"]))} == set()
    assert drawn(other=1.0) == {}


@pytest.mark.parametrize(
    ("tasks", "message"), [({"see": 1.0}, "no task 'see'; there are absent"), ({"refer": -1}, "-1")]
)
def test_unknown_tasks_and_weights_are_told(tasks, message):
    with pytest.raises(ConfigError, match=message):
        evaluated(tasks=tasks)


def test_wordings_are_many_differ_and_fill_their_fields():
    held = [wording for wordings in WORDINGS.values() for wording in wordings.held]
    trained = [wording for wordings in WORDINGS.values() for wording in wordings.trained]
    assert set(WORDINGS) == set(Form)
    assert all(len(set(wordings.trained)) >= 5 and wordings.held for wordings in WORDINGS.values())
    assert len({*held, *trained}) == len(held) + len(trained)
    for wordings in WORDINGS.values():
        needed = [set(fields_of(wording)) - {"be"} for wording in (*wordings.trained, *wordings.held)]
        assert all(fields == needed[0] for fields in needed)
    bare = list(instructions.bare_wordings())
    assert len(bare) == len(held) + len(trained)
    assert not any("{" in wording for wording in bare)


def test_every_wording_is_used_and_held_ones_never_in_training():
    seen = {item.turns[0].question for seed in range(80) for item in ask(Task.DESCRIBE, seed=seed)}
    assert seen == set(WORDINGS[Form.DESCRIBE].trained)
    assert {item.turns[0].question for item in evaluated(tasks={"describe": 1}, held=True)} == set(
        WORDINGS[Form.DESCRIBE].held
    )


def test_the_evaluation_asks_all_that_it_should():
    counts = Counter(item.task for item in evaluated())
    assert counts[Task.REFER] == counts[Task.ATTRIBUTE] == counts[Task.GROUND] == 3
    assert counts[Task.ABSENT] == counts[Task.RELATION] == 2
    assert counts[Task.DESCRIBE] == counts[Task.GROUNDED_CAPTION] == 1
    assert Counter(item.turns[0].answer for item in evaluated() if item.task is Task.VERIFY) == {"yes": 2, "no": 2}
    one = facts(("red key", "key", (0, 0, 9, 9)))
    assert Counter(item.task for item in evaluated(one))[Task.ABSENT] == 1
    assert {item.task for item in evaluated(tasks={"refer": 0.1, "ground": 0.0})} == {Task.REFER}


def test_the_pool_is_bounded_and_plain(monkeypatch):
    pool = PhrasePool.of(["A Red Key.", "red key", "", "thing", "a key with a very long text behind its only noun"])
    assert pool.phrases == ("red key",)
    monkeypatch.setattr("cloc.mllm.instructions.pool.MOST_PHRASES", 3)
    endless = iter(f"key {number}" for number in range(10))
    assert len(PhrasePool.of(endless).phrases) == 3
    assert next(endless) == "key 3"


@pytest.mark.skipif(not COCO.exists(), reason="the COCO dev photographs (shared/data) are not here")
def test_photographs_of_coco():
    lines = (COCO / "annotations.jsonl").read_text().splitlines()[:200]
    rows = [json.loads(line) for line in lines]
    pool = PhrasePool.of(region["text"] for row in rows for region in row["regions"])
    counts = Counter()
    for row in rows:
        scale = np.array([row["width"], row["height"]] * 2)
        regions = [
            dict(zip(("x1", "y1", "x2", "y2"), np.array(region["box"]) / scale, strict=True))
            | {"text": region["text"], "label": region["text"] if region["kind"] == "class" else ""}
            for region in row["regions"]
        ]
        written = [{"text": text, "kind": "human"} for text in row["captions"]]
        given = facts_of(row["file"], written, regions, frame=Letterbox(row["width"], row["height"], 224))
        found = instructions.training_conversations(
            given, tasks=ALL, limit=12, region_tokens=True, pool=pool, rng=np.random.default_rng(0)
        )
        labels = {region["text"] for region in row["regions"]}
        for item in found:
            [turn] = item.turns
            counts[item.task] += 1
            assert turn.question.count(REGION_TOKEN) == len(item.regions)
            assert REGION_TOKEN not in turn.answer
            assert "{" not in turn.question
            assert texts_to_boxes(turn.answer)[0].shape == item.truth.shape
            if item.task in (Task.GROUND, Task.GROUND_ALL):
                assert texts_to_boxes(turn.answer)[1]
            if item.task is Task.ABSENT:
                assert not any(turn.question.endswith((f" the {label}?", f" the {label}.")) for label in labels)
    assert set(counts) == set(Task) - {Task.OTHER}
    assert min(counts.values()) > 5
