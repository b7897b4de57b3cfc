"""What texts have to do with boxes, and the tokenizers of the teachers.

A phrase of a caption ("large red keys") names a box ("red key") when both have the same head and one's words are among
the other's; numbers are no part of a phrase, and singular and plural are one word.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from transformers import CLIPTokenizer

from cloc.labeling.names import words_of
from cloc.labeling.phrases import STOP_WORDS
from cloc.model.processing import train_tokenizer

_START, _END = "<|startoftext|>", "<|endoftext|>"
_CACHE = 1 << 16


@dataclass(frozen=True)
class Core:
    """What a text is about: its words up to the first function word after them, singular.

    Attributes:
        head: the last of them; "" for a text of function words alone.
        words: all of them.
    """

    head: str
    words: frozenset[str]


@lru_cache(maxsize=_CACHE)
def core(text: str) -> Core:
    """The core of a text: "the two large red keys on a table" -> large, red, key."""
    from textblob.en.inflect import singularize

    found: list[str] = []
    for word in words_of(text):
        if word in STOP_WORDS:
            if found:
                break
            continue
        found.append(singularize(word))
    return Core(found[-1] if found else "", frozenset(found))


def naming(
    regions: Sequence[tuple[str, str]], own: Sequence[frozenset[str]], queries: Sequence[str]
) -> npt.NDArray[np.int8]:
    """Which queries name which boxes.

    Args:
        regions: (text, label) of each box; the label is "" where there is none.
        own: for each box, the texts that its image's people used: captions' phrases and region texts.
        queries: texts to judge.

    Returns:
        (boxes, queries): 1 names it; 0 does not; -1 says more than is known of it ("red key", of a "key"), except
        in its own image, where such a phrase is taken to mean it.
    """
    by_head: dict[str, list[int]] = {}
    for place, query in enumerate(queries):
        by_head.setdefault(core(query).head, []).append(place)
    names = np.zeros((len(regions), len(queries)), dtype=np.int8)
    places = {query: place for place, query in enumerate(queries)}
    for row, (text, label) in enumerate(regions):
        known = core(text)
        for place in by_head.get(known.head, ()):
            asked = core(queries[place]).words
            if asked <= known.words:
                names[row, place] = 1
            elif known.words < asked:
                names[row, place] = 1 if queries[place] in own[row] else -1
        for exact in (text, label):
            if exact in places:
                names[row, places[exact]] = 1
    return names


def fit_tokenizer(texts: Iterable[str], *, vocab_size: int, context_length: int) -> CLIPTokenizer:
    """A BPE tokenizer of CLIP's kind, its special entries last: an OWL-ViT pools at the highest entry of a text, which
    must be the end of it (of several, the first: texts are padded with it).

    Raises:
        ConfigError: there is no text.
    """
    fitted = train_tokenizer(texts, vocab_size=vocab_size, context_length=context_length)
    entries = sorted(fitted.get_vocab(), key=fitted.get_vocab().__getitem__)
    ordered = [*(entry for entry in entries if entry not in (_START, _END)), _START, _END]
    merges = json.loads(fitted.backend_tokenizer.to_str())["model"]["merges"]
    return CLIPTokenizer(
        vocab={entry: number for number, entry in enumerate(ordered)},
        merges=[tuple(pair) for pair in merges],
        model_max_length=context_length,
    )
