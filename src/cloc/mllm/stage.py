"""Stage `adapter_tuning`: tunes a LLaVA-style model on the frozen encoder, and says how well it refers and grounds.

Same seed, data and steps for every encoder, so that the results of two encoders compare. Written to the output:
the model (see `cloc.mllm.model`), metrics.jsonl, results.json, predictions.jsonl, gallery.html.
"""

import itertools
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from cloc.config import Config
from cloc.config.schema import AdapterConfig
from cloc.data.dataset import Dataset, LabeledSample, resolve_split
from cloc.errors import ConfigError, DataError
from cloc.mllm import evaluation, stream
from cloc.mllm.chat import ChatFormat
from cloc.mllm.gallery import write_gallery
from cloc.mllm.instructions import TEMPLATES, plain
from cloc.mllm.model import Adapter, make_adapter, name_adapter, save_adapter
from cloc.mllm.tokenizer import train_tokenizer
from cloc.mllm.tuning import TuningReport, tune
from cloc.stage import StageResult

STAGE = "adapter_tuning"
METRICS, RESULTS, PREDICTIONS, GALLERY = "metrics.jsonl", "results.json", "predictions.jsonl", "gallery.html"
_VOCABULARY_SHARDS = 16  # region texts of so many shards train a made decoder's tokenizer
_PICTURES = 24
_HELD_OUT = 10  # of a data set without a test split, one image in so many is kept for the test


@dataclass(frozen=True)
class Inputs:
    """What the stage reads.

    Attributes:
        data: a data set, or a collection with a train and a test split.
        captions, regions: folders (or `s3://` prefixes) with the tables of the training split.
        encoder: model folder of pre-training.
    """

    data: str
    captions: str
    regions: str
    encoder: str


@dataclass(frozen=True)
class Outputs:
    """Where the stage writes.

    Attributes:
        adapter: folder.
    """

    adapter: str


