"""Loading of labelling models: by hub id or folder, safetensors only, with one clear line when it fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from cloc.errors import ConfigError

_T = TypeVar("_T")


def pick_device(name: str, *, key: str) -> torch.device:
    """The device that a setting names; `auto` is the GPU where there is one.

    Raises:
        ConfigError: `cuda` where there is none; names the setting `key`.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}: 'cuda' is set but there is no CUDA device here; use 'auto' or 'cpu'")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def load(make: Callable[..., _T], model: str, *, key: str, **settings: Any) -> _T:
    """Calls a `from_pretrained`. Raises ConfigError naming the setting `key` when the checkpoint cannot be loaded."""
    try:
        return make(model, **settings)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{key}: cannot load {model!r} ({reason}); name a hub id or a folder written by save_pretrained"
        ) from error


def check_model(model: str, *, key: str) -> None:
    """Raises ConfigError unless `model` is a folder or hub id with a config: the cheapest thing to find wrong first."""
    if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise ConfigError(f"{key}: there is no folder {model!r}; name a hub id or a folder written by save_pretrained")
    load(AutoConfig.from_pretrained, model, key=key)


def load_model(make: Callable[..., Any], model: str, *, key: str, dtype: str, device: torch.device) -> Any:
    """A model for inference: weights from safetensors, in a dtype, on a device."""
    loaded = load(make, model, key=key, dtype=getattr(torch, dtype), use_safetensors=True)
    return loaded.eval().to(device)


def model_name(model: str) -> str:
    """The name that tables carry: the hub id, or the folder's own name (its parents differ between machines)."""
    return Path(model).resolve().name if Path(model).is_dir() else model
