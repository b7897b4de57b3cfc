"""Guards on generated captions: written examples for each, several languages, no false alarms on real captions."""
# ruff: noqa: RUF001 (text of many scripts is what is tested)

import json
import sys
from functools import cache
from pathlib import Path

import pytest

from cloc.config.schema import GuardsConfig
from cloc.errors import ConfigError
from cloc.labeling import guards as guards_module
from cloc.labeling.captioners import QUESTION
from cloc.labeling.guards import Guards, Reason, split_words

COCO = Path(__file__).parents[3] / "shared/data/coco_val2017_dev/captions.json"
GOOD = (
    "A brown dog runs along the beach beside the blue sea.",
    "a red key left of a blue ball",
    "Two children play football on a green lawn in front of a house; one of them wears a yellow shirt.",
    "The sign in the shop window reads: Sorry, we're closed.",
    "Sorry, we're closed, says the red sign on a wooden door.",
    "I am sorry card with a bunch of white flowers on a table",
    "I can't believe it's not butter on a plate beside a knife",
    "An image of an AI robot that helps people in a kitchen",
    "Please mind the gap, painted in yellow on a platform",
    "There is no photo on the wall above the wooden bed.",
    "A man describes this image in detail to a crowd of students.",
    "A dog and a cat and a dog and a cat and a small bird.",
)
FOREIGN = {
    "de": "Ein brauner Hund läuft am Strand neben dem blauen Meer.",
    "fr": "Un chien brun court sur la plage à côté de la mer bleue.",
    "es": "Un perro marrón corre por la playa junto al mar azul.",
    "it": "Un cane marrone corre sulla spiaggia accanto al mare blu.",
    "pt": "Um cachorro marrom corre na praia ao lado do mar azul.",
    "nl": "Een bruine hond rent over het strand naast de blauwe zee.",
    "pl": "Brązowy pies biegnie po plaży obok niebieskiego morza.",
    "ru": "Коричневая собака бежит по пляжу рядом с синим морем.",
    "tr": "Kahverengi bir köpek mavi denizin yanındaki plajda koşuyor.",
    "ar": "كلب بني يركض على الشاطئ بجانب البحر الأزرق الجميل.",
    "zh": "一只棕色的狗在蓝色的海边沙滩上奔跑，远处有一座白色的灯塔。",
    "ja": "茶色の犬が青い海のそばの砂浜を走っています。",
    "ko": "갈색 개 한 마리가 푸른 바다 옆 해변을 달리고 있다.",
}
REFUSALS = (
    "I'm sorry, I can't help with that.",
    "I\u2019m sorry, but I can\u2019t assist with that request.",
    "I am very sorry, but the image is not clear enough.",
    "Sorry, but I cannot identify the people in this image.",
    "Unfortunately, I am unable to view images.",
    "I apologize, but there is nothing here that I may describe.",
    "As an AI language model, I do not have eyes.",
    "I'm just an AI assistant and this is beyond me.",
    "I cannot directly see the picture you mention.",
    "I don't see any image in our conversation.",
    "I do not have access to the file.",
    "There is no image attached to your message.",
    "No image was provided with the question.",
    "Please provide the image you would like me to describe.",
    "Es tut mir leid, aber ich kann dabei nicht helfen.",
    "Je suis désolé, mais je ne peux pas vous aider.",
    "Lo siento, pero no puedo ayudar con eso.",
    "Desculpe, mas não posso ajudar com isso.",
    "Mi dispiace, ma non posso aiutarti.",
    "Извините, но я не могу описать это изображение.",
    "很抱歉，我无法描述这张图片。",
    "申し訳ありませんが、お手伝いできません。",
    "죄송하지만 도와드릴 수 없습니다.",
)


@cache
def guards(**settings) -> Guards:
    return Guards(GuardsConfig.model_validate(settings))


@pytest.mark.parametrize("text", [*GOOD, *FOREIGN.values()])
def test_fine_captions_pass(text):
    assert guards()(text, prompt=QUESTION) == ""


@pytest.mark.parametrize("text", ["", " ", "\n", "...", "- !", "\u200b"])
def test_nothing_is_empty(text):
    assert guards()(text) == Reason.EMPTY


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_no_caption(text):
    assert guards()(text) == Reason.REFUSAL
    assert guards()(f"  {text.upper()}") == Reason.REFUSAL


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a dog", Reason.TOO_SHORT),
        ("a dog runs", ""),
        ("dog", Reason.TOO_SHORT),
        ("狗在跑", Reason.TOO_SHORT),
        ("一只棕色的狗", ""),
        (" ".join(f"word{number}" for number in range(20)), ""),
        (" ".join(f"word{number}" for number in range(21)), Reason.TOO_LONG),
        ("".join(chr(0x4E00 + number) for number in range(40)), ""),
        ("".join(chr(0x4E00 + number) for number in range(41)), Reason.TOO_LONG),
    ],
)
def test_length_is_counted_in_words_of_any_script(text, reason):
    assert guards(min_words=3, max_words=20)(text) == reason


