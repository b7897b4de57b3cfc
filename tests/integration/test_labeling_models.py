"""Captioning and grounding by models: tiny checkpoints of the real classes, loaded from a folder as public ones are."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, BlipForConditionalGeneration, Owlv2ForObjectDetection, OwlViTForObjectDetection

from cloc.boxes import iou
from cloc.config import Config
from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.shards import Sample
from cloc.errors import ClocError, ConfigError
from cloc.labeling import captioning, grounding
from cloc.labeling.captioner_transformers import TransformersCaptioner
from cloc.labeling.detector_transformers import (
    Predictions,
    Stretched,
    TransformersDetector,
    letterbox,
    stretch,
    to_regions,
)
from cloc.labeling.detectors import QUERIES
from cloc.labeling.phrases import PhraseExtractor
from cloc.labeling.worker import Item
from tests import tiny_models

OWLS = {"owlv2": Owlv2ForObjectDetection, "owlvit": OwlViTForObjectDetection}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def blip(tmp_path_factory) -> str:
    return tiny_models.save_blip(tmp_path_factory.mktemp("models") / "tiny-blip")


@pytest.fixture(scope="module")
def owls(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: tiny_models.save_owl(folder / f"tiny-{kind}", kind) for kind in OWLS}


def settings(**sections) -> Config:
    captions = {"backend": "transformers", "batch_size": 3, "generation": {"max_new_tokens": 6}, "dtype": "float32"}
    regions = {"backend": "transformers", "batch_size": 3, "image_size": 64, "min_box_side": 0.0}
    return Config.model_validate(
        {"captioning": captions | sections.get("captioning", {}), "grounding": regions | sections.get("grounding", {})}
    )


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def item(image: Image.Image, *captions: str, kind: str = "generated") -> Item:
    rows = tuple({"key": "a", "text": text, "kind": kind, "model": ""} for text in captions)
    return Item(image, LabeledSample(Sample("a", b""), rows))


def detector(folder: str, **changes) -> TransformersDetector:
    section = settings(grounding={"model": folder, **changes}).grounding
    return TransformersDetector(section, QUERIES[section.phrases](section))


def run_captioning(config: Config, data: str, out):
    return captioning.run(config, inputs=captioning.Inputs(data=data), outputs=captioning.Outputs(captions=str(out)))


def run_grounding(config: Config, data: str, captions, out):
    inputs = grounding.Inputs(data=data, captions=str(captions))
    return grounding.run(config, inputs=inputs, outputs=grounding.Outputs(regions=str(out)))


# Captioning.


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


@pytest.mark.parametrize("stage", ["captioning", "grounding"])
def test_a_model_that_is_not_there_or_of_another_kind_is_one_clear_line(tmp_path, make_dataset, blip, owls, stage):
    data = make_dataset(tmp_path / "data", 4)
    (tmp_path / "empty").mkdir()
    wrong = owls["owlv2"] if stage == "captioning" else blip
    for model in (str(tmp_path / "empty"), wrong):
        config = settings(**{stage: {"model": model}})
        arguments = (config, data) if stage == "captioning" else (config, data, data)
        with pytest.raises(ConfigError, match=f"^{stage}.model: cannot load '{model}'") as error:
            (run_captioning if stage == "captioning" else run_grounding)(*arguments, tmp_path / "out")
        assert "\n" not in str(error.value)


def test_a_broken_checkpoint_and_a_wrong_folder_are_one_clear_line(tmp_path):
    folder = tiny_models.save_blip(tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"^captioning.model: cannot load"):
        TransformersCaptioner(settings(captioning={"model": folder}).captioning)
    with pytest.raises(ConfigError, match=r"^captioning.model: there is no folder '.*/nowhere'"):
        TransformersCaptioner(settings(captioning={"model": str(tmp_path / "nowhere")}).captioning)


# Grounding.


@pytest.mark.parametrize("kind", OWLS)
def test_scores_and_boxes_are_those_of_the_models_own_forward(owls, kind):
    """The reference: the class's forward on queries padded by hand, every query encoded for every image."""
    queries = [["red box", "blue key", "large apple"], ["blue key"]]
    images = [noise(64, 64), noise(64, 64, seed=1)]
    found = detector(owls[kind])._predict(images, queries)
    model, processor = OWLS[kind].from_pretrained(owls[kind]).eval(), AutoProcessor.from_pretrained(owls[kind])
    for image, phrases, predictions in zip(images, queries, found, strict=True):
        inputs = processor(text=[phrases], images=image, return_tensors="pt")
        inputs["pixel_values"] = torch.from_numpy(_normalised(image))[None]
        with torch.no_grad():
            expected = model(**inputs)
        np.testing.assert_allclose(predictions.scores, expected.logits[0].sigmoid().numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(predictions.boxes_cxcywh, expected.pred_boxes[0].numpy(), rtol=1e-4, atol=1e-6)


def _normalised(image: Image.Image) -> np.ndarray:
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return ((np.asarray(image) / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32)


@pytest.mark.parametrize("kind", OWLS)
@pytest.mark.parametrize("image_size", [64, 96])
def test_a_batch_gives_what_its_images_give_alone(owls, kind, image_size):
    finder = detector(owls[kind], image_size=image_size, nms_iou=1.0, score_threshold=0.3)
    batch = [
        item(noise(64, 64), "a red box and a blue key"),
        item(noise(90, 40, seed=1), "a blue key"),
        item(noise(30, 70, seed=2), ""),
        item(noise(40, 41, seed=3), "a large apple, a red box, a small green ball and a blue key"),
    ]
    together = finder.detect(batch)
    assert [bool(regions) for regions in together] == [True, True, False, True]
    for single, regions in zip(batch, together, strict=True):
        (alone,) = finder.detect([single])
        assert [region.text for region in alone] == [region.text for region in regions]
        np.testing.assert_allclose([r.score for r in alone], [r.score for r in regions], rtol=1e-4)
        np.testing.assert_allclose([r.box for r in alone], [r.box for r in regions], atol=1e-4)


def test_only_generated_and_human_captions_are_asked_for(owls):
    finder = detector(owls["owlv2"], score_threshold=0.0)
    image = noise(64, 64)
    assert finder.detect([item(image, "a red box", kind="alt_text")]) == [[]]
    for kind in ("generated", "human"):
        (regions,) = finder.detect([item(image, "a red box", kind=kind)])
        assert {region.text for region in regions} == {"red box"}


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (333, 47), (64, 64), (31, 500)])
@pytest.mark.parametrize("prepare", [letterbox, stretch])
def test_boxes_come_back_exactly_from_the_square(size, prepare):
    """A white rectangle is drawn, found again in the prepared square by its pixels, and mapped back."""
    width, height = size
    truth = np.array([[0.2, 0.3, 0.7, 0.8]])
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    x1, y1, x2, y2 = (truth[0] * [width, height, width, height]).round().astype(int)
    pixels[y1:y2, x1:x2] = 255
    side = 448
    prepared = prepare(Image.fromarray(pixels), size=side)
    bright = np.asarray(prepared.square)[..., 0] > 127
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    left, top, right, bottom = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / side
    seen = np.array([[(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]])
    (region,) = to_regions(
        Predictions(seen, np.array([[0.9]])), prepared.frame, ["box"], threshold=0.1, nms_iou=0.7, source="m"
    )
    # One pixel of the square, in shares of the original image.
    tolerance = 1.5 / side * max(size) / np.array([width, height, width, height])
    drawn = np.array([x1, y1, x2, y2]) / [width, height, width, height]
    assert (np.abs(np.array(region.box) - drawn) <= tolerance).all()


def test_a_known_transform_is_undone_exactly():
    """A 200x100 image fills the upper half of the square: a box of the square's upper half is the whole image."""
    frame = letterbox(Image.new("RGB", (200, 100)), size=64).frame
    predictions = Predictions(
        boxes_cxcywh=np.array([[0.5, 0.25, 1.0, 0.5], [0.25, 0.125, 0.25, 0.125], [0.5, 0.5, 2.0, 2.0]]),
        scores=np.array([[0.9], [0.8], [0.7]]),
    )
    regions = to_regions(predictions, frame, ["all"], threshold=0.1, nms_iou=1.0, source="m")
    assert [region.box for region in regions] == [
        (0.0, 0.0, 1.0, 1.0),
        (0.125, 0.125, 0.375, 0.375),
        (0.0, 0.0, 1.0, 1.0),
    ]


def test_best_phrase_threshold_and_suppression():
    boxes = np.array([[0.5, 0.5, 0.4, 0.4], [0.51, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])
    scores = np.array([[0.3, 0.6], [0.7, 0.2], [0.05, 0.1], [0.11, 0.0]])

    def found(nms_iou: float) -> list[tuple[str, float]]:
        regions = to_regions(
            Predictions(boxes, scores), Stretched(), ["cat", "dog"], threshold=0.1, nms_iou=nms_iou, source="m"
        )
        return [(region.text, region.score) for region in regions]

    assert found(1.0) == [("cat", 0.7), ("dog", 0.6), ("cat", 0.11)]
    assert found(0.7) == [("cat", 0.7), ("cat", 0.11)]


def test_grounding_stage_writes_regions_that_can_be_used(tmp_path, make_dataset, owls):
    data = make_dataset(tmp_path / "data", 6)
    config = settings(grounding={"model": owls["owlv2"], "min_box_side": 0.02, "score_threshold": 0.2, "nms_iou": 0.5})
    result = run_grounding(config, data, data, tmp_path / "out")
    assert result.counts["quarantined"] == 0
    assert result.counts["refused_items"] > 0  # random weights draw thin boxes too
    assert result.metrics["grounding/regions_per_image"] > 0
    for sample in Dataset.open(data, regions=tmp_path / "out").read_all():
        phrases = PhraseExtractor(tagger="lexicon", max_phrases=20)([sample.captions[0]["text"]])
        boxes = np.array([[row[side] for side in ("x1", "y1", "x2", "y2")] for row in sample.regions]).reshape(-1, 4)
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 0.02 - 1e-6).all()
        assert (np.triu(iou(boxes, boxes), k=1) <= 0.5 + 1e-6).all()
        for row in sample.regions:
            assert row["text"] in phrases
            assert (row["source"], row["label"]) == ("tiny-owlv2", "")
            assert row["score"] > 0.2
    first = {path.name: path.read_bytes() for path in (tmp_path / "out/regions").iterdir()}
    (tmp_path / "out/regions/00000.parquet").unlink()
    assert run_grounding(config, data, data, tmp_path / "out").counts["skipped"] == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/regions").iterdir()} == first


def test_without_vesl_the_detector_is_asked_for_the_alt_texts_ngrams(tmp_path, make_dataset, owls):
    data = make_dataset(tmp_path / "data", 2)
    changes = {"model": owls["owlv2"], "score_threshold": 0.0, "nms_iou": 1.0, "phrases": "alt_text_ngrams"}
    run_grounding(settings(grounding=changes), data, data, tmp_path / "out")
    for sample in Dataset.open(data, regions=tmp_path / "out").read_all():
        color, thing = sample.sample.meta["alt_text"].split()[-2:]
        assert sample.regions
        assert {row["text"] for row in sample.regions} <= {color, thing, f"{color} {thing}"}


def test_an_input_size_that_does_not_suit_the_patches_is_refused(owls):
    with pytest.raises(ConfigError, match=r"grounding.image_size: 70 is not a multiple of .* patches of 16 pixels"):
        detector(owls["owlvit"], image_size=70)


def test_values_that_are_not_finite_stop_the_stage(owls):
    finder = detector(owls["owlv2"])
    with torch.no_grad():
        finder._model.box_head.dense0.weight.fill_(float("nan"))
    with pytest.raises(ClocError, match=r"grounding.model: 'tiny-owlv2' gives values that are not finite"):
        finder.detect([item(noise(64, 64), "a red box")])


@pytest.mark.parametrize("section", ["captioning", "grounding"])
def test_cuda_without_a_gpu_is_refused(blip, owls, section):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    model = blip if section == "captioning" else owls["owlv2"]
    config = settings(**{section: {"model": model, "device": "cuda"}})
    with pytest.raises(ConfigError, match=f"{section}.device: 'cuda' is set but there is no CUDA device"):
        TransformersCaptioner(config.captioning) if section == "captioning" else detector(model, device="cuda")
