"""Evaluation while training: a few images of a held-out set, always the same ones, shared among the ranks.

    evaluation = SmallEvaluation(job, config, processor, rank)
    values = evaluation.run(task)              # every rank, equal on all: {"eval/retrieval/val/i2t_R1": ..., ...}
    checkpoints.save(..., score=evaluation.score(values))

Figures are for comparing a run with itself and its neighbours: those of `cloc evaluate` are over whole test sets.
Shapes: N images of the set, M regions an image at most, R of those one image has, K of those the set has, E embedding
width, Q queries, C candidates.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cloc.boxes import iou
from cloc.config import Config
from cloc.config.schema import AugmentationConfig
from cloc.data.batches import Batch, BatchMaker, BatchSettings, Drawn
from cloc.data.dataset import Dataset
from cloc.data.join import Labels, ShardLabels
from cloc.data.reading import Record
from cloc.errors import ConfigError, DataError
from cloc.model import factory
from cloc.model.processing import CLOCProcessor
from cloc.tracking import eval_name
from cloc.training.distributed import Rank, gathered, total
from cloc.training.job import TrainingJob
from cloc.training.task import CLOCTask, Embeddings, as_they_are

_AT_ONCE = 128  # images that go through the model together
_MEMORY = 1 << 30  # bytes of pixels that a rank keeps; a larger share is decoded again each time
_ROWS = 1024  # queries scored at a time
_IOU = 0.5
LOSS = "loss/total"


@dataclass(frozen=True)
class Truth:
    """What is right, of the whole set: the same on every rank, on the processor.

    Attributes:
        labels: the set as one batch, without pixels and token ids; `text_index_BM` numbers the texts of the set.
        captions_N: number of each image's caption.
    """

    labels: Batch
    captions_N: Tensor


class SmallEvaluation:
    """Evaluates a task on the first `train.evaluate_images` images with a caption of the job's held-out set.

    An image has one caption (generated or human where there is one, else alt-text) and at most `loss.max_regions` of
    its regions, chosen once and for all. The network input has the model's own size throughout. Texts that are equal
    (as token ids) count as one: any of their images or regions is a right answer.

    - `loss/total`: of the set as one batch.
    - `retrieval/i2t_R1`, `retrieval/t2i_R1`: an image's nearest caption is its own, and the other way round.
    - `region_retrieval/r2t_R1`, `region_retrieval/t2r_R1`: the same of all regions of the set and their texts.
    - `grounding/acc_0.5`: share of regions' texts whose box in the image is found with an IoU of at least 0.5.

    Metrics have the set's name in between, as those of `cloc evaluate` do: `eval/retrieval/val/i2t_R1`.

    The objective "clip" has the first three; the others need regions, the last one a Prompter and a grounding loss.

    Args:
        job: names the held-out set and the objective.
        config: all settings.
        processor: the model's.
        rank: this process. Every rank makes one.

    Attributes:
        names: of the figures.

    Raises:
        ConfigError: there is no held-out set, or `train.best_metric` is none of the figures.
        DataError: the set cannot be read, or no image of it has a caption.
    """

    def __init__(self, job: TrainingJob, config: Config, processor: CLOCProcessor, rank: Rank) -> None:
        if not job.held_out:
            raise ConfigError(f"train.evaluate_every is {config.train.evaluate_every}, but there is no held-out set")
        self._train, self._rank = config.train, rank
        self._dataset = Dataset.open(job.held_out)
        self._images = _captioned(self._dataset, most=config.train.evaluate_images)
        if not self._images:
            raise DataError(f"{job.held_out}: no image has a caption to evaluate by; set train.evaluate_every=0")
        self._maker, self._side = _maker(config, processor), processor.image_size
        share = math.ceil(self._images / rank.world_size)
        # Every rank has as many, so that all make the same forward passes (as FSDP2 wants it); what is too much is the
        # last image again and cut off when the shares are joined.
        first = rank.rank * share
        self._places = [min(place, self._images - 1) for place in range(first, first + share)]
        self._kept, labels = list[Batch](), list[Batch]()
        fits = share * 3 * self._side**2 <= _MEMORY
        for batch in self._made():
            labels.append(replace(batch, pixels_BSS3=batch.pixels_BSS3.new_zeros(len(batch.keys), 0, 0, 3)))
            if fits:
                self._kept.append(batch)
        parts = [part for own in gathered(labels) for part in own]
        self._truth = joined_truth(parts, images=self._images, pad=int(processor.tokenizer.pad_token_id))
        self.names = _names(job, config, has_regions=bool(self._truth.labels.present_BM.any()))
        if config.train.keep_best and config.train.best_metric not in self.names:
            raise ConfigError(
                f"train.best_metric {config.train.best_metric!r} is none of the figures of this run: "
                f"{', '.join(self.names)}; set it to one of these, or train.keep_best=0"
            )

    def run(self, task: CLOCTask) -> dict[str, float]:
        """The metrics, equal on all ranks; every rank must call it.

        Args:
            task: as `parallel` left it, with the weights that are to be judged; its mode stays as it is.
        """
        was_training = task.training
        task.eval()
        try:
            with torch.no_grad():
                whole = self._embedded(task)
                values = [0.0] * len(self.names)
                if self._rank.is_first:
                    found = self._scored(task, whole)
                    values = [found[name] for name in self.names]
        finally:
            task.train(was_training)
        shared = total(torch.tensor(values, dtype=torch.float64, device=self._rank.device))
        return dict(zip(map(self._metric, self.names), shared.tolist(), strict=True))

    def score(self, values: dict[str, float]) -> float | None:
        """What checkpoints are compared by: higher is better; None where they are not compared, or have no number."""
        if not self._train.keep_best:
            return None
        value = values[self._metric(self._train.best_metric)]
        if not math.isfinite(value):
            return None
        return -value if self._train.best_metric == LOSS else value

    def _metric(self, name: str) -> str:
        protocol, _, figure = name.partition("/")
        return eval_name(protocol, self._train.evaluate_split, figure)

    def _embedded(self, task: CLOCTask) -> Embeddings:
        """Embeddings of the whole set, in its order."""
        parts = list[Embeddings]()
        for batch in self._kept or self._made():
            with factory.autocast(self._train.precision, self._rank.device):
                parts.append(task(batch.to(self._rank.device), as_they_are))
        return Embeddings(
            **{
                field.name: _of_all_ranks(torch.cat([getattr(part, field.name) for part in parts]))[: self._images]
                for field in fields(Embeddings)
                if getattr(parts[0], field.name) is not None
            }
        )

    def _scored(self, task: CLOCTask, whole: Embeddings) -> dict[str, float]:
        truth, device = self._truth, self._rank.device
        with factory.autocast(self._train.precision, device):
            losses = task.losses(whole, truth.labels.to(device), task.temperatures(), shared=False)
        captions_N = truth.captions_N.to(device)
        found = {
            LOSS: float(losses.total),
            "retrieval/i2t_R1": recall(whole.images_BE, whole.captions_BE, same=captions_N),
            "retrieval/t2i_R1": recall(whole.captions_BE, whole.images_BE, same=captions_N),
        }
        if whole.regions_BME is None or whole.texts_BME is None or not truth.labels.present_BM.any():
            return found
        present_BM = truth.labels.present_BM.to(device)
        regions_KE, texts_KE = whole.regions_BME[present_BM], whole.texts_BME[present_BM]
        texts_K = truth.labels.text_index_BM.to(device)[present_BM]
        found["region_retrieval/r2t_R1"] = recall(regions_KE, texts_KE, same=texts_K)
        found["region_retrieval/t2r_R1"] = recall(texts_KE, regions_KE, same=texts_K)
        if whole.found_BM4 is not None:
            found["grounding/acc_0.5"] = grounding_accuracy(whole.found_BM4, truth.labels)
        return found

    def _made(self) -> Iterator[Batch]:
        """This rank's share, decoded."""
        size = self._train.micro_batch or max(1, self._train.batch_size // self._rank.world_size)
        pending = list[Drawn[Labels]]()
        for record in _read(self._dataset, self._places):
            pending.append(Drawn(0, record))
            if len(pending) == min(size, _AT_ONCE):
                yield self._make(pending)
                pending = []
        if pending:
            yield self._make(pending)

    def _make(self, samples: Sequence[Drawn[Labels]]) -> Batch:
        shape = (len(samples), self._side, self._side, 3)
        return self._maker.make(samples, pixels_BSS3=np.empty(shape, dtype=np.uint8))


def make_evaluation(job: TrainingJob, config: Config, processor: CLOCProcessor, rank: Rank) -> SmallEvaluation | None:
    """The evaluation that the settings ask for, if any; see `SmallEvaluation`.

    Raises:
        ConfigError: checkpoints are to be kept by a metric, and none is to be measured.
        DataError: the held-out set cannot be used.
    """
    if config.train.evaluate_every:
        return SmallEvaluation(job, config, processor, rank)
    if config.train.keep_best:
        raise ConfigError(
            f"train.keep_best is {config.train.keep_best}, but nothing is evaluated while training; set "
            "train.evaluate_every, or train.keep_best=0"
        )
    return None


def joined_truth(parts: Iterable[Batch], *, images: int, pad: int) -> Truth:
    """What is right of the whole set.

    Args:
        parts: the set in its order, pixels aside.
        images: N; what comes after them is left out.
        pad: token id that fills texts up, to another length in each part.
    """
    numbers: dict[tuple[int, ...], int] = {}

    def numbered(ids_TL: Tensor) -> Tensor:
        return torch.tensor([numbers.setdefault(_words(row, pad), len(numbers)) for row in ids_TL.tolist()])

    parts = list(parts)
    captions_N = torch.cat([numbered(part.caption_ids_BL) for part in parts])[:images]
    index_NM = torch.cat([numbered(part.text_ids_UL)[part.text_index_BM] for part in parts])[:images]

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])[:images]

    labels = Batch(
        keys=tuple(key for part in parts for key in part.keys)[:images],
        pixels_BSS3=whole("pixels_BSS3"),
        caption_ids_BL=captions_N.new_zeros(images, 0),
        boxes_BM4=whole("boxes_BM4"),
        points_BM2=whole("points_BM2"),
        pointed_BM=whole("pointed_BM"),
        present_BM=whole("present_BM"),
        text_ids_UL=captions_N.new_zeros(len(numbers), 0),
        text_index_BM=index_NM,
    )
    return Truth(labels, captions_N)


