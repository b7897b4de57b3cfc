"""Stage `ingest`: a folder of images or COCO JSON becomes one data set by the contract."""

from collections.abc import Callable
from dataclasses import dataclass

from cloc.config import Config
from cloc.data.ingest.coco import read_coco
from cloc.data.ingest.folder import read_folder
from cloc.data.ingest.records import Source
from cloc.data.ingest.writer import write_dataset
from cloc.errors import DataError
from cloc.stage import StageResult


@dataclass(frozen=True)
class Inputs:
    """What comes in.

    Attributes:
        images: folder of images.
        source: "folder" or "coco".
        captions: folder: captions file (CSV, JSON, JSONL with `file` and `caption`), optional.
        coco_instances: coco: JSON with boxes, optional.
        coco_captions: coco: JSON with captions, optional.
        only: text file that lists the file names to keep, optional: how a split is cut out.
    """

    images: str
    source: str = "folder"
    captions: str = ""
    coco_instances: str = ""
    coco_captions: str = ""
    only: str = ""


@dataclass(frozen=True)
class Outputs:
    """What comes out.

    Attributes:
        data: folder or `s3://` URL of ONE data set, e.g. `data/train`.
    """

    data: str


def _open_folder(inputs: Inputs) -> Source:
    _refuse(inputs, "coco_instances", "coco_captions")
    return read_folder(images=inputs.images, captions=inputs.captions, only=inputs.only)


def _open_coco(inputs: Inputs) -> Source:
    _refuse(inputs, "captions")
    return read_coco(
        images=inputs.images, instances=inputs.coco_instances, captions=inputs.coco_captions, only=inputs.only
    )


READERS: dict[str, Callable[[Inputs], Source]] = {"folder": _open_folder, "coco": _open_coco}


def _refuse(inputs: Inputs, *names: str) -> None:
    for name in names:
        if getattr(inputs, name):
            raise DataError(f"{name}: {getattr(inputs, name)!r} means nothing to the source {inputs.source!r}")


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Reads the source, checks every image and box, and writes the data set; resumes where an earlier run stopped.

    Raises:
        DataError: an input is missing or broken, two images have one key, or too large a share was quarantined.
    """
    if inputs.source not in READERS:
        raise DataError(f"source {inputs.source!r} is unknown; there are: {', '.join(sorted(READERS))}")
    source = READERS[inputs.source](inputs)
    report = write_dataset(source, output=outputs.data, settings=config.data)
    counts = report.counts
    return StageResult(
        stage="ingest",
        metrics={
            "data/images": float(counts["images"]),
            "data/captions_per_image": counts["captions"] / counts["images"],
            "data/regions_per_image": counts["regions"] / counts["images"],
            "data/quarantined_share": report.quarantined_share,
        },
        counts=counts,
        message=(
            f"{counts['images']} images, {counts['captions']} captions and {counts['regions']} regions in "
            f"{counts['shards']} shards at {outputs.data}; quarantined: {counts['quarantined']} images, "
            f"{counts['quarantined_boxes']} boxes, {counts['quarantined_captions']} captions"
        ),
    )
