"""Stage `adapter_tuning`: tunes a LLaVA-style model on an encoder, asks it about test images, and reports.

Same seed, data, steps and questions for every encoder, so that what two encoders lead to compares. Written to the
output: the model (see `cloc.mllm.saving`), metrics.jsonl, predictions.jsonl, pictures/, results.json, and the same in
`seeds/` where it is tuned several times; beside it the report (see `cloc.mllm.report`).
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from cloc.config import Config
from cloc.config.schema import AdapterConfig
from cloc.data.dataset import Dataset
from cloc.errors import ConfigError, DataError
from cloc.mllm import report, scores, stream
from cloc.mllm.api import chosen_device
from cloc.mllm.building import make_adapter, name_adapter
from cloc.mllm.evaluation import evaluate
from cloc.mllm.features import known_features, pays
from cloc.mllm.instructions import PhrasePool, bare_wordings, plain
from cloc.mllm.judging import write_predictions
from cloc.mllm.model import Adapter
from cloc.mllm.questions import EvaluationQuestions
from cloc.mllm.sampler import objective_of
from cloc.mllm.saving import save_adapter
from cloc.mllm.splits import Splits, open_splits
from cloc.mllm.tokenizer import train_tokenizer
from cloc.mllm.tuning import TuningReport, tune
from cloc.stage import StageResult

STAGE = "adapter_tuning"
METRICS, RESULTS = "metrics.jsonl", "results.json"
_VOCABULARY_SHARDS = 16  # texts of so many shards train a made decoder's tokenizer, and fill the pool of phrases
_SETTING = ("", "setting")


@dataclass(frozen=True)
class Inputs:
    """What the stage reads.

    Attributes:
        data: a data set, or a collection with a train and a test split.
        captions, regions: folders (or `s3://` prefixes) with the tables of the training split.
        encoder: model folder of pre-training.
        region_sampler: in place of `adapter.region_sampler`; "" or "setting" takes that.
    """

    data: str
    captions: str
    regions: str
    encoder: str
    region_sampler: str = ""


@dataclass(frozen=True)
class Outputs:
    """Where the stage writes.

    Attributes:
        adapter: folder.
        report: folder of the report; empty: `report/` of the adapter's.
    """

    adapter: str
    report: str = ""


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Tunes and evaluates.

    Raises:
        ConfigError: the encoder or the language model cannot be used.
        DataError: a split is missing, nothing can be asked about it, or a test image is in the training data.
        TrainingError: the loss is not finite.
    """
    settings, folder = _settings(config.adapter, inputs), Path(outputs.adapter)
    splits = open_splits(config.data, data=inputs.data, captions=inputs.captions, regions=inputs.regions)
    disable_progress_bar()  # this stage tells its progress itself
    about = {
        "encoder": Path(inputs.encoder).name,
        "encoder_objective": objective_of(inputs.encoder),
        "data": splits.train.digest,
        "test": splits.test_name,
    }
    shutil.rmtree(folder / report.SEEDS, ignore_errors=True)  # of an earlier run with more
    reports = []
    for number in range(settings.repeats):
        seeded = settings.model_copy(update={"seed": settings.seed + number, "repeats": 1})
        place = folder if not number else folder / report.SEEDS / str(seeded.seed)
        reports.append(_tune(seeded, inputs.encoder, splits, place, about=about))
    name = f"{about['encoder_objective']} encoder"
    page = Path(outputs.report or folder / "report")
    comparison = report.write_report({name: folder}, page, title=f"MLLM adapter on the {name}")
    return _result(comparison, reports, name=name, about=about, folder=folder, page=page)


def _settings(settings: AdapterConfig, inputs: Inputs) -> AdapterConfig:
    if inputs.region_sampler in _SETTING:
        return settings
    values = settings.model_dump() | {"region_sampler": inputs.region_sampler}
    try:
        return AdapterConfig.model_validate(values)
    except ValueError:
        raise ConfigError(f"region_sampler: {inputs.region_sampler!r} is none of none, roi_align, prompter") from None


