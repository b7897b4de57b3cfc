"""open_clip checkpoints: names, shapes and outputs, against what open_clip's own code builds and computes.

open_clip does not run beside this torch, so its forward is written here anew, from the facts of its code (version 3):
nothing below shares code with the export, and a wrong order of query, key and value cannot pass.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from cloc.cli import cloc
from cloc.config.schema import LossConfig, ModelConfig, PrompterConfig, TextConfig, VisionConfig
from cloc.errors import ConfigError
from cloc.model import factory
from cloc.model.configuration import CLOCConfig, from_settings
from cloc.model.export import from_open_clip, to_open_clip
from cloc.model.export.open_clip_config import clip_config, open_clip_config
from cloc.model.export.open_clip_layout import to_open_clip_weights
from cloc.model.modeling import CLOCModel, CLOCSiglipModel
from cloc.model.processing import CLOCProcessor, train_tokenizer

ROOT = Path(__file__).parents[2]
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TEXTS = ["a red key", "A BLUE box near a red key", "box"]
# open_clip's model_configs/ViT-B-16.json.
B16 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["a red key", "a blue box"] * 3, vocab_size=300, context_length=12)


def settings(family: str = "clip") -> ModelConfig:
    return ModelConfig(
        family=family,
        embed_dim=24 if family == "clip" else 32,
        vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, heads=4, mlp_ratio=2.8),
        text=TextConfig(width=16, layers=2, heads=2, context_length=12),
        prompter=PrompterConfig(spatial_bias="box"),
    )


def build(tokenizer: Any, *, change: Callable[[CLOCConfig], None] = lambda config: None) -> CLOCModel:
    """A model of which every weight, biases and norms included, has a value of its own."""
    config = from_settings(
        settings(), vocab_size=len(tokenizer), bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id, pad=1
    )
    change(config)
    torch.manual_seed(0)
    model = CLOCModel(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim and name != "logit_bias":
                value.add_(torch.randn_like(value) * 0.1)
    return model


def processor(tokenizer: Any) -> CLOCProcessor:
    return CLOCProcessor(tokenizer, image_size=32, context_length=12)


def legacy(config: CLOCConfig) -> None:
    config.text_config.eos_token_id = 2


def quick(config: CLOCConfig) -> None:
    config.vision_config.hidden_act = config.text_config.hidden_act = "quick_gelu"
    config.vision_config.layer_norm_eps = 1e-3


def tanh(config: CLOCConfig) -> None:
    config.vision_config.hidden_act = config.text_config.hidden_act = "gelu_pytorch_tanh"


# open_clip's forward, written anew -----------------------------------------------------------------------------------


class Theirs:
    """open_clip's `CLIP` from a folder: its blocks are pre-norm, with nn.MultiheadAttention's stacked in_proj."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
        self.vision, self.text = config["vision_cfg"], config["text_cfg"]
        self.quick = config.get("quick_gelu", False)
        self.weights = load_file(folder / "open_clip_model.safetensors")

    def image(self, pixels: Tensor) -> Tensor:
        w = self.weights
        x = F.conv2d(pixels, w["visual.conv1.weight"], stride=self.vision["patch_size"]).flatten(2).mT
        x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], dim=1) + w["visual.positional_embedding"]
        x = self._norm("visual.ln_pre", x, self.vision)
        heads = self.vision["width"] // self.vision.get("head_width", 64)
        x = self._blocks("visual.transformer", x, self.vision, heads=heads, causal=False)
        return self._norm("visual.ln_post", x, self.vision)[:, 0] @ w["visual.proj"]

    def texts(self, ids: Tensor) -> Tensor:
        """`ids` are padded to the context length, as open_clip's tokenizers do and its forward needs."""
        w = self.weights
        x = w["token_embedding.weight"][ids] + w["positional_embedding"]
        x = self._blocks("transformer", x, self.text, heads=self.text["heads"], causal=True)
        x = self._norm("ln_final", x, self.text)
        eos = self.text.get("pool_type", "argmax") == "eos"
        where = (ids == self.text["eos_id"]).int().argmax(-1) if eos else ids.argmax(-1)
        return x[torch.arange(len(x)), where] @ w["text_projection"]

    def _blocks(self, name: str, x: Tensor, tower: Mapping[str, Any], *, heads: int, causal: bool) -> Tensor:
        size = x.shape[1]
        mask = torch.full((size, size), -math.inf).triu(1) if causal else None
        for index in range(tower["layers"]):
            block = f"{name}.resblocks.{index}"
            attention = nn.MultiheadAttention(x.shape[-1], heads, batch_first=True)
            prefix = f"{block}.attn."
            state = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
            attention.load_state_dict(state)
            normed = self._norm(f"{block}.ln_1", x, tower)
            x = x + attention(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
            hidden = self._linear(f"{block}.mlp.c_fc", self._norm(f"{block}.ln_2", x, tower))
            assert hidden.shape[-1] == int(x.shape[-1] * tower.get("mlp_ratio", 4.0))
            x = x + self._linear(f"{block}.mlp.c_proj", self._activation(hidden, tower))
        return x

    def _activation(self, x: Tensor, tower: Mapping[str, Any]) -> Tensor:
        return x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x, **tower.get("act_kwargs", {}))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor, tower: Mapping[str, Any]) -> Tensor:
        eps = tower.get("norm_kwargs", {}).get("eps", 1e-5)
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], eps)


