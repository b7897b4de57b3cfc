"""The parts that teachers are fitted with: data, texts, matching, losses, the start as a convolution, the loop."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cloc.config.schema import TowerConfig, VisionConfig
from cloc.data.dataset import Dataset
from cloc.errors import ConfigError, DataError, TrainingError
from cloc.labeling.teachers.data import Picture, Pictures, PictureSettings
from cloc.labeling.teachers.detector import detector_batch, detector_losses, make_detector
from cloc.labeling.teachers.fitting import Schedule, fit
from cloc.labeling.teachers.initial import HEADS, start_as_convolution
from cloc.labeling.teachers.losses import contrast_loss, focal_loss
from cloc.labeling.teachers.matching import generalized_iou, match, middles, to_cxcywh, to_xyxy
from cloc.labeling.teachers.texts import core, fit_tokenizer, naming

TEXTS = ["a red key left of two large blue apples", "red key", "blue apple", "small green box"] * 4


def _pictures(data: str, *, cache: int = 100, held_out: float = 0.25) -> Pictures:
    settings = PictureSettings(size=32, min_side=8, max_pixels=10**6, min_box_side=0.01, held_out=held_out)
    return Pictures(Dataset.open(data), settings, phrases=lambda captions: [" ".join(captions)], cache=cache)


def _keys(pictures: Pictures, epoch: int = 0) -> list[str]:
    return [each.key for each in pictures.epoch(np.random.default_rng(epoch))]


# Data


@pytest.mark.parametrize("cache", [100, 5], ids=["kept", "streamed"])
def test_an_epoch_has_every_image_once_and_none_that_is_held_out(
    tmp_path: Path, make_dataset: Callable[..., str], cache: int
) -> None:
    pictures = _pictures(make_dataset(tmp_path / "data", 40), cache=cache)
    held_out = {sample.sample.key for sample in pictures.held_out()}
    keys = _keys(pictures)
    assert 0 < len(held_out) < 40
    assert sorted([*keys, *held_out]) == [f"{number:06d}" for number in range(40)]
    assert _keys(pictures, 0) == keys != _keys(pictures, 1)


def test_a_picture_is_stretched_and_keeps_its_boxes(tmp_path: Path, make_dataset: Callable[..., str]) -> None:
    data = make_dataset(tmp_path / "data", 4, sizes=[(64, 16)])
    picture = next(_pictures(data, held_out=0.001).epoch(np.random.default_rng(0)))
    assert picture.pixels_SS3.shape == (32, 32, 3)
    x, y = ((picture.boxes_G4[0, :2] + picture.boxes_G4[0, 2:]) / 2 * 32).astype(int)
    color = picture.texts[0].split()[0]
    assert {0: "red", 1: "green", 2: "blue"}.get(
        int(picture.pixels_SS3[y, x].argmax()), ""
    ) == color or color == "yellow"


def test_a_broken_image_is_counted_and_left_out(tmp_path: Path, make_dataset: Callable[..., str]) -> None:
    pictures = _pictures(make_dataset(tmp_path / "data", 8, broken=[3]), held_out=0.001)
    assert "000003" not in _keys(pictures)
    assert pictures.unusable == 1


def test_texts_are_not_those_of_held_out_images(tmp_path: Path, make_dataset: Callable[..., str]) -> None:
    pictures = _pictures(make_dataset(tmp_path / "data", 40))
    assert len(list(pictures.texts())) == 3 * (40 - len(list(pictures.held_out())))


def test_data_without_what_is_learned_from_is_refused(tmp_path: Path, make_dataset: Callable[..., str]) -> None:
    pictures = _pictures(make_dataset(tmp_path / "data", 8, regions=False))
    with pytest.raises(DataError, match="human captions and human boxes"):
        next(pictures.batches(2, seed=0, keep=lambda picture: len(picture.texts) > 0))


# Texts


@pytest.mark.parametrize(
    ("text", "head", "words"),
    [
        ("two large red keys", "key", {"large", "red", "key"}),
        ("The man in a blue shirt", "man", {"man"}),
        ("candy cane", "cane", {"candy", "cane"}),
        ("of the", "", set()),
        ("", "", set()),
    ],
)
def test_the_core_of_a_text(text: str, head: str, words: set[str]) -> None:
    found = core(text)
    assert found.head == head
    assert found.words >= words
    assert "in" not in found.words


def test_which_queries_name_a_box() -> None:
    queries = ["key", "red keys", "large red key", "blue key", "red apple", "keyboard"]
    assert naming([("red key", "key")], [frozenset()], queries).tolist() == [[1, 1, -1, 0, 0, 0]]


def test_what_an_images_own_people_say_more_of_a_box_names_it() -> None:
    names = naming([("key", "key")], [frozenset({"red key"})], ["red key", "blue key"])
    assert names.tolist() == [[1, -1]]


def test_the_tokenizer_ends_texts_with_its_highest_entry() -> None:
    tokenizer = fit_tokenizer(TEXTS, vocab_size=700, context_length=16)
    ids = tokenizer(["red key", "a red key left of two large blue apples"], padding=True)["input_ids"]
    end = len(tokenizer) - 1
    assert tokenizer.eos_token_id == end
    assert ids[0].index(end) == 3  # start, red, key, end
    assert tokenizer.decode(ids[1], skip_special_tokens=True) == TEXTS[0]
    assert tokenizer.get_vocab() == fit_tokenizer(TEXTS, vocab_size=700, context_length=16).get_vocab()


def test_no_text_makes_no_tokenizer() -> None:
    with pytest.raises(ConfigError, match="tokenizer"):
        fit_tokenizer([], vocab_size=700, context_length=16)


# Matching


def test_generalized_iou_by_hand() -> None:
    one = torch.tensor([0.0, 0.0, 0.5, 0.5])
    others = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.25, 0.0, 0.75, 0.5]])
    found = generalized_iou(one, others)
    assert torch.allclose(found, torch.tensor([1.0, -0.5, 1 / 3]), atol=1e-6)
    assert torch.allclose(to_xyxy(to_cxcywh(others)), others)


def test_middles_are_row_by_row() -> None:
    assert torch.allclose(middles(1, 2), torch.tensor([[0.25, 0.5], [0.75, 0.5]]))


def test_a_box_is_matched_to_the_patch_in_its_middle() -> None:
    places_P2 = middles(4, 4)
    truth_G4 = torch.tensor([[0.5, 0.0, 0.74, 0.24], [0.0, 0.75, 0.25, 1.0]])
    boxes_P4 = torch.cat([places_P2, torch.full((16, 2), 0.25)], dim=1)
    assert match(boxes_P4, torch.zeros(16, 2), truth_G4, places_P2).tolist() == [2, 12]


def test_matching_is_one_to_one_and_of_least_cost() -> None:
    torch.manual_seed(0)
    places_P2, corner_G2 = middles(2, 2), 0.5 * torch.rand(3, 2)
    truth_G4 = torch.cat([corner_G2, corner_G2 + 0.3], dim=1)
    boxes_P4, scores_PG = torch.rand(4, 4), torch.rand(4, 3)
    cost_PG = (
        50 * torch.cdist(places_P2, to_cxcywh(truth_G4)[:, :2])
        + 5 * torch.cdist(boxes_P4, to_cxcywh(truth_G4), p=1)
        - 2 * generalized_iou(to_xyxy(boxes_P4)[:, None], truth_G4[None])
        - 2 * scores_PG
    )
    orders = itertools.permutations(range(4), 3)
    best = min(orders, key=lambda order: sum(float(cost_PG[p, g]) for g, p in enumerate(order)))
    assert tuple(match(boxes_P4, scores_PG, truth_G4, places_P2)) == best


def test_more_boxes_than_patches_leave_some_out() -> None:
    truth_G4 = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.9, 0.9]])
    found = match(torch.tensor([[0.5, 0.5, 1.0, 1.0]]), torch.zeros(1, 2), truth_G4, middles(1, 1))
    assert sorted(found.tolist()) == [-1, 0]


# Losses


def _plain_focal(logits: torch.Tensor, names: dict[tuple[int, int], list[int]]) -> torch.Tensor:
    total = torch.zeros((), dtype=logits.dtype)
    for b, p, q in itertools.product(*map(range, logits.shape)):
        name = names.get((b, p), [0] * logits.shape[2])[q]
        chance = torch.sigmoid(logits[b, p, q])
        if name == 1:
            total = total - 0.25 * (1 - chance) ** 2 * torch.log(chance)
        elif name == 0:
            total = total - 0.75 * chance**2 * torch.log(1 - chance)
    return total / len(names)


def test_focal_loss_and_gradient_against_a_plain_one() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    names = {(0, 1): [1, 0, -1, 0], (1, 2): [0, 1, 1, -1]}
    image, patch = (torch.tensor(part) for part in zip(*names, strict=True))
    loss = focal_loss(logits, image, patch, torch.tensor(list(names.values())))
    plain = _plain_focal(logits, names)
    assert torch.allclose(loss, plain)
    gradients = [torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (loss, plain)]
    assert torch.allclose(*gradients)


def test_contrast_loss_against_a_plain_one() -> None:
    torch.manual_seed(0)
    similarity = torch.randn(2, 4, dtype=torch.float64)
    names = torch.tensor([[1, 1, 0, -1], [0, -1, 1, 0]])
    rows = []
    for cosines, named in zip((3.0 * similarity).exp(), names, strict=True):
        others = cosines[named == 0].sum()
        rows.append(torch.stack([-torch.log(one / (one + others)) for one in cosines[named == 1]]).mean())
    assert torch.allclose(contrast_loss(similarity, names, scale=3.0), torch.stack(rows).mean())


# The start as a convolution


def _detector(distances: tuple[int, ...], *, heads: int = HEADS, seed: int = 0) -> nn.Module:
    tokenizer = fit_tokenizer(TEXTS, vocab_size=700, context_length=16)
    vision = VisionConfig(width=96, layers=2, heads=heads, image_size=48, patch_size=8)
    text = TowerConfig(width=32, layers=1, heads=2)
    return make_detector(vision, text, tokenizer, distances=distances, seed=seed)


def test_every_head_starts_by_looking_at_its_neighbour() -> None:
    tower = _detector((1, 2)).owlvit.vision_model
    tower.set_attn_implementation("eager")
    torch.manual_seed(1)
    with torch.no_grad():
        looks = tower(pixel_values=torch.randn(2, 3, 48, 48), output_attentions=True).attentions
    ring = ((-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1))
    for look_BHPP, distance in zip(looks, (1, 2), strict=True):
        for head, (right, down) in enumerate(ring):
            column, row = 2 + right * distance, 2 + down * distance
            assert look_BHPP[:, head, 1 + 2 * 6 + 2, 1:].argmax(dim=-1).tolist() == [row * 6 + column] * 2


def test_heads_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="4 heads of 24 channels"):
        start_as_convolution(_detector((), heads=4).owlvit.vision_model, distances=(1, 1), seed=0)


# The detector's batch, and the loop


def _picture(number: int, texts: tuple[str, ...]) -> Picture:
    rng = np.random.default_rng(number)
    boxes = np.array([[0.1, 0.1, 0.4, 0.5], [0.5, 0.4, 0.9, 0.9]], dtype=np.float32)[: len(texts)]
    values = {"key": str(number), "pixels_SS3": rng.integers(0, 256, (48, 48, 3), dtype=np.uint8), "captions": ()}
    values |= {"phrases": ("large red key",), "boxes_G4": boxes.reshape(-1, 4), "texts": texts}
    values |= {"labels": ("",) * len(texts)}
    known = Picture.__dataclass_fields__
    return Picture(**{**{name: "" for name in known if name not in values}, **values})


def test_losses_of_a_batch_with_an_empty_image_are_finite_and_reach_every_trained_weight() -> None:
    tokenizer = fit_tokenizer(TEXTS, vocab_size=700, context_length=16)
    pictures = [_picture(0, ("red key", "blue apple")), _picture(1, ()), _picture(2, ("green box",))]
    batch = detector_batch(pictures, tokenizer)
    assert [len(names) for names in batch.names] == [2, 0, 1]
    model = _detector((1, 1))
    losses = detector_losses(model, batch)
    assert all(math.isfinite(float(value.detach())) for value in vars(losses).values())
    losses.total().backward()
    unreached = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unreached


def test_a_detector_is_the_same_for_a_seed() -> None:
    one, same, other = (_detector((1, 1), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["box_head.dense0.weight"], other["box_head.dense0.weight"])


def test_the_loop_fits_and_records(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, target = nn.Linear(16, 16), torch.randn(16, 16)
    inputs = torch.randn(64, 16)

    def losses(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = (model(inputs) - inputs @ target).pow(2).mean()
        return loss, {"part": loss / 2}

    before = float(losses(0)[0].detach())
    schedule = Schedule(steps=60, learning_rate=1e-1, muon_rate=4.0, log_every=25)
    fitted = fit("detector", model, losses, schedule, metrics=tmp_path / "metrics.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [25, 50, 60]
    assert set(rows[0]) == {"step", "loss/detector", "loss/detector_part", "train/detector_learning_rate", "seconds"}
    assert fitted.losses["loss"] < before / 4


def test_a_loss_that_is_not_finite_stops_with_what_to_do(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match=r"step 1; lower teachers\.detector\.learning_rate"):
        fit(
            "detector",
            model,
            lambda step: (model.weight.sum() * float("nan"), {}),
            Schedule(steps=2, learning_rate=1e-3, muon_rate=1.0),
            metrics=tmp_path / "metrics.jsonl",
        )


def test_the_rate_warms_up_and_decays() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, muon_rate=1.0)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] < rates[3] < max(rates) == 1.0
    assert rates[-1] < 0.01
