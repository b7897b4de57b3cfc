"""Evaluation while training: its figures by hand, on a tiny model against a naive count, on one rank and on two."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cloc.boxes import iou
from cloc.config import Config
from cloc.data.batches import Batch
from cloc.data.dataset import Dataset
from cloc.data.tables import write_table
from cloc.data.transforms import Picture
from cloc.errors import ConfigError, DataError
from cloc.model import factory
from cloc.model.processing import CLOCProcessor, train_tokenizer
from cloc.training import evaluate
from cloc.training.checkpoint import Checkpoints, TrainingState
from cloc.training.distributed import Rank
from cloc.training.evaluate import SmallEvaluation, grounding_accuracy, joined_truth, make_evaluation, recall
from cloc.training.jobfile import METRICS_FILE
from cloc.training.preemption import Preemption
from cloc.training.task import CLOCTask
from cloc.training.trainer import Trainer
from tests.conftest import write_dataset
from tests.integration import evaluate_ranks
from tests.integration.evaluate_ranks import config, job, loaded

NAMES = (
    "loss/total", "retrieval/i2t_R1", "retrieval/t2i_R1", "region_retrieval/r2t_R1", "region_retrieval/t2r_R1",
    "grounding/acc_0.5",
)  # fmt: skip
ALL = tuple("eval/" + name.replace("/", "/val/") for name in NAMES)
TEXTS = ["a red box left of a green ball", "a blue key left of a yellow apple", "free download photo"]
ALONE = Rank(0, 1, torch.device("cpu"))


# --- by hand


def test_recall_counts_the_nearest() -> None:
    queries = torch.eye(4)
    candidates = torch.eye(4)[[0, 1, 3, 2]]  # the last two are each other's
    assert recall(queries, candidates, same=torch.arange(4)) == 0.5
    assert recall(queries, queries, same=torch.arange(4)) == 1.0


def test_equal_texts_are_right_and_ties_are_shared() -> None:
    queries, candidates = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    assert recall(queries, candidates, same=torch.tensor([0, 1, 2, 2])) == 1.0
    collapsed = torch.ones(8, 2) / math.sqrt(2)
    assert recall(collapsed, collapsed, same=torch.arange(8)) == 1 / 8
    assert recall(collapsed, collapsed, same=torch.arange(8) // 2) == 2 / 8


def test_recall_over_more_queries_than_are_scored_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    queries, candidates = F.normalize(torch.randn(50, 3), dim=1), F.normalize(torch.randn(50, 3), dim=1)
    whole = recall(queries, candidates, same=torch.arange(50) // 5)
    nearest = (queries @ candidates.T).argmax(dim=1)
    assert whole == (nearest // 5 == torch.arange(50) // 5).double().mean()
    monkeypatch.setattr(evaluate, "_ROWS", 7)
    assert recall(queries, candidates, same=torch.arange(50) // 5) == pytest.approx(whole)


def labels(**changed: Any) -> Batch:
    """Two images with two regions, one with one."""
    boxes = torch.tensor([[[0.0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]] * 2 + [[[0.0, 0, 1, 1], [0, 0, 0, 0]]])
    own = Batch(
        keys=("a", "b", "c"),
        pixels_BSS3=torch.zeros(3, 0, 0, 3, dtype=torch.uint8),
        caption_ids_BL=torch.tensor([[5, 6, 9, 9], [5, 9, 9, 9], [5, 6, 9, 9]]),
        boxes_BM4=boxes,
        points_BM2=boxes[..., :2],
        pointed_BM=torch.zeros(3, 2, dtype=torch.bool),
        present_BM=torch.tensor([[True, True], [True, True], [True, False]]),
        text_ids_UL=torch.tensor([[7, 9], [8, 9], [6, 9]]),
        text_index_BM=torch.tensor([[0, 1], [1, 1], [2, 0]]),
    )
    return replace(own, **changed)


def test_grounding_counts_boxes_of_the_same_text_in_the_image() -> None:
    own = labels()
    assert grounding_accuracy(own.boxes_BM4.float(), own) == 1.0
    swapped = own.boxes_BM4.flip(1)  # wrong in the first image; right in the second, whose texts are equal
    assert grounding_accuracy(swapped, own) == 2 / 5
    narrow = own.boxes_BM4 * torch.tensor([1.0, 1, 1, 0.49])  # of a box at the top a little less than a half is left
    assert grounding_accuracy(narrow, own) == 0.0
    half = torch.tensor([0.0, 0, 0.5, 0.25]).expand(3, 2, 4)
    assert grounding_accuracy(half, own) == 3 / 5  # IoU 0.5 with the first box of two images; asked twice in one


def test_equal_texts_have_one_number_whatever_fills_them_up() -> None:
    other = labels(
        keys=("d", "e", "f"),
        caption_ids_BL=torch.tensor([[5, 6, 9], [4, 9, 9], [5, 9, 9]]),
        text_ids_UL=torch.tensor([[6, 9, 9], [7, 9, 9], [6, 5, 9]]),
    )
    truth = joined_truth([labels(), other], images=5, pad=9)
    assert truth.labels.keys == ("a", "b", "c", "d", "e")
    captions = truth.captions_N.tolist()
    assert captions[0] == captions[2] == captions[3]
    assert len({captions[0], captions[1], captions[4]}) == 3
    texts = truth.labels.text_index_BM.tolist()
    assert texts[0][0] == texts[3][1] == texts[4][0]
    assert texts[2][0] == texts[3][0]
    assert texts[0][1] == texts[1][0] == texts[1][1]
    assert len({texts[0][0], texts[0][1], texts[2][0]}) == 3


# --- on a tiny model


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Eleven images, two of them without a caption; the captions tables are not in the order of the shards."""
    url = write_dataset(tmp_path_factory.mktemp("data") / "val", 11, shard_size=4)
    dataset = Dataset.open(url)
    for shard in dataset.manifest.shards:
        rows = [row for rows in dataset.rows("captions", shard).values() for row in rows]
        kept = [row for row in reversed(rows) if row["key"] not in ("000002", "000007")]
        write_table(dataset.captions, "captions", shard.name, kept)
    return url


