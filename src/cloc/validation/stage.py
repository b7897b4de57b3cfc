"""Stage: validation, the gate between labelling and training.

Reads the data set shard by shard, in several processes, runs the suites and writes a report; a check of level "fail"
that is not kept then stops the pipeline with GateFailed. Memory is that of a batch of rows and of one shard, a process,
whatever the size of the set.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from cloc.config import Config
from cloc.data.dataset import Dataset, resolve_split
from cloc.data.selection import Selection
from cloc.errors import ConfigError, DataError, GateFailed
from cloc.stage import StageResult
from cloc.validation.card import CARD_FILE, data_card
from cloc.validation.console import print_verdict
from cloc.validation.docs import build_docs
from cloc.validation.drift import Reference
from cloc.validation.engine import Engine, verdict
from cloc.validation.gallery import draw_findings
from cloc.validation.languages import language_share
from cloc.validation.occurrences import LEAKED, Occurrences, count_occurrences
from cloc.validation.passes import Sums, check_shards
from cloc.validation.report import DOCS_FILE, JSON_FILE, PAGE_FILE, Report, Source, counts, write_text
from cloc.validation.results import CheckResult, Tally
from cloc.validation.suites import Suites, suites
from cloc.validation.summary import Summary

NAME = "validation"
# The set's numbers that are no "labels/<number>" in tracking: of images, or what labelling calls otherwise.
_METRICS = {
    "images": "data/images",
    "quarantined_share": "data/quarantined_share",
    "duplicate_images": "data/duplicate_share",
    "leaked_images": "data/leaked_share",
    "repeated_keys": "data/repeated_keys",
    "mean_image_side": "data/mean_image_side",
    "std_image_side": "data/std_image_side",
    "mean_caption_words": "labels/words_per_caption",
    "mean_region_words": "labels/words_per_region",
    "mean_regions_per_image": "labels/regions_per_image",
}


@dataclass(frozen=True)
class Inputs:
    """Where the data lies.

    Attributes:
        data: a data set, or a collection that has `data.train_split`.
        captions, regions: data sets' folders that hold these tables.
        worker: "i/n" checks every n-th block of shards, from the i-th, into `Outputs.sums`, and judges nothing.
    """

    data: str
    captions: str
    regions: str
    worker: str = ""


@dataclass(frozen=True)
class Outputs:
    """What comes out.

    Attributes:
        report: folder of the report, made when it is not there.
        sums: folder or `s3://` prefix that keeps what blocks of shards came to: a run that was killed goes on, and
            workers leave their part there; empty keeps nothing.
    """

    report: str
    sums: str = ""


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Validates the training split and writes its report.

    Raises:
        ConfigError: a worker that is none, or without a place for its sums.
        DataError: no data, an empty shard, or a shard without its tables.
        GateFailed: checks failed; the report stands already.
    """
    url = resolve_split(inputs.data, config.data.train_split)
    dataset = Dataset.open(url, captions=inputs.captions, regions=inputs.regions)
    if not dataset.manifest.images:
        raise DataError(f"{url}: the data set has no images; check what was ingested")
    if inputs.worker:
        return _work(config, dataset, inputs=inputs, outputs=outputs)
    checks = suites(config)
    reference = Reference.load(config.validation.reference) if config.validation.reference else None
    passing = check_shards(config, dataset, kept=outputs.sums)
    summary, folder = passing.sums.summary, Path(outputs.report)
    twice = count_occurrences(config, dataset, data=inputs.data)
    summary.extra |= twice.numbers | _further_numbers(config, summary, reference)
    results = _judge(checks, passing.sums, twice)
    findings = draw_findings(config, dataset, results)
    report = Report(
        source=_source(config, inputs),
        results=tuple(results),
        summary=summary,
        findings=findings,
        samples=tuple(passing.samples.pictures()),
        reference=reference,
    )
    build_docs(folder, checks=checks.all, results=results)
    report.write(folder)
    write_text(folder / CARD_FILE, data_card(report, dataset))
    print_verdict(report, folder)
    result = _result(report, folder)
    if report.failed:
        raise GateFailed(_reason(report, folder), result=result)
    return result


def _work(config: Config, dataset: Dataset, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Checks one worker's share of the blocks."""
    if not outputs.sums:
        raise ConfigError(f"--worker {inputs.worker}: say with --sums where all workers leave what they found")
    selection = Selection.parse(worker=inputs.worker)
    summary = check_shards(config, dataset, kept=outputs.sums, selection=selection).sums.summary
    return StageResult(
        stage=NAME,
        counts=counts(summary),
        message=f"worker {inputs.worker} checked {summary.images:,} images in {summary.shards:,} shards; "
        "when all workers are done, the same command without --worker judges",
    )


def _judge(checks: Suites, sums: Sums, twice: Occurrences) -> list[CheckResult]:
    """The verdicts: of the set's numbers, then of rows."""
    limits = [check for check in checks.data_set if twice.has_tests or check.id != LEAKED]
    wholes = Engine().check_set(limits, sums.summary.numbers())
    rows = [verdict(check, sums.tallies.get(check.id, Tally())) for check in checks.rows]
    return [*(replace(result, examples=twice.examples.get(result.id, ())) for result in wholes), *rows]


def _source(config: Config, inputs: Inputs) -> Source:
    sections = {name: getattr(config, name).model_dump(mode="json") for name in ("data", "validation")}
    settings = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
    return Source(data=inputs.data, captions=inputs.captions, regions=inputs.regions, settings=settings)


def _result(report: Report, folder: Path) -> StageResult:
    failed, warned, total = len(report.failed), len(report.warned), len(report.results)
    verdicts = {"passed": total - failed - warned, "warned": warned, "failed": failed}
    metrics = {_METRICS.get(name, f"labels/{name}"): value for name, value in report.summary.numbers().items()}
    return StageResult(
        stage=NAME,
        metrics=metrics | {f"checks/{name}": float(value) for name, value in verdicts.items()},
        counts=counts(report.summary),
        message=f"{verdicts['passed']} of {total} checks passed on {report.summary.images:,} images"
        + (f", {warned} warned" if warned else "")
        + (f", {failed} failed" if failed else ""),
        artifacts={
            "validation report": str(folder / PAGE_FILE),
            "validation data docs": str(folder / DOCS_FILE),
            "validation results": str(folder / JSON_FILE),
            "data card": str(folder / CARD_FILE),
        },
    )


def _further_numbers(config: Config, summary: Summary, reference: Reference | None) -> dict[str, float]:
    """Numbers that need more than the sums, or something to compare them with."""
    found: dict[str, float] = {}
    if config.validation.language:
        share = language_share(summary.sample, code=config.validation.language)
        found |= {} if share is None else {"language_share": share}
    if reference is not None:
        found |= reference.numbers_of(summary)
    return found


def _reason(report: Report, folder: Path) -> str:
    worst = report.failed[0]
    return (
        f"validation: {len(report.failed)} of {len(report.results)} checks failed; worst: {worst.name}: "
        f"{worst.observed}, limit {worst.limit}; see {folder / PAGE_FILE}"
    )
