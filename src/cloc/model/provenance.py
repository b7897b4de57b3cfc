"""What a model folder says of itself: how it was trained, and which weights it holds. No torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

from cloc.errors import ConfigError
from cloc.stage import LINEAGE_FILE

TRAINING_FILE, WEIGHTS_FILE = "training.json", "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_HUB_PARTS = 2  # a hub id is "owner/name" or "name"


def weights_digest(source: str | Path) -> str:
    """sha256 of a model's weights, hexadecimal; of several files, of their hashes in the order of their names.

    Args:
        source: a model folder, or the hub id of a model that has been loaded.

    Raises:
        ConfigError: there are none.
    """
    hashes = []
    for path in _weight_files(str(source)):
        with path.open("rb") as stream:
            hashes.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _weight_files(source: str) -> list[Path]:
    if found := _file(source, WEIGHTS_FILE):
        return [found]
    if (index := _file(source, _INDEX_FILE)) is None:
        raise ConfigError(f"{source}: no model here (there is no {WEIGHTS_FILE}); give the output of pretraining")
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    files = [_file(source, name) for name in names]
    if None in files:
        raise ConfigError(f"{source}: the weights are incomplete: there is no {names[files.index(None)]}")
    return [path for path in files if path]


def _file(source: str, name: str) -> Path | None:
    """A file of a model folder or of a hub's model; None when there is none."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    from transformers.utils import cached_file  # heavy, and of use for hub ids alone

    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise ConfigError(f"cannot load the model {source!r}: {str(error).splitlines()[0]}") from None
    return Path(found) if found else None


def read_training(source: str | Path) -> dict[str, Any] | None:
    """How a model came about, as pre-training wrote it, with `origin` "trained"; None for a model of others.

    Raises:
        ConfigError: there is no such folder, or its training.json is broken or lacks objective, steps or cpu_seconds.
    """
    folder = Path(source)
    if not folder.is_dir() and (folder.is_absolute() or len(folder.parts) > _HUB_PARTS or str(source).startswith(".")):
        raise ConfigError(f"{source}: there is no such folder; give a model folder, or the hub id of a CLIP or SigLIP")
    path = folder / TRAINING_FILE
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError:
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise ConfigError(
                f"{source}: no model here (there is neither {TRAINING_FILE} nor config.json); give the output of "
                "pretraining, or a CLIP or SigLIP folder or hub id"
            ) from None
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); train this model again") from None
    if not isinstance(body, dict) or body.get("objective") not in ("cloc", "clip"):
        found = body.get("objective") if isinstance(body, dict) else body
        raise ConfigError(f"{path}: objective must be 'cloc' or 'clip', got {str(found)[:80]!r}")
    for name in ("steps", "cpu_seconds"):
        if not isinstance(body.get(name), int | float) or isinstance(body.get(name), bool):
            raise ConfigError(f"{path}: {name} must be a number, got {str(body.get(name))[:80]!r}")
    return {**body, "origin": "trained"}


def read_lineage(source: str | Path) -> dict[str, Any]:
    """What a model was made of, as pre-training wrote it beside the model; {} where nothing is known."""
    path = Path(source) / LINEAGE_FILE
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def public_training(*, has_regions: bool) -> dict[str, Any]:
    """What is known of the training of a model of others: nothing, but whether it has region parts."""
    return {"objective": "cloc" if has_regions else "clip", "origin": "public", "steps": None, "cpu_seconds": None}
