"""Starts and families: public checkpoints of CLIP and SigLIP, other input sizes, LLaVA's tower, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipImageProcessorPil,
    SiglipModel,
)

from cloc.config.schema import LossConfig, ModelConfig, PrompterConfig, TextConfig, VisionConfig
from cloc.errors import ConfigError
from cloc.model import factory
from cloc.model.configuration import CLOCConfig, from_settings
from cloc.model.modeling import CLOCModel, CLOCSiglipModel
from cloc.model.processing import CLOCProcessor, train_tokenizer
from tests.conftest import assert_same

BOXES = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]]])
LOSS = LossConfig(init_scale=5.0, init_bias=-4.0)


def settings(family: str = "clip", **prompter) -> ModelConfig:
    return ModelConfig(
        family=family,
        embed_dim=32,
        vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, heads=2),
        text=TextConfig(width=16, layers=1, heads=2, context_length=12),
        prompter=PrompterConfig(**prompter),
    )


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red key", "a blue box"] * 3, vocab_size=300, context_length=12)


def public(folder: Path, tokenizer, family: str) -> torch.nn.Module:
    """A checkpoint as a hub has it: the plain class's weights, its tokenizer, its image processor."""
    torch.manual_seed(0)
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    config = from_settings(settings(family), vocab_size=len(tokenizer), **ids)
    config.cloc = None
    model = {"clip": CLIPModel, "siglip": SiglipModel}[family](config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = CLIPImageProcessorPil if family == "clip" else SiglipImageProcessorPil
    processor(size={"height": 32, "width": 32}).save_pretrained(folder)
    body = json.loads((folder / "config.json").read_text())
    body.pop("cloc")
    (folder / "config.json").write_text(json.dumps(body))
    return model


def start(folder: Path, **changes) -> tuple[factory.AnyCLOCModel, CLOCProcessor]:
    config = settings(**changes.pop("prompter", {})).model_copy(update={"init_from": str(folder), **changes})
    model, processor = factory.create(config, LOSS, tokenizer=str(folder))
    return model.eval(), processor


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_public_checkpoint_keeps_features_pixels_and_temperature(tmp_path: Path, tokenizer, family: str) -> None:
    source = public(tmp_path / "hub", tokenizer, family)
    model, processor = start(tmp_path / "hub")
    pixels, ids = torch.randn(2, 3, 32, 32), processor.tokenize(["A red KEY", "a blue box"])
    assert_same(model.encode_image(pixels).embeds_BE, source.get_image_features(pixels).pooler_output)
    assert_same(model.encode_text(ids), source.get_text_features(ids).pooler_output)
    assert torch.equal(model.logit_scale, source.logit_scale)
    assert model.region_logit_scale.exp().item() == pytest.approx(5.0)
    assert model.region_logit_bias.item() == -4.0
    if family == "siglip":
        assert torch.equal(model.logit_bias, source.logit_bias)
        assert processor.pixel_mean == (0.5, 0.5, 0.5)
        assert ids.shape == (2, 12)
    gray = processor.normalize(torch.full((1, 32, 32, 3), 128, dtype=torch.uint8))
    mean, std = (torch.tensor(values) for values in (processor.pixel_mean, processor.pixel_std))
    torch.testing.assert_close(gray[0, :, 0, 0], (128 / 255 - mean) / std)


@pytest.mark.parametrize("bias", ["none", "box"])
@pytest.mark.parametrize("kind", ["transformer", "roi_align"])
def test_siglip_answers_like_clip_and_saves_as_siglip(tmp_path: Path, tokenizer, bias: str, kind: str) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = settings("siglip", kind=kind, spatial_bias=bias)
    model, processor = factory.create(config, LossConfig(), tokenizer=str(tmp_path / "tokenizer"))
    assert isinstance(model, CLOCSiglipModel)
    model.eval().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    pixels, ids = torch.randn(1, 3, 32, 32), processor.tokenize(["a red key"])
    regions = model.get_region_features(pixels, BOXES)
    assert regions.shape == (1, 2, 32)
    tokens = model.encode_image(pixels).tokens_BND
    assert tokens.shape == (1, 16, 32)
    assert model.embed_roi(tokens, BOXES).shape == (1, 2, 32)
    again, loaded = factory.load(tmp_path / "model")
    assert_same(again.get_region_features(pixels, BOXES), regions)
    assert (loaded.pad_to_full_length, loaded.context_length) == (True, 12)
    if kind == "transformer":
        assert model.ground(pixels, ids).shape == (1, 1, 4)
    plain = SiglipModel.from_pretrained(tmp_path / "model")
    assert_same(plain.get_image_features(pixels).pooler_output, model.encode_image(pixels).embeds_BE)
    assert_same(plain.get_text_features(ids).pooler_output, model.encode_text(ids))
    with pytest.raises(ValueError, match="input_ids: SigLIP takes texts padded to 12 tokens, got 5"):
        model.encode_text(ids[:, :5])


def test_siglip_reads_a_box_over_the_whole_image_as_its_own_head_does(tokenizer) -> None:
    """A grid of samples at the token centres is the token map itself, so the attention pool must agree."""
    from cloc.model import modeling

    torch.manual_seed(0)
    model = CLOCSiglipModel(from_settings(settings("siglip"), vocab_size=50, bos=0, eos=1, pad=1)).eval()
    image = model.encode_image(torch.randn(2, 3, 32, 32))
    whole = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]).expand(2, -1, -1)
    patch = pytest.MonkeyPatch()
    patch.setattr(modeling, "_SAMPLES", model.grid)
    read = model.embed_roi(image.tokens_BND, whole)[:, 0]
    patch.undo()
    torch.testing.assert_close(read, image.embeds_BE, rtol=1e-4, atol=1e-5)


