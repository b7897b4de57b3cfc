"""Adapters on disk.

    save_adapter(adapter, "adapter", about={})
    adapter = load_adapter("adapter")

Two forms:
    decoder made from its config   the whole model: `LlavaForConditionalGeneration.from_pretrained(folder)`
    a named language model         vision_tower/, projector.safetensors, lora/ (peft), config.json (the LLaVA's) and
                                   adapter.json, which names it; README.md has the lines that load it with plain peft
                                   and transformers
Both hold tokenizer, image processor and adapter.json and, where there is a region sampler, sampler.safetensors.
`save_merged` writes the second form as the first one.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessorPil,
)

from cloc.errors import ConfigError
from cloc.mllm.building import assemble, load_decoder, load_tower
from cloc.mllm.model import Adapter
from cloc.mllm.sampler import RegionSampler, from_description, prefix_tokens
from cloc.model.factory import quiet

ADAPTER_FILE = "adapter.json"
_TOWER, _PROJECTOR, _LORA, _SAMPLER = "vision_tower", "projector.safetensors", "lora", "sampler.safetensors"
_README = """\
# Adapter on {name}

    from cloc.mllm import Chat
    Chat("{folder}").ask("photo.jpg", "what is in the image?")

With plain transformers and peft:

```python
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, {tower}, LlavaConfig, LlavaForConditionalGeneration

tokenizer = AutoTokenizer.from_pretrained(folder)
decoder = AutoModelForCausalLM.from_pretrained("{name}")
words = decoder.get_input_embeddings().num_embeddings
if len(tokenizer) > words:  # special tokens
    decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for layer in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
        layer.weight.data[words:] = 0
with torch.device("meta"):
    model = LlavaForConditionalGeneration(LlavaConfig.from_pretrained(folder))
model.model.vision_tower = {tower}.from_pretrained(folder + "/vision_tower")
projector = model.model.multi_modal_projector.to_empty(device="cpu")
projector.load_state_dict(load_file(folder + "/projector.safetensors"))
model.model.language_model, model.lm_head = decoder.base_model, decoder.get_output_embeddings()
{lora}model.eval()
```

Images are padded to the square on the right and below before they are resized, as `cloc.data.transforms.letterbox`
does; the image processor here leaves square images whole.
"""
_README_LORA = """\
from peft import PeftModel
model = PeftModel.from_pretrained(model, folder + "/lora")
"""


def save_adapter(adapter: Adapter, folder: str | Path, *, about: dict[str, Any]) -> None:
    """Writes the model in one of the two forms above; `about` goes into adapter.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _save_processor(adapter, folder)
    if adapter.language_model:
        _save_named(adapter, folder)
    else:
        adapter.model.save_pretrained(str(folder))
    _save_about(adapter, folder, about={"language_model": adapter.language_model, **about})


def save_merged(adapter: Adapter, folder: str | Path, *, about: dict[str, Any]) -> None:
    """Writes the model with its LoRA layers merged into the decoder: as one that was made from its config.

    The adapter is of no use afterwards: its LoRA layers are gone.

    Raises:
        ConfigError: the decoder's output layer has a bias, for which LLaVA has no place.
    """
    folder, model = Path(folder), adapter.model
    if getattr(model.lm_head, "bias", None) is not None:
        raise ConfigError(
            f"{adapter.name}: its output layer has a bias, which a LLaVA folder has no place for; keep the adapter as "
            "peft saves it"
        )
    if adapter.lora is not None:
        model = adapter.lora.merge_and_unload()
    folder.mkdir(parents=True, exist_ok=True)
    _save_processor(adapter, folder)
    model.save_pretrained(str(folder))
    _save_about(adapter, folder, about={"language_model": "", "merged_from": adapter.language_model, **about})


