"""Adapter tuning: the stream, the loop with its stages, kept features, answers about test images, the whole stage."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cloc.config import Config, parse
from cloc.config.schema import AdapterConfig
from cloc.data.dataset import Dataset
from cloc.errors import ConfigError, DataError, TrainingError
from cloc.mllm import scores, stage, stream, tuning
from cloc.mllm.evaluation import Questions, evaluate
from cloc.mllm.features import known_features, pays
from cloc.mllm.instructions import PhrasePool, evaluation_conversations
from cloc.mllm.judging import read_predictions
from cloc.mllm.model import Adapter
from cloc.mllm.saving import load_adapter
from cloc.mllm.splits import open_splits
from tests.conftest import write_dataset
from tests.tiny_adapters import DECODER, make_tiny

POOL = PhrasePool.of(["red key", "blue box", "green ball", "yellow apple"])
TASKS = {"refer": 1.0, "ground": 1.0}
ADAPTER = AdapterConfig(
    decoder=DECODER,
    steps=4,
    batch_size=4,
    questions=4,
    learning_rate=3e-3,
    warmup_steps=2,
    precision="float32",
    eval_images=4,
    eval_batch_size=8,
    log_every=2,
    device="cpu",
)
SETTINGS = stream.StreamSettings(image_size=64, batch_size=2, questions=4, tasks=TASKS, region_tokens=False, seed=0)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(write_dataset(tmp_path_factory.mktemp("eight"), 8))


def everything(sample: object) -> bool:
    return True


def steps_of(adapter: Adapter, data: Dataset, settings: stream.StreamSettings = SETTINGS):
    return stream.batches(data, adapter.chat(), POOL, settings, keep=everything)


# The stream


def test_the_stream_is_seeded_and_names_its_images(encoder: str, eight: Dataset) -> None:
    adapter = make_tiny(encoder)

    def first(seed: int) -> list[tuple[object, ...]]:
        found = islice(steps_of(adapter, eight, replace(SETTINGS, seed=seed)), 20)
        return [(step.batch.ids_BL.tolist(), *step.keys) for step in found]

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert {key for step in first(1) for key in step[1:]} == {f"{number:06d}" for number in range(8)}


def test_batches_of_like_length_hold_less_padding(encoder: str, eight: Dataset) -> None:
    adapter, wanted = make_tiny(encoder), {"refer": 1.0, "ground": 1.0, "describe": 1.0}

    def padding(by_length: bool) -> int:
        settings = replace(SETTINGS, by_length=by_length, tasks=wanted, questions=3)
        return sum(int((step.batch.segments_BL < 0).sum()) for step in islice(steps_of(adapter, eight, settings), 80))

    assert padding(True) < 0.7 * padding(False)


def test_nothing_to_ask_is_told(encoder: str, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    bare = Dataset.open(write_dataset(tmp_path / "bare", 4, regions=False, captions=False))
    with pytest.raises(DataError, match="no image has a caption or a region; run grounding first"):
        next(steps_of(adapter, bare))
    captioned = Dataset.open(write_dataset(tmp_path / "captioned", 4, regions=False))
    with pytest.raises(DataError, match=r"nothing can be asked about any image \(adapter\.tasks\)"):
        next(steps_of(adapter, captioned))


# The loop


def test_tuning_learns_by_heart_and_leaves_the_encoder_alone(encoder: str, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    data = Dataset.open(write_dataset(tmp_path / "train", 2))
    config = ADAPTER.model_copy(update={"steps": 80, "warmup_steps": 10, "batch_size": 2})
    frozen = {name: value.clone() for name, value in adapter.tower.state_dict().items()}
    told = tuning.tune(adapter, steps_of(adapter, data), config, metrics=tmp_path / "metrics.jsonl")
    assert told.loss < 0.2
    assert (told.steps, told.images) == (80, 160)
    for name, value in adapter.tower.state_dict().items():
        assert torch.equal(value, frozen[name]), name
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 81, 2))
    assert lines[0]["loss"] > 3 > lines[-1]["loss"]
    assert lines[-1]["learning_rate"] < lines[10]["learning_rate"]
    asked = []
    for sample in data.read_all():
        picture = stream.picture_of(sample, image_size=64)
        rng = np.random.default_rng(5)
        asked.append(
            Questions(
                picture, evaluation_conversations(picture.facts, tasks=TASKS, region_tokens=False, pool=POOL, rng=rng)
            )
        )
    found = evaluate(adapter, adapter.chat(), asked, batch_size=3, precision="float32")
    assert [item.key for item in found] == sorted(item.key for item in found)
    figures = scores.metrics(scores.compare([scores.Row("it", (found,))]), "it")
    assert figures["mllm/refer/accuracy"] >= 0.75
    assert figures["mllm/ground/acc@0.5"] >= 0.75
    assert figures["mllm/ground/parse_failures"] == 0


def weights(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in adapter.parts.named_parameters()}


def test_the_first_stage_trains_the_projector_alone(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    before = weights(adapter)
    config = ADAPTER.model_copy(update={"steps": 2, "align_steps": 2, "warmup_steps": 0})
    tuning.tune(adapter, steps_of(adapter, eight), config, metrics=tmp_path / "m.jsonl")
    names = {name for name, value in adapter.parts.named_parameters() if not torch.equal(value, before[name])}
    assert names
    assert all("multi_modal_projector" in name for name in names)


def test_the_encoder_is_trained_where_that_is_asked_for(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    before = weights(adapter)
    config = ADAPTER.model_copy(update={"steps": 2, "train_encoder": True, "warmup_steps": 0})
    tuning.tune(adapter, steps_of(adapter, eight), config, metrics=tmp_path / "m.jsonl")
    names = {name for name, value in adapter.parts.named_parameters() if not torch.equal(value, before[name])}
    assert any("vision_tower" in name for name in names)


def test_recomputed_activations_change_nothing(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        adapter = make_tiny(encoder)
        config = ADAPTER.model_copy(update={"steps": 3, "gradient_checkpointing": checkpointing})
        tuning.tune(adapter, steps_of(adapter, eight), config, metrics=tmp_path / "m.jsonl")
        found.append(weights(adapter))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


def test_kept_features_are_what_the_encoder_says(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    config = ADAPTER.model_copy(update={"steps": 6, "batch_size": 2})
    known = known_features(adapter, eight, config, keep=everything)
    step, bare = (next(steps_of(adapter, eight, replace(SETTINGS, decode=decode))) for decode in (True, False))
    assert step.batch.pixels_BSS3 is not None
    assert bare.batch.pixels_BSS3 is None
    assert torch.equal(bare.batch.ids_BL, step.batch.ids_BL)
    torch.testing.assert_close(known.of(step.keys), adapter.features(step.batch.pixels_BSS3), atol=1e-5, rtol=1e-4)
    losses = []
    for features in (None, known):
        again = make_tiny(encoder)
        steps = steps_of(again, eight, replace(SETTINGS, decode=features is None))
        told = tuning.tune(again, steps, config, metrics=tmp_path / "m.jsonl", known=features)
        losses.append(told.loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_features_are_kept_only_where_it_pays(encoder: str) -> None:
    adapter = make_tiny(encoder)
    each = adapter.image_tokens * 64 * 4

    def kept(images: int = 8, **changes: object) -> bool:
        return pays(adapter, ADAPTER.model_copy(update={"steps": 100, **changes}), images=images)

    assert kept()
    assert not kept(cache_gigabytes=0.0)
    assert not kept(cache_gigabytes=7.5 * each / 1e9)
    assert kept(cache_gigabytes=8.5 * each / 1e9)
    assert not kept(train_encoder=True)
    assert not kept(images=201)  # 400 images are seen


def test_a_loss_that_is_no_number_names_step_and_images(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    with torch.no_grad():
        adapter.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1 \(images 00000\d, 00000\d, \.\.\.\)"):
        tuning.tune(adapter, steps_of(adapter, eight), ADAPTER, metrics=tmp_path / "m.jsonl")


# The splits and the stage


def test_one_data_set_is_split_by_key(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 24)
    splits = open_splits(Config().data, data=data, captions=data, regions=data)
    test = {sample.sample.key for sample in splits.test_samples()}
    train = {sample.sample.key for sample in splits.train.read_all() if splits.is_trained_on(sample)}
    assert test
    assert not test & train
    assert len(test | train) == 24


def test_a_test_image_in_the_training_data_is_told(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_dataset(tmp_path / name, 4)
    train = str(tmp_path / "train")
    splits = open_splits(Config().data, data=str(tmp_path), captions=train, regions=train)
    [sample, *_] = splits.train.read_all()
    with pytest.raises(DataError, match=r"image '000000' is '000000' of the test split test; take it out"):
        splits.is_trained_on(sample)


def test_stage_with_two_seeds_and_a_sampler(encoder: str, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    train, _ = write_dataset(data / "train", 8), write_dataset(data / "test", 6, seed=1)
    result = stage.run(
        Config(adapter=ADAPTER.model_copy(update={"repeats": 2})),
        inputs=stage.Inputs(data=str(data), captions=train, regions=train, encoder=encoder, region_sampler="prompter"),
        outputs=stage.Outputs(adapter=str(out)),
    )
    assert {"mllm/refer/accuracy", "mllm/refer/noun_accuracy", "mllm/ground/acc@0.5"} <= result.metrics.keys()
    assert result.counts["test_images"] == 4
    results = json.loads((out / "results.json").read_text())
    assert (results["encoder_objective"], results["test"], results["seeds"]) == ("cloc", "test", 2)
    assert results["figures"]["mllm/refer/accuracy"] == result.metrics["mllm/refer/accuracy"]
    about = [json.loads((place / "adapter.json").read_text()) for place in (out, out / "seeds" / "1")]
    assert [item["seed"] for item in about] == [0, 1]
    assert about[0]["region_sampler"]["kind"] == "prompter"
    page = (out / "report" / "index.html").read_text()
    assert page.count("data:image/jpeg;base64,") > 4
    assert "(2 seeds)" in page
    assert all(Path(path).exists() for path in result.artifacts.values())
    assert load_adapter(out).sampler is not None
    stage.run(
        Config(adapter=ADAPTER),
        inputs=stage.Inputs(data=str(data), captions=train, regions=train, encoder=encoder),
        outputs=stage.Outputs(adapter=str(out)),
    )
    assert not (out / "seeds").exists()  # of the run before
    assert json.loads((out / "results.json").read_text())["seeds"] == 1


def test_expressions_of_a_file_are_grounded_in_their_own_rows(encoder: str, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 24)
    Image.new("RGB", (80, 40), "red").save(tmp_path / "one.jpg")
    items = [
        {"image": "one.jpg", "expression": "the red one", "bbox": [8, 4, 40, 20], "split": "testA"},
        {"image": "one.jpg", "expression": "another one", "bbox": [0, 0, 8, 8], "split": "val"},
    ]
    (tmp_path / "refcoco.json").write_text(json.dumps(items))
    config = ADAPTER.model_copy(update={"test_files": (str(tmp_path / "refcoco.json"),), "test_file_split": "testA"})
    out = tmp_path / "out"
    result = stage.run(
        Config(adapter=config),
        inputs=stage.Inputs(data=data, captions=data, regions=data, encoder=encoder),
        outputs=stage.Outputs(adapter=str(out)),
    )
    assert "mllm/refcoco/ground/acc@0.5" in result.metrics
    (item,) = [each for each in read_predictions(out / "predictions.jsonl") if each.source]
    assert item.right == [pytest.approx((0.1, 0.1, 0.6, 0.6))]
    assert "refcoco:" in (out / "report" / "index.html").read_text()


def test_bad_settings_are_told_in_one_line(encoder: str, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 24)

    def message(config: Config, **inputs: str) -> str:
        given = {"data": data, "captions": data, "regions": data, "encoder": encoder, **inputs}
        with pytest.raises(ConfigError) as caught:
            stage.run(config, inputs=stage.Inputs(**given), outputs=stage.Outputs(adapter=str(tmp_path / "out")))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is none of none, roi_align, prompter" in message(Config(adapter=ADAPTER), region_sampler="crop")
    assert "no CLIP, SigLIP or CLOC model" in message(Config(adapter=ADAPTER), encoder=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"adapter\.tasks"):
        parse({"adapter": {"tasks": {"refer": -1}}}, source="test")
