"""open_clip checkpoints: written from a model, and read as a `transformers` CLIPModel.

    model = open_clip.create_model("local-dir:FOLDER")          # what `to_open_clip` wrote
    tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")

open_clip has no place for the region parts: they stay behind.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel

from cloc.data.transforms import PADDING
from cloc.errors import ConfigError
from cloc.model.export.folder import new_folder
from cloc.model.export.open_clip_config import clip_config, open_clip_config
from cloc.model.export.open_clip_layout import layout, to_clip_weights, to_open_clip_weights
from cloc.model.processing import CLOCProcessor

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
# Names that open_clip looks for; pickled weights are not read.
_READABLE = (WEIGHTS, "open_clip_pytorch_model.safetensors")


@dataclass(frozen=True)
class OpenClipExport:
    """What was written.

    Attributes:
        folder: where.
        weights: number of weight tensors.
        left_out: names of the model's weights that open_clip has no place for.
        notes: what differs in open_clip, a line each.
    """

    folder: Path
    weights: int
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def to_open_clip(model: Any, processor: CLOCProcessor, *, out: str | Path) -> OpenClipExport:
    """Writes weights, configuration and tokenizer as open_clip loads them from `local-dir:` or the hub.

    Args:
        model: `CLOCModel`, or any CLIPModel; other families are refused.
        processor: its processor.
        out: new folder.

    Raises:
        ConfigError: the model is no CLIP, open_clip cannot express it, or `out` is in use.
    """
    if not isinstance(model, CLIPModel):
        raise ConfigError(
            f"cannot write a {type(model).__name__} for open_clip, which builds SigLIP's image encoder from timm, with "
            "other weights; export to onnx, or train a model of the CLIP family (model.family: clip)"
        )
    state = model.state_dict()
    bias = float(state["logit_bias"]) if "logit_bias" in state else 0.0
    config = open_clip_config(model.config, processor, logit_bias=bias)
    weights = to_open_clip_weights(state, model.config)
    used = {name for weight in layout(model.config) for name in weight.clip}
    if "logit_bias" in state:
        used.add("logit_bias")  # 0 without a sigmoid loss, and then open_clip needs none
        weights |= {"logit_bias": state["logit_bias"]} if bias else {}
    with new_folder(out) as folder:
        save_file({name: value.cpu() for name, value in weights.items()}, folder / WEIGHTS)
        processor.tokenizer.save_pretrained(str(folder))
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    left_out = tuple(name for name in state if name not in used)
    return OpenClipExport(Path(out), len(weights), left_out, _notes(config))


def from_open_clip(folder: str | Path) -> CLIPModel:
    """An open_clip checkpoint as a `transformers` CLIPModel with equal outputs, in float32 and evaluation mode.

    Saved with its tokenizer and image processor, it is a checkpoint that `model.init_from` can name (docs/export.md).

    Args:
        folder: holds open_clip_config.json and open_clip_model.safetensors, as `to_open_clip` and open_clip's hub
            uploads do.

    Raises:
        ConfigError: a file is missing or broken, only pickled weights are there, the configuration has something that
            a CLIPModel has nothing like (it is named), or the weights have other names or shapes than it says.
    """
    source = Path(folder)
    config = clip_config(_model_cfg(source / CONFIG), source=str(source / CONFIG))
    found = _read_weights(source)
    bias = found.pop("logit_bias", None)
    if bias is not None and bias.count_nonzero():
        warnings.warn(f"{source}: logit_bias {float(bias):g} is dropped, a CLIPModel has none", stacklevel=2)
    model = CLIPModel(config)
    expected = to_open_clip_weights(model.state_dict(), config)
    if "logit_scale" in found and found["logit_scale"].numel() == 1:  # may be a vector of one
        found["logit_scale"] = found["logit_scale"].reshape(())
    _check(found, expected, source=source)
    model.load_state_dict(to_clip_weights(found, config))
    return model.eval()


def _model_cfg(path: Path) -> Mapping[str, Any]:
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}; an open_clip checkpoint holds this file") from None
    if not isinstance(read, dict) or not isinstance(read.get("model_cfg"), dict):
        raise ConfigError(f"{path}: there is no model_cfg in it; it must be open_clip's configuration")
    config: dict[str, Any] = read["model_cfg"]
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights by open_clip's names; those of its CustomTextCLIP by the names of its CLIP."""
    path = next((folder / name for name in _READABLE if (folder / name).is_file()), None)
    if path is None:
        raise ConfigError(
            f"{folder}: there is neither {_READABLE[0]} nor {_READABLE[1]}; pickled weights are not read, since "
            "they can run code: take the safetensors of the same model"
        )
    try:
        return {name.removeprefix("text."): value for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None


def _check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: Path) -> None:
    for problem, names in (("lacks", expected.keys() - found.keys()), ("also has", found.keys() - expected.keys())):
        if names:
            raise ConfigError(
                f"{source}: the checkpoint {problem} {len(names)} weights, as {min(names)}, unlike the plain CLIP that "
                f"its {CONFIG} describes"
            )
    for name, value in found.items():
        if value.shape != expected[name].shape:
            raise ConfigError(
                f"{source}: {name} is {tuple(value.shape)} in the checkpoint, and {tuple(expected[name].shape)} by its "
                f"{CONFIG}"
            )


def _notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    fill = config["preprocess_cfg"]["fill_color"]
    notes = [
        f"images: open_clip pads on both sides, with grey {fill}; the model was trained with the image top left and "
        f"the padding {PADDING} after it. Square images are equal; for others, make the pixels with CLOCProcessor"
    ]
    if config["model_cfg"]["text_cfg"].get("pool_type") == "eos":
        notes.append("texts are pooled at the EOS token: this needs open_clip 3.1 or later")
    notes.append("on the hub: set text_cfg.hf_tokenizer_name to the repository's id")
    return tuple(notes)
