"""Hashes of files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from cloc.errors import DataError


def files_digest(files: Iterable[str], *, what: str) -> str:
    """Hash of the files' names and bytes, in their order.

    Args:
        files: their paths.
        what: they are, for the error.

    Raises:
        DataError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            with Path(path).open("rb") as file:
                digest.update(f"{Path(path).name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
        except OSError as error:
            raise DataError(f"{what}: cannot read {path} ({error.strerror})") from None
    return digest.hexdigest()