def _tune(
    settings: AdapterConfig, encoder: str, splits: Splits, folder: Path, *, about: dict[str, Any]
) -> TuningReport:
    """Tunes with one seed, and asks."""
    folder.mkdir(parents=True, exist_ok=True)
    sampler = "" if settings.region_sampler == "none" else f", region sampler {settings.region_sampler}"
    print(f"adapter: {about['encoder_objective']} encoder{sampler}, seed {settings.seed}", flush=True)
    pool = PhrasePool.of(_region_texts(splits.train))
    adapter = _build(settings, encoder, splits.train)
    chat, tokens = adapter.chat(), adapter.sampler is not None
    adapter.trainable("tune", train_encoder=settings.train_encoder)
    known = None
    if pays(adapter, settings, images=splits.train.manifest.images):
        known = known_features(adapter, splits.train, settings, keep=splits.is_trained_on)
    steps = stream.batches(
        splits.train,
        chat,
        pool,
        stream.StreamSettings(
            image_size=adapter.image_size,
            batch_size=settings.batch_size,
            questions=settings.questions,
            tasks=settings.tasks.weights,
            region_tokens=tokens,
            seed=settings.seed,
            by_length=settings.grouping == "length",
            decode=known is None,
        ),
        keep=splits.is_trained_on,
    )
    told = tune(adapter, steps, settings, metrics=folder / METRICS, known=known)
    made = settings.model_dump(mode="json", exclude={"repeats", "eval_images", "eval_batch_size", "log_every"})
    save_adapter(adapter, folder, about={**about, "seed": settings.seed, "settings": made})
    _ask(adapter, settings, splits, pool, folder)
    return told


def _build(settings: AdapterConfig, encoder: str, train: Dataset) -> Adapter:
    device = chosen_device(settings.device)
    if settings.language_model:
        return name_adapter(encoder, settings, device=device).to(device)
    decoder = settings.decoder
    tokenizer = train_tokenizer(_texts(train), vocab_size=decoder.vocab_size, context_length=decoder.context_length)
    made = make_adapter(encoder, tokenizer, decoder, seed=settings.seed, region_sampler=settings.region_sampler)
    return made.to(device)


def _texts(train: Dataset) -> Iterator[str]:
    for wording in bare_wordings():
        yield from [wording] * 100
    yield from _region_texts(train)
    for shard in train.manifest.shards[:_VOCABULARY_SHARDS]:
        for rows in train.rows("captions", shard).values():
            yield from (plain(row["text"]) for row in rows)


def _region_texts(train: Dataset) -> Iterator[str]:
    for shard in train.manifest.shards[:_VOCABULARY_SHARDS]:
        for rows in train.rows("regions", shard).values():
            yield from (plain(row["text"]) for row in rows)


def _ask(adapter: Adapter, settings: AdapterConfig, splits: Splits, pool: PhrasePool, folder: Path) -> None:
    """Asks about the test images, and keeps answers and some pictures."""
    questions = EvaluationQuestions(adapter, settings, splits, pool)
    found = evaluate(
        adapter, adapter.chat(), questions, batch_size=settings.eval_batch_size, precision=settings.precision
    )
    if not found:
        raise DataError(f"{splits.test.regions.url}: nothing can be asked about any test image (adapter.tasks)")
    write_predictions(found, folder / report.PREDICTIONS)
    report.save_pictures(questions.shown, folder)


def _result(
    comparison: dict[str, Any],
    reports: list[TuningReport],
    *,
    name: str,
    about: dict[str, Any],
    folder: Path,
    page: Path,
) -> StageResult:
    figures = scores.metrics(comparison, name)
    first = reports[0]
    tuning = {key: value for key, value in asdict(first).items() if isinstance(value, float)}
    metrics = {**figures, **{f"mllm/tuning/{key}": value for key, value in tuning.items()}}
    body = {**about, "seeds": len(reports), "figures": figures, "tuning": [asdict(each) for each in reports]}
    (folder / RESULTS).write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
    said = ", ".join(
        f"{entry['label']} {100 * entry['scores'][name]['value']:.1f}"
        for entry in comparison["figures"]
        if entry["name"] in ("refer/accuracy", "refer/noun_accuracy", "ground/acc@0.5", "ground/parse_failures")
    )
    asked = max(entry["scores"][name]["images"] for entry in comparison["figures"])
    return StageResult(
        stage=STAGE,
        metrics=metrics,
        counts={
            "steps": first.steps,
            "images": first.images,
            "conversations": first.conversations,
            "answer_tokens": first.answer_tokens,
            "test_images": asked,
        },
        message=f"{name} (percent): {said}",
        artifacts={
            "results": str(folder / RESULTS),
            "predictions": str(folder / report.PREDICTIONS),
            "report": str(page / report.PAGE),
        },
    )
