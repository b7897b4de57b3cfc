"""Stage `pretraining`: a labelled data set -> an encoder. CLOC, and the plain-CLIP baselines by the same code."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloc.config import Config
from cloc.config.schema import TrainConfig
from cloc.data.dataset import Dataset, resolve_split
from cloc.errors import ConfigError, TrainingError
from cloc.model.processing import train_tokenizer
from cloc.stage import StageResult, fingerprint
from cloc.training.job import METRICS_FILE, SUMMARY_FILE, TrainingJob
from cloc.training.launch import run_app, training_app

STAGE = "pretraining"
# Texts that a tokenizer is trained on at most: more change nothing, and a corpus may have billions.
_TOKENIZER_TEXTS = 200_000


@dataclass(frozen=True)
class Inputs:
    """What is trained on.

    Attributes:
        data: data set or collection (its split `data.train_split`).
        captions, regions: roots of the tables.
        objective: "cloc" or "clip".
        match_compute_of: folder of a trained model whose processor time this run shall spend; empty: `train.steps`.
        step_cost_of: folder of a model trained with this objective, which tells what a step costs.
    """

    data: str
    captions: str
    regions: str
    objective: str = "cloc"
    match_compute_of: str = ""
    step_cost_of: str = ""


@dataclass(frozen=True)
class Outputs:
    """Attributes:
    model: folder of the trained model; checkpoints lie in it while it trains.
    """

    model: str


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Trains through TorchX and leaves a checkpoint that loads as a CLIPModel.

    Raises:
        ConfigError, DataError: settings or data cannot be trained with.
        TrainingError: a rank failed.
    """
    if inputs.objective not in ("cloc", "clip"):
        raise ConfigError(f"objective must be cloc or clip, got {inputs.objective!r}")
    output = Path(outputs.model)
    output.mkdir(parents=True, exist_ok=True)
    images = resolve_split(inputs.data, config.data.train_split)
    dataset = Dataset.open(images, captions=inputs.captions, regions=inputs.regions)
    job = TrainingJob(
        config=config.model_dump(mode="json"),
        objective="cloc" if inputs.objective == "cloc" else "clip",
        steps=_steps(config.train, inputs),
        images=images,
        captions=inputs.captions,
        regions=inputs.regions,
        data_digest=fingerprint(dataset.digest, dataset.labels_digest()),
        tokenizer=_tokenizer(config, dataset, output),
        output=str(output),
    )
    job.save()
    app = training_app(str(output), config.train, environment={})
    run_app(app, scheduler=config.train.scheduler, log_dir=output / "logs")
    return _result(output)


def _steps(train: TrainConfig, inputs: Inputs) -> int:
    if not inputs.match_compute_of:
        return train.steps
    target, unit = _summary(inputs.match_compute_of), _summary(inputs.step_cost_of)
    if unit["objective"] != inputs.objective:
        raise ConfigError(f"{inputs.step_cost_of} was trained as {unit['objective']!r}, not as {inputs.objective!r}")
    steps = round(target["cpu_seconds"] / unit["cpu_seconds"] * unit["steps"])
    print(
        f"equal compute: {target['cpu_seconds']:.0f} CPU-seconds at {unit['cpu_seconds'] / unit['steps']:.3f} a step "
        f"make {steps} steps",
        flush=True,
    )
    return max(1, steps)


def _summary(folder: str) -> dict[str, Any]:
    path = Path(folder) / SUMMARY_FILE
    if not path.is_file():
        raise TrainingError(f"{folder} is not a trained model (there is no {SUMMARY_FILE})")
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def _tokenizer(config: Config, dataset: Dataset, output: Path) -> str:
    """Folder or hub id of the tokenizer; one is trained on the captions and region texts when none is named."""
    named = config.model.text.tokenizer or config.model.init_from
    if named:
        return named
    folder = output / "tokenizer"
    if not (folder / "tokenizer.json").is_file():
        text = config.model.text
        train_tokenizer(
            _texts(dataset), vocab_size=text.vocab_size, context_length=text.context_length
        ).save_pretrained(str(folder))
    return str(folder)


def _texts(dataset: Dataset) -> Iterator[str]:
    left = _TOKENIZER_TEXTS
    for shard in dataset.manifest.shards:
        for table in ("captions", "regions"):
            for rows in dataset.rows(table, shard).values():
                for row in rows:
                    yield row["text"]
                    left -= 1
                    if not left:
                        return


def _result(output: Path) -> StageResult:
    summary = json.loads((output / SUMMARY_FILE).read_text())
    last = json.loads((output / METRICS_FILE).read_text().splitlines()[-1])
    metrics = {name: value for name, value in last.items() if name not in ("step", "seconds")}
    metrics |= {name: summary[name] for name in ("cpu_seconds", "wall_seconds")}
    return StageResult(
        stage=STAGE,
        metrics=metrics,
        counts={name: summary[name] for name in ("steps", "samples", "parameters", "unusable_samples")},
        message=f"{summary['objective']} trained for {summary['steps']} steps in {summary['wall_seconds']:.0f} s",
        artifacts={"model": str(output), "metrics over time": str(output / METRICS_FILE)},
    )