@dataclass(frozen=True)
class _Splits:
    """Training and test data; `held_out` when both are parts of one data set, told apart by the key."""

    train: Dataset
    test: Dataset
    held_out: bool

    def train_filter(self, sample: LabeledSample) -> bool:
        return not self.held_out or not _is_held_out(sample)

    def test_samples(self) -> Iterator[LabeledSample]:
        return (sample for sample in self.test.read_all() if not self.held_out or _is_held_out(sample))


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Tunes and evaluates.

    Raises:
        ConfigError: the encoder or the language model cannot be used.
        DataError: a split is missing, or has no regions to ask about.
        TrainingError: the loss is not finite.
    """
    settings, folder = config.adapter, Path(outputs.adapter)
    folder.mkdir(parents=True, exist_ok=True)
    splits, objective = _open(config, inputs), _objective(inputs.encoder)
    disable_progress_bar()  # this stage tells its progress itself
    print(f"adapter: loading the encoder ({objective}) and its decoder", flush=True)
    device = _device(settings)
    adapter = _build(settings, inputs.encoder, splits.train, device=device)
    adapter.model.to(device)
    chat = ChatFormat(
        adapter.tokenizer,
        image_tokens=adapter.image_tokens,
        context_length=adapter.context_length,
        name=adapter.name,
    )
    batches = stream.batches(
        splits.train,
        chat,
        stream.StreamSettings(
            image_size=adapter.image_size,
            batch_size=settings.batch_size,
            questions=settings.questions,
            seed=settings.seed,
        ),
        keep=splits.train_filter,
    )
    report = tune(adapter, batches, settings, metrics=folder / METRICS)
    save_adapter(adapter, folder, about={"encoder_objective": objective, "steps": settings.steps})
    scores = _evaluate(adapter, chat, splits, settings, folder, title=f"Adapter on the {objective} encoder")
    return _result(scores, report, objective=objective, encoder=inputs.encoder, splits=splits, folder=folder)


def _open(config: Config, inputs: Inputs) -> _Splits:
    if not config.data.test_splits:
        raise ConfigError("data.test_splits is empty; name the split that the adapter is evaluated on")
    train = resolve_split(inputs.data, config.data.train_split)
    test = resolve_split(inputs.data, config.data.test_splits[0])
    labelled = Dataset.open(train, captions=inputs.captions, regions=inputs.regions)
    if train == test:
        return _Splits(labelled, labelled, held_out=True)
    return _Splits(labelled, Dataset.open(test), held_out=False)


def _is_held_out(sample: LabeledSample) -> bool:
    return zlib.crc32(sample.sample.key.encode()) % _HELD_OUT == 0


def _objective(encoder: str) -> str:
    """What the encoder was trained for, as pre-training recorded it."""
    path = Path(encoder) / "training.json"
    try:
        return str(json.loads(path.read_text())["objective"])
    except FileNotFoundError:
        return "not recorded"
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path}: not a record of pre-training ({type(error).__name__}: {error})") from None


def _device(settings: AdapterConfig) -> torch.device:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("adapter.device is cuda, but there is no usable GPU here; set it to auto or cpu")
    name = "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _build(settings: AdapterConfig, encoder: str, train: Dataset, *, device: torch.device) -> Adapter:
    if settings.language_model:
        return name_adapter(encoder, settings, device=device)
    decoder = settings.decoder
    tokenizer = train_tokenizer(_texts(train), vocab_size=decoder.vocab_size, context_length=decoder.context_length)
    return make_adapter(encoder, tokenizer, decoder, seed=settings.seed)


def _texts(train: Dataset) -> Iterator[str]:
    for wordings in TEMPLATES.values():
        for wording in wordings:
            yield from [wording.format(box="", phrase="")] * 100
    for shard in train.manifest.shards[:_VOCABULARY_SHARDS]:
        for rows in train.rows("regions", shard).values():
            yield from (plain(row["text"]) for row in rows)


def _evaluate(
    adapter: Adapter, chat: ChatFormat, splits: _Splits, settings: AdapterConfig, folder: Path, *, title: str
) -> evaluation.Scores:
    shown: list[stream.Picture] = []

    def pictures() -> Iterator[stream.Picture]:
        for sample in itertools.islice(splits.test_samples(), settings.eval_images):
            picture = stream.picture_of(sample, image_size=adapter.image_size)
            if len(shown) < _PICTURES:
                shown.append(picture)
            yield picture

    predictions = list(
        evaluation.evaluate(
            adapter,
            chat,
            pictures(),
            seed=settings.seed,
            batch_size=settings.eval_batch_size,
            precision=settings.precision,
        )
    )
    if not predictions:
        raise DataError(f"{splits.test.regions.url}: no test image has a region with a text; evaluation needs some")
    scores = evaluation.score(predictions)
    evaluation.write_predictions(predictions, folder / PREDICTIONS)
    write_gallery(shown, predictions, scores, folder / GALLERY, title=title)
    return scores


def _result(
    scores: evaluation.Scores, report: TuningReport, *, objective: str, encoder: str, splits: _Splits, folder: Path
) -> StageResult:
    # JSON has no nan: a share of nothing is null.
    numbers = {name: None if math.isnan(value) else value for name, value in asdict(scores).items()}
    results = {
        "encoder": Path(encoder).name,
        "objective": objective,
        "test": "held-out tenth" if splits.held_out else Path(splits.test.images.url).name,
        **numbers,
        "tuning": asdict(report),
    }
    (folder / RESULTS).write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    metrics = {
        "mllm/refer/accuracy": scores.refer_accuracy,
        "mllm/refer/noun_accuracy": scores.refer_noun_accuracy,
        "mllm/ground/acc@0.5": scores.ground_accuracy,
        "mllm/ground/iou": scores.ground_iou,
        "mllm/ground/parse_failures": scores.parse_failures,
        "mllm/tuning/loss": report.loss,
        "mllm/tuning/cpu_seconds": report.cpu_seconds,
    }
    return StageResult(
        stage=STAGE,
        metrics={name: value for name, value in metrics.items() if not math.isnan(value)},
        counts={
            "steps": report.steps,
            "images": report.images,
            "questions": report.questions,
            "test_images": scores.n_images,
            "refer_questions": scores.n_refer,
            "ground_questions": scores.n_ground,
        },
        message=(
            f"{objective} encoder: refers {100 * scores.refer_accuracy:.1f} % exactly, "
            f"{100 * scores.refer_noun_accuracy:.1f} % by noun; grounds {100 * scores.ground_accuracy:.1f} % at "
            f"IoU 0.5 ({100 * scores.parse_failures:.1f} % of the answers were no box)"
        ),
        artifacts={
            "results": str(folder / RESULTS),
            "predictions": str(folder / PREDICTIONS),
            "gallery": str(folder / GALLERY),
        },
    )
