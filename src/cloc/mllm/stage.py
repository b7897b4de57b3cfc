"""Stage `adapter_tuning`: tunes a LLaVA-style model on an encoder, asks it about test images, and reports.

Same seed, data, steps and questions for every encoder, so that what two encoders lead to compares. Ranks do the work
(`cloc.mllm.trainer`), launched as those of pre-training are. Written to the output: the model (see `cloc.mllm.saving`),
metrics.jsonl, predictions.jsonl, pictures/, results.json, and the same in `seeds/` where it is tuned several times;
beside it the report (see `cloc.mllm.report`).
"""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloc.config import Config
from cloc.config.schema import AdapterConfig, DecoderConfig
from cloc.data.dataset import Dataset
from cloc.data.digests import files_digest
from cloc.data.fetching import send, sending
from cloc.data.streams import check_amount, check_division
from cloc.errors import ConfigError, DataError
from cloc.mllm import report, scores
from cloc.mllm.job import ENCODER, SEEDS, SUMMARY_FILE, TuningJob, bring, launched
from cloc.mllm.sampler import objective_of
from cloc.mllm.splits import Splits, open_splits
from cloc.mllm.texts import vocabulary_texts
from cloc.mllm.tokenizer import train_tokenizer
from cloc.model.provenance import weights_digest
from cloc.pages.examples import FOLDER
from cloc.stage import StageResult, fingerprint
from cloc.training.jobfile import METRICS_FILE, TOKENIZER
from cloc.training.launch import finish, home, impatient, reachable, request_text, run_app, training_app

STAGE = "adapter_tuning"
LOGS, RESULTS = "logs", "results.json"
_MODULE = "cloc.mllm.trainer"
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

    @property
    def title(self) -> str:
        """What tells this adapter from others of a pipeline."""
        sampler = "" if self.region_sampler in _SETTING else f"_{self.region_sampler}"
        return f"{objective_of(self.encoder)}{sampler}"


