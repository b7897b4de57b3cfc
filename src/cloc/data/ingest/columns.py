"""The names that a user gives the columns of a table, as in `image=img,caption=text`."""

from collections.abc import Collection

from cloc.errors import DataError


def parse_columns(text: str, *, known: Collection[str]) -> dict[str, str]:
    """What each name stands for, as in {"image": "img", "caption": "text"}.

    Args:
        text: pairs `name=column`, separated by commas; "" names nothing.
        known: names that mean something here.

    Raises:
        DataError: a pair is malformed, unknown, or there twice.
    """
    named: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        name, sign, column = (part.strip() for part in pair.partition("="))
        if not sign or not column:
            raise DataError(f"columns: {pair!r} is no pair name=column; write, say, caption=text")
        if name not in known:
            raise DataError(f"columns: {name!r} means nothing here; there are: {', '.join(known)}")
        if name in named:
            raise DataError(f"columns: {name!r} is named twice, as {named[name]!r} and as {column!r}")
        named[name] = column
    return named
