"""Whole trainings with the options that change a step, all at once: parts, sizes, average, checkpointing, FSDP2."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPModel

from cloc.config import Config
from cloc.errors import ConfigError
from cloc.model import factory
from tests.conftest import write_dataset
from tests.integration import training_runs as runs

OPTIONS = {
    "optimizer": "adamw",
    "micro_batch": 2,
    "ema": 0.9,
    "layer_decay": 0.8,
    "gradient_checkpointing": True,
    "resolutions": [{"share": 0.5, "image_size": 16}],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "train", 24, shard_size=4)


@pytest.fixture(scope="module")
def tokenizer(data: str, tmp_path_factory) -> str:
    return runs.tokenizer_for(data, tmp_path_factory.mktemp("tokenizer"))


def settings(**train) -> Config:
    return runs.config(**{**OPTIONS, **train})


@pytest.fixture(scope="module")
def trained(data: str, tokenizer: str, tmp_path_factory) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    """A run's folder, its last weights and their average, by name."""
    out = tmp_path_factory.mktemp("trained")
    trainer = runs.trainer(runs.job(data, out, tokenizer, settings=settings()))
    trainer.run()
    assert trainer.average
    return out, trainer.model.state_dict(), trainer.average.tensors()


def test_what_is_saved_is_the_average_at_the_models_own_size(trained) -> None:
    out, last, average = trained
    saved = runs.weights(out)
    for name, value in average.items():
        assert torch.equal(saved[name.removeprefix("model.")], value), name
    assert not torch.equal(saved["visual_projection.weight"], last["visual_projection.weight"])
    plain, pixels = CLIPModel.from_pretrained(out).eval(), torch.randn(2, 3, 32, 32)
    model, _ = factory.load(out)
    assert torch.equal(plain.get_image_features(pixels).pooler_output, model.encode_image(pixels).embeds_BE)
    assert plain.config.vision_config.image_size == 32


def test_the_same_run_twice_gives_the_same_losses(data: str, tokenizer: str, trained, tmp_path: Path) -> None:
    runs.train_here(runs.job(data, tmp_path, tokenizer, settings=settings()))
    assert len(runs.curve(tmp_path)) == 8
    assert runs.curve(tmp_path) == runs.curve(trained[0])
    runs.assert_same_weights(tmp_path, trained[0])


def test_a_run_goes_on_bitwise_into_the_next_size(data: str, tokenizer: str, trained, tmp_path: Path) -> None:
    """From step 3: the size changes after step 4; the average goes on as well."""
    shutil.copytree(trained[0] / "checkpoints" / "step-00000003", tmp_path / "checkpoints" / "step-00000003")
    runs.train_here(runs.job(data, tmp_path, tokenizer, settings=settings()))
    runs.assert_same_weights(tmp_path, trained[0])


@pytest.mark.slow
def test_two_ranks_of_fsdp2_train_the_same_model(data: str, trained, tmp_path: Path) -> None:
    out = tmp_path / "model"
    ended = runs.run(settings(strategy="fsdp2", processes=2), data, out)
    assert ended.code == 0, ended.err[-2000:]
    assert runs.curve(out) == pytest.approx(runs.curve(trained[0]), abs=1e-3)
    expected, found = runs.weights(trained[0]), runs.weights(out)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert float((found[name] - value).abs().mean()) < 1e-4, name  # of eight steps of up to 1e-3
    assert CLIPModel.from_pretrained(out).config.architectures == ["CLOCModel"]


def test_settings_that_cannot_be_are_one_line(data: str, tokenizer: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="image_size 20 is not a multiple of the model's patch size 8; take 16"
    ) as size:
        runs.trainer(
            runs.job(data, tmp_path, tokenizer, settings=settings(resolutions=[{"share": 0.5, "image_size": 20}]))
        )
    with pytest.raises(ConfigError, match=r"^test: train.lock image keeps a tower .* random: name a") as lock:
        settings(lock="image")
    assert "\n" not in str(size.value)
    assert "\n" not in str(lock.value)