@pytest.fixture(scope="module")
def saved(held_out: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned a part of the set: its figures are neither those of chance nor perfect."""
    folder, settings = tmp_path_factory.mktemp("model"), config()
    train_tokenizer(TEXTS, vocab_size=540, context_length=16).save_pretrained(str(folder))
    torch.manual_seed(0)
    model, processor = factory.create(settings.model, settings.loss, tokenizer=str(folder))
    task = CLOCTask(model, settings.loss, objective="cloc", normalize=processor.normalize)
    optimizer = torch.optim.AdamW([each for each in task.parameters() if each.requires_grad], lr=5e-3)
    batches = SmallEvaluation(job(settings, held_out), settings, processor, ALONE)._kept
    for _ in range(20):
        for batch in batches:
            optimizer.zero_grad()
            task(batch).total.backward()
            optimizer.step()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(saved: Path) -> tuple[CLOCProcessor, CLOCTask]:
    return loaded(config(), saved)


@pytest.fixture(scope="module")
def alone(held_out: str, tiny: tuple[CLOCProcessor, CLOCTask]) -> dict[str, float]:
    """The figures of one rank."""
    processor, task = tiny
    return SmallEvaluation(job(config(), held_out), config(), processor, ALONE).run(task)


def unit(x: torch.Tensor) -> np.ndarray:
    return F.normalize(x, dim=-1).double().numpy()


@torch.no_grad()
def test_the_figures_are_those_of_a_naive_count(
    held_out: str, tiny: tuple[CLOCProcessor, CLOCTask], alone: dict[str, float]
) -> None:
    """Image by image and text by text, with the model's public parts; ties have no say here."""
    processor, task = tiny
    model, dataset = task.model, Dataset.open(held_out)
    images, captions, regions, texts, described, found_right = [], [], [], [], [], []
    for sample in dataset.read_all():
        human = [row["text"] for row in sample.captions if row["kind"] == "human"]
        if not human:
            continue
        pixels, frame = Picture(sample.sample.image).letterbox(32)
        encoded = model.encode_image(processor.normalize(torch.from_numpy(pixels)[None]))
        images.append(unit(encoded.embeds_BE)[0])
        captions.append(unit(model.encode_text(processor.tokenize(human)))[0])
        padded = frame.to_padded([[row[side] for side in ("x1", "y1", "x2", "y2")] for row in sample.regions])
        own = [row["text"] for row in sample.regions]
        words = model.encode_text(processor.tokenize(own))
        asked = model.prompt(encoded.tokens_BND, boxes=torch.tensor(padded)[None].float(), texts=words[None])
        assert asked.boxes_BME is not None
        assert asked.found_BM4 is not None
        regions += list(unit(asked.boxes_BME)[0])
        texts += list(unit(words))
        described += own
        near = iou(asked.found_BM4[0].double().numpy(), padded) >= 0.5
        same = np.array(own)[:, None] == np.array(own)[None]
        found_right += (near & same).any(axis=1).tolist()
    assert len(images) == 9
    assert all(0 < alone[name] < 1 for name in ALL[1:]), alone
    assert len(set(described)) < len(described) == 18
    nearest = (np.array(images) @ np.array(captions).T).argmax(axis=1)
    assert alone["eval/retrieval/val/i2t_R1"] == pytest.approx(np.mean(nearest == np.arange(9)))
    assert alone["eval/retrieval/val/t2i_R1"] == pytest.approx(
        np.mean((np.array(captions) @ np.array(images).T).argmax(axis=1) == np.arange(9))
    )
    scores, names = np.array(regions) @ np.array(texts).T, np.array(described)
    assert alone["eval/region_retrieval/val/r2t_R1"] == pytest.approx(np.mean(names[scores.argmax(axis=1)] == names))
    assert alone["eval/grounding/val/acc_0.5"] == pytest.approx(np.mean(found_right))
    assert alone["eval/region_retrieval/val/t2r_R1"] == pytest.approx(np.mean(names[scores.argmax(axis=0)] == names))


def test_the_loss_is_that_of_the_set_as_one_batch_and_parts_change_nothing(
    held_out: str, tiny: tuple[CLOCProcessor, CLOCTask], alone: dict[str, float]
) -> None:
    processor, task = tiny
    whole = SmallEvaluation(job(config(), held_out), config(batch_size=64), processor, ALONE)
    (batch,) = whole._made()
    assert batch.keys == tuple(f"{number:06d}" for number in (0, 1, 3, 4, 5, 6, 8, 9, 10))
    with torch.no_grad():
        assert alone["eval/loss/val/total"] == pytest.approx(float(task(batch).total), rel=1e-5)
    parts = SmallEvaluation(job(config(), held_out), config(micro_batch=2), processor, ALONE)
    assert len(parts._kept) == 5
    assert parts.run(task) == pytest.approx(whole.run(task), rel=1e-5)
    assert parts.run(task) == pytest.approx(alone, rel=1e-5)


def test_a_large_set_is_decoded_again_each_time(
    held_out: str, tiny: tuple[CLOCProcessor, CLOCTask], alone: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, task = tiny
    monkeypatch.setattr(evaluate, "_MEMORY", 1000)
    again = SmallEvaluation(job(config(), held_out), config(), processor, ALONE)
    assert not again._kept
    assert again.run(task) == again.run(task) == alone


def test_nothing_of_the_task_or_the_random_numbers_changes(held_out: str, tiny: tuple[CLOCProcessor, CLOCTask]) -> None:
    processor, task = tiny
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task.train()
    random = torch.get_rng_state()
    SmallEvaluation(job(config(), held_out), config(), processor, ALONE).run(task)
    assert task.training
    assert task.model.vision_model.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())


@pytest.mark.parametrize(("world_size", "images"), [(1, 9), (2, 9), (4, 9), (4, 3), (16, 9), (3, 6)])
def test_ranks_have_equal_shares_that_make_the_set(
    held_out: str, tiny: tuple[CLOCProcessor, CLOCTask], world_size: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "gathered", lambda value: [value] * world_size)
    settings, found = config(evaluate_images=images), list[list[str]]()
    for rank in range(world_size):
        own = SmallEvaluation(job(settings, held_out), settings, tiny[0], Rank(rank, world_size, torch.device("cpu")))
        found.append([key for batch in own._made() for key in batch.keys])
    assert len({len(keys) for keys in found}) == 1
    whole = [key for keys in found for key in keys][:images]
    assert whole == [f"{number:06d}" for number in (0, 1, 3, 4, 5, 6, 8, 9, 10)][:images]


def test_two_ranks_find_what_one_finds_by_every_strategy(
    held_out: str, saved: Path, alone: dict[str, float], tmp_path: Path
) -> None:
    """Nine images: the second rank has one fewer. Under DDP and FSDP2, and with a moving average in place."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    out = tmp_path / "found.json"
    done = subprocess.run(
        [*command, evaluate_ranks.__file__, held_out, str(saved), str(out)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert set(found) == {"ddp", "fsdp2", "ddp, average", "fsdp2, average"}
    for first, second in found.values():
        assert first == second
        assert first == pytest.approx(alone, rel=1e-5)


# --- which metrics there are


def test_names_are_those_that_apply(held_out: str, tiny: tuple[CLOCProcessor, CLOCTask], tmp_path: Path) -> None:
    def names(settings: Config, data: str = held_out, **of: Any) -> tuple[str, ...]:
        return SmallEvaluation(job(settings, data, **of), settings, tiny[0], ALONE).names

    assert names(config()) == NAMES
    assert names(config(), objective="clip") == NAMES[:3]
    assert names(config(), write_dataset(tmp_path / "val", 6, regions=False)) == NAMES[:3]
    settings = config()
    assert (
        names(settings.model_copy(update={"loss": settings.loss.model_copy(update={"grounding": "none"})})) == NAMES[:5]
    )


def test_clip_is_evaluated_by_what_applies(held_out: str, saved: Path) -> None:
    processor, task = loaded(config(), saved, objective="clip")
    values = SmallEvaluation(job(config(), held_out, objective="clip"), config(), processor, ALONE).run(task)
    assert tuple(values) == ALL[:3]
    assert values["eval/loss/val/total"] > 0


def test_the_score_is_the_best_metric_and_a_loss_is_negated(
    held_out: str, tiny: tuple[CLOCProcessor, CLOCTask]
) -> None:
    values = dict.fromkeys(ALL, 0.25)

    def score(**train: Any) -> float | None:
        settings = config(**train)
        return SmallEvaluation(job(settings, held_out), settings, tiny[0], ALONE).score(values)

    assert score() is None
    assert score(keep_best=1) == 0.25
    assert score(keep_best=1, best_metric="loss/total") == -0.25
    values["eval/retrieval/val/i2t_R1"] = math.nan
    assert score(keep_best=1, best_metric="retrieval/i2t_R1") is None


def test_a_best_metric_that_there_is_not_is_told_before_training(
    held_out: str, tiny: tuple[CLOCProcessor, CLOCTask]
) -> None:
    settings = config(keep_best=1, best_metric="retrieval/accuracy")
    with pytest.raises(
        ConfigError, match=r"train\.best_metric 'retrieval/accuracy' is none .*loss/total.*grounding/acc_0\.5; set"
    ) as e:
        SmallEvaluation(job(settings, held_out), settings, tiny[0], ALONE)
    assert "\n" not in str(e.value)
    settings = config(keep_best=1)
    with pytest.raises(ConfigError, match=r"r2t_R1' is none .*: loss/total, retrieval/i2t_R1, retrieval/t2i_R1; set"):
        SmallEvaluation(job(settings, held_out, objective="clip"), settings, tiny[0], ALONE)


def test_an_evaluation_is_made_where_it_is_asked_for(held_out: str, tiny: tuple[CLOCProcessor, CLOCTask]) -> None:
    assert isinstance(make_evaluation(job(config(), held_out), config(), tiny[0], ALONE), SmallEvaluation)
    none = config(evaluate_every=0)
    assert make_evaluation(job(none, ""), none, tiny[0], ALONE) is None
    best = config(evaluate_every=0, keep_best=2)
    with pytest.raises(ConfigError, match=r"train\.keep_best is 2, but nothing is evaluated while training; set"):
        make_evaluation(job(best, ""), best, tiny[0], ALONE)


def test_a_set_that_cannot_be_used_is_told(tiny: tuple[CLOCProcessor, CLOCTask], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.evaluate_every is 1, but there is no held-out set"):
        SmallEvaluation(job(config(), ""), config(), tiny[0], ALONE)
    bare = write_dataset(tmp_path / "bare", 5, captions=False)
    with pytest.raises(DataError, match=r"bare: no image has a caption to evaluate by; set train\.evaluate_every=0"):
        SmallEvaluation(job(config(), bare), config(), tiny[0], ALONE)
    with pytest.raises(DataError, match="image '000003' cannot be decoded"):
        SmallEvaluation(job(config(), write_dataset(tmp_path / "broken", 5, broken=[3])), config(), tiny[0], ALONE)
    data = write_dataset(tmp_path / "strange", 5, shard_size=5)
    dataset = Dataset.open(data)
    rows = [row for rows in dataset.rows("captions", dataset.manifest.shards[0]).values() for row in rows]
    write_table(dataset.captions, "captions", "00000", [*rows, {**rows[0], "key": "000099"}])
    with pytest.raises(DataError, match="captions of images that are in no shard; make the captions tables again"):
        SmallEvaluation(job(config(), data), config(), tiny[0], ALONE)


# --- in a training


def trained(settings: Config, data: str, held_out: str, saved: Path, out: Path) -> Trainer:
    """A whole training in this process."""
    given = {"images": data, "captions": data, "regions": data, "tokenizer": str(saved), "output": str(out)}
    whole = replace(job(settings, held_out), steps=6, data_digest="0", **given)
    whole.save()
    trainer = Trainer(whole, ALONE, preemption=Preemption())
    trainer.run()
    return trainer


def rows(out: Path) -> dict[int, dict[str, float]]:
    return {row["step"]: row for row in map(json.loads, (out / METRICS_FILE).read_text().splitlines())}


def test_a_training_evaluates_before_it_saves_and_learns_the_same_without(
    held_out: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps with a moving average, whose weights are judged."""
    data = write_dataset(tmp_path / "train", 24, shard_size=8, seed=1)
    scores = dict[int, float | None]()
    save = Checkpoints.save

    def spied(own: Checkpoints, tensors: Any, state: TrainingState, *, score: float | None = None) -> None:
        scores[state.step] = score
        save(own, tensors, state, score=score)

    monkeypatch.setattr(Checkpoints, "save", spied)
    given = {"steps": 6, "warmup_steps": 1, "learning_rate": 3e-3, "ema": 0.9, "log_every": 5, "checkpoint_every": 2}
    best = {"evaluate_every": 3, "keep_best": 1, "best_metric": "loss/total"}
    evaluated = trained(config(**given, **best), data, held_out, saved, tmp_path / "evaluated")
    found = rows(tmp_path / "evaluated")
    assert set(found) == {1, 3, 5, 6}
    assert [step for step, row in found.items() if set(ALL) <= set(row)] == [3, 6]
    assert all("loss/total" in row for row in found.values())
    # A score is of the weights that it is saved with.
    assert scores == {2: None, 3: -found[3]["eval/loss/val/total"], 4: None}
    # The model that is saved is the one that was judged last: the average.
    processor, task = loaded(config(), tmp_path / "evaluated")
    again = SmallEvaluation(job(config(), held_out), config(), processor, ALONE).run(task)
    assert again == pytest.approx({name: found[6][name] for name in ALL}, rel=1e-5)

    bare = trained(config(**given, evaluate_every=0), data, "", saved, tmp_path / "bare")
    assert not any("eval/loss/val/total" in row for row in rows(tmp_path / "bare").values())
    for (name, one), other in zip(evaluated.task.state_dict().items(), bare.task.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
