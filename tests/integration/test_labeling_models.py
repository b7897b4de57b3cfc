"""Captioning by models: tiny checkpoints of the real classes, loaded from a folder as public ones are."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BlipForConditionalGeneration

from cloc.config import Config
from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.shards import Sample
from cloc.errors import ConfigError
from cloc.labeling import captioning
from cloc.labeling.captioner_transformers import TransformersCaptioner
from cloc.labeling.worker import Item
from tests import tiny_models


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> str:
    return tiny_models.save_blip(tmp_path_factory.mktemp("models") / "tiny-blip")


def settings(**changes) -> Config:
    captions = {"backend": "transformers", "batch_size": 3, "generation": {"max_new_tokens": 6}, "dtype": "float32"}
    return Config.model_validate({"captioning": captions | changes.get("captioning", {})})


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def item(image: Image.Image, *captions: str, kind: str = "generated") -> Item:
    rows = tuple({"key": "a", "text": text, "kind": kind, "model": ""} for text in captions)
    return Item(image, LabeledSample(Sample("a", b""), rows))


def run_captioning(config: Config, data: str, out):
    return captioning.run(config, inputs=captioning.Inputs(data=data), outputs=captioning.Outputs(captions=str(out)))


def test_captions_are_those_of_the_model_image_by_image(blip):
    images = [noise(50, 40), noise(20, 60, seed=1), Image.new("RGB", (32, 32), "red")]
    captioner = TransformersCaptioner(settings(captioning={"model": blip}).captioning)
    captions = captioner.caption([item(image) for image in images])
    model, processor = BlipForConditionalGeneration.from_pretrained(blip).eval(), AutoProcessor.from_pretrained(blip)
    for image, (caption,) in zip(images, captions, strict=True):
        tokens = model.generate(**processor(images=image, return_tensors="pt"), max_new_tokens=6, do_sample=False)
        assert caption == processor.decode(tokens[0], skip_special_tokens=True)
        assert set(caption.split()) <= set(tiny_models.WORDS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_captioner_continues_the_prompt(blip, dtype):
    section = settings(captioning={"model": blip, "prompt": "a red", "dtype": dtype}).captioning
    ((caption,),) = TransformersCaptioner(section).caption([item(noise(32, 32))])
    assert caption.startswith("a red ")


def test_captioning_stage_keeps_the_alt_text_and_names_the_model(tmp_path, make_dataset, blip):
    data = make_dataset(tmp_path / "data", 6, broken=[5])
    config = settings(captioning={"model": blip}).model_copy(
        update={"data": Config().data.model_copy(update={"quarantine_limit": 0.2})}
    )
    result = run_captioning(config, data, tmp_path / "out")
    assert (result.counts["labelled"], result.counts["quarantined"]) == (5, 1)
    for sample in Dataset.open(data, captions=tmp_path / "out").read_all():
        if sample.sample.key == "000005":
            assert sample.captions == ()
            continue
        generated, alt_text = sample.captions
        assert (generated["kind"], generated["model"]) == ("generated", "tiny-blip")
        assert (alt_text["kind"], alt_text["text"]) == ("alt_text", sample.sample.meta["alt_text"])
    assert run_captioning(config, data, tmp_path / "out").counts["skipped"] == 6


def test_a_model_that_was_fitted_again_in_the_same_folder_labels_again(tmp_path, make_dataset):
    data, model = make_dataset(tmp_path / "data", 4), tmp_path / "teacher"
    config = settings(captioning={"model": tiny_models.save_blip(model, seed=0)})
    run_captioning(config, data, tmp_path / "out")
    tiny_models.save_blip(model, seed=1)
    assert run_captioning(config, data, tmp_path / "out").counts["skipped"] == 0
    assert run_captioning(config, data, tmp_path / "out").counts["skipped"] == 4


def test_a_model_that_is_not_there_or_of_another_kind_is_one_clear_line(tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 4)
    (tmp_path / "empty").mkdir()
    for model in (str(tmp_path / "empty"), tiny_models.save_owl(tmp_path / "owl", "owlv2")):
        with pytest.raises(ConfigError, match=f"^captioning.model: cannot load '{model}'") as error:
            run_captioning(settings(captioning={"model": model}), data, tmp_path / "out")
        assert "\n" not in str(error.value)


def test_a_broken_checkpoint_and_a_wrong_folder_are_one_clear_line(tmp_path):
    folder = tiny_models.save_blip(tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"^captioning.model: cannot load"):
        TransformersCaptioner(settings(captioning={"model": folder}).captioning)
    with pytest.raises(ConfigError, match=r"^captioning.model: there is no folder '.*/nowhere'"):
        TransformersCaptioner(settings(captioning={"model": str(tmp_path / "nowhere")}).captioning)