def recall(queries_QE: Tensor, candidates_QE: Tensor, *, same: Tensor) -> float:
    """R@1: share of the queries whose nearest candidate is a right one; of candidates that tie, each is as likely.

    Args:
        queries_QE, candidates_QE: unit vectors; the k-th candidate belongs to the k-th query.
        same: (Q,), a number each: the candidates of an equal number are right, too.
    """
    credit = torch.zeros((), dtype=torch.float64, device=queries_QE.device)
    for first in range(0, len(queries_QE), _ROWS):
        rows = slice(first, first + _ROWS)
        scores_QC = queries_QE[rows] @ candidates_QE.T
        nearest_QC = scores_QC == scores_QC.amax(dim=1, keepdim=True)
        right_QC = same[rows, None] == same[None, :]
        credit += ((nearest_QC & right_QC).sum(dim=1) / nearest_QC.sum(dim=1)).double().sum()
    return float(credit) / len(queries_QE)


def grounding_accuracy(found_NM4: Tensor, labels: Batch) -> float:
    """Share of the regions of which the box that their text was found in has an IoU of at least 0.5 with theirs, or
    with another one of the same text in the image. Boxes are of the padded network input, found and labelled."""
    hits = 0
    for number, present_M in enumerate(labels.present_BM):
        found, labelled = (
            boxes[number][present_M.to(boxes.device)].double() for boxes in (found_NM4, labels.boxes_BM4)
        )
        texts_R = labels.text_index_BM[number][present_M]
        same_RR = (texts_R[:, None] == texts_R[None, :]).numpy()
        near_RR = iou(found.cpu().numpy(), labelled.cpu().numpy()) >= _IOU
        hits += int((near_RR & same_RR).any(axis=1).sum())
    return hits / int(labels.present_BM.sum())


