"""Adapters on disk: every form loads, here and with plain transformers and peft, and answers the same."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from cloc.config.schema import AdapterConfig
from cloc.errors import ClocError, ConfigError
from cloc.mllm.answering import generate
from cloc.mllm.building import name_adapter
from cloc.mllm.chat import collate
from cloc.mllm.saving import load_adapter, save_adapter, save_merged
from cloc.model.processing import normalize
from tests import tiny_adapters as tiny
from tests.tiny_adapters import a_ground, a_refer, a_talk

CPU = torch.device("cpu")
CONFIG = AdapterConfig(lora_rank=4, precision="float32", device="cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def stirred(adapter):
    """As after tuning: what is trained differs from its start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.trainable("tune", train_encoder=True):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter


def answers(adapter, *, tokens: bool) -> list[str]:
    chat, pixels = adapter.chat(), tiny.noise(2)
    prompts = [chat.prompt(each, key="a") for each in (a_talk(tokens=tokens), a_ground(), a_refer(tokens=tokens))]
    return generate(
        adapter, chat, prompts, adapter.features(pixels), images=[0, 1, 1], max_tokens=10, precision="float32"
    )


def logits(model, adapter) -> torch.Tensor:
    """Of a plain LLaVA, about a question without regions."""
    ids = torch.tensor([adapter.chat().prompt(a_refer(), key="a").ids])
    values = normalize(tiny.noise(1), mean=adapter.pixel_mean, std=adapter.pixel_std)
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=values).logits


@pytest.mark.parametrize("sampler", ["none", "roi_align", "prompter"])
def test_a_made_decoder_loads_with_transformers_alone(encoder, tmp_path, sampler):
    adapter = stirred(tiny.make_tiny(encoder, region_sampler=sampler))
    save_adapter(adapter, tmp_path, about={"encoder_objective": "cloc"})
    assert not list(tmp_path.rglob("*.bin"))
    assert json.loads((tmp_path / "adapter.json").read_text())["encoder_objective"] == "cloc"
    loaded = load_adapter(tmp_path)
    tokens = sampler != "none"
    assert answers(loaded, tokens=tokens) == answers(adapter, tokens=tokens)
    assert (loaded.sampler is None) == (sampler == "none")
    for name, value in adapter.parts.state_dict().items():
        assert torch.equal(value, loaded.parts.state_dict()[name]), name
    assert not any(parameter.requires_grad for parameter in loaded.parts.parameters())
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain, adapter), logits(adapter.model, adapter))
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == adapter.tokenizer.chat_template
    # What was loaded can be tuned on.
    chat = loaded.chat()
    parameters = loaded.trainable("tune")
    batch = collate(list(tiny.noise(1)), [chat.encode([a_refer(tokens=tokens)], key="a")], pad_id=0)
    loaded.answer_loss(batch)[0].backward()
    assert all(parameter.grad is not None for parameter in parameters)


def test_the_saved_processor_makes_our_prompts(encoder, tmp_path):
    """Plain transformers, from picture and messages to ids and pixels; a square picture, which is not padded."""
    adapter = tiny.make_tiny(encoder)
    save_adapter(adapter, tmp_path, about={})
    processor, held = AutoProcessor.from_pretrained(tmp_path), a_refer()
    pixels = tiny.noise(1)
    message = {"role": "user", "content": f"<image>\n{held.turns[0].question}"}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    made = processor(images=Image.fromarray(pixels[0].numpy()), text=text, return_tensors="pt")
    torch.testing.assert_close(made["pixel_values"], normalize(pixels), atol=1e-5, rtol=1e-5)
    ids = adapter.chat().prompt(held, key="a").ids
    assert made["input_ids"][0].tolist().count(adapter.chat().image_id) == ids.count(adapter.chat().image_id) == 17


