"""Adapter tuning: the stream, the loop with its stages, kept features, answers about test images, the whole stage."""

import json
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cloc.config import Config, parse
from cloc.data.dataset import Dataset
from cloc.errors import ConfigError, DataError, TrainingError
from cloc.mllm import scores, stage, stream
from cloc.mllm.building import name_adapter
from cloc.mllm.conversation import Conversation, Task, Turn
from cloc.mllm.evaluation import Questions, evaluate
from cloc.mllm.features import known_features, pays
from cloc.mllm.foreign import ForeignImage
from cloc.mllm.instructions import evaluation_conversations
from cloc.mllm.model import Adapter
from cloc.mllm.splits import open_splits
from cloc.training.preemption import Preempted, Preemption
from tests.conftest import write_dataset
from tests.integration.tuning_runs import ADAPTER, POOL, TASKS, config, everything, streams_of, tuning_of
from tests.tiny_adapters import make_tiny, save_decoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(write_dataset(tmp_path_factory.mktemp("eight"), 8))


def steps_of(adapter: Adapter, data: Dataset, **changes: object) -> Iterator[stream.Step]:
    with closing(streams_of(adapter, data, **changes).batches()) as batches:
        yield from batches


def tune(
    adapter: Adapter, data: Dataset, out: Path, *, known: dict[str, torch.Tensor] | None = None, **changes: object
):
    return tuning_of(adapter, data, config(changes), out, known=known).run()


# The stream


def test_the_stream_is_seeded_and_names_its_images(encoder: str, eight: Dataset) -> None:
    adapter = make_tiny(encoder)

    def first(seed: int) -> list[tuple[object, ...]]:
        found = islice(steps_of(adapter, eight, seed=seed), 20)
        return [(step.batch.ids_BL.tolist(), *step.keys) for step in found]

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert {key for step in first(1) for key in step[1:]} == {f"{number:06d}" for number in range(8)}


def test_batches_of_like_length_hold_less_padding(encoder: str, eight: Dataset) -> None:
    adapter, wanted = make_tiny(encoder), {"refer": 1.0, "ground": 1.0, "describe": 1.0}

    def padding(by_length: bool) -> int:
        steps = steps_of(adapter, eight, by_length=by_length, tasks=wanted, questions=3)
        return sum(int((step.batch.segments_BL < 0).sum()) for step in islice(steps, 80))

    assert padding(True) < 0.7 * padding(False)


