"""Which settings a stage's labels depend on, as a hash: a rerun redoes what they changed, and nothing else."""

import hashlib
from pathlib import Path

from cloc.config.base import Section
from cloc.config.schema import DataConfig
from cloc.stage import fingerprint

# These change how fast labels are made and not what they are.
_SPEED_ONLY = {"batch_size", "device"}


def config_hash(section: Section, data: DataConfig, *, model: str) -> str:
    """Hash of a stage's section, the limits on images, and the files of its model where that is a folder.

    Args:
        section: the stage's settings.
        data: limits on images.
        model: hub id or folder of the model that is used; "" for none.
    """
    settings = section.model_dump(mode="json", exclude=_SPEED_ONLY)
    return fingerprint(settings, data.min_side, data.max_pixels, _files(model))


def _files(model: str) -> list[tuple[str, str]]:
    """(path, sha256) of each file of a folder: a model that was fitted again labels again. [] for a hub id."""
    folder = Path(model)
    if not model or not folder.is_dir():
        return []
    found = []
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        with path.open("rb") as stream:
            found.append((path.relative_to(folder).as_posix(), hashlib.file_digest(stream, "sha256").hexdigest()))
    return found
