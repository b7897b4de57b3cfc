"""Stage: validation, the gate between labelling and training.

Reads the data set shard by shard, runs the suites of `checks` and writes a report; a failing check then stops the
pipeline with GateFailed. Memory is that of a batch of rows and of one shard,
whatever the size of the set.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloc.config import Config
from cloc.data.dataset import Dataset, resolve_split
from cloc.errors import DataError, GateFailed
from cloc.stage import StageResult
from cloc.validation.checks import all_checks, caption_checks, image_checks, region_checks, set_checks
from cloc.validation.console import print_verdict
from cloc.validation.docs import build_docs
from cloc.validation.engine import Engine
from cloc.validation.frames import ShardFrames, load_shard
from cloc.validation.gallery import RandomSamples, draw_findings
from cloc.validation.report import DOCS_FILE, JSON_FILE, PAGE_FILE, Report, counts
from cloc.validation.results import CheckResult, failures_first
from cloc.validation.summary import Summary

NAME = "validation"
_SAMPLES = 6
_PROGRESS_SECONDS = 5.0


@dataclass(frozen=True)
class Inputs:
    """Where the data lies.

    Attributes:
        data: a data set, or a collection that has `data.train_split`.
        captions, regions: data sets' folders that hold these tables.
    """

    data: str
    captions: str
    regions: str


@dataclass(frozen=True)
class Outputs:
    """Where the report goes: a folder, made when it is not there."""

    report: str


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Validates the training split and writes its report.

    Raises:
        DataError: no data, an empty shard, or a shard without its tables.
        GateFailed: checks failed; the report stands already.
    """
    url = resolve_split(inputs.data, config.data.train_split)
    dataset = Dataset.open(url, captions=inputs.captions, regions=inputs.regions)
    if not dataset.manifest.images:
        raise DataError(f"{url}: the data set has no images; check what was ingested")
    engine = Engine()
    passing = _check_shards(config, dataset, engine)
    folder = Path(outputs.report)
    numbers = passing.summary.numbers()
    results = [*engine.check_set(set_checks(config), numbers), *passing.results]
    findings = draw_findings(config, dataset, results)
    report = Report(
        data=url,
        results=tuple(failures_first(results)),
        summary=passing.summary,
        findings=tuple(findings),
        samples=tuple(passing.samples.pictures()),
    )
    build_docs(folder, checks=all_checks(config), results=results)
    report.write(folder)
    print_verdict(report, folder)
    result = _result(report, folder)
    if report.failed:
        raise GateFailed(_reason(report, folder), result=result)
    return result


def _result(report: Report, folder: Path) -> StageResult:
    failed, warned, total = len(report.failed), len(report.warned), len(report.results)
    verdicts = {"checks_passed": total - failed - warned, "checks_warned": warned, "checks_failed": failed}
    numbers = {**report.summary.numbers(), **verdicts}
    return StageResult(
        stage=NAME,
        metrics={f"validation/{name}": float(value) for name, value in numbers.items()},
        counts=counts(report.summary),
        message=f"{verdicts['checks_passed']} of {total} checks passed on {report.summary.images:,} images"
        + (f", {warned} warned" if warned else "")
        + (f", {failed} failed" if failed else ""),
        artifacts={
            "validation report": str(folder / PAGE_FILE),
            "validation data docs": str(folder / DOCS_FILE),
            "validation results": str(folder / JSON_FILE),
        },
    )


@dataclass(frozen=True)
class Pass:
    """What one pass over the shards gives."""

    results: list[CheckResult]
    summary: Summary
    samples: RandomSamples


def _check_shards(config: Config, dataset: Dataset, engine: Engine) -> Pass:
    mostly = config.validation.mostly
    images = engine.table_suite(table="images", checks=image_checks(config), mostly=mostly)
    captions = engine.table_suite(table="captions", checks=caption_checks(config), mostly=mostly)
    regions = engine.table_suite(table="regions", checks=region_checks(config), mostly=mostly)
    summary = Summary(refused=dataset.manifest.quarantined)
    samples = RandomSamples(size=_SAMPLES, max_pixels=config.data.max_pixels)
    for frames in _progress(_load_shards(dataset, samples), dataset=dataset):
        images.add(frames.images, shard=frames.name)
        captions.add(frames.captions, shard=frames.name)
        regions.add(frames.regions, shard=frames.name)
        summary.add(frames)
    return Pass([*images.results(), *captions.results(), *regions.results()], summary, samples)


def _load_shards(dataset: Dataset, samples: RandomSamples) -> Iterator[ShardFrames]:
    for shard in dataset.manifest.shards:
        frames = load_shard(dataset, shard, watch=samples.offer)
        samples.draw(frames)
        yield frames


def _progress(shards: Iterator[ShardFrames], *, dataset: Dataset) -> Iterator[ShardFrames]:
    total, started = len(dataset.manifest.shards), time.monotonic()
    printed = started
    for number, frames in enumerate(shards, start=1):
        yield frames
        now = time.monotonic()
        if now - printed >= _PROGRESS_SECONDS:
            printed = now
            print(f"{NAME}: shard {number} of {total}, {now - started:.0f} s", file=sys.stderr, flush=True)


def _reason(report: Report, folder: Path) -> str:
    worst = report.failed[0]
    return (
        f"validation: {len(report.failed)} of {len(report.results)} checks failed; worst: {worst.name}: "
        f"{worst.observed}, limit {worst.limit}; see {folder / PAGE_FILE}"
    )
