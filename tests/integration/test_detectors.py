"""Grounding by models: tiny checkpoints of the real classes, loaded from a folder as public ones are."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, AutoTokenizer
from transformers.models.auto import modeling_auto

from cloc.boxes import iou
from cloc.config import Config
from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.shards import Sample
from cloc.errors import ClocError, ConfigError
from cloc.labeling import grounding
from cloc.labeling.detector_transformers import NETWORKS, TransformersDetector
from cloc.labeling.detectors import QUERIES, Region
from cloc.labeling.models import load_model
from cloc.labeling.phrases import PhraseExtractor
from cloc.labeling.worker import Item
from tests import tiny_models

OWLS = ("owlv2", "owlvit")
DINOS = ("grounding-dino", "mm-grounding-dino")
KINDS = (*OWLS, *DINOS, "omdet-turbo")
# What the tiny checkpoints' processors do to colours.
CLIP_COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_COLOURS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: tiny_models.save_detector(folder / f"tiny-{kind}", kind) for kind in KINDS}


def settings(folder: str, **changes) -> Config:
    section = {"backend": "transformers", "batch_size": 3, "image_size": 64, "min_box_side": 0.0, "model": folder}
    return Config.model_validate({"grounding": section | changes, "data": {"decode_threads": 2}})


def detector(folder: str, **changes) -> TransformersDetector:
    """Every box of the model, unless the settings say otherwise."""
    section = settings(folder, **{"nms_iou": 1.0, "score_threshold": 0.0} | changes).grounding
    return TransformersDetector(section, QUERIES[section.phrases](section))


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))


def item(image: Image.Image, *captions: str, kind: str = "generated") -> Item:
    rows = tuple({"key": "a", "text": text, "kind": kind, "model": ""} for text in captions)
    return Item(image, LabeledSample(Sample("a", b""), rows))


def detect(finder: TransformersDetector, *items: Item) -> list[list[Region]]:
    return finder.detect([finder.prepare(single) for single in items])


def run_grounding(config: Config, data: str, captions, out):
    inputs = grounding.Inputs(data=data, captions=str(captions))
    return grounding.run(config, inputs=inputs, outputs=grounding.Outputs(regions=str(out)))


def assert_same(regions: Sequence[Region], others: Sequence[Region], *, tolerance: float = 1e-4) -> None:
    """The same regions, whatever the order of those of about one score."""
    assert len(regions) == len(others)
    left = sorted(regions, key=lambda region: (region.text, *region.box))
    right = sorted(others, key=lambda region: (region.text, *region.box))
    assert [region.text for region in left] == [region.text for region in right]
    np.testing.assert_allclose([region.score for region in left], [region.score for region in right], atol=tolerance)
    np.testing.assert_allclose([region.box for region in left], [region.box for region in right], atol=tolerance)


# Against the classes' own forward.


def normalised(image: Image.Image, colours) -> torch.Tensor:
    mean, std = colours
    pixels = ((np.asarray(image) / 255 - mean) / std).transpose(2, 0, 1).astype(np.float32)
    return torch.from_numpy(pixels)[None]


@torch.no_grad()
def owl_forward(folder: str, image: Image.Image, phrases: list[str]):
    model, processor = (
        AutoModelForZeroShotObjectDetection.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    inputs = processor(text=[phrases], images=image, return_tensors="pt")
    output = model.eval()(**inputs | {"pixel_values": normalised(image, CLIP_COLOURS)})
    return output.logits[0], output.pred_boxes[0]


@torch.no_grad()
def dino_forward(folder: str, image: Image.Image, phrases: list[str]):
    """Logits (boxes, phrases) by the definition: a phrase's is the most that one of its tokens has, found by the place
    of the phrase's letters in the prompt that the class's processor makes."""
    model, tokenizer = (
        AutoModelForZeroShotObjectDetection.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    inputs = processor(text=[phrases], images=image, return_tensors="pt")
    prompt = ". ".join(phrases) + "."
    places = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    output = model.eval()(**inputs | {"pixel_values": normalised(image, IMAGENET_COLOURS), "pixel_mask": None})
    logits = output.logits[0]
    columns, first = [], 0
    for phrase in phrases:
        tokens = [n for n, (start, end) in enumerate(places) if first <= start < end <= first + len(phrase)]
        assert len(tokens) == len(phrase.split())
        columns.append(logits[:, tokens].amax(dim=1))
        first += len(phrase) + 2
    return torch.stack(columns, dim=1), output.pred_boxes[0]


@torch.no_grad()
def omdet_forward(folder: str, image: Image.Image, phrases: list[str]):
    model, tokenizer = (
        AutoModelForZeroShotObjectDetection.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    lengths = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    classes, task = tokenizer(phrases, **lengths), tokenizer([f"Detect {', '.join(phrases)}."], **lengths)
    output = model.eval()(
        pixel_values=normalised(image, IMAGENET_COLOURS),
        classes_input_ids=classes["input_ids"],
        classes_attention_mask=classes["attention_mask"],
        tasks_input_ids=task["input_ids"],
        tasks_attention_mask=task["attention_mask"],
        classes_structure=torch.tensor([len(phrases)]),
    )
    return output.decoder_class_logits[0], output.decoder_coord_logits[0]


FORWARD = {**dict.fromkeys(OWLS, owl_forward), **dict.fromkeys(DINOS, dino_forward), "omdet-turbo": omdet_forward}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_boxes_are_those_of_the_models_own_forward(folders, kind):
    images = [noise(64, 64), noise(64, 64, seed=1)]
    captions = ["a red box, a blue key and a large apple", "a blue key"]
    phrases = [["red box", "blue key", "large apple"], ["blue key"]]
    together = detect(detector(folders[kind]), *(item(*pair) for pair in zip(images, captions, strict=True)))
    for image, asked, regions in zip(images, phrases, together, strict=True):
        logits, boxes = FORWARD[kind](folders[kind], image, asked)
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        corners = torch.cat([centre - half, centre + half], dim=1).clamp(0, 1)
        best = logits.max(dim=1)
        expected = [
            Region(tuple(box), asked[query], score, "m")
            for box, score, query in zip(
                corners.tolist(), best.values.sigmoid().tolist(), best.indices.tolist(), strict=True
            )
            if score > 0  # in float32 some are 0
        ]
        assert len(expected) > 10
        assert_same(regions, expected)
        assert [region.score for region in regions] == sorted((region.score for region in regions), reverse=True)


# Batches.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image_size", [0, 96])
def test_a_batch_gives_what_its_images_give_alone(folders, kind, image_size):
    """Images of several shapes and numbers of phrases, put into batches by bucket as the worker does."""
    finder = detector(folders[kind], image_size=image_size)
    images = [
        item(noise(64, 64), "a red box and a blue key"),
        item(noise(61, 61, seed=4), "a large apple, a red box, a small green ball and a blue key"),
        item(noise(90, 40, seed=1), "a blue key"),
        item(noise(88, 40, seed=5), "a small ball, a red apple and a yellow box"),
        item(noise(30, 70, seed=2), ""),
        item(noise(1, 40, seed=3), "a blue key and a small ball"),
    ]
    prepared = [finder.prepare(single) for single in images]
    buckets: dict[object, list[int]] = {}
    for index, one in enumerate(prepared):
        buckets.setdefault(finder.bucket(one), []).append(index)
    assert len(buckets[finder.bucket(prepared[0])]) > 1
    for members in buckets.values():
        together = finder.detect([prepared[index] for index in members])
        for index, regions in zip(members, together, strict=True):
            (alone,) = finder.detect([prepared[index]])
            assert bool(regions) == bool(prepared[index].phrases)
            assert_same(regions, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_labelled_before_does_not_show(folders, kind):
    """To the last bit: a shard that is made again, by a process that knows other queries, must come out the same."""
    batch = [item(noise(64, 64), "a red box and a blue key"), item(noise(64, 64, seed=1), "a yellow apple")]
    expected = detect(detector(folders[kind]), *batch)
    finder = detector(folders[kind])
    for caption in ("a small apple", "a blue key, a large ball and a green key", "a yellow apple"):
        detect(finder, item(noise(64, 64, seed=2), caption), item(noise(64, 64, seed=3), "a red ball"))
        assert detect(finder, *batch) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_float32_within_its_precision(folders, kind):
    """By the spread of the scores: which of the weaker proposals are taken may change with a rounding."""
    batch = [item(noise(64, 64, seed=seed), "a red box and a blue key") for seed in range(3)]
    full, half = (detector(folders[kind], dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert half._network._checkpoint.model.dtype == torch.bfloat16
    for regions, others in zip(detect(full, *batch), detect(half, *batch), strict=True):
        spread, expected = (np.quantile([r.score for r in some], [0.3, 0.5, 0.7]) for some in (others, regions))
        np.testing.assert_allclose(spread, expected, atol=0.02, rtol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_only_scores_above_the_threshold_are_kept(folders, kind):
    image = item(noise(64, 64), "a red box and a blue key")
    (everything,) = detect(detector(folders[kind]), image)
    middle = everything[len(everything) // 2].score
    (kept,) = detect(detector(folders[kind], score_threshold=middle), image)
    # Strictly: the box with that very score is not.
    assert kept == [region for region in everything if region.score > middle]
    assert 0 < len(kept) < len(everything)
    assert detect(detector(folders[kind], score_threshold=1.0), image) == [[]]


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_stop_the_stage(folders, kind):
    finder = detector(folders[kind], score_threshold=0.1)
    with torch.no_grad():
        for name, weight in finder._network._checkpoint.model.named_parameters():
            if "box" in name:
                weight.fill_(float("nan"))
    with pytest.raises(ClocError, match=f"^grounding.model: 'tiny-{kind}' gives values that are not finite .*float32"):
        detect(finder, item(noise(64, 64), "a red box"))


# OWLv2 and OWL-ViT.


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 128), (640, 10), (64, 1), (1, 640)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", OWLS)
def test_boxes_of_known_patches_come_back_exactly(folders, kind, dtype, size):
    """The box head is silenced: what is left is each patch's own box, which stands around its lower right corner and is
    a patch wide. In the original image that is a matter of arithmetic, to which bfloat16 changes nothing."""
    finder, side, patches = detector(folders[kind], dtype=dtype), 64, 4
    with torch.no_grad():
        finder._network._model.box_head.dense2.weight.zero_()
        finder._network._model.box_head.dense2.bias.zero_()
    width, height = size
    (regions,) = detect(finder, item(noise(width, height), "a red box"))
    # Pixels of the square that the image fills, and so the square's side in shares of the image.
    filled = [side * length / max(size) for length in size] if kind == "owlv2" else [side, side]
    filled = [max(1.0, length) for length in filled]
    expected = [
        tuple(
            min(1.0, max(0.0, (number + 1 + offset) / patches * side / length))
            for offset in (-0.5, 0.5)
            for number, length in zip((column, row), filled, strict=True)
        )
        for row in range(patches)
        for column in range(patches)
    ]
    np.testing.assert_allclose(sorted(region.box for region in regions), sorted(expected), atol=5e-4 * max(filled))


@pytest.mark.parametrize("kind", OWLS)
def test_an_input_size_that_does_not_suit_the_patches_is_refused(folders, kind):
    with pytest.raises(
        ConfigError, match=r"grounding.image_size: 70 is not a multiple of .* patches of 16 pixels; use one, or 0 for"
    ):
        detector(folders[kind], image_size=70)


def test_image_size_0_is_the_checkpoints_own(tmp_path):
    folder = tiny_models.save_owl(tmp_path / "owl", "owlv2", image_size=80)
    image = item(noise(64, 48), "a red box")
    finder = detector(folder, image_size=0)
    assert finder.bucket(finder.prepare(image)) == (80, 80)
    assert detect(finder, image) == detect(detector(folder, image_size=80), image)


def test_a_query_has_the_same_bits_whatever_it_is_encoded_with(folders):
    for kind in (*OWLS, "omdet-turbo"):
        encoder = detector(folders[kind])._network._encoder
        texts = [" ".join(words) for words in zip(tiny_models.WORDS, tiny_models.WORDS[1:], strict=False)]
        with torch.inference_mode():
            alone = [encoder._embeddings([text])[0] for text in texts]
            encoder._known.clear()
            together = encoder._embeddings(texts)
        assert torch.equal(torch.stack(alone), together)


# Grounding DINO.


@pytest.mark.parametrize("kind", DINOS)
def test_the_prompt_is_that_of_the_classes_processor(folders, kind):
    phrases = ["red box", "blue key", "apple"]
    (prompt,) = detector(folders[kind])._network._prompts([phrases])
    processor = AutoProcessor.from_pretrained(folders[kind], backend="pil")
    inputs = processor(text=[phrases], images=noise(8, 8))
    assert prompt.tokens == list(inputs["input_ids"][0])
    assert prompt.phrases == [-1, 0, 0, -1, 1, 1, -1, 2, -1, -1]


def test_phrases_that_do_not_fit_into_one_prompt_go_into_several(folders):
    """24 tokens hold 7 phrases of two words; every phrase is asked for exactly once, in order."""
    network = detector(folders["grounding-dino"])._network
    phrases = [f"{color} {thing}" for color in ("red", "blue", "green", "yellow") for thing in ("box", "key", "apple")]
    first, second = network._prompts([["box"], phrases])[1:]
    assert (len(first.tokens), first.image, second.image) == (23, 1, 1)
    for prompt in (first, second):
        assert prompt.tokens[0] == 101
        assert prompt.tokens[-2:] == [1012, 102]
        assert len(prompt.tokens) <= 24
    asked = [phrase for prompt in (first, second) for phrase in prompt.phrases if phrase >= 0]
    assert asked == [number for number in range(12) for _ in "ab"]


def test_an_image_with_several_prompts_has_the_regions_of_each(folders):
    """Asked for one prompt's phrases at a time, the regions are the same."""
    finder = detector(folders["grounding-dino"], max_phrases=30)
    phrases = [f"{color} {thing}" for color in ("red", "blue", "green", "yellow") for thing in ("box", "key", "apple")]
    image = noise(64, 64)
    others = item(noise(64, 64, seed=1), "a box")
    whole, _ = detect(finder, item(image, ", ".join(f"a {phrase}" for phrase in phrases)), others)
    assert len(whole) == 2 * 20
    parts = [
        detect(finder, item(image, ", ".join(f"a {phrase}" for phrase in some)))[0]
        for some in (phrases[:7], phrases[7:])
    ]
    assert {region.text for region in whole} & set(phrases[:7])
    assert_same(whole, [*parts[0], *parts[1]])