@dataclass(frozen=True)
class Outputs:
    """Where the stage writes.

    Attributes:
        adapter: folder.
        report: folder of the report; empty: `report/` of the adapter's.
        unfinished: folder that the run lies in until it is done, in place of `adapter`, where there is no
            `train.storage`: for one that is emptied before the same command runs again.
    """

    adapter: str
    report: str = ""
    unfinished: str = ""


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Tunes and evaluates through TorchX, as section `train` says; the same command goes on where it was stopped.

    Where `train.storage` is set, all that the run writes lies in a folder of it that is named after the run, and what
    it made is brought to `outputs.adapter` at the end.

    Raises:
        ConfigError: the encoder or the language model cannot be used, or ranks cannot share a batch.
        DataError: a split is missing, nothing can be asked about it, or a test image is in the training data.
        TrainingError: the loss is not finite, or a rank failed.
    """
    folder = Path(outputs.adapter)
    folder.mkdir(parents=True, exist_ok=True)
    config = _settled(config, inputs)
    splits = open_splits(config.data, data=inputs.data, captions=inputs.captions, regions=inputs.regions)
    launch, adapter = launched(config), config.adapter
    ranks, streams = launch.processes * launch.nodes, launch.streams
    check_division(batch_size=adapter.batch_size, streams=streams, processes=ranks, section="adapter")
    check_amount(splits.train, batch_size=adapter.batch_size, section="adapter")
    job = _job(config, inputs, splits)
    job = replace(job, output=home(run_name(job), launch, folder, unfinished=outputs.unfinished))
    apart = job.output != str(folder)
    _prepare(job, config, splits.train)
    if launch.storage and Path(inputs.encoder).is_dir():
        send(Path(inputs.encoder), job.output, ENCODER)
        job = replace(job, encoder="")
    job.save()
    if apart:
        print(f"the run writes to {job.output}", flush=True)
    run_app(_app(job.output, config, run_name(job)), launch, log_dir=folder / LOGS)
    if apart:
        bring(job.output, folder)
    name, page = f"{job.about['encoder_objective']} encoder", Path(outputs.report or folder / "report")
    comparison = report.write_report({name: folder}, page, title=f"MLLM adapter on the {name}")
    finish(run_name(job), launch, unfinished=outputs.unfinished)
    return _result(comparison, job, name=name, folder=folder, page=page)


def request(config: Config, *, inputs: Inputs, outputs: Outputs) -> str:
    """What `run` would hand to the scheduler, as text. Nothing is started or written.

    The run's name needs hashes of data and encoder; where they cannot be read from here, DATA stands for them, and the
    last line says so.

    Raises:
        ConfigError: the settings cannot be used.
    """
    config, note = _settled(config, inputs), ""
    try:
        with impatient():
            splits = open_splits(config.data, data=inputs.data, captions=inputs.captions, regions=inputs.regions)
            name = run_name(_job(config, inputs, splits))
    except DataError as error:
        name = "adapter-DATA"
        note = f"# DATA stands for a hash of encoder and data, which cannot be read from here: {error}\n"
    launch = launched(config)
    place = home(name, launch, outputs.adapter, unfinished=outputs.unfinished)
    return request_text(_app(place, config, name), launch) + note


def run_name(job: TuningJob) -> str:
    """Name of a run, the same for equal settings (of what is tuned), encoder and data: `adapter-0123456789abcdef`."""
    return f"adapter-{fingerprint(job.identity())}"


def _app(output: str, config: Config, name: str) -> Any:
    return training_app(output, launched(config), module=_MODULE, environment=os.environ, run=name, name="cloc-tune")


def _job(config: Config, inputs: Inputs, splits: Splits) -> TuningJob:
    """The job, but for where it writes."""
    train, files = config.train, config.adapter.files
    about = {
        "encoder": Path(inputs.encoder).name,
        "encoder_objective": objective_of(inputs.encoder),
        "data": splits.train.digest,
        "test": splits.test_name,
    }
    read = [splits.train.digest, splits.train.labels_digest(), weights_digest(inputs.encoder)]
    if files:
        read.append(files_digest(files, what="adapter.files"))
    here = Path(inputs.encoder).is_dir() and not train.storage
    return TuningJob(
        config=config.model_dump(mode="json"),
        data=reachable(inputs.data, train),
        captions=reachable(inputs.captions, train),
        regions=reachable(inputs.regions, train),
        encoder=reachable(inputs.encoder, train) if here else inputs.encoder,
        about=about,
        digest=fingerprint(read),
        output="",
    )


def _prepare(job: TuningJob, config: Config, train: Dataset) -> None:
    """Takes away what an earlier run with more seeds left, and writes the tokenizer of a made decoder."""
    wanted = {Path(seed.output).name for seed in job.seeds()}
    if "://" not in job.output and (others := Path(job.output) / SEEDS).is_dir():
        for place in others.iterdir():
            if place.name not in wanted:
                shutil.rmtree(place)
        if not any(others.iterdir()):
            others.rmdir()
    if not config.adapter.language_model:
        decoder: DecoderConfig = config.adapter.decoder
        tokenizer = train_tokenizer(
            vocabulary_texts(train), vocab_size=decoder.vocab_size, context_length=decoder.context_length
        )
        with sending(job.output, TOKENIZER) as folder:
            tokenizer.save_pretrained(folder)


def _settled(config: Config, inputs: Inputs) -> Config:
    return config.model_copy(update={"adapter": _settings(config.adapter, inputs)})


def _settings(settings: AdapterConfig, inputs: Inputs) -> AdapterConfig:
    if inputs.region_sampler in _SETTING:
        return settings
    values = settings.model_dump() | {"region_sampler": inputs.region_sampler}
    try:
        return AdapterConfig.model_validate(values)
    except ValueError:
        raise ConfigError(f"region_sampler: {inputs.region_sampler!r} is none of none, roi_align, prompter") from None


def _result(comparison: dict[str, Any], job: TuningJob, *, name: str, folder: Path, page: Path) -> StageResult:
    figures, told = scores.metrics(comparison, name, test=job.about["test"]), _summaries(job, folder)
    first = told[0]
    took = {f"speed/{key}": first[key] for key in ("wall_seconds", "cpu_seconds", "encoder_share")}
    metrics = {**figures, **took, "loss/answers": first["loss"]}
    body = {**job.about, "seeds": len(told), "figures": figures, "tuning": told}
    (folder / RESULTS).write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
    said = ", ".join(
        f"{entry['label']} {100 * entry['scores'][name]['value']:.1f}"
        for entry in comparison["figures"]
        if entry["name"] in ("refer/accuracy", "refer/noun_accuracy", "ground/acc@0.5", "ground/parse_failures")
    )
    asked = max(entry["scores"][name]["images"] for entry in comparison["figures"])
    counts = {key: first[key] for key in ("steps", "images", "conversations", "answer_tokens")}
    return StageResult(
        stage=STAGE,
        metrics=metrics,
        counts={**counts, "test_images": asked},
        message=f"{name} (percent): {said}",
        artifacts={
            "results": str(folder / RESULTS),
            "predictions": str(folder / report.PREDICTIONS),
            "report": str(page / report.PAGE),
            **({"examples": str(page / FOLDER)} if (page / FOLDER).is_dir() else {}),
            "metrics over time": str(folder / METRICS_FILE),
        },
    )


def _summaries(job: TuningJob, folder: Path) -> list[dict[str, Any]]:
    """What each seed's tuning took."""
    root = replace(job, output=str(folder))
    summaries = [json.loads((Path(seed.output) / SUMMARY_FILE).read_text()) for seed in root.seeds()]
    return [{key: value for key, value in summary.items() if key != "identity"} for summary in summaries]
