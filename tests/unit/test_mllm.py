"""Adapter tuning: box texts, questions, packed batches, the model's forms on disk, and a whole small stage."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cloc.boxes import Letterbox, iou
from cloc.config import Config
from cloc.config.schema import AdapterConfig, DecoderConfig, ModelConfig, TextConfig, VisionConfig
from cloc.data.dataset import Dataset
from cloc.errors import DataError
from cloc.mllm import evaluation, instructions, model, stage, stream, tuning
from cloc.mllm.boxtext import box_to_text, text_to_box
from cloc.mllm.chat import ChatFormat
from cloc.mllm.instructions import Task
from cloc.mllm.tokenizer import train_tokenizer
from cloc.model.configuration import from_settings
from cloc.model.modeling import CLOCModel
from cloc.model.processing import CLOCProcessor
from cloc.model.processing import train_tokenizer as train_clip_tokenizer

TEXTS = [
    f"{color} {thing}" for color in ("red", "green", "blue", "yellow") for thing in ("box", "ball", "key", "apple")
]
CPU = torch.device("cpu")
DECODER = DecoderConfig(width=64, layers=2, heads=2, mlp_ratio=2.0, context_length=96, vocab_size=900)
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


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    tokenizer = train_clip_tokenizer(TEXTS, vocab_size=600, context_length=16)
    settings = ModelConfig(
        embed_dim=32,
        vision=VisionConfig(width=64, layers=2, heads=2, image_size=64, patch_size=16),
        text=TextConfig(width=32, layers=1, heads=2, context_length=16, vocab_size=600),
    )
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    CLOCModel(from_settings(settings, vocab_size=len(tokenizer), **ids)).save_pretrained(folder)
    CLOCProcessor(tokenizer, image_size=64, context_length=16).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"objective": "cloc", "steps": 0}))
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer():
    wordings = [wording for each in instructions.TEMPLATES.values() for wording in each]
    return train_tokenizer(TEXTS + wordings, vocab_size=DECODER.vocab_size, context_length=DECODER.context_length)


@pytest.fixture
def adapter(encoder, tokenizer):
    return model.make_adapter(encoder, tokenizer, DECODER, seed=0)


def chat_of(adapter: model.Adapter) -> ChatFormat:
    return ChatFormat(
        adapter.tokenizer,
        image_tokens=adapter.image_tokens,
        context_length=adapter.context_length,
        name=adapter.name,
    )


def a_turn(text: str = "red key", box: tuple[float, ...] = (0.1, 0.2, 0.5, 0.6), task: Task = Task.REFER):
    rows = [{"x1": box[0], "y1": box[1], "x2": box[2], "y2": box[3], "text": text, "label": text.split()[-1]}]
    [region] = instructions.regions_of(rows, frame=Letterbox(64, 64, 64))
    return instructions.ask(region, task, rng=np.random.default_rng(0))


def test_box_text_round_trip():
    assert box_to_text([0.1, 0.2, 0.5, 0.6]) == "[10 20 49 59]"
    assert box_to_text([0, 0, 1, 1]) == "[0 0 99 99]"
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = rng.uniform(0, 0.9, 2), rng.uniform(0.02, 1, 2)
        box = np.concatenate([low, np.minimum(1.0, low + high)])
        back = text_to_box(box_to_text(box))
        assert back is not None
        assert np.abs(back - box).max() <= 0.005 + 1e-9
    tiny = text_to_box(box_to_text([0.999, 0.5, 1.0, 0.501]))
    assert tiny is not None
    assert (tiny[2:] > tiny[:2]).all()


@pytest.mark.parametrize(
    "text", ["", "red key", "[1 2 3]", "[50 2 3 4]", "[1 2 3 100]", "[1,2,3,4]", "[1 2 3 4] [1 2 3 4]", "[-1 2 3 4]"]
)
def test_what_is_no_box_is_none(text):
    assert text_to_box(text) is None


def test_boxes_are_asked_in_the_padded_frame():
    frame = Letterbox(200, 100, 64)  # the lower half of the square is padding
    rows = [{"x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0, "text": "The  Red key", "label": "key"}]
    [region] = instructions.regions_of(rows, frame=frame)
    turn = instructions.ask(region, Task.GROUND, rng=np.random.default_rng(0))
    assert turn.answer == "[0 0 99 49]"
    assert "red key" in turn.question
    prediction = evaluation.judge(turn, "[0 0 99 49]", key="a", frame=frame)
    assert prediction.correct
    assert prediction.answered == (0.0, 0.0, 1.0, 1.0)


def test_ambiguous_phrases_are_not_grounded():
    texts = ["key", "red key", "blue key", "green apple", ""]
    rows = [{"x1": 0.1, "y1": 0.1, "x2": 0.2, "y2": 0.2, "text": text, "label": ""} for text in texts]
    regions = instructions.regions_of(rows, frame=Letterbox(64, 64, 64))
    assert [(region.text, region.unique) for region in regions] == [
        ("key", False),
        ("red key", False),
        ("blue key", False),
        ("green apple", True),
    ]
    regions = instructions.regions_of(rows[1:3], frame=Letterbox(64, 64, 64))
    assert all(region.unique for region in regions)


def test_questions_are_seeded_and_varied():
    rows = [{"x1": 0.1, "y1": 0.1, "x2": 0.2, "y2": 0.2, "text": text, "label": ""} for text in TEXTS]
    regions = instructions.regions_of(rows, frame=Letterbox(64, 64, 64))

    def asked(seed):
        return instructions.sampled_questions(regions, limit=20, rng=np.random.default_rng(seed))

    assert asked(3) == asked(3)
    assert asked(3) != asked(4)
    assert len(asked(3)) == 20
    assert len({turn.question.split()[0] for turn in asked(3)}) > 3
    assert {turn.task for turn in asked(3)} == set(Task)


def test_tuning_overfits_a_few_images(adapter, make_dataset, tmp_path):
    data = Dataset.open(make_dataset(tmp_path / "train", 2))
    chat, config = chat_of(adapter), ADAPTER.model_copy(update={"steps": 80, "warmup_steps": 10, "batch_size": 2})
    settings = stream.StreamSettings(image_size=64, batch_size=2, questions=4, seed=0)
    frozen = {name: value.clone() for name, value in adapter.model.model.vision_tower.state_dict().items()}
    report = tuning.tune(
        adapter, stream.batches(data, chat, settings, keep=lambda _: True), config, metrics=tmp_path / "metrics.jsonl"
    )
    assert report.loss < 0.2
    for name, value in adapter.model.model.vision_tower.state_dict().items():
        assert torch.equal(value, frozen[name]), name
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(2, 81, 2))
    assert lines[0]["loss"] > 3 > lines[-1]["loss"]
    assert lines[-1]["learning_rate"] < lines[10]["learning_rate"]
    pictures = [stream.picture_of(sample, image_size=64) for sample in data.read_all()]
    predictions = list(evaluation.evaluate(adapter, chat, pictures, seed=5, batch_size=3, precision="float32"))
    scores = evaluation.score(predictions)
    assert scores.n_images == 2
    assert scores.n_refer == 4
    assert scores.refer_accuracy >= 0.75
    assert scores.ground_accuracy >= 0.75
    assert scores.parse_failures == 0


def test_the_stream_is_seeded(adapter, make_dataset, tmp_path):
    data = Dataset.open(make_dataset(tmp_path / "train", 8))

    def first(seed):
        settings = stream.StreamSettings(image_size=64, batch_size=2, questions=3, seed=seed)
        found = itertools.islice(stream.batches(data, chat_of(adapter), settings, keep=lambda _: True), 10)
        return [batch.ids_BL.tolist() for batch in found]

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_answers_are_judged():
    frame = Letterbox(64, 64, 64)
    refer = a_turn("large red key")
    right = evaluation.judge(refer, "Large red  key", key="a", frame=frame)
    noun = evaluation.judge(refer, "blue key", key="a", frame=frame)
    wrong = evaluation.judge(refer, "red keyboard", key="a", frame=frame)
    assert [(item.correct, item.noun) for item in (right, noun, wrong)] == [(True, True), (False, True), (False, False)]
    ground = a_turn("red key", (0.1, 0.2, 0.5, 0.6), Task.GROUND)
    near = evaluation.judge(ground, "[12 20 49 59]", key="b", frame=frame)
    far = evaluation.judge(ground, "[60 60 70 70]", key="b", frame=frame)
    none = evaluation.judge(ground, "red key", key="b", frame=frame)
    assert [item.correct for item in (near, far, none)] == [True, False, False]
    assert near.iou == pytest.approx(
        float(iou(np.array([[0.12, 0.2, 0.5, 0.6]]), np.array([[0.1, 0.2, 0.5, 0.6]]))[0, 0])
    )
    scores = evaluation.score([right, noun, wrong, near, far, none])
    assert scores.refer_accuracy == pytest.approx(1 / 3)
    assert scores.refer_noun_accuracy == pytest.approx(2 / 3)
    assert scores.ground_accuracy == pytest.approx(1 / 3)
    assert scores.parse_failures == pytest.approx(1 / 3)
    assert (scores.n_refer, scores.n_ground, scores.n_images) == (3, 3, 2)
    assert math.isnan(evaluation.score([right]).ground_accuracy)
    unlabelled = replace(refer, region=replace(refer.region, label=""))
    assert evaluation.judge(unlabelled, "a blue key", key="a", frame=frame).noun


def test_no_regions_is_told(adapter, make_dataset, tmp_path):
    data = Dataset.open(make_dataset(tmp_path / "train", 4, regions=False))
    settings = stream.StreamSettings(image_size=64, batch_size=2, questions=2, seed=0)
    with pytest.raises(DataError, match="run grounding first"):
        next(stream.batches(data, chat_of(adapter), settings, keep=lambda _: True))


def test_stage(encoder, make_dataset, tmp_path):
    data = tmp_path / "data"
    train, _ = make_dataset(data / "train", 8), make_dataset(data / "test", 6, seed=1)
    config = Config(adapter=ADAPTER)
    result = stage.run(
        config,
        inputs=stage.Inputs(data=str(data), captions=train, regions=train, encoder=encoder),
        outputs=stage.Outputs(adapter=str(tmp_path / "out")),
    )
    assert {"mllm/refer/accuracy", "mllm/refer/noun_accuracy", "mllm/ground/acc@0.5"} <= result.metrics.keys()
    assert result.counts["test_images"] == 4
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["objective"] == "cloc"
    assert results["test"] == "test"
    assert results["n_refer"] == 8
    assert results["refer_accuracy"] == result.metrics["mllm/refer/accuracy"]
    predictions = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == results["n_refer"] + results["n_ground"]
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert all(Path(path).exists() for path in result.artifacts.values())
    assert model.load_adapter(tmp_path / "out").image_tokens == 17


def test_one_data_set_is_split_by_key(encoder, make_dataset, tmp_path):
    data = make_dataset(tmp_path / "data", 24)
    splits = stage._open(Config(adapter=ADAPTER), stage.Inputs(data, data, data, encoder))
    test = {sample.sample.key for sample in splits.test_samples()}
    train = {sample.sample.key for sample in splits.train.read_all() if splits.train_filter(sample)}
    assert test
    assert not test & train
    assert len(test | train) == 24


def test_texts_are_escaped_in_the_gallery(make_dataset, tmp_path):
    from cloc.mllm.gallery import write_gallery

    [sample, *_] = Dataset.open(make_dataset(tmp_path / "train", 1)).read_all()
    picture = stream.picture_of(sample, image_size=64)
    turn = a_turn("<script>alert(1)</script>")
    prediction = evaluation.judge(turn, "<img src=x>", key=picture.key, frame=picture.frame)
    write_gallery([picture], [prediction], evaluation.score([prediction]), tmp_path / "page.html", title="a & b")
    page = (tmp_path / "page.html").read_text()
    assert "<script>" not in page
    assert "<img src=x>" not in page
    assert "&lt;script&gt;" in page