def test_a_phrase_longer_than_a_prompt_is_cut_and_stops_parts_no_phrase(folders):
    network = detector(folders["grounding-dino"])._network
    (prompt,) = network._prompts([["red. box?", ".", " ".join(["apple"] * 50), "key"]])[:1]
    assert prompt.phrases == [-1, 0, 0, -1, -1]  # "red" and "box": a stop inside would be the end of the phrase
    prompts = network._prompts([["red. box?", ".", " ".join(["apple"] * 50), "key"]])
    assert [len(prompt.tokens) for prompt in prompts] == [5, 24, 4]
    assert prompts[0].phrases == [-1, 0, 0, -1, -1]  # "red" and "box": a stop inside would be the end of the phrase
    assert [sorted(set(prompt.phrases)) for prompt in prompts] == [[-1, 0], [-1, 2], [-1, 3]]
    assert network._prompts([["."], ["", "?"]]) == []


def test_an_image_that_can_be_asked_for_nothing_has_no_regions(folders):
    network = detector(folders["grounding-dino"])._network
    pixels = network.prepare(noise(64, 64))
    nothing, something = network.predict([pixels, pixels], [["."], ["box"]], threshold=0.0)
    assert nothing.boxes_cxcywh.shape == (0, 4)
    assert len(something.scores) == 20