def load_adapter(
    folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Adapter:
    """Reads what was saved, in evaluation mode, a named language model in `dtype`.

    Raises:
        ConfigError: the folder holds none, or its language model cannot be loaded.
    """
    folder = Path(folder)
    about, kernel = _about(folder), "eager" if torch.device(device).type == "cpu" else "sdpa"
    if about["language_model"]:
        adapter = _load_named(folder, about, dtype=dtype, kernel=kernel)
    else:
        adapter = _load_whole(folder, about, kernel=kernel)
    adapter.parts.requires_grad_(False).eval()
    return adapter.to(device)


def _save_named(adapter: Adapter, folder: Path) -> None:
    parts = adapter.model.model
    parts.vision_tower.save_pretrained(str(folder / _TOWER))
    save_file(parts.multi_modal_projector.state_dict(), folder / _PROJECTOR)
    adapter.model.config.save_pretrained(str(folder))
    if adapter.lora is not None:
        # Nothing of the vocabulary is trained: peft would store it whole where special tokens have made it larger.
        adapter.lora.save_pretrained(str(folder / _LORA), save_embedding_layers=False)
    tower, lora = type(parts.vision_tower).__name__, _README_LORA if adapter.lora is not None else ""
    text = _README.format(name=adapter.language_model, folder=folder.name, tower=tower, lora=lora)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _save_processor(adapter: Adapter, folder: Path) -> None:
    """Tokenizer and image processor, also as the one processor that LLaVA's users expect."""
    vision, size = adapter.model.config.vision_config, adapter.image_size
    described: dict[str, Any] = {"image_mean": list(adapter.pixel_mean), "image_std": list(adapter.pixel_std)}
    square = {"height": size, "width": size}
    if vision.model_type == "siglip_vision_model":
        images = SiglipImageProcessorPil(size=square, **described)
    else:
        images = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=square, **described)
    LlavaProcessor(
        images,
        adapter.tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=prefix_tokens(vision),
        chat_template=adapter.tokenizer.chat_template,
    ).save_pretrained(str(folder))
    images.save_pretrained(str(folder))
    adapter.tokenizer.save_pretrained(str(folder))


def _save_about(adapter: Adapter, folder: Path, *, about: dict[str, Any]) -> None:
    body: dict[str, Any] = {
        "lora": bool(about["language_model"]) and adapter.lora is not None,
        "pixel_mean": list(adapter.pixel_mean),
        "pixel_std": list(adapter.pixel_std),
        "region_sampler": None if adapter.sampler is None else adapter.sampler.describe(),
        **about,
    }
    if adapter.sampler is not None:
        save_file({name: value.contiguous() for name, value in adapter.sampler.state_dict().items()}, folder / _SAMPLER)
    (folder / ADAPTER_FILE).write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / ADAPTER_FILE).read_text())
        about["language_model"], about["lora"], about["pixel_mean"], about["pixel_std"], about["region_sampler"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}: no adapter here ({ADAPTER_FILE}: {type(error).__name__})") from None
    return dict(about)


def _load_whole(folder: Path, about: dict[str, Any], *, kernel: str) -> Adapter:
    try:
        with quiet():
            model = LlavaForConditionalGeneration.from_pretrained(str(folder), attn_implementation=kernel)
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: the adapter cannot be loaded: {str(error).splitlines()[0]}") from None
    sampler = _load_sampler(folder, about, width=int(model.config.text_config.hidden_size))
    return Adapter(model, tokenizer, about["pixel_mean"], about["pixel_std"], sampler=sampler)


def _load_named(folder: Path, about: dict[str, Any], *, dtype: torch.dtype, kernel: str) -> Adapter:
    name = about["language_model"]
    tower = load_tower(folder / _TOWER, images=folder, kernel=kernel)
    _, decoder = load_decoder(name, regions=about["region_sampler"] is not None, dtype=dtype, kernel=kernel)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model, lora = assemble(tower, decoder, tokenizer), None
    _load_weights(model.model.multi_modal_projector, folder / _PROJECTOR)
    if about["lora"]:
        from peft import PeftModel

        lora = PeftModel.from_pretrained(model, str(folder / _LORA))
    sampler = _load_sampler(folder, about, width=int(model.config.text_config.hidden_size))
    return Adapter(model, tokenizer, about["pixel_mean"], about["pixel_std"], name, lora, sampler)


def _load_sampler(folder: Path, about: dict[str, Any], *, width: int) -> RegionSampler | None:
    if about["region_sampler"] is None:
        return None
    sampler = from_description(about["region_sampler"], width=width)
    _load_weights(sampler, folder / _SAMPLER)
    return sampler


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: weights of other names or shapes
        raise ConfigError(f"{path}: not the adapter's weights ({str(error).splitlines()[0]})") from None