def b16_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state of open_clip's ViT-B-16, as its modules register them."""

    def transformer(name: str, width: int) -> dict[str, tuple[int, ...]]:
        layer = {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (4 * width, width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (width, 4 * width),
            "mlp.c_proj.bias": (width,),
        }
        return {f"{name}.resblocks.{index}.{part}": shape for index in range(12) for part, shape in layer.items()}

    return {
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "logit_scale": (),
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (197, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 16, 16),
        "visual.ln_pre.weight": (768,),
        "visual.ln_pre.bias": (768,),
        "visual.ln_post.weight": (768,),
        "visual.ln_post.bias": (768,),
        "token_embedding.weight": (49408, 512),
        "ln_final.weight": (512,),
        "ln_final.bias": (512,),
        **transformer("visual.transformer", 768),
        **transformer("transformer", 512),
    }


def test_b16_has_the_names_and_shapes_of_open_clips_published_model(tokenizer: Any) -> None:
    sizes = {"hidden_act": "gelu", "projection_dim": 512}
    config = CLOCConfig(
        projection_dim=512,
        vision_config={"hidden_size": 768, "intermediate_size": 3072, "patch_size": 16, **sizes},
        text_config={"hidden_size": 512, "intermediate_size": 2048, "eos_token_id": 49407, **sizes},
    )
    config.vision_config.num_attention_heads = 12
    with torch.device("meta"):
        model = CLOCModel(config)
    weights = to_open_clip_weights(model.state_dict(), config)
    expected = b16_shapes()
    # The known size of the published model, by which the table itself is checked.
    assert (len(expected), sum(math.prod(shape) for shape in expected.values())) == (302, 149_620_737)
    assert {name: tuple(value.shape) for name, value in weights.items()} == expected

    written = open_clip_config(config, processor(tokenizer))["model_cfg"]
    extra = {"hf_tokenizer_name": "local-dir", "tokenizer_kwargs": {"clean": "lower"}}
    assert written == {
        "embed_dim": 512,
        "vision_cfg": B16["vision_cfg"] | {"head_width": 64},
        "text_cfg": B16["text_cfg"] | extra,
    }


def test_open_clips_own_b16_configuration_is_read() -> None:
    config = clip_config(B16, source="ViT-B-16.json")
    with torch.device("meta"):
        model = CLIPModel(config)
    weights = to_open_clip_weights(model.state_dict(), config)
    assert {name: tuple(value.shape) for name, value in weights.items()} == b16_shapes()
    assert (config.vision_config.num_attention_heads, config.vision_config.hidden_act) == (12, "gelu")
    assert clip_config(B16 | {"quick_gelu": True}, source="").text_config.hidden_act == "quick_gelu"


@pytest.mark.parametrize("change", [lambda config: None, legacy, quick, tanh], ids=["own", "legacy", "quick", "tanh"])
@torch.no_grad()
def test_open_clips_forward_over_the_export_equals_the_model(
    tmp_path: Path, tokenizer: Any, change: Callable[[CLOCConfig], None]
) -> None:
    model = build(tokenizer, change=change)
    to_open_clip(model, processor(tokenizer), out=tmp_path / "out")
    theirs = Theirs(tmp_path / "out")
    torch.testing.assert_close(theirs.image(PIXELS), model.encode_image(PIXELS).embeds_BE, rtol=1e-5, atol=1e-5)
    assert model.encode_image(PIXELS).embeds_BE.abs().max() > 0.1
    # Token ids as open_clip's HFTokenizer makes them: the folder's tokenizer, cleaned by "lower", to the full length.
    cleaned = [" ".join(text.split()).lower() for text in TEXTS]
    coded = AutoTokenizer.from_pretrained(tmp_path / "out")(
        cleaned, max_length=theirs.text["context_length"], padding="max_length", truncation=True, return_tensors="pt"
    )
    ours = model.encode_text(processor(tokenizer).tokenize(TEXTS))
    torch.testing.assert_close(theirs.texts(coded.input_ids), ours, rtol=1e-5, atol=1e-5)
    assert (ours[0] - ours[1]).abs().max() > 0.1


@pytest.mark.parametrize("change", [lambda config: None, legacy, quick, tanh], ids=["own", "legacy", "quick", "tanh"])
@torch.no_grad()
def test_import_gives_equal_outputs(tmp_path: Path, tokenizer: Any, change: Callable[[CLOCConfig], None]) -> None:
    model = build(tokenizer, change=change)
    written = to_open_clip(model, processor(tokenizer), out=tmp_path / "out")
    again, ids = from_open_clip(tmp_path / "out"), processor(tokenizer).tokenize(TEXTS)
    assert torch.equal(again.get_image_features(PIXELS).pooler_output, model.encode_image(PIXELS).embeds_BE)
    assert torch.equal(again.get_text_features(ids).pooler_output, model.encode_text(ids))
    assert torch.equal(again.logit_scale, model.logit_scale)
    # Everything but the region parts was written.
    assert set(written.left_out) == set(model.state_dict()) - set(again.state_dict()) - {"logit_bias"}
    assert any(name.startswith("prompter.") for name in written.left_out)


def test_training_can_start_from_an_open_clip_checkpoint(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the code of docs/export.md."""
    model = build(tokenizer)
    to_open_clip(model, processor(tokenizer), out=tmp_path / "downloaded")
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    exec(compile(code[1], "docs/export.md", "exec"), {})
    config = settings().model_copy(update={"init_from": "start"})
    started, made = factory.create(config, LossConfig(), tokenizer="start")
    with torch.no_grad():
        ours = model.encode_image(PIXELS).embeds_BE
        assert torch.equal(started.eval().encode_image(PIXELS).embeds_BE, ours)
    assert torch.equal(made.tokenize(TEXTS), processor(tokenizer).tokenize(TEXTS))


def test_custom_text_names_and_half_precision_are_read(tmp_path: Path, tokenizer: Any) -> None:
    """As open_clip's CustomTextCLIP, and its checkpoints in float16, lie on the hub."""
    model = build(tokenizer)
    to_open_clip(model, processor(tokenizer), out=tmp_path)
    path = tmp_path / "open_clip_model.safetensors"
    renamed = {
        name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": value.half()
        for name, value in load_file(path).items()
    }
    renamed["logit_scale"] = renamed["logit_scale"].reshape(1)
    save_file(renamed, path)
    again = from_open_clip(tmp_path)
    assert again.dtype == torch.float32
    with torch.no_grad():
        ours = model.encode_image(PIXELS).embeds_BE
        torch.testing.assert_close(again.get_image_features(PIXELS).pooler_output, ours, rtol=0.02, atol=0.02)


def test_a_sigmoid_models_bias_is_written_and_said_to_be_dropped_on_reading(tmp_path: Path, tokenizer: Any) -> None:
    model = build(tokenizer)
    with torch.no_grad():
        model.logit_bias.fill_(-7.5)
    to_open_clip(model, processor(tokenizer), out=tmp_path)
    assert json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["init_logit_bias"] == -7.5
    assert load_file(tmp_path / "open_clip_model.safetensors")["logit_bias"].item() == -7.5
    with pytest.warns(UserWarning, match=r"logit_bias -7\.5 is dropped"):
        from_open_clip(tmp_path)


def test_preprocessing_is_the_letterbox_as_far_as_open_clip_has_it(tmp_path: Path, tokenizer: Any) -> None:
    made = open_clip_config(build(tokenizer).config, processor(tokenizer))
    preprocess = made["preprocess_cfg"]
    assert (preprocess["resize_mode"], preprocess["interpolation"], preprocess["size"]) == ("longest", "bicubic", 32)
    assert isinstance(preprocess["fill_color"], int)  # a list breaks on grey images: torchvision pads before RGB
    assert preprocess["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert made["model_cfg"]["text_cfg"]["eos_id"] == tokenizer.eos_token_id == 1
    assert made["model_cfg"]["text_cfg"]["pool_type"] == "eos"


@pytest.mark.parametrize(("width", "hidden"), [(1664, 8192), (28, 61), (44, 60), (32, 128)])
def test_the_width_of_the_mlp_comes_back(tokenizer: Any, width: int, hidden: int) -> None:
    """open_clip says it as a ratio, and rounds the product down."""
    config = CLOCConfig(vision_config={"hidden_size": width, "intermediate_size": hidden, "num_attention_heads": 4})
    config.text_config.eos_token_id = 2
    config.vision_config.hidden_act = config.text_config.hidden_act
    again = clip_config(open_clip_config(config, processor(tokenizer))["model_cfg"], source="")
    assert again.vision_config.intermediate_size == hidden


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_cfg", "timm_model_name", "vit_base_patch16_siglip_224"),
        ("vision_cfg", "layers", [3, 4, 6, 3]),
        ("vision_cfg", "ls_init_value", 0.1),
        ("vision_cfg", "attentional_pool", True),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "image_size", [224, 336]),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "pool_type", "last"),
        ("text_cfg", "proj_type", "none"),
        ("text_cfg", "norm_kwargs", {"elementwise_affine": False}),
        ("model_cfg", "multimodal_cfg", {"width": 768}),
    ],
)
def test_what_a_clip_model_is_not_like_is_named(section: str, key: str, value: Any) -> None:
    changed = json.loads(json.dumps(B16))
    (changed if section == "model_cfg" else changed[section])[key] = value
    with pytest.raises(ConfigError, match=rf"it\.json: {section}\.{key} is ") as caught:
        clip_config(changed, source="it.json")
    assert "\n" not in str(caught.value)