@pytest.mark.parametrize("size", [(64, 64), (200, 100), (100, 200), (97, 31), (500, 20)])
def test_an_image_keeps_its_shape_and_its_own_size_is_the_processors(folders, size):
    width, height = size
    prepared = detector(folders["grounding-dino"], image_size=0)._network.prepare(noise(width, height))
    processor = AutoProcessor.from_pretrained(folders["grounding-dino"], backend="pil").image_processor
    pixels = processor(noise(width, height), return_tensors="pt")["pixel_values"]
    assert abs(prepared.rows - pixels.shape[2]) <= 1
    assert abs(prepared.columns - pixels.shape[3]) <= 1
    prepared = detector(folders["grounding-dino"], image_size=96)._network.prepare(noise(width, height))
    assert max(prepared.rows, prepared.columns) == 96
    assert min(prepared.rows, prepared.columns) == max(1, round(96 * min(size) / max(size)))
    assert not any(side % 32 for side in prepared.bytes_HWC.shape[:2])


@pytest.mark.parametrize("kind", DINOS)
def test_padding_is_masked_as_the_class_masks_it(folders, kind):
    image, phrases = noise(64, 40), ["red box", "blue key"]
    (regions,) = detect(detector(folders[kind]), item(image, "a red box and a blue key"))
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folders[kind]).eval()
    tokens = AutoTokenizer.from_pretrained(folders[kind])(". ".join(phrases) + ".", return_tensors="pt")
    pixels, mask = torch.zeros(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.long)
    pixels[:, :, :40] = normalised(image, IMAGENET_COLOURS)
    mask[:, :40] = 1
    with torch.no_grad():
        output = model(pixel_values=pixels, pixel_mask=mask, input_ids=tokens["input_ids"])
    scores = output.logits[0].sigmoid()[:, [1, 2, 4, 5]].amax(dim=1)
    np.testing.assert_allclose(
        sorted(region.score for region in regions), sorted(scores.tolist()), atol=1e-5, rtol=1e-4
    )


