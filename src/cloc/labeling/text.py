"""Cleaning of untrusted caption text."""

import unicodedata

MAX_CHARACTERS = 20_000


def clean(text: str) -> str:
    """One line without control characters; white space collapsed; at most `MAX_CHARACTERS` characters.

    Markup is left as it is: what shows text escapes it.
    """
    kept = "".join(" " if unicodedata.category(char) in ("Cc", "Cs") else char for char in text[:MAX_CHARACTERS])
    return " ".join(kept.split())