def test_siglip_widths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"embed_dim 24: .* set it to 32"):
        ModelConfig(family="siglip", embed_dim=24, vision=VisionConfig(width=32, heads=2))
    with pytest.raises(ValueError, match=r"prompter\.heads 5 must divide vision\.width 32"):
        ModelConfig(vision=VisionConfig(width=32, heads=2), prompter=PrompterConfig(heads=5))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_another_input_size_interpolates_positions(tmp_path: Path, tokenizer, family: str) -> None:
    source = public(tmp_path, tokenizer, family)
    with torch.no_grad():  # a ramp over the columns, so that the interpolation has a known answer
        table = source.vision_model.embeddings.position_embedding.weight
        table[-16:] = torch.arange(4.0).repeat(4)[:, None]
    source.save_pretrained(tmp_path)
    bigger, processor = start(tmp_path, init_image_size=64)
    assert processor.image_size == 64
    assert bigger.encode_image(torch.randn(1, 3, 64, 64)).tokens_BND.shape[1] == 64 + bigger.prefix_tokens
    columns = bigger.vision_model.embeddings.position_embedding.weight[-64:, 0].view(8, 8)
    torch.testing.assert_close(columns[3, 2:6], torch.tensor([0.75, 1.25, 1.75, 2.25]), rtol=0, atol=0.1)
    torch.testing.assert_close(columns[0], columns[7])
    same, _ = start(tmp_path, init_image_size=32)
    assert torch.equal(same.vision_model.embeddings.position_embedding.weight, table)
    with pytest.raises(ConfigError, match="init_image_size 60 must be divisible by the patch size 8"):
        start(tmp_path, init_image_size=60)


def test_the_saved_folder_is_llavas_vision_tower(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CLOCModel(from_settings(settings(spatial_bias="box"), vocab_size=50, bos=0, eos=1, pad=1)).eval()
    model.save_pretrained(tmp_path)
    config = CLOCConfig.from_pretrained(tmp_path).vision_config
    llama = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    llava = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=config,
            text_config=llama,
            image_token_index=5,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    ).eval()
    tower = type(llava.model.vision_tower).from_pretrained(tmp_path)
    llava.model.vision_tower = tower
    pixels = torch.randn(2, 3, 32, 32)
    expected = llava.model.multi_modal_projector(model.encode_image(pixels).tokens_BND)
    given = torch.cat(list(llava.model.get_image_features(pixel_values=pixels).pooler_output)).view_as(expected)
    assert torch.equal(given, expected)


def test_the_saved_processor_is_one_of_transformers(tmp_path: Path, tokenizer) -> None:
    model = CLOCModel(from_settings(settings(), vocab_size=len(tokenizer), bos=0, eos=1, pad=1))
    model.save_pretrained(tmp_path)
    CLOCProcessor(tokenizer, image_size=32, context_length=12).save_pretrained(tmp_path)
    described = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    assert list(described.image_processor.image_mean) == list(
        CLOCProcessor(tokenizer, image_size=1, context_length=4).pixel_mean
    )


def test_the_wrong_family_or_width_is_a_value_error_with_the_fix(tmp_path: Path, tokenizer) -> None:
    public(tmp_path / "siglip", tokenizer, "siglip")
    with pytest.raises(ValueError, match=r"model_type 'siglip' does not fit this class.*factory.load"):
        CLOCModel.from_pretrained(tmp_path / "siglip")
    public(tmp_path / "clip", tokenizer, "clip")
    config = CLOCConfig.from_pretrained(tmp_path / "clip")
    config.vision_config.hidden_size = 64
    with pytest.raises(
        ValueError, match=r"\d+ weights have other shapes .*as vision\S+: \(.*\(64.* expected; .*set the sizes"
    ):
        CLOCModel.from_pretrained(tmp_path / "clip", config=config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_is_trained_in_float32(tmp_path: Path, tokenizer, dtype: torch.dtype) -> None:
    source = public(tmp_path, tokenizer, "clip")
    source.to(dtype).save_pretrained(tmp_path)
    started, _ = start(tmp_path)
    started.save_pretrained(tmp_path / "half", state_dict={n: p.to(dtype) for n, p in started.state_dict().items()})
    CLOCProcessor(tokenizer, image_size=32, context_length=12).save_pretrained(tmp_path / "half")
    for model in (started, factory.load(tmp_path / "half")[0]):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert torch.equal(model.visual_projection.weight, source.visual_projection.weight.float())


def test_pickled_weights_are_refused(tmp_path: Path, tokenizer) -> None:
    source = public(tmp_path, tokenizer, "clip")
    (tmp_path / "model.safetensors").unlink()
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"cannot load the checkpoint .*safetensors") as caught:
        start(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path, tokenizer) -> None:
    public(tmp_path, tokenizer, "clip")
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 weights of a CLOCModel, as visual_projection.weight"):
        start(tmp_path)


def test_unknown_families_and_missing_pixel_statistics_are_named(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(ConfigError, match="its model_type is 'siglip2'; there are clip, siglip"):
        factory.load(tmp_path / "other")
    public(tmp_path / "clip", tokenizer, "clip")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="no image_mean and image_std"):
        start(tmp_path / "clip")


def test_points_need_a_prompter(tmp_path: Path, tokenizer) -> None:
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"loss\.point_share: RoIAlign takes no points"):
        factory.create(settings(kind="roi_align"), LossConfig(point_share=0.5), tokenizer=str(tmp_path))
