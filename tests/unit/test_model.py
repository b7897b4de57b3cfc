"""The model: shapes, the drop-in property, readers with known answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPVisionModel

from cloc.config.schema import LossConfig, ModelConfig, PrompterConfig, TextConfig, VisionConfig
from cloc.errors import ConfigError
from cloc.model import factory
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel
from cloc.model.processing import CLOCProcessor, train_tokenizer
from cloc.model.prompter import PrompterLayer, coverage, grid_centres, sinusoidal
from cloc.model.roi_align import roi_align
from tests.conftest import assert_same

BOXES = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]], [[0.2, 0.3, 0.9, 0.4], [0.5, 0.5, 0.6, 0.6]]])


def small(**prompter) -> ModelConfig:
    return ModelConfig(
        embed_dim=24,
        vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, heads=2),
        text=TextConfig(width=16, layers=1, heads=2, context_length=12),
        prompter=PrompterConfig(**prompter),
    )


def build(**prompter) -> CLOCModel:
    torch.manual_seed(0)
    return CLOCModel(from_settings(small(**prompter), vocab_size=50, bos=0, eos=1, pad=1)).eval()


@pytest.mark.parametrize("pool", ["all", "image", "prompt"])
@pytest.mark.parametrize("bias", ["none", "box"])
@pytest.mark.parametrize("layers", [1, 2])
def test_regions_and_boxes_have_the_documented_shapes(pool: str, bias: str, layers: int) -> None:
    model = build(pool=pool, spatial_bias=bias, layers=layers, heads=2)
    tokens = model.encode_image(torch.randn(2, 3, 32, 32)).tokens_BND
    assert tokens.shape == (2, 17, 32)
    assert model.embed_boxes(tokens, BOXES).shape == (2, 2, 24)
    boxes = model.ground_texts(tokens, torch.randn(2, 5, 24))
    assert boxes.shape == (2, 5, 4)
    assert ((boxes >= 0) & (boxes <= 1)).all()


@pytest.mark.parametrize("pool", ["all", "prompt"])
def test_a_prompt_does_not_see_its_neighbours(pool: str) -> None:
    """Sharing the image's keys among prompts is an optimisation: each prompt alone gives the same."""
    model = build(pool=pool, spatial_bias="box", layers=2)
    tokens = model.encode_image(torch.randn(2, 3, 32, 32)).tokens_BND
    together = model.embed_boxes(tokens, BOXES)
    for index in range(2):
        alone = model.embed_boxes(tokens, BOXES[:, index : index + 1])
        torch.testing.assert_close(together[:, index : index + 1], alone, rtol=1e-4, atol=1e-5)


