"""Prompts: boxes, points, masks and texts, what is refused and how, and the interface for people."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import cloc
from cloc.boxes import Letterbox
from cloc.config.schema import ModelConfig, PrompterConfig, TextConfig, VisionConfig
from cloc.model.api import CLOC
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel, tight_boxes
from cloc.model.processing import CLOCProcessor, train_tokenizer

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]], [[0.2, 0.3, 0.9, 0.4], [0.5, 0.5, 0.6, 0.6]]])


def build(**prompter) -> CLOCModel:
    torch.manual_seed(0)
    config = ModelConfig(
        embed_dim=24,
        vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, heads=2),
        text=TextConfig(width=16, layers=1, heads=2, context_length=12),
        prompter=PrompterConfig(**prompter),
    )
    settings = from_settings(config, vocab_size=600, bos=0, eos=1, pad=1)
    settings.cloc["points"] = True
    return CLOCModel(settings).eval()


@pytest.mark.parametrize("bias", ["none", "box"])
@pytest.mark.parametrize("pool", ["all", "prompt"])
def test_all_kinds_of_prompts_together_are_each_alone(bias: str, pool: str) -> None:
    """`prompt` shares keys and values of the image: the answers are those of separate calls."""
    model = build(spatial_bias=bias, pool=pool)
    tokens = model.encode_image(PIXELS).tokens_BND
    points, texts = torch.rand(2, 3, 2), torch.randn(2, 5, 24)
    together = model.prompt(tokens, boxes=BOXES, points=points, texts=texts)
    torch.testing.assert_close(together.boxes_BME, model.embed_boxes(tokens, BOXES))
    torch.testing.assert_close(together.points_BME, model.embed_points(tokens, points))
    torch.testing.assert_close(together.found_BM4, model.ground_texts(tokens, texts))
    assert together.points_BME.shape == (2, 3, 24)


def test_the_image_is_encoded_once_however_many_prompts() -> None:
    model, calls = build(), []
    model.vision_model.register_forward_hook(lambda *_: calls.append(1))
    many = torch.rand(2, 40, 2).sort(dim=1).values
    boxes = torch.cat([many * 0.5, many * 0.5 + 0.3], dim=-1)
    assert model.get_region_features(PIXELS, boxes).shape == (2, 40, 24)
    assert len(calls) == 1


@pytest.mark.parametrize("bias", ["none", "box"])
def test_points_tell_places_apart(bias: str) -> None:
    model = build(spatial_bias=bias)
    points = torch.tensor([[[0.1, 0.1], [0.9, 0.9], [0.1, 0.1]]]).expand(2, -1, -1)
    found = model.get_region_features(PIXELS, points=points)
    assert torch.equal(found[:, 0], found[:, 2])
    assert (found[:, 0] - found[:, 1]).abs().max() > 1e-3


def test_points_of_a_model_that_never_saw_any_are_refused() -> None:
    model = build()
    model.config.cloc["points"] = False
    with pytest.raises(ValueError, match=r"points: this model was not trained with point prompts.*loss\.point_share"):
        model.get_region_features(PIXELS, points=torch.rand(2, 1, 2))


def test_a_mask_is_prompted_by_its_tight_box() -> None:
    masks = torch.zeros(1, 2, 20, 40, dtype=torch.bool)
    masks[0, 0, 5:10, 8:20] = True
    masks[0, 0, 6, 10] = False
    masks[0, 1, 19, 39] = True
    expected = torch.tensor([[[8 / 40, 5 / 20, 20 / 40, 10 / 20], [39 / 40, 19 / 20, 1.0, 1.0]]])
    torch.testing.assert_close(tight_boxes(masks), expected)
    model = build()
    by_mask = model.get_region_features(PIXELS[:1], masks=masks)
    torch.testing.assert_close(by_mask, model.get_region_features(PIXELS[:1], expected))
    masks[0, 1] = False
    with pytest.raises(ValueError, match=r"masks\[0, 1\]: marks no pixel"):
        tight_boxes(masks)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[[0.5, 0.1, 0.5, 0.5]]], r"boxes\[0, 0\]: \[0.5, 0.1, 0.5, 0.5\] is empty \(x2 <= x1 .*left, top, right"),
        ([[[0.1, 0.1, 0.5, float("nan")]]], r"boxes\[0, 0\]: \[0.1, 0.1, 0.5, nan\] is not finite"),
        ([[[10, 10, 20, 20]]], r"boxes\[0, 0\]: \[10, 10, 20, 20\] lies outside \[0, 1\].*divide pixels"),
        ([[0.1, 0.1, 0.5, 0.5]], r"boxes: expected the shape \(images, prompts an image, 4\).*got \(1, 4\)"),
        ([[[0.1, 0.1, 0.5, 0.5]]] * 3, r"boxes: 3 rows of prompts for 1 images; give one row an image"),
    ],
)
def test_boxes_that_cannot_be_used_are_named_with_the_fix(boxes: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build().get_region_features(PIXELS[:1], torch.tensor(boxes))


def test_other_wrong_arguments_are_named_with_the_fix() -> None:
    model = build()
    with pytest.raises(ValueError, match="give exactly one of boxes, points, masks; got none"):
        model.get_region_features(PIXELS)
    with pytest.raises(ValueError, match="got boxes and points"):
        model.get_region_features(PIXELS, BOXES, points=torch.rand(2, 1, 2))
    with pytest.raises(
        ValueError, match=r"pixel_values: expected the shape \(images, 3, 32, 32\), got \(2, 3, 24, 24\)"
    ):
        model.get_region_features(PIXELS[..., :24, :24], BOXES)
    with pytest.raises(ValueError, match=r"texts of 13 tokens are longer than the text encoder takes \(12\); tokenize"):
        model.ground(PIXELS, torch.ones(1, 13, dtype=torch.long))
    tokens = model.encode_image(PIXELS).tokens_BND
    with pytest.raises(ValueError, match=r"texts: expected the shape \(images, prompts an image, 24\)"):
        model.ground_texts(tokens, torch.randn(2, 1, 23))


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), seed=st.integers(0, 99))
def test_boxes_survive_the_way_to_the_padded_frame_and_back(width: int, height: int, seed: int) -> None:
    frame = Letterbox(width, height, 224)
    corners = np.sort(np.random.default_rng(seed).random((5, 2, 2)), axis=1).reshape(5, 4)
    np.testing.assert_allclose(frame.from_padded(frame.to_padded(corners)), corners, rtol=0, atol=1e-6)


@pytest.fixture
def model() -> CLOC:
    tokenizer = train_tokenizer(["a red key", "a blue box"] * 3, vocab_size=600, context_length=12)
    return CLOC(build(spatial_bias="box"), CLOCProcessor(tokenizer, image_size=32, context_length=12))


def test_the_interface_for_people(model: CLOC, tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 20, 3), dtype=np.uint8))
    picture.save(tmp_path / "photo.png")
    photo = model.encode(tmp_path / "photo.png")
    assert photo.embedding.shape == (24,)
    assert np.linalg.norm(photo.embedding) == pytest.approx(1, abs=1e-5)
    boxes = [[0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1], [0.5, 0.5, 0.9, 0.7]]
    named = photo.classify(boxes, ["a red key", "a blue box"])
    assert len(named) == 3
    assert {label.text for label in named} <= {"a red key", "a blue box"}
    assert all(0.5 <= label.score <= 1 for label in named)
    found = photo.find("the red key")
    assert found.shape == (4,)
    assert ((found >= 0) & (found <= 1)).all()
    # A picture twice as high as wide fills the left half of the square: its box is narrower there.
    tokens = photo._tokens_1ND
    inner = model.model.embed_boxes(tokens, torch.tensor([[[0.05, 0.2, 0.25, 0.9]]]))
    np.testing.assert_allclose(
        photo.embed(boxes[:1])[0], torch.nn.functional.normalize(inner[0, 0], dim=-1).detach().numpy(), atol=1e-5
    )
    mask = np.zeros((1, 40, 20), dtype=bool)
    mask[0, 8:36, 2:10] = True
    np.testing.assert_allclose(photo.embed(masks=mask), photo.embed(boxes[:1]), atol=1e-5)
    assert photo.embed(points=[[0.5, 0.5], [0.1, 0.9]]).shape == (2, 24)


def test_the_interface_for_people_names_what_is_wrong(model: CLOC) -> None:
    photo = model.encode(Image.new("RGB", (30, 30)))
    with pytest.raises(ValueError, match=r"boxes\[0, 1\]: \[0.5, 0.5, 0.2, 0.9\] is empty"):
        photo.embed([[0, 0, 1, 1], [0.5, 0.5, 0.2, 0.9]])
    with pytest.raises(ValueError, match=r"texts: expected a list of at least one text, got 'a key'"):
        photo.classify([[0, 0, 1, 1]], "a key")
    with pytest.raises(ValueError, match="got none"):
        photo.embed()


def test_the_package_brings_it() -> None:
    assert cloc.CLOC is CLOC
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = cloc.Nothing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", ["none", "box"])
def test_half_precision_gives_the_same_answers(dtype: torch.dtype, bias: str) -> None:
    model, ids = build(spatial_bias=bias), torch.tensor([[0, 5, 7, 1]])
    regions, found = model.get_region_features(PIXELS, BOXES), model.ground(PIXELS, ids)
    model = model.to(dtype)
    half = model.get_region_features(PIXELS.to(dtype), BOXES)
    assert half.dtype == dtype
    assert torch.cosine_similarity(half.float(), regions, dim=-1).min() > 0.998
    torch.testing.assert_close(model.ground(PIXELS.to(dtype), ids), found, rtol=0, atol=0.01)
