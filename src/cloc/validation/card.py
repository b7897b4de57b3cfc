"""The data card: what a data set holds, how it was made, how far its labels hold; with Hugging Face's front matter."""

import json
from collections.abc import Iterator

import yaml

from cloc.data.dataset import Dataset
from cloc.pages import markdown_environment
from cloc.validation.report import Report

CARD_FILE = "data_card.md"
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B")


def data_card(report: Report, dataset: Dataset) -> str:
    """A validated data set's card.

    Args:
        report: of its validation.
        dataset: the data set.

    Returns:
        Markdown with a YAML front matter.
    """
    template = markdown_environment("cloc.validation").get_template("data_card.md.j2")
    failed = [*report.failed, *report.warned]
    name = report.source.data.rstrip("/").rpartition("/")[2]
    return template.render(
        front=_front(report, name),
        name=name,
        summary=report.summary,
        made=list(_made(dataset)),
        digest=dataset.digest,
        facts=list(_facts(report)),
        verdict=report.verdict,
        passed=len(report.results) - len(failed),
        total=len(report.results),
        broken=failed,
    )


def _front(report: Report, name: str) -> str:
    fields = {
        "pretty_name": name,
        "size_categories": [_SIZES[min(max(len(str(report.summary.images)) - 3, 0), len(_SIZES) - 1)]],
        "task_categories": ["zero-shot-image-classification", "object-detection"],
        "annotations_creators": ["machine-generated" if report.summary.detected else "found"],
    }
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True).rstrip()


def _made(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """What the manifest says of it, nested values as JSON."""
    for name, value in dataset.manifest.made_by.items():
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:300]
    yield "refused when it was made", f"{dataset.manifest.quarantined:,} images"


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    summary, numbers = report.summary, report.summary.numbers()
    yield "images with a caption", f"{100 * numbers['caption_coverage']:.1f} %"
    yield "images with a region", f"{100 * numbers['region_coverage']:.1f} %"
    yield "regions an image", f"{numbers['regions_per_image']:.2f}"
    for label, key in (("words a caption", "mean_caption_words"), ("words a region", "mean_region_words")):
        if key in numbers:
            yield label, f"{numbers[key]:.1f}"
    if "mean_image_side" in numbers:
        yield "side of an image, pixels", f"{numbers['mean_image_side']:.0f} ± {numbers['std_image_side']:.0f}"
    yield "regions found by a model", f"{summary.detected:,}"
    yield "images that a labelling stage gave up on", f"{summary.lost:,}"