def test_prompter_layer_equals_plain_attention_over_the_joined_sequence() -> None:
    torch.manual_seed(0)
    layer = PrompterLayer(16, heads=2)
    prompt, image = torch.randn(2, 3, 2, 16), torch.randn(2, 1, 5, 16)
    new_prompt, new_image = layer(prompt, image, None, image_output=True)
    joined = torch.cat([prompt, image.expand(-1, 3, -1, -1)], dim=2).flatten(0, 1)
    normed = layer.attention_norm(joined)
    q = layer.query(normed).unflatten(-1, (2, 8)).transpose(1, 2)
    k, v = layer.key_value(normed).unflatten(-1, (2, 16)).transpose(1, 2).chunk(2, dim=-1)
    attended = ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(-2)
    joined = joined + layer.output(attended)
    joined = (joined + layer.mlp(layer.mlp_norm(joined))).unflatten(0, (2, 3))
    torch.testing.assert_close(new_prompt, joined[:, :, :2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new_image, joined[:, :, 2:], rtol=1e-4, atol=1e-5)


def test_the_saved_folder_is_a_clip_checkpoint(tmp_path: Path) -> None:
    model, pixels, ids = build(), torch.randn(2, 3, 32, 32), torch.tensor([[0, 5, 7, 1]])
    model.save_pretrained(tmp_path)
    image = model.encode_image(pixels)
    clip, vision = CLIPModel.from_pretrained(tmp_path), CLIPVisionModel.from_pretrained(tmp_path)
    assert_same(clip.get_image_features(pixels).pooler_output, image.embeds_BE)
    assert_same(clip.get_text_features(ids).pooler_output, model.encode_text(ids))
    assert_same(vision(pixels).last_hidden_state, image.tokens_BND)
    again = CLOCModel.from_pretrained(tmp_path)
    assert_same(again.embed_boxes(image.tokens_BND, BOXES), model.embed_boxes(image.tokens_BND, BOXES))


def test_starting_from_a_clip_checkpoint_keeps_its_features(tmp_path: Path) -> None:
    source = CLIPModel(from_settings(small(), vocab_size=300, bos=0, eos=1, pad=1))
    source.save_pretrained(tmp_path)
    tokenizer = train_tokenizer(["a red key"] * 3, vocab_size=300, context_length=12)
    CLOCProcessor(tokenizer, image_size=32, context_length=12).save_pretrained(tmp_path)
    config = small(spatial_bias="box").model_copy(update={"init_from": str(tmp_path)})
    model, _ = factory.create(config, LossConfig(init_scale=5.0), tokenizer=str(tmp_path))
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(
        model.eval().encode_image(pixels).embeds_BE, source.eval().get_image_features(pixels).pooler_output
    )
    assert model.prompter.spatial_bias == "box"
    assert model.prompter.layers[0].query.weight.std() > 0
    assert torch.equal(model.logit_scale, source.logit_scale), "the checkpoint's own temperature is kept"
    assert model.region_logit_scale.exp().item() == pytest.approx(5.0)


def test_a_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot load the model") as caught:
        factory.load(tmp_path / "nothing")
    assert "\n" not in str(caught.value)


def test_roi_align_of_a_ramp_is_the_mean_position() -> None:
    """Tokens that hold their own position: the mean over a box inside the grid's centres is the box's centre."""
    grid = 8
    tokens = grid_centres(grid)[None]
    box = torch.tensor([[[0.2, 0.3, 0.6, 0.8], [0.5, 0.5, 0.7, 0.6]]])
    torch.testing.assert_close(roi_align(tokens, box), torch.tensor([[[0.4, 0.55], [0.6, 0.55]]]))


def test_coverage_is_the_share_of_each_cell() -> None:
    covered = coverage(torch.tensor([[[0.25, 0.0, 0.75, 0.5]]]), grid=2)
    torch.testing.assert_close(covered, torch.tensor([[[0.5, 0.5, 0.0, 0.0]]]))


def test_sinusoidal_tells_points_apart_and_checks_its_width() -> None:
    codes = sinusoidal(torch.tensor([[0.1, 0.2], [0.11, 0.2], [0.9, 0.2]]), width=64)
    assert codes.shape == (3, 64)
    near, far = (codes[0] - codes[1]).norm(), (codes[0] - codes[2]).norm()
    assert 0 < near < far
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        sinusoidal(torch.zeros(1, 2), width=6)


def test_grounding_needs_a_prompter() -> None:
    model = build(kind="roi_align")
    tokens = model.encode_image(torch.randn(2, 3, 32, 32)).tokens_BND
    assert model.embed_boxes(tokens, BOXES).shape == (2, 2, 24)
    with pytest.raises(ValueError, match="cannot ground"):
        model.ground_texts(tokens, torch.randn(2, 1, 24))


def test_processor_lowers_truncates_and_round_trips(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a large red key"] * 9, vocab_size=540, context_length=8)
    processor = CLOCProcessor(tokenizer, image_size=32, context_length=8)
    ids = processor.tokenize(["A Large RED key", "key " * 50])
    assert ids.shape == (2, 8)
    assert ids[1, -1] == tokenizer.eos_token_id
    assert torch.equal(ids[:1], processor.tokenize(["a large red key", "key " * 50])[:1])
    processor.save_pretrained(tmp_path)
    config = from_settings(small(), vocab_size=540, bos=0, eos=1, pad=1)
    config.text_config.max_position_embeddings = 8
    again = CLOCProcessor.for_model(config, tokenizer=tmp_path, images=tmp_path)
    assert (again.pixel_mean, again.pixel_std) == (processor.pixel_mean, processor.pixel_std)
    hostile = ["\x00 ☃ <b>日本</b>", ""]
    assert torch.equal(again.tokenize(hostile), processor.tokenize(hostile))
    pixels = processor.pixels([Image.fromarray(np.full((10, 20, 3), 255, np.uint8))])
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[0, 0, 0, 0] > 1.5  # white
    assert pixels[0, :, -1, 0].abs().max() < 0.01  # padding is the mean