@pytest.mark.parametrize(
    "text",
    [
        "a man in a man in a man in a man in a man in a hat",
        "dog dog dog dog dog dog dog",
        "The picture shows a red bus. " * 4,
        "A beach. " * 30,
        "一只棕色的狗" * 8,
        "有一只狗，有一只狗，有一只狗，有一只狗，有一只狗，",
        "สุนัขวิ่งบนชายหาด" * 6,
        "a Dog RUNS fast, a dog runs fast. A dog, runs fast! (a dog runs fast)",
    ],
)
def test_a_stuck_captioner_is_noticed(text):
    assert guards()(text) == Reason.REPEATS
    assert guards(repeated_ngram=0)(text) == ""


def test_an_ngram_may_occur_as_often_as_is_set():
    text = "a red bus stops here and a red bus stops there and a red bus stops again"
    assert guards(max_repeats=3)(text) == ""
    assert guards(max_repeats=2)(text) == Reason.REPEATS
    assert guards(max_repeats=1, repeated_ngram=9)(text) == ""


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Describe this image in detail.", "Describe this image in detail."),
        ("Describe this image in detail. A dog on a beach.", "Describe this image in detail."),
        ("DESCRIBE this image, in detail: a dog", "Describe this image in detail."),
        (f"User: {QUESTION} Assistant: a dog on a beach", QUESTION),
        ("Say what is there: in one short paragraph: the objects and people, their colours and", QUESTION),
    ],
)
def test_a_copied_prompt_is_noticed(text, prompt):
    assert guards()(text, prompt=prompt) == Reason.COPIED_PROMPT
    assert guards(copied_prompt=False)(text, prompt=prompt) == ""
    assert guards()(text, prompt="") == ""


@pytest.mark.parametrize("prompt", ["Describe:", "a", "", "?!"])
def test_a_prompt_of_hardly_a_word_is_copied_by_nobody(prompt):
    assert guards()("a dog that nobody can describe", prompt=prompt) == ""


@pytest.mark.parametrize(("code", "text"), FOREIGN.items())
def test_languages_are_told_apart(code, text):
    assert guards(language="en")(text) == Reason.LANGUAGE
    assert guards(language=code)(text) == ""
    assert guards(language=code)("A brown dog runs along the beach beside the blue sea.") == Reason.LANGUAGE


def test_short_captions_are_not_judged_by_language():
    assert guards(language="en")("Un chien brun court") == ""
    assert guards(language="en")("pizza margherita") == Reason.TOO_SHORT


def test_an_unknown_language_is_one_clear_line():
    with pytest.raises(ConfigError, match=r"^captioning.guards.language: 'english' is no language .* use one of .*en,"):
        guards(language="english")


def test_the_library_of_languages_is_asked_for_only_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    monkeypatch.setattr(guards_module, "_identifier", guards_module._identifier.__wrapped__)
    assert Guards(GuardsConfig())(GOOD[0]) == ""
    with pytest.raises(ConfigError, match=r"^captioning.guards.language: 'en' is set but py3langid is not installed"):
        Guards(GuardsConfig(language="en"))


def test_words_have_no_case_and_no_outer_punctuation():
    assert split_words('The "T-shirt", it\'s RED... (100 %)') == ["the", "t-shirt", "it's", "red", "100"]
    assert split_words("狗和cat在海边。") == ["狗和", "cat", "在海", "边"]


@pytest.mark.parametrize("text", ["a " * 10_000, "x" * 100_000, "sorry, " * 20_000, "\x00\ud800" * 100, "🙂" * 5_000])
def test_hostile_text_is_judged_and_no_harm_done(text):
    assert guards(language="en")(text, prompt=QUESTION) in {*Reason, ""}


def test_real_captions_raise_no_false_alarm():
    if not COCO.is_file():
        pytest.skip("../shared/data is not here")
    captions = [row["caption"] for row in json.loads(COCO.read_text())["annotations"]]
    assert len(captions) > 3000
    judge = guards(language="en")
    found = {text: reason for text in captions if (reason := judge(text, prompt=QUESTION))}
    assert found == {}
