"""What captioners are asked: the plain prompt, and its fusion with an untrusted alt-text; annotations as captions."""
# ruff: noqa: RUF001 (text of many scripts is what is tested)

import pytest
from PIL import Image

from cloc.config.schema import CaptioningConfig
from cloc.data.dataset import LabeledSample
from cloc.data.shards import Sample
from cloc.labeling.captioners import CAPTIONERS, MAX_ALT_TEXT, QUESTION, Prompts, Said
from cloc.labeling.worker import Item

FUSION = "The page says: {alt_text}. Describe the image."


def prompts(*, default: str = "", forbidden=(), **settings) -> Prompts:
    return Prompts(CaptioningConfig.model_validate(settings), default=default, forbidden=forbidden)


def item(*alt_texts: str, human: tuple[str, ...] = (), meta: str = "") -> Item:
    kinds = [(text, "alt_text") for text in alt_texts] + [(text, "human") for text in human]
    rows = tuple({"key": "a", "text": text, "kind": kind, "model": ""} for text, kind in kinds)
    return Item(
        Image.new("RGB", (8, 8)), LabeledSample(Sample("a", b"", meta={"alt_text": meta} if meta else {}), rows)
    )


def fused(alt_text: str, **settings) -> str:
    """What stands for the alt-text in the fused prompt."""
    prompt = prompts(alt_text_prompt=FUSION, **settings)(item(alt_text))
    before, after = FUSION.split("{alt_text}")
    assert prompt.fused
    assert prompt.text.startswith(before)
    assert prompt.text.endswith(after)
    return prompt.text[len(before) : -len(after)]


def test_without_fusion_every_image_is_asked_the_same():
    for given in (item(), item("an alt-text")):
        assert prompts()(given).text == ""
        assert prompts(default=QUESTION)(given).text == QUESTION
        prompt = prompts(prompt="a photo of", default=QUESTION)(given)
        assert (prompt.text, prompt.question, prompt.fused) == ("a photo of", "a photo of", False)


def test_fusion_is_for_images_with_an_alt_text_and_the_others_get_the_plain_prompt():
    ask = prompts(prompt="What is it?", alt_text_prompt=FUSION)
    for given in (item("Mount Fuji"), item("", " \n", "Mount Fuji"), item(meta="Mount Fuji")):
        assert ask(given).text == "The page says: Mount Fuji. Describe the image."
        assert ask(given).question == ". Describe the image."
    for given in (item(), item(""), item("\x00 \u200b\u202e \u200d"), item(human=("a mountain",))):
        assert (ask(given).text, ask(given).fused) == ("What is it?", False)


@pytest.mark.parametrize(
    ("alt_text", "shown"),
    [
        ("{alt_text}", "{alt_text}"),
        ("{} {0} {alt_text.__class__} {{x}} %s $x", "{} {0} {alt_text.__class__} {{x}} %s $x"),
        ("two\nlines\tand\x00control\x1bcharacters", "two lines and control characters"),
        ("Caf&eacute; &amp; bar &lt;b&gt;", "Café & bar <b>"),
        ("hid\u200bden \u202eturned\u202c \U000e0041tag", "hidden turned tag"),
        ("می\u200cخواهم 👩\u200d🔬", "می\u200cخواهم 👩\u200d🔬"),
        ("  wide   space ", "wide space"),
    ],
)
def test_an_alt_text_is_cleaned_and_never_a_template(alt_text, shown):
    assert fused(alt_text) == shown


def test_a_long_alt_text_is_cut_between_words():
    shown = fused("word " * 10_000)
    assert MAX_ALT_TEXT - 5 <= len(shown) <= MAX_ALT_TEXT
    assert set(shown.split()) == {"word"}
    assert fused("x" * 100_000) == "x" * MAX_ALT_TEXT
    assert fused("x" * MAX_ALT_TEXT) == "x" * MAX_ALT_TEXT
    assert fused("y " + "x" * MAX_ALT_TEXT) == "y"


def test_what_a_model_takes_for_a_command_is_taken_out():
    forbidden = ("<image>", "<|im_end|>", "<s>", "[INST]", " ", "")
    assert fused("a dog <image> and <|im_end|> [INST] a cat", forbidden=forbidden) == "a dog and a cat"
    assert fused("<ima<image>ge> <s<s>> <|im_<image>end|>", forbidden=forbidden) == "<ima ge> <s > <|im_ end|>"
    assert fused("&lt;image&gt;&#60;s&#62; a dog", forbidden=forbidden) == "a dog"
    assert fused("<im\u200bage> a <s\u202e> dog", forbidden=forbidden) == "a dog"
    assert fused("a [dog] <b>", forbidden=forbidden) == "a [dog] <b>"


def test_the_longest_part_of_the_fusion_is_what_nobody_should_copy():
    prompt = prompts(alt_text_prompt="{alt_text} is the title; say what you see. ({alt_text})")(item("A dog"))
    assert prompt.text == "A dog is the title; say what you see. (A dog)"
    assert prompt.question == "is the title; say what you see. ("


def test_annotations_are_all_human_captions_or_the_reason_why_there_are_none():
    captioner = CAPTIONERS["annotations"](CaptioningConfig(backend="annotations"))
    assert (captioner.kind, captioner.model, captioner.in_flight) == ("human", "", 1)
    prepared = [captioner.prepare(one) for one in (item("alt", human=("a dog", "one dog")), item("alt"))]
    assert [captioner.bucket(one) for one in prepared] == [None, None]
    assert captioner.caption(prepared) == [Said(texts=("a dog", "one dog")), Said(refused="no human caption")]