@pytest.mark.parametrize(
    ("kind", "rank"), [("llama", 4), ("llama", 0), ("qwen2", 4), ("gpt_neox", 4), ("phi", 4), ("gpt2", 4)]
)
def test_a_named_decoder_loads_with_transformers_and_peft_alone(encoder, tmp_path, kind, rank):
    """By the very lines that the folder's README has."""
    llm = tiny.save_decoder(tmp_path / "llm", kind)
    update = {"language_model": llm, "lora_rank": rank, "region_sampler": "prompter"}
    adapter = stirred(name_adapter(encoder, CONFIG.model_copy(update=update), device=CPU))
    folder = tmp_path / "out"
    save_adapter(adapter, folder, about={})
    assert not list(folder.rglob("*.bin"))
    assert (folder / "lora" / "adapter_model.safetensors").exists() == bool(rank)
    assert sum(file.stat().st_size for file in folder.rglob("lora/*.safetensors")) < 100_000  # no vocabulary in it
    loaded = load_adapter(folder)
    assert answers(loaded, tokens=True) == answers(adapter, tokens=True)
    [lines] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert "cloc" not in lines
    scope = {"folder": str(folder)}
    exec(lines, scope)
    torch.testing.assert_close(logits(scope["model"], adapter), logits(adapter.model, adapter))
    assert type(scope["model"]).__name__ == ("PeftModel" if rank else "LlavaForConditionalGeneration")


def test_a_merged_adapter_is_a_llava(encoder, tmp_path):
    llm = tiny.save_decoder(tmp_path / "llm", "qwen2")
    config = CONFIG.model_copy(update={"language_model": llm, "region_sampler": "prompter"})
    adapter = stirred(name_adapter(encoder, config, device=CPU))
    expected, plain = answers(adapter, tokens=True), logits(adapter.model, adapter)
    save_merged(adapter, tmp_path / "out", about={})
    found = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert not [name for name, _ in found.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(found, adapter), plain, atol=1e-4, rtol=1e-3)
    loaded = load_adapter(tmp_path / "out")
    assert loaded.language_model == ""
    assert answers(loaded, tokens=True) == expected


def test_siglip_towers_are_saved_with_their_pixels(tmp_path):
    encoder = tiny.save_encoder(tmp_path / "encoder", family="siglip")
    llm = tiny.save_decoder(tmp_path / "llm")
    made = stirred(tiny.make_tiny(encoder, region_sampler="prompter"))
    config = CONFIG.model_copy(update={"language_model": llm, "region_sampler": "prompter"})
    named = stirred(name_adapter(encoder, config, device=CPU))
    for number, adapter in enumerate((made, named)):
        save_adapter(adapter, tmp_path / str(number), about={})
        loaded = load_adapter(tmp_path / str(number))
        np.testing.assert_allclose(loaded.pixel_mean, (0.5,) * 3)
        assert answers(loaded, tokens=True) == answers(adapter, tokens=True)
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "0")
    torch.testing.assert_close(logits(plain, made), logits(made.model, made))


def one_line(error: pytest.ExceptionInfo[ClocError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_what_cannot_be_loaded_is_told(encoder, tmp_path):
    with pytest.raises(ConfigError) as error:
        load_adapter(tmp_path)
    assert str(tmp_path) in one_line(error)
    (tmp_path / "adapter.json").write_text("[]")
    with pytest.raises(ConfigError, match="no adapter here"):
        load_adapter(tmp_path)
    adapter = tiny.make_tiny(encoder, region_sampler="roi_align")
    save_adapter(adapter, tmp_path / "out", about={})
    for name in ("sampler.safetensors", "model.safetensors"):
        (tmp_path / "out" / name).rename(tmp_path / "away")
        with pytest.raises(ConfigError) as error:
            load_adapter(tmp_path / "out")
        assert str(tmp_path / "out") in one_line(error)
        (tmp_path / "away").rename(tmp_path / "out" / name)
    llm = tiny.save_decoder(tmp_path / "llm", "phi")
    named = name_adapter(encoder, CONFIG.model_copy(update={"language_model": llm}), device=CPU)
    with pytest.raises(ConfigError) as error:
        save_merged(named, tmp_path / "merged", about={})
    assert "bias" in one_line(error)
    save_adapter(named, tmp_path / "named", about={})
    (tmp_path / "llm").rename(tmp_path / "gone")
    with pytest.raises(ConfigError) as error:
        load_adapter(tmp_path / "named")
    assert llm in one_line(error)
