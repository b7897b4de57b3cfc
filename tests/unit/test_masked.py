"""The masked attention crop against the model's own pooling, and against attention written out."""

import pytest
import torch

from cloc.config.schema import ModelConfig, PrompterConfig, TextConfig, VisionConfig
from cloc.model.configuration import from_settings
from cloc.model.masked import patches_inside
from cloc.model.modeling import CLOCModel, CLOCSiglipModel

FAMILIES = {"clip": CLOCModel, "siglip": CLOCSiglipModel}
WHOLE = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])


def make(family: str):
    torch.manual_seed(0)
    config = ModelConfig(
        family=family,
        embed_dim=32,
        vision=VisionConfig(image_size=32, patch_size=8, width=32, layers=2, heads=2),
        text=TextConfig(width=16, layers=1, heads=2, context_length=12),
        prompter=PrompterConfig(),
    )
    model = FAMILIES[family](from_settings(config, vocab_size=300, bos=0, eos=1, pad=2))
    with torch.no_grad():  # as they come, attention is all but even and a mask changes little
        for name, weight in model.vision_model.named_parameters():
            if weight.ndim == 2 and "embeddings" not in name:
                weight.mul_(4)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_box_of_the_whole_input_gives_the_image_embedding(family: str) -> None:
    model = make(family)
    encoded = model.encode_image(torch.randn(3, 3, 32, 32), keep_pooled=True)
    regions = model.embed_masked(encoded.pooled_BND, WHOLE.expand(3, 2, 4))
    for place in (0, 1):
        torch.testing.assert_close(regions[:, place], encoded.embeds_BE, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_changes_no_feature(family: str) -> None:
    model, pixels = make(family), torch.randn(2, 3, 32, 32)
    kept, plain = model.encode_image(pixels, keep_pooled=True), model.encode_image(pixels)
    assert plain.pooled_BND is None
    assert torch.equal(kept.tokens_BND, plain.tokens_BND)
    assert torch.equal(kept.embeds_BE, plain.embeds_BE)


def test_clip_against_the_whole_layer_with_a_mask() -> None:
    """The last layer run as `transformers` has it, with an additive mask, once a box."""
    model = make("clip")
    box = torch.tensor([0.3, 0.1, 0.9, 0.6])
    encoded = model.encode_image(torch.randn(1, 3, 32, 32), keep_pooled=True)
    mask_N = torch.full((17,), -torch.inf)
    mask_N[0] = 0
    # Centres lie at 1/8, 3/8, 5/8, 7/8: columns 1 to 3, rows 0 and 1.
    mask_N[torch.tensor([1 + 4 * row + column for row in (0, 1) for column in (1, 2, 3)])] = 0
    left = model.vision_model.encoder.layers[-1](encoded.pooled_BND, mask_N.expand(1, 1, 17, 17))[:, 0]
    expected = model.visual_projection(model.vision_model.post_layernorm(left))
    found = model.embed_masked(encoded.pooled_BND, box[None, None])[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found - encoded.embeds_BE).norm() > 0.05 * encoded.embeds_BE.norm(), "the mask must matter"


def test_siglip_against_its_pool_over_the_boxs_patches() -> None:
    model = make("siglip")
    encoded = model.encode_image(torch.randn(1, 3, 32, 32), keep_pooled=True)
    inside = [4 * row + column for row in (2, 3) for column in (0, 1)]
    expected = model.vision_model.head(encoded.tokens_BND[:, inside])
    found = model.embed_masked(encoded.pooled_BND, torch.tensor([[[0.0, 0.5, 0.5, 1.0]]]))[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("box", "patches"),
    [
        ((0, 0, 1, 1), range(16)),
        ((0.126, 0, 0.3, 0.2), [0]),  # between two centres: the patch of its own centre
        ((0.98, 0.98, 1, 1), [15]),
        ((0.99, 0.1, 1.0, 0.2), [3]),
        ((0.25, 0.25, 0.75, 0.5), [5, 6]),
        ((0.0, 0.0, 0.0, 0.0), [0]),  # padding of a batch
    ],
)
def test_patches_inside(box, patches) -> None:
    found = patches_inside(torch.tensor([[box]], dtype=torch.float32), grid=4)[0, 0]
    assert found.nonzero()[:, 0].tolist() == list(patches)
