"""Guards on generated captions: the reason why a caption is left out, as one of few fixed strings that can be counted.

A caption of a data set's own people is never judged here. Text of any language is judged: scripts that put no spaces
between words are cut into pieces of about a word's length, so that lengths and repetitions mean the same everywhere.

    guards = Guards(config.captioning.guards)
    guards("I'm sorry, I can't help with that.", prompt="Describe this image.")  # "the captioner refused"
"""

import re
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any

from cloc.config.schema import GuardsConfig
from cloc.errors import ConfigError


class Reason(StrEnum):
    """Why a caption is left out."""

    EMPTY = "empty caption"
    REFUSAL = "the captioner refused"
    COPIED_PROMPT = "caption copies the prompt"
    REPEATS = "caption repeats itself"
    TOO_SHORT = "caption too short"
    TOO_LONG = "caption too long"
    LANGUAGE = "caption in another language"


# The language of fewer words is a guess (3,737 captions of COCO, English: of their first 4 words 0.9 % would be taken
# for another language, of their first 6 words 0.03 %, of the whole captions none).
MIN_WORDS_OF_LANGUAGE = 6
_MIN_PROBABILITY = 0.05  # of the wanted language; kin (Norwegian, Serbian) share the probability between them
_COPIED_WORDS = 8  # so many words of the prompt in a row are no accident; of a shorter prompt, all
_LEAST_COPIED_WORDS = 3
_OPENING = 300  # characters in which a refusal shows

# Scripts without spaces, and about how many characters a word of theirs has.
_UNSPACED = re.compile(
    r"(?P<ideographs>[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+)|(?P<letters>[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]+)"
)
_WORD_LENGTHS = {"ideographs": 2, "letters": 4}
_OUTER = re.compile(r"^\W+|\W+$")

# How chat models say that they say nothing. Each needs a whole phrase of a refusal: "Sorry, we're closed" is a sign.
_SORRY = r"(?:(?:unfortunately|sorry|(?:my )?apologies|however)\b[\s,.;:-]*(?:but )?)*"
_GIVEN = r"(?:attached|provided|uploaded|included|shared)"
_PICTURE = r"(?:image|picture|photo)"
_REFUSALS = (
    _SORRY + r"i(?:'m| am)(?: very| so| really| truly)? sorry(?:\s*[,.;:\u2014-]| but\b| i\b| that i\b)",
    _SORRY + r"i (?:must )?apologi[sz]e\b",
    _SORRY + r"i(?: am|'m)? ?(?:can't|cannot|can not|won't|will not|could not|couldn't|unable to|not able to) "
    r"(?:directly |really |actually )?(?:see|view|access|open|load|display|process|analy[sz]e|assist|help|provide|"
    r"describe|identify|determine|comply|fulfil|generate|create|comment|discuss|answer|interpret|recogni[sz]e|do that)",
    _SORRY + r"i (?:do not|don't) have (?:the )?(?:ability|capability|access)",
    _SORRY + rf"i (?:do not|don't) (?:see|have) (?:any|an|the) {_PICTURE}",
    _SORRY + r"(?:as|i am|i'm) (?:just )?an? (?:large |text-based |virtual )?"
    r"(?:ai|artificial intelligence|language model|assistant)\b",
    _SORRY + rf"(?:there (?:is|was)|there's) no {_PICTURE}\w* {_GIVEN}",
    _SORRY + rf"no {_PICTURE}\w* (?:was|were|is|has been) {_GIVEN}",
    r"(?:please|could you|can you)(?: please)? (?:provide|upload|attach|share|send)(?: me)? "
    rf"(?:the|an?|your) {_PICTURE}",
    r"(?:(?:es )?tut mir (?:sehr )?leid|leider|entschuldigung)\b.{0,20}\bkann\b",
    r"(?:(?:je suis (?:vraiment )?)?désolée?|malheureusement)\b.{0,20}\bje ne (?:peux|suis|vois)\b",
    r"(?:lo siento|lamentablemente|disculp\w+)\b.{0,20}\bno puedo\b",
    r"(?:desculp\w+|sinto muito|lamento|infelizmente)\b.{0,20}\bnão (?:posso|consigo)\b",
    r"(?:mi dispiace|purtroppo)\b.{0,20}\bnon (?:posso|riesco)\b",
    r"(?:извините|простите|к сожалению|мне жаль)\b.{0,20}\b\w{2} (?:могу|вижу)\b",
    r"(?:很?抱歉|对不起|不好意思).{0,6}(?:无法|不能)",
    r"(?:作为|我是)(?:一个|一名)?(?:ai|人工智能)",
    r"我(?:无法|不能)(?:查看|看到|提供|描述|识别|协助)",
    r"申し訳(?:ありません|ございません)",
    r"죄송(?:합니다|하지만)",
)
_REFUSAL = re.compile(rf"\W*(?:{'|'.join(_REFUSALS)})")


