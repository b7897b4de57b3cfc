"""The folder of an export: it appears whole or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloc.errors import ConfigError


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `out` when the block ends well and vanishes when it does not.

    Raises:
        ConfigError: `out` is an address, a file, or a folder that holds something.
    """
    target = Path(out)
    if "://" in str(out):
        raise ConfigError(f"out {str(out)!r}: an export goes to a folder; copy it from there")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"out {str(out)!r} is a file; name a folder")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"out {str(out)!r} is not empty; name a new folder, or empty this one")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        written = Path(temporary) / "export"
        written.mkdir()
        yield written
        written.rename(target)
