"""Stage `pretraining`: a labelled data set -> an encoder. CLOC, and the plain-CLIP baselines by the same code."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloc.config import Config
from cloc.config.schema import TrainConfig
from cloc.data.dataset import Dataset, resolve_split
from cloc.data.fetching import copy
from cloc.data.storage import open_storage
from cloc.errors import ConfigError, DataError, TrainingError
from cloc.model.processing import train_tokenizer
from cloc.stage import LINEAGE_FILE, StageResult, fingerprint
from cloc.tracking.rows import NO_METRICS
from cloc.training.data_check import check_data, held_out
from cloc.training.doctor import preflight
from cloc.training.job import TrainingJob
from cloc.training.jobfile import JOB_FILE, METRICS_FILE, SUMMARY_FILE, TOKENIZER
from cloc.training.launch import finish, home, impatient, reachable, request_text, run_app, training_app
from cloc.training.lineage import write_lineage

STAGE = "pretraining"
LOGS = "logs"
_MODULE = "cloc.training.trainer"
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

    @property
    def title(self) -> str:
        """What tells this training from others of a pipeline."""
        return f"{self.objective}_equal_compute" if self.match_compute_of else self.objective


@dataclass(frozen=True)
class Outputs:
    """Attributes:
    model: folder of the trained model; checkpoints lie in it while it trains, but where `train.storage` is set.
    unfinished: folder that the run lies in until it is done, in place of `model`, where there is no `train.storage`:
        for one that is emptied before the same command runs again.
    """

    model: str
    unfinished: str = ""


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Trains through TorchX and leaves a checkpoint that loads as a CLIPModel.

    Where `train.storage` is set, or `outputs.unfinished`, all that the run writes lies in a folder of it that is named
    after the run, and the model is brought to `outputs.model` at the end. The same command finds the same folder, and
    goes on.

    Raises:
        ConfigError, DataError: settings or data cannot be trained with.
        TrainingError: a rank failed.
    """
    output = Path(outputs.model)
    output.mkdir(parents=True, exist_ok=True)
    images = resolve_split(inputs.data, config.data.train_split)
    dataset = Dataset.open(images, captions=inputs.captions, regions=inputs.regions)
    job = _job(config, inputs, images=images, digest=fingerprint(dataset.digest, dataset.labels_digest()))
    check_data(dataset, config, objective=job.objective)
    preflight(config, dataset, objective=job.objective, out=outputs.model)
    place = held_out(config.train, inputs.data)
    lies = home(run_name(job), config.train, output, unfinished=outputs.unfinished)
    job = replace(job, output=lies, held_out=place and reachable(place, config.train))
    job = replace(job, tokenizer=_tokenizer(config, dataset, job))
    job.save()
    app = training_app(job.output, config.train, module=_MODULE, environment=os.environ, run=run_name(job))
    apart = job.output != str(output)
    if apart:
        print(f"the run writes to {job.output}", flush=True)
    run_app(app, config.train, log_dir=output / LOGS)
    if apart:
        _bring(job.output, output)
    write_lineage(output, config, dataset, objective=job.objective, compute_of=inputs.match_compute_of)
    finish(run_name(job), config.train, unfinished=outputs.unfinished)
    return _result(output)


def request(config: Config, *, inputs: Inputs, outputs: Outputs) -> str:
    """What `run` would hand to the scheduler, as text. Nothing is started or written.

    The run's name needs the data's hash; where the data cannot be read from here, DATA stands for it, and the last
    line says so.

    Raises:
        ConfigError: the settings cannot be used.
    """
    environment, note = dict(os.environ), ""
    try:
        with impatient():
            images = resolve_split(inputs.data, config.data.train_split)
            dataset = Dataset.open(images, captions=inputs.captions, regions=inputs.regions)
            digest = fingerprint(dataset.digest, dataset.labels_digest())
    except DataError as error:
        images, digest = inputs.data, ""
        note = f"# DATA stands for a hash of the data, which cannot be read from here: {error}\n"
    with redirect_stdout(sys.stderr):  # what is said of the steps is no part of the request
        job = _job(config, inputs, images=images, digest=digest)
    name = run_name(job) if digest else f"{job.objective}-DATA"
    place = home(name, config.train, outputs.model, unfinished=outputs.unfinished)
    app = training_app(place, config.train, module=_MODULE, environment=environment, run=name)
    return request_text(app, config.train) + note


def _job(config: Config, inputs: Inputs, *, images: str, digest: str) -> TrainingJob:
    """The job, but for where it writes."""
    if inputs.objective not in ("cloc", "clip"):
        raise ConfigError(f"objective must be cloc or clip, got {inputs.objective!r}")
    return TrainingJob(
        config=config.model_dump(mode="json"),
        objective="cloc" if inputs.objective == "cloc" else "clip",
        steps=_steps(config.train, inputs),
        images=reachable(images, config.train),
        captions=reachable(inputs.captions, config.train),
        regions=reachable(inputs.regions, config.train),
        data_digest=digest,
        tokenizer="",
        output="",
    )


def run_name(job: TrainingJob) -> str:
    """Name of a run, the same for equal settings (of what is trained) and data: `cloc-0123456789abcdef`."""
    return f"{job.objective}-{fingerprint(job.identity())}"


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


def _tokenizer(config: Config, dataset: Dataset, job: TrainingJob) -> str:
    """Folder or hub id of the tokenizer; where none is named one is trained on captions and region texts, and lies in
    the job's output (then this is empty)."""
    named = config.model.text.tokenizer or config.model.init_from
    if named:
        return named
    storage = open_storage(job.output)
    if not storage.exists(f"{TOKENIZER}/tokenizer.json"):
        text = config.model.text
        with tempfile.TemporaryDirectory(prefix="cloc-tokenizer-") as folder:
            train_tokenizer(
                _texts(dataset), vocab_size=text.vocab_size, context_length=text.context_length
            ).save_pretrained(folder)
            # tokenizer.json comes last: where it stands, all do.
            for path in sorted(Path(folder).iterdir(), key=lambda path: (path.name == "tokenizer.json", path.name)):
                storage.write_file(f"{TOKENIZER}/{path.name}", path)
    return ""


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


def _bring(url: str, output: Path) -> None:
    """Copies the model, its summary and its metrics from the storage; checkpoints stay there."""
    storage = open_storage(url)
    for path in storage.list(""):
        if "/" not in path and path != JOB_FILE:
            copy(storage, path, output / path)


def _result(output: Path) -> StageResult:
    summary = json.loads((output / SUMMARY_FILE).read_text())
    last: Mapping[str, Any] = json.loads((output / METRICS_FILE).read_text().splitlines()[-1])
    metrics = {name: value for name, value in last.items() if name not in NO_METRICS}
    metrics |= {f"speed/{name}": summary[name] for name in ("cpu_seconds", "wall_seconds")}
    return StageResult(
        stage=STAGE,
        metrics=metrics,
        counts={name: summary[name] for name in ("steps", "samples", "parameters", "unusable_samples")},
        made={"weights_sha256": json.loads((output / LINEAGE_FILE).read_text())["weights_sha256"]},
        message=f"{summary['objective']} trained for {summary['steps']} steps in {summary['wall_seconds']:.0f} s",
        artifacts={
            "model": str(output),
            "metrics over time": str(output / METRICS_FILE),
            "lineage": str(output / LINEAGE_FILE),
        },
    )
