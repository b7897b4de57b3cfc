"""The phrase recipe: written examples, hostile text."""

import time

import pytest

from cloc.labeling.phrases import NgramExtractor, PhraseExtractor, words

EXAMPLES = [
    ("A large red key left of two blue apples.", ["large red key", "blue apples"]),
    ("the dog and THE DOG and a dog", ["dog"]),
    ("A man's dog with 3 cats on the wooden table, near the window.", ["man", "dog", "cats", "wooden table", "window"]),
    ("A large, old key under the green lemon", ["old key", "green lemon"]),
    ("The large brown bear has a black nose.", ["large brown bear", "black nose"]),
    ("The sky is very blue", ["sky"]),
    ("Free stock photo of a small brown dog - download HD image", ["small brown dog"]),
    ("this is one of those things", []),
    ("runs quickly", []),
    ("", []),
]


@pytest.fixture(scope="module")
def extract() -> PhraseExtractor:
    return PhraseExtractor(tagger="lexicon", max_phrases=20)


@pytest.mark.parametrize(("caption", "phrases"), EXAMPLES)
def test_written_examples(extract, caption, phrases):
    assert extract([caption]) == phrases


def test_phrases_of_several_captions_are_distinct_and_in_order(extract):
    assert extract(["a red ball near a blue box", "the blue box", "a green key"]) == [
        "red ball",
        "blue box",
        "green key",
    ]


def test_at_most_max_phrases():
    captions = [f"a dog{number} and a cat{number}" for number in range(20)]
    assert PhraseExtractor(tagger="lexicon", max_phrases=3)(captions) == ["dog0", "cat0", "dog1"]


def test_markup_addresses_and_file_names_are_no_phrases(extract):
    text = (
        "<b>A cat</b> &amp; a dog <script>alert('owned')</script> at https://example.com/a.jpg?x=1 "
        "or www.pics.example/x, me@example.com, IMG_2041.JPG"
    )
    assert extract([text]) == ["cat", "dog"]


def test_emoji_null_bytes_and_other_scripts(extract):
    assert extract(["😀 a red ball 😀\x00a blue\x00 box\u202e"]) == ["red ball", "blue", "box"]
    assert extract(["קופסה"]) == ["קופסה"]


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000 + " dog",
        "a" * 10_000 + "@" + "b" * 10_000,
        "<" * 10_000,
        "<script" * 3_000,
        "a " * 10_000,
        "red " * 10_000 + "dog",
        "a-" * 10_000,
        "&#x41;" * 5_000,
        "." * 20_000,
        "".join(chr(code) for code in range(0x20, 0x2000)),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_hostile_text_takes_no_time_and_gives_short_phrases(extract, text):
    extract(["a warm start"])
    start = time.perf_counter()
    phrases = extract([text])
    assert time.perf_counter() - start < 2
    assert len(phrases) <= 20
    assert all(word and len(word) <= 40 for phrase in phrases for word in phrase.split())


def test_words_break_at_punctuation():
    assert words("Red, blue; (green)") == ["red", ",", "blue", ".", ".", "green", "."]


NGRAM_EXAMPLES = [
    ("Red key photo", ["red", "red key", "key"]),
    ("a key and a dog", ["a key", "a key and", "key", "key and", "key and a", "and a dog", "a dog", "dog"]),
    ("free stock image of keys", ["of keys", "keys"]),
    ("key, dog | key", ["key", "dog"]),
    ("IMG_2041.jpg", []),
    ("of the", []),
    ("", []),
]


@pytest.mark.parametrize(("alt_text", "ngrams"), NGRAM_EXAMPLES)
def test_ngrams_of_alt_text(alt_text, ngrams):
    assert NgramExtractor(max_words=3, max_ngrams=300)([alt_text]) == ngrams


def test_ngrams_are_limited_in_length_and_number():
    alt_texts = ["one red two blue", "green key"]
    assert NgramExtractor(max_words=1, max_ngrams=300)(alt_texts) == ["red", "blue", "green", "key"]
    assert NgramExtractor(max_words=2, max_ngrams=3)(alt_texts) == ["one red", "red", "red two"]
    start = time.perf_counter()
    assert len(NgramExtractor(max_words=10, max_ngrams=300)(["red " * 10_000, "a " * 10_000])) == 10
    assert time.perf_counter() - start < 2