def test_an_extreme_shape_still_has_room_for_the_proposals(tmp_path):
    """A strip of 96x1 has fewer positions than the model wants proposals: it is filled up further."""
    finder = detector(tiny_models.save_grounding_dino(tmp_path / "dino", num_queries=100), image_size=96)
    prepared = finder.prepare(item(noise(96, 1), "a box"))
    assert finder.bucket(prepared) == (96, 96)
    assert len(finder.detect([prepared])[0]) == 100


def test_a_tokenizer_of_other_numbers_is_refused(tmp_path, folders):
    folder = tiny_models.save_grounding_dino(tmp_path / "dino")
    AutoTokenizer.from_pretrained(folders["owlv2"]).save_pretrained(folder)
    with pytest.raises(
        ConfigError, match=r"^grounding.model: the tokenizer of .* has other numbers for \[CLS\], \[SEP"
    ):
        detector(folder)


# OmDet-Turbo.


def test_omdets_sizes_that_do_not_suit_it_are_refused(tmp_path, folders):
    with pytest.raises(ConfigError, match=r"^grounding.image_size: 72 is not a multiple of 32, as .* needs it; use"):
        detector(folders["omdet-turbo"], image_size=72)


# The stage.


@pytest.mark.parametrize("kind", ["owlv2", "grounding-dino", "omdet-turbo"])
def test_grounding_stage_writes_regions_that_can_be_used(tmp_path, make_dataset, folders, kind):
    data = make_dataset(tmp_path / "data", 6)
    changes = {"min_box_side": 0.02, "score_threshold": 0.05, "nms_iou": 0.5}
    config = settings(folders[kind], **changes)
    result = run_grounding(config, data, data, tmp_path / "out")
    assert result.counts["quarantined"] == 0
    assert result.counts["refused_items"] > 0  # random weights draw thin boxes too
    assert result.metrics["labels/regions_per_image"] > 0
    for sample in Dataset.open(data, regions=tmp_path / "out").read_all():
        phrases = PhraseExtractor(tagger="lexicon", max_phrases=20)([sample.captions[0]["text"]])
        boxes = np.array([[row[side] for side in ("x1", "y1", "x2", "y2")] for row in sample.regions]).reshape(-1, 4)
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 0.02 - 1e-6).all()
        assert (np.triu(iou(boxes, boxes), k=1) <= 0.5 + 1e-6).all()
        for row in sample.regions:
            assert row["text"] in phrases
            assert (row["source"], row["label"]) == (f"tiny-{kind}", "")
            assert row["score"] > 0.05
    first = {path.name: path.read_bytes() for path in (tmp_path / "out/regions").iterdir()}
    (tmp_path / "out/regions/00001.parquet").unlink()
    assert run_grounding(config, data, data, tmp_path / "out").counts["skipped"] == 4
    assert {path.name: path.read_bytes() for path in (tmp_path / "out/regions").iterdir()} == first


