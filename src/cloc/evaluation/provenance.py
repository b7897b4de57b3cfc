"""What a model folder says of itself: how it was trained, and which weights it holds. No torch."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from cloc.errors import ConfigError

TRAINING_FILE, WEIGHTS_FILE = "training.json", "model.safetensors"


def slug(name: str) -> str:
    """A row's name as a part of metric names: "CLIP (equal steps)" -> "clip-equal-steps"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def weights_digest(folder: str | Path) -> str:
    """sha256 of a model folder's weights, hexadecimal. Raises ConfigError when there are none."""
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise ConfigError(f"{folder}: no model here (there is no {WEIGHTS_FILE}); give the output of pretraining")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_training(folder: str | Path) -> dict[str, Any]:
    """How a model came about, as pre-training wrote it.

    Raises:
        ConfigError: the file is absent, broken, or lacks objective, steps or cpu_seconds.
    """
    path = Path(folder) / TRAINING_FILE
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: there is no {TRAINING_FILE}; give a model folder that pretraining wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); train this model again") from None
    if not isinstance(body, dict) or body.get("objective") not in ("cloc", "clip"):
        found = body.get("objective") if isinstance(body, dict) else body
        raise ConfigError(f"{path}: objective must be 'cloc' or 'clip', got {str(found)[:80]!r}")
    for name in ("steps", "cpu_seconds"):
        if not isinstance(body.get(name), int | float) or isinstance(body.get(name), bool):
            raise ConfigError(f"{path}: {name} must be a number, got {str(body.get(name))[:80]!r}")
    return body
