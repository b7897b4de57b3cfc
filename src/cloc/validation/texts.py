"""What is wrong with a text, for whole columns at once: wrong encoding, markup, an end in the middle.

    garbled(pd.Series(["cafÃ©", "café"]))       # True, False
    incomplete(pd.Series(["a dog on a"]))        # True

Each takes a column without missing values and returns one bool a row. Nearly all texts of a large set are plain ASCII,
which is seen for whole columns; only the others are looked at one by one.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

Flags = npt.NDArray[np.bool_]

_REPLACED = "\N{REPLACEMENT CHARACTER}"
# Control characters but for tab and line ends; marks that turn the direction of writing; tags; entities; addresses.
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x{202a}-\x{202e}\x{2066}-\x{2069}]"
_TAG = r"</?[a-zA-Z][^<>]{0,300}>"
_ENTITY = r"&(?:[a-zA-Z]{2,8}|#[0-9]{1,6}|#[xX][0-9a-fA-F]{1,5});"
_ADDRESS = r"(?i:https?://|\bwww\.[a-z0-9])"
_MARKUP = f"{_CONTROL}|{_TAG}|{_ENTITY}|{_ADDRESS}"
# English words that lead on to another one. Prepositions end a good caption now and then ("the sofa she sits on").
_LEADING = (
    "a an the of in on at by with without and or but to for from near its his her their your my is are was were be "
    "that which who as into onto over under between behind beside above below while very this these some next"
)
_OPEN_END = r"[,(\[{:\-\x{2013}\x{2014}/&+]\s*$|(?:\.\.|\x{2026})\s*$"
_ENGLISH_END = rf"(?i)\b(?:{'|'.join(_LEADING.split())})\s*$|{_OPEN_END}"


def garbled(texts: pd.Series) -> Flags:
    """Whether a text was decoded wrongly (as ftfy judges it), or holds replacement characters."""
    # great_expectations and ftfy stay apart: statistics need neither.
    from ftfy.badness import is_bad

    array = _arrow(texts)
    flags = np.zeros(len(array), dtype=bool)
    for place in np.flatnonzero(~_flags(pc.string_is_ascii(array))):
        text = array[int(place)].as_py()
        flags[place] = _REPLACED in text or is_bad(text)
    return flags


def has_markup(texts: pd.Series) -> Flags:
    """Whether a text holds control characters, HTML, or a web address."""
    return _flags(pc.match_substring_regex(_arrow(texts), _MARKUP))


def incomplete(texts: pd.Series, *, language: str = "") -> Flags:
    """Whether a text ends in the middle: in an open bracket, a comma, dots, or a word that leads on to another one (of
    English, unless `language` is another one)."""
    pattern = _ENGLISH_END if language in ("", "en") else _OPEN_END
    return _flags(pc.match_substring_regex(_arrow(texts), pattern))


def normalised(texts: pd.Series) -> list[str]:
    """Texts for the search of one in another by whole words: lower case, one space between words and at both ends."""
    array = _arrow(texts)
    other = r"[^a-z0-9]+" if _flags(pc.string_is_ascii(array)).all() else r"[^\p{L}\p{N}]+"  # the latter is slow
    words = pc.replace_substring_regex(pc.utf8_lower(array), other, " ")
    return [f" {text} " for text in pc.utf8_trim_whitespace(words).to_pylist()]


def _arrow(texts: pd.Series) -> pa.Array:
    array = pa.array(texts, type=pa.large_string())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _flags(array: pa.Array) -> Flags:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=bool)
