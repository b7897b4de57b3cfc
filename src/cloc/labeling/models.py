"""Loading of labelling models: by hub id or folder, safetensors only, with one clear line when it fails."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from cloc.errors import ConfigError
from cloc.labeling.jobs import PROCESS_VARIABLE

_T = TypeVar("_T")


def pick_device(name: str, *, key: str) -> torch.device:
    """The device that a setting names; `auto` is a GPU where there is one.

    Of several GPUs a process takes the one of its number (`PROCESS_VARIABLE`), so that processes spread over them.

    Raises:
        ConfigError: `cuda` where there is none; names the setting `key`.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}: 'cuda' is set but there is no CUDA device here; use 'auto' or 'cpu'")
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", _process_number() % torch.cuda.device_count())
    return torch.device("cpu" if name == "auto" else name)


def _process_number() -> int:
    number = os.environ.get(PROCESS_VARIABLE, "0")
    if not number.isdecimal():
        raise ConfigError(f"{PROCESS_VARIABLE}: {number!r} is no number of a process; unset it, or set 0, 1, 2 ...")
    return int(number)


def load(make: Callable[..., _T], model: str, *, key: str, **settings: Any) -> _T:
    """Calls a `from_pretrained`, which must run no code of the checkpoint's and ask nobody whether it may. Raises
    ConfigError naming the setting `key` when the checkpoint cannot be loaded."""
    try:
        return make(model, trust_remote_code=False, **settings)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{key}: cannot load {model!r} ({reason}); name a hub id or a folder written by save_pretrained"
        ) from error


def check_model(model: str, *, key: str) -> Any:
    """The config of a model: the cheapest thing to find wrong first.

    Raises:
        ConfigError: `model` is no folder and no hub id with a config.
    """
    if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise ConfigError(f"{key}: there is no folder {model!r}; name a hub id or a folder written by save_pretrained")
    return load(AutoConfig.from_pretrained, model, key=key)


def load_model(
    make: Callable[..., Any], model: str, *, key: str, dtype: str, device: torch.device, device_map: str = ""
) -> Any:
    """A model for inference: weights from safetensors, in a dtype.

    Args:
        make: a class's `from_pretrained`.
        model: hub id or folder.
        key: the setting that names the model, for messages.
        dtype: name of a torch dtype.
        device: where the model goes when there is no `device_map`.
        device_map: how accelerate spreads the model over the devices of this machine ("auto", "balanced",
            "sequential"); its inputs then go to the model's own `.device`. "" for one device.

    Raises:
        ConfigError: the checkpoint cannot be loaded.
    """
    settings = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    if device_map:
        return load(make, model, key=key, device_map=device_map, **settings).eval()
    return load(make, model, key=key, **settings).eval().to(device)


def model_name(model: str) -> str:
    """The name that tables carry: the hub id, or the folder's own name (its parents differ between machines)."""
    return Path(model).resolve().name if Path(model).is_dir() else model
