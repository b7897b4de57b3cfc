"""A detector that is fitted, saved, and loaded by the backend as a public checkpoint is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForZeroShotObjectDetection, AutoTokenizer

from cloc.boxes import as_boxes, iou
from cloc.config.schema import GroundingConfig, TeacherDetectorConfig, TowerConfig, VisionConfig
from cloc.data.dataset import Dataset
from cloc.labeling.detectors import DETECTORS
from cloc.labeling.images import decode
from cloc.labeling.phrases import PhraseExtractor
from cloc.labeling.teachers.data import Pictures, PictureSettings
from cloc.labeling.teachers.detector import fit_detector, make_detector, save_detector
from cloc.labeling.teachers.texts import fit_tokenizer
from cloc.labeling.worker import Item

VISION = VisionConfig(width=96, layers=1, heads=8, image_size=48, patch_size=8)
STEPS = 60


def _fit(data: str, folder: Path, *, seed: int = 0, steps: int = STEPS) -> None:
    pictures = Pictures(
        Dataset.open(data),
        PictureSettings(size=48, min_side=8, max_pixels=10**6, min_box_side=0.01, held_out=0.1),
        phrases=PhraseExtractor(tagger="lexicon", max_phrases=20),
        cache=200,
    )
    tokenizer = fit_tokenizer(pictures.texts(), vocab_size=700, context_length=32)
    model = make_detector(VISION, TowerConfig(width=32, layers=1, heads=2), tokenizer, distances=(1,), seed=seed)
    settings = TeacherDetectorConfig(steps=steps, batch_size=16, learning_rate=4e-3)
    fit_detector(model, tokenizer, pictures, settings, seed=seed, metrics=folder.with_suffix(".jsonl"))
    save_detector(model, tokenizer, folder)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    from tests.conftest import write_dataset

    home = tmp_path_factory.mktemp("teachers")
    data = write_dataset(home / "data", 96, shard_size=32)
    _fit(data, home / "detector")
    return data, home / "detector"


def _items(data: str, number: int) -> list[Item]:
    samples = list(Dataset.open(data).read_all())[:number]
    return [Item(decode(each.sample.image, min_side=8, max_pixels=10**6), each) for each in samples]


def test_a_folder_is_a_checkpoint_of_transformers(fitted: tuple[str, Path]) -> None:
    folder = str(fitted[1])
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, use_safetensors=True)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "owlvit"
    assert processor.size["height"] == VISION.image_size
    assert tokenizer(["red key"])["input_ids"][0][-1] == len(tokenizer) - 1 == model.config.text_config.eos_token_id
    with safe_open(f"{folder}/model.safetensors", framework="pt") as weights:
        assert "class_head.dense0.weight" in weights.keys()  # noqa: SIM118 (no mapping)


def test_the_backend_finds_what_was_learned(fitted: tuple[str, Path]) -> None:
    data, folder = fitted
    config = GroundingConfig(model=str(folder), score_threshold=0.05, nms_iou=0.3, image_size=0)
    detector, items = DETECTORS["transformers"](config), _items(data, 24)
    found = detector.detect([detector.prepare(item) for item in items])
    human = hits = 0
    for regions, item in zip(found, items, strict=True):
        truth = as_boxes([[row["x1"], row["y1"], row["x2"], row["y2"]] for row in item.sample.regions])
        human += len(truth)
        if regions:
            overlaps = iou(as_boxes([region.box for region in regions]), truth)
            hits += int((overlaps.max(axis=0) >= 0.5).sum())
    assert hits / human > 0.6  # an untrained one finds next to none


@pytest.mark.parametrize("seed", [0])
def test_equal_settings_give_equal_weights(tmp_path: Path, make_dataset: Callable[..., str], seed: int) -> None:
    torch.set_num_threads(1)
    data = make_dataset(tmp_path / "data", 16, shard_size=8)
    for name in ("one", "two"):
        _fit(data, tmp_path / name, seed=seed, steps=3)
    one, two = (
        AutoModelForZeroShotObjectDetection.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two")
    )
    assert all(np.array_equal(one[key], two[key]) for key in one)