def test_nothing_to_ask_is_told(encoder: str, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    bare = Dataset.open(write_dataset(tmp_path / "bare", 4, regions=False, captions=False))
    nothing = r"nothing can be asked about any image \(adapter\.tasks\); run captioning and grounding first"
    with pytest.raises(DataError, match=nothing):
        next(steps_of(adapter, bare))
    captioned = Dataset.open(write_dataset(tmp_path / "captioned", 4, regions=False))
    with pytest.raises(DataError, match=nothing):
        next(steps_of(adapter, captioned))


def test_a_stream_goes_on_in_the_middle_of_a_group(encoder: str, eight: Dataset) -> None:
    adapter = make_tiny(encoder)

    def taken(streams: stream.ChatStreams, count: int) -> list[tuple[object, ...]]:
        with closing(streams.batches()) as batches:
            return [(step.batch.ids_BL.tolist(), *step.keys) for step in islice(batches, count)]

    whole = taken(streams_of(adapter, eight), 3 * stream.GROUP)
    for count in (1, stream.GROUP - 1, stream.GROUP, stream.GROUP + 3):
        first, later = streams_of(adapter, eight), streams_of(adapter, eight)
        assert taken(first, count) == whole[:count]
        later.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert taken(later, 10) == whole[count : count + 10]


def test_ranks_share_out_what_one_would_take(encoder: str, eight: Dataset) -> None:
    adapter = make_tiny(encoder)

    def asked(step: stream.Step) -> set[tuple[object, ...]]:
        rows = zip(step.keys, step.batch.ids_BL.tolist(), step.batch.segments_BL.tolist(), strict=True)
        return {(key, *(one for one, at in zip(ids, segments, strict=True) if at >= 0)) for key, ids, segments in rows}

    one = steps_of(adapter, eight, batch_size=4, streams=2)
    two = [steps_of(adapter, eight, batch_size=2, streams=2, rank=rank, world_size=2) for rank in range(2)]
    for step, *parts in islice(zip(one, *two, strict=False), 2 * stream.GROUP):
        assert asked(step) == asked(parts[0]) | asked(parts[1])


# Instruction files


class _Nine:
    """Nine items about nine pictures."""

    def __init__(self, folder: Path) -> None:
        for number in range(9):
            Image.new("RGB", (40, 20 + number), "red").save(folder / f"{number}.png")
        self.folder = folder

    def __len__(self) -> int:
        return 9

    def __getitem__(self, number: int) -> ForeignImage:
        said = Conversation(Task.OTHER, (Turn(f"where is the red {number}?", "yes"),))
        return ForeignImage(f"file{number}", self.folder / f"{number}.png", (said,))


def test_items_of_files_take_their_share_in_turn(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    adapter, checked = make_tiny(encoder), list[str]()
    mixed = stream.Mixed(_Nine(tmp_path), share=0.25, check=lambda key, image: checked.append(key))

    def keys(**changes: Any) -> list[list[str]]:
        found = steps_of(adapter, eight, mixed=mixed, **{"batch_size": 4, **changes})
        return [list(step.keys) for step in islice(found, 3 * stream.GROUP)]

    steps = keys()
    theirs = [key for step in steps for key in step if key.startswith("file")]
    assert len(theirs) == 3 * stream.GROUP  # one of four
    assert {theirs.count(f"file{number}") for number in range(9)} == {2, 3}
    assert set(theirs) <= set(checked)
    assert keys() == steps
    assert keys(seed=1) != steps
    halves = [keys(streams=2, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    assert [sorted(one + other) for one, other in zip(*halves, strict=True)] == [
        sorted(step) for step in keys(streams=2)
    ]
    pixels_BSS3 = next(steps_of(adapter, eight, mixed=mixed, batch_size=8)).batch.pixels_BSS3
    assert pixels_BSS3 is not None
    assert pixels_BSS3.shape == (8, 64, 64, 3)


def test_a_test_image_in_a_file_is_told(tmp_path: Path) -> None:
    train, test = write_dataset(tmp_path / "train", 4, seed=1), Dataset.open(write_dataset(tmp_path / "test", 4))
    splits = open_splits(Config().data, data=str(tmp_path), captions=train, regions=train)
    (sample, *_) = test.read_all()
    assert sample.sample.key in splits.test_keys
    with pytest.raises(DataError, match=r"llava\.json: image 'other' is '000000' of the test split test"):
        splits.check("other", sample.sample.image, source="llava.json")


# The loop


def test_tuning_learns_by_heart_and_leaves_the_encoder_alone(encoder: str, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    data = Dataset.open(write_dataset(tmp_path / "train", 2))
    frozen = {name: value.clone() for name, value in adapter.tower.state_dict().items()}
    told = tune(adapter, data, tmp_path, steps=80, warmup_steps=10, batch_size=2)
    assert told.loss < 0.2
    assert (told.steps, told.images) == (80, 160)
    for name, value in adapter.tower.state_dict().items():
        assert torch.equal(value, frozen[name]), name
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 81, 2))
    assert lines[0]["loss/answers"] > 3 > lines[-1]["loss/answers"]
    assert lines[-1]["train/learning_rate"] < lines[10]["train/learning_rate"]
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
    figures = scores.metrics(scores.compare([scores.Row("it", (found,))]), "it", test="test")
    assert figures["eval/mllm_refer/test/accuracy"] >= 0.75
    assert figures["eval/mllm_ground/test/acc_0.5"] >= 0.75
    assert figures["eval/mllm_ground/test/parse_failures"] == 0


def weights(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in adapter.parts.named_parameters()}


def test_the_first_stage_trains_the_projector_alone(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    before = weights(adapter)
    tune(adapter, eight, tmp_path, steps=2, align_steps=2, warmup_steps=0)
    names = {name for name, value in adapter.parts.named_parameters() if not torch.equal(value, before[name])}
    assert names
    assert all("multi_modal_projector" in name for name in names)


def test_the_encoder_is_trained_where_that_is_asked_for(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    before = weights(adapter)
    tune(adapter, eight, tmp_path, steps=2, train_encoder=True, warmup_steps=0)
    names = {name for name, value in adapter.parts.named_parameters() if not torch.equal(value, before[name])}
    assert any("vision_tower" in name for name in names)


def test_recomputed_activations_change_nothing(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        adapter = make_tiny(encoder)
        tune(adapter, eight, tmp_path, steps=3, gradient_checkpointing=checkpointing)
        found.append(weights(adapter))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


def test_kept_features_are_what_the_encoder_says(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    known = known_features(adapter, eight, ADAPTER, keep=everything)
    step, bare = (next(steps_of(adapter, eight, decode=decode)) for decode in (True, False))
    assert step.batch.pixels_BSS3 is not None
    assert bare.batch.pixels_BSS3 is None
    assert torch.equal(bare.batch.ids_BL, step.batch.ids_BL)
    kept_BND = torch.stack([known[key] for key in step.keys])
    torch.testing.assert_close(kept_BND, adapter.features(step.batch.pixels_BSS3), atol=1e-5, rtol=1e-4)
    losses = [
        tune(make_tiny(encoder), eight, tmp_path, known=features, steps=6, batch_size=2).loss
        for features in (None, known)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_ranks_keep_the_features_of_their_shares(encoder: str, tmp_path: Path) -> None:
    adapter, data = make_tiny(encoder), Dataset.open(write_dataset(tmp_path / "data", 150, shard_size=50))
    whole = known_features(adapter, data, ADAPTER, keep=everything)
    parts = [known_features(adapter, data, ADAPTER, keep=everything, rank=rank, ranks=2) for rank in range(2)]
    assert [len(part) for part in parts] == [64 + 22, 64]
    both = parts[0] | parts[1]
    assert both.keys() == whole.keys()
    assert all(torch.equal(both[key], whole[key]) for key in whole)


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
    with pytest.raises(
        TrainingError,
        match=r"step 1: the loss is nan; samples 00000\d, 00000\d, .* lower adapter\.learning_rate",
    ):
        tune(adapter, eight, tmp_path)
    (bad,) = [json.loads(line) for line in (tmp_path / "bad_batches.jsonl").read_text().splitlines()]
    assert len(bad["keys"]) == 4


def test_a_bad_batch_is_left_out_where_that_is_asked_for(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    adapter = make_tiny(encoder)
    before, plain = weights(adapter), adapter.answer_loss
    calls = []

    def once_bad(*given: object) -> tuple[torch.Tensor, torch.Tensor]:
        total, tokens = plain(*given)
        calls.append(float(total.detach()))
        return (total * float("nan"), tokens) if len(calls) == 1 else (total, tokens)

    tuning = tuning_of(adapter, eight, config({"steps": 1}, on_nonfinite="skip", max_skipped=2), tmp_path)
    object.__setattr__(adapter, "answer_loss", once_bad)
    told = tuning.run()
    assert (told.skipped, len(calls)) == (1, 1)
    assert all(torch.equal(value, before[name]) for name, value in weights(adapter).items())


class _After(Preemption):
    """Is asked to stop at the n-th look."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    @property
    def asked(self) -> bool:  # type: ignore[override]  # counted
        self._left -= 1
        return self._left == 0


@pytest.mark.parametrize("stopped", [1, 3, 4, 6])
def test_going_on_ends_as_the_uninterrupted_run(encoder: str, eight: Dataset, tmp_path: Path, stopped: int) -> None:
    settings = config({"steps": 7, "align_steps": 4, "log_every": 1}, shuffle_buffer=3)

    def made() -> Adapter:
        return make_tiny(encoder, region_sampler="roi_align")

    whole = made()
    told = tuning_of(whole, eight, settings, tmp_path / "whole").run()
    with pytest.raises(Preempted):
        tuning_of(made(), eight, settings, tmp_path / "again", preemption=_After(stopped)).run()
    again = made()
    later = tuning_of(again, eight, settings, tmp_path / "again").run()
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())
    assert (later.loss, later.tokens, later.images) == (told.loss, told.tokens, told.images)
    rows = [
        [json.loads(line)["loss/answers"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "again")
    ]
    assert len(rows[0]) == 7
    assert rows[0] == rows[1]


def test_lora_goes_on_as_well(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    decoder = save_decoder(tmp_path / "decoder")
    settings = config({"steps": 4, "language_model": decoder, "lora_rank": 4})

    def made() -> Adapter:
        return name_adapter(encoder, settings.adapter, device=torch.device("cpu"))

    whole, again = made(), made()
    tuning_of(whole, eight, settings, tmp_path / "whole").run()
    with pytest.raises(Preempted):
        tuning_of(made(), eight, settings, tmp_path / "again", preemption=_After(2)).run()
    tuning_of(again, eight, settings, tmp_path / "again").run()
    expected = weights(whole)
    assert any("lora_" in name for name in expected)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())


def test_other_settings_do_not_go_on(encoder: str, eight: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        tuning_of(make_tiny(encoder), eight, config(), tmp_path, preemption=_After(2)).run()
    with pytest.raises(TrainingError, match=r"other settings or data: adapter\.learning_rate was 0\.003 and is 0\.1"):
        tune(make_tiny(encoder), eight, tmp_path, learning_rate=0.1)


# The splits and the stage


def test_one_data_set_is_split_by_key(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 24)
    splits = open_splits(Config().data, data=data, captions=data, regions=data)
    test = {sample.sample.key for sample in splits.test_samples()}
    train = {
        sample.sample.key
        for sample in splits.train.read_all()
        if splits.is_trained_on(sample.sample.key, sample.sample.image)
    }
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
        splits.is_trained_on(sample.sample.key, sample.sample.image)


def test_bad_settings_are_told_in_one_line(encoder: str, tmp_path: Path) -> None:
    data, empty = write_dataset(tmp_path / "data", 24), str(tmp_path / "empty")
    Path(empty).mkdir()

    def message(config: Config, **inputs: str) -> str:
        given = {"data": data, "captions": data, "regions": data, "encoder": encoder, **inputs}
        with pytest.raises(ConfigError) as caught:
            stage.run(config, inputs=stage.Inputs(**given), outputs=stage.Outputs(adapter=str(tmp_path / "out")))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "is none of none, roi_align, prompter" in message(Config(adapter=ADAPTER), region_sampler="crop")
    assert "there is no model.safetensors" in message(Config(adapter=ADAPTER), encoder=empty)
    assert "adapter.batch_size 3 is not divisible by 2 processes" in message(
        Config(adapter=ADAPTER.model_copy(update={"batch_size": 3, "processes": 2}))
    )
    with pytest.raises(ConfigError, match=r"adapter\.tasks"):
        parse({"adapter": {"tasks": {"refer": -1}}}, source="test")
