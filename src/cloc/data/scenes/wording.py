"""Noun phrases of the demo's English: articles, plurals, pairs ("two pairs of large red scissors"), lists."""

from collections.abc import Sequence

from cloc.data.scenes.vocabulary import Kind, Size, Tint

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_SILENT_H = ("hourglass",)


def article(word: str) -> str:
    """ "a" or "an", by the word that follows."""
    vowel = word[0] in "aeiou" or word.startswith(_SILENT_H)
    return "an" if vowel else "a"


def name(kind: Kind, tint: Tint | None = None, size: Size | None = None, *, plural: bool = False) -> str:
    """The bare name with what is known about it: "large red key", "blue apples"."""
    words = [size.value if size else "", tint.name if tint else "", kind.plural if plural else kind.name]
    return " ".join(word for word in words if word)


def indefinite(kind: Kind, tint: Tint | None = None, size: Size | None = None, *, count: int = 1) -> str:
    """With an article or a number: "a large red key", "two blue apples", "a pair of red scissors"."""
    bare = name(kind, tint, size, plural=count > 1)
    if kind.pair:
        return f"a pair of {bare}" if count == 1 else f"{_NUMBERS[count]} pairs of {bare}"
    return f"{article(bare)} {bare}" if count == 1 else f"{_NUMBERS[count]} {bare}"


def definite(kind: Kind, tint: Tint | None = None, *, count: int = 1) -> str:
    """What was named before: "the red key", "the blue apples"."""
    return f"the {name(kind, tint, plural=count > 1)}"


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b, and c"."""
    if len(parts) <= 2:
        return " and ".join(parts)
    return f"{', '.join(parts[:-1])}, and {parts[-1]}"