def _names(job: TrainingJob, config: Config, *, has_regions: bool) -> tuple[str, ...]:
    names = [LOSS, "retrieval/i2t_R1", "retrieval/t2i_R1"]
    if job.objective == "cloc" and has_regions:
        names += ["region_retrieval/r2t_R1", "region_retrieval/t2r_R1"]
        if config.loss.grounding != "none" and config.model.prompter.kind == "transformer":
            names.append("grounding/acc_0.5")
    return tuple(names)


def _maker(config: Config, processor: CLOCProcessor) -> BatchMaker:
    """Of samples as they are: no augmentation, no points, no alt-text where there is another caption."""
    settings = BatchSettings(
        image_size=processor.image_size,
        batch_size=1,
        max_regions=config.loss.max_regions,
        alt_text_share=0.0,
        point_share=0.0,
        augmentation=AugmentationConfig(),
        seed=0,
    )
    return BatchMaker(settings, tokenize=processor.tokenize)


def _captioned(dataset: Dataset, *, most: int) -> int:
    """How many images have a caption, `most` at most; no more tables are read than that takes."""
    found = 0
    for shard in dataset.manifest.shards:
        found += len(dataset.rows("captions", shard))
        if found >= most:
            return most
    return found


def _read(dataset: Dataset, places: Sequence[int]) -> Iterator[Record[Labels]]:
    """The samples at these places (ascending, any of them several times), counted over all that have a caption.

    Raises:
        DataError: a shard is broken, or has fewer samples than its captions table.
    """
    times, seen = Counter(places), 0
    left = len(times)
    for number, shard in enumerate(dataset.manifest.shards):
        labels = ShardLabels(dataset, shard)
        wanted = _Wanted(labels, times, seen=seen)
        with closing(dataset.open_images(shard)) as opened, closing(opened.read(wanted)) as images:
            for key, image in images:
                place, index = wanted.found[key]
                yield from [Record(key, number, index, image, labels.of(key))] * times[place]
                left -= 1
                if not left:
                    return
        seen = wanted.seen
    raise DataError(f"{dataset.images.url}: captions of images that are in no shard; make the captions tables again")


class _Wanted:
    """Chooses samples of a shard by their place among all that have a caption; asked once a sample, in order.

    Attributes:
        seen: samples with a caption so far, those of the shards before included.
        found: place, and index in the shard, of the chosen samples by key.
    """

    def __init__(self, labels: ShardLabels, places: Collection[int], *, seen: int) -> None:
        self._labels, self._places, self._asked = labels, places, 0
        self.seen, self.found = seen, dict[str, tuple[int, int]]()

    def __call__(self, key: str) -> bool:
        index, place = self._asked, self.seen
        self._asked += 1
        if not self._labels.wants(key):
            return False
        self.seen += 1
        if place not in self._places:
            return False
        self.found[key] = (place, index)
        return True


def _of_all_ranks(x: Tensor) -> Tensor:
    """The ranks' tensors, equally long, one after another."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    joined = x.new_empty(len(x) * dist.get_world_size(), *x.shape[1:])
    dist.all_gather_single(joined, x.contiguous())
    return joined


def _words(ids: list[int], pad: int) -> tuple[int, ...]:
    """Token ids without what fills them up."""
    length = len(ids)
    while length and ids[length - 1] == pad:
        length -= 1
    return tuple(ids[:length])