class Guards:
    """Judges captions, one by one; may be used by several threads.

    Args:
        config: section `captioning.guards`.

    Raises:
        ConfigError: `language` is none that can be told, or the library that tells languages is not installed.
    """

    def __init__(self, config: GuardsConfig) -> None:
        self._config = config
        self._language = _Language(config.language) if config.language else None

    def __call__(self, text: str, *, prompt: str = "") -> str:
        """The reason (a `Reason`) why a caption is left out; "" when it is fine.

        Args:
            text: the caption.
            prompt: what a chat model was asked, without the image's own alt-text, which it may well repeat; "" for a
                captioner that was asked nothing, or whose caption begins with its prompt.
        """
        words = split_words(text)
        if not words:
            return Reason.EMPTY
        if _REFUSAL.match(text[:_OPENING].casefold().replace("\u2019", "'")):
            return Reason.REFUSAL
        if self._config.copied_prompt and _copies(words, prompt):
            return Reason.COPIED_PROMPT
        if self._repeats(text, words):
            return Reason.REPEATS
        if len(words) < self._config.min_words:
            return Reason.TOO_SHORT
        if len(words) > self._config.max_words:
            return Reason.TOO_LONG
        if self._language and len(words) >= MIN_WORDS_OF_LANGUAGE and not self._language.may_be(text):
            return Reason.LANGUAGE
        return ""

    def _repeats(self, text: str, words: Sequence[str]) -> bool:
        length = self._config.repeated_ngram
        if not length:
            return False
        # Where words are pieces of a set length, the same text may be cut differently: there, characters are compared.
        counts = [Counter(_ngrams(words, length))]
        for script, word_length in _WORD_LENGTHS.items():
            characters = "".join(run[script] or "" for run in _UNSPACED.finditer(text))
            counts.append(Counter(_ngrams(characters, length * word_length)))
        return max(max(each.values(), default=0) for each in counts) > self._config.max_repeats


class _Language:
    """Whether text may be of one language."""

    def __init__(self, code: str) -> None:
        try:
            self._code, self._identifier = code, _identifier()
        except ImportError:
            raise ConfigError(
                f"captioning.guards.language: {code!r} is set but py3langid is not installed; install cloc[label], or "
                "leave the setting empty"
            ) from None
        if code not in self._identifier.labels:
            raise ConfigError(
                f"captioning.guards.language: {code!r} is no language that can be told; use one of "
                f"{', '.join(sorted(self._identifier.labels))}"
            )

    def may_be(self, text: str) -> bool:
        return bool(dict(self._identifier.rank(text))[self._code] >= _MIN_PROBABILITY)


@cache
def _identifier() -> Any:
    """py3langid, whose model comes with the package: nothing is downloaded. Loaded once, in about a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def split_words(text: str) -> list[str]:
    """Words without case and outer punctuation; pieces of a word's length where a script has no spaces."""
    found = []
    for token in text.casefold().split():
        place = 0
        for run in _UNSPACED.finditer(token):
            found.append(token[place : run.start()])
            length = _WORD_LENGTHS[str(run.lastgroup)]
            found += [run.group()[first : first + length] for first in range(0, len(run.group()), length)]
            place = run.end()
        found.append(token[place:])
    return [word for word in (_OUTER.sub("", word) for word in found) if word]


def _ngrams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(words[first : first + length]) for first in range(len(words) - length + 1)]


def _copies(words: Sequence[str], prompt: str) -> bool:
    length, runs = _runs(prompt)
    return bool(runs) and not runs.isdisjoint(_ngrams(words, length))


@lru_cache(maxsize=16)
def _runs(prompt: str) -> tuple[int, frozenset[tuple[str, ...]]]:
    """The runs of words that betray the prompt, and how long they are; none for a prompt of hardly a word."""
    words = split_words(prompt)
    length = min(len(words), _COPIED_WORDS)
    return length, frozenset(_ngrams(words, length) if length >= _LEAST_COPIED_WORDS else ())