def test_without_vesl_the_detector_is_asked_for_the_alt_texts_ngrams(tmp_path, make_dataset, folders):
    data = make_dataset(tmp_path / "data", 2)
    changes = {"score_threshold": 0.0, "nms_iou": 1.0, "phrases": "alt_text_ngrams"}
    run_grounding(settings(folders["owlv2"], **changes), data, data, tmp_path / "out")
    for sample in Dataset.open(data, regions=tmp_path / "out").read_all():
        color, thing = sample.sample.meta["alt_text"].split()[-2:]
        assert sample.regions
        assert {row["text"] for row in sample.regions} <= {color, thing, f"{color} {thing}"}


def test_only_generated_and_human_captions_are_asked_for(folders):
    finder = detector(folders["owlv2"])
    image = noise(64, 64)
    assert detect(finder, item(image, "a red box", kind="alt_text")) == [[]]
    for kind in ("generated", "human"):
        (regions,) = detect(finder, item(image, "a red box", kind=kind))
        assert {region.text for region in regions} == {"red box"}


def test_an_image_without_phrases_costs_the_model_nothing(folders):
    finder = detector(folders["owlv2"])
    prepared = finder.prepare(item(noise(64, 64)))
    assert (prepared.pixels, finder.bucket(prepared)) == (None, None)
    finder._network = None
    assert finder.detect([prepared, prepared]) == [[], []]


