"""Texts from the web: what UTF-8 does not have, and white space."""


def clean(text: str) -> str:
    """The text with single spaces; "" when it is empty or has code points that UTF-8 does not have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return ""
    return " ".join(text.split())


def printable(text: str) -> str:
    """The text with what UTF-8 does not have written as escapes (file names may be any bytes)."""
    return text.encode(errors="backslashreplace").decode()