def test_settings_without_effect_are_read_over() -> None:
    changed = json.loads(json.dumps(B16)) | {"custom_text": True, "init_logit_scale": 2.0}
    changed["vision_cfg"] |= {"timm_model_name": None, "timm_pool": "avg", "pool_type": "tok", "patch_dropout": 0.5}
    changed["text_cfg"] |= {"hf_tokenizer_name": "x/y", "pad_id": 0, "no_causal_mask": False, "proj_type": "linear"}
    assert clip_config(changed, source="").to_dict() == clip_config(B16, source="").to_dict()


def test_siglip_is_refused_for_open_clip(tmp_path: Path, tokenizer: Any) -> None:
    config = from_settings(settings("siglip"), vocab_size=300, bos=0, eos=1, pad=1)
    with pytest.raises(ConfigError, match=r"CLOCSiglipModel.*export to onnx"):
        to_open_clip(CLOCSiglipModel(config), processor(tokenizer), out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_export_refuses_what_open_clip_cannot_say(tmp_path: Path, tokenizer: Any) -> None:
    other = build(tokenizer, change=lambda config: setattr(config.text_config, "eos_token_id", 5))
    with pytest.raises(ConfigError, match=r"token 5 \(text_config.eos_token_id\), but its tokenizer ends them with 1"):
        to_open_clip(other, processor(tokenizer), out=tmp_path / "out")
    mixed = build(tokenizer, change=lambda config: setattr(config.vision_config, "hidden_act", "quick_gelu"))
    with pytest.raises(ConfigError, match=r"hidden_act 'quick_gelu' \(vision\) and 'gelu' \(text\)"):
        to_open_clip(mixed, processor(tokenizer), out=tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        to_open_clip(build(tokenizer), processor(tokenizer), out=tmp_path / "full")
    with pytest.raises(ConfigError, match="goes to a folder"):
        to_open_clip(build(tokenizer), processor(tokenizer), out="s3://bucket/out")
    assert [path.name for path in tmp_path.iterdir()] == ["full"], "nothing half-written is left"


def test_broken_checkpoints_are_one_line(tmp_path: Path, tokenizer: Any) -> None:
    def problem() -> str:
        with pytest.raises(ConfigError) as caught:
            from_open_clip(tmp_path / "out")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "cannot read" in problem()
    to_open_clip(build(tokenizer), processor(tokenizer), out=tmp_path / "out")
    path = tmp_path / "out" / "open_clip_model.safetensors"
    weights = load_file(path)
    save_file(weights | {"visual.extra": torch.zeros(1)}, path)
    assert "also has 1 weights, as visual.extra" in problem()
    save_file({name: value for name, value in weights.items() if name != "ln_final.bias"}, path)
    assert "lacks 1 weights, as ln_final.bias" in problem()
    save_file(weights | {"visual.proj": weights["visual.proj"].T.contiguous()}, path)
    assert "visual.proj is (24, 32) in the checkpoint, and (32, 24)" in problem()
    path.write_bytes(b"no weights")
    assert "cannot read" in problem()
    path.rename(path.with_name("open_clip_pytorch_model.bin"))
    assert "pickled weights are not read" in problem()
    (tmp_path / "out" / "open_clip_config.json").write_text("{}")
    assert "no model_cfg" in problem()


def test_the_command_says_what_is_left_out(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    build(tokenizer).save_pretrained(tmp_path / "model")
    processor(tokenizer).save_pretrained(tmp_path / "model")
    arguments = ["export", "--model", str(tmp_path / "model"), "--format", "open_clip", "--out", str(tmp_path / "out")]
    cloc.main(arguments, standalone_mode=False)
    said = capsys.readouterr().out
    assert "left out" in said
    assert "region parts" in said
    assert "top left" in said
    assert "open_clip 3.1" in said
    with torch.no_grad():
        theirs, ours = Theirs(tmp_path / "out").image(PIXELS), build(tokenizer).encode_image(PIXELS).embeds_BE
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="is not empty"):
        cloc.main(arguments, standalone_mode=False)


def test_help_loads_no_torch() -> None:
    script = (
        "import sys\nfrom cloc.cli import cloc\ncloc.main(['export', '--help'], standalone_mode=False)\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