# Checkpoints that cannot be used.


def test_a_model_that_is_not_there_or_of_another_kind_is_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"^grounding.model: cannot load '.*empty' ") as error:
        detector(str(tmp_path / "empty"))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"^grounding.model: there is no folder '.*/nowhere'; name a hub id or"):
        detector(str(tmp_path / "nowhere"))
    blip = tiny_models.save_blip(tmp_path / "blip")
    with pytest.raises(ConfigError, match=r"^grounding.model: '.*blip' is a 'blip' model, .*; use one of the types"):
        detector(blip)


def test_every_type_that_the_library_knows_is_supported():
    assert set(modeling_auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES) == set(NETWORKS)


def test_a_broken_checkpoint_is_one_clear_line(tmp_path):
    folder = tiny_models.save_owl(tmp_path / "owl", "owlv2")
    weights = tmp_path / "owl/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"^grounding.model: cannot load '.*owl' ") as error:
        detector(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device_map", ["", "auto", "balanced"])
def test_a_model_can_be_spread_over_devices_and_is_ready_for_inference(folders, device_map):
    make, cpu = AutoModelForZeroShotObjectDetection.from_pretrained, torch.device("cpu")
    model = load_model(make, folders["owlv2"], key="k", dtype="bfloat16", device=cpu, device_map=device_map)
    assert (model.training, model.dtype) == (False, torch.bfloat16)
    assert model.device == cpu or torch.cuda.is_available()
    with pytest.raises(ConfigError, match=r"^k: cannot load .* found elsewhere") as error:
        load_model(make, folders["owlv2"], key="k", dtype="float32", device=cpu, device_map="elsewhere")
    assert "\n" not in str(error.value)


def test_cuda_without_a_gpu_is_refused(folders):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match=r"^grounding.device: 'cuda' is set but there is no CUDA device"):
        detector(folders["owlv2"], device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_finds_what_a_processor_finds(folders, kind):
    batch = [item(noise(64, 64, seed=seed), "a red box and a blue key") for seed in range(2)]
    for regions, others in zip(
        detect(detector(folders[kind], device="cpu"), *batch),
        detect(detector(folders[kind], device="cuda"), *batch),
        strict=True,
    ):
        assert_same(regions, others, tolerance=1e-3)
