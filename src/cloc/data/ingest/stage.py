"""Stage `ingest`: a source of images with their labels becomes one data set by the contract."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from cloc.config import Config
from cloc.config.schema import DataConfig
from cloc.data.ingest.coco import read_coco
from cloc.data.ingest.flickr30k import read_flickr30k
from cloc.data.ingest.folder import read_folder
from cloc.data.ingest.grit import read_grit
from cloc.data.ingest.lvis import read_lvis
from cloc.data.ingest.parts import ShardSize, Source
from cloc.data.ingest.table import read_table
from cloc.data.ingest.tars import read_tars
from cloc.data.ingest.urls import read_urls
from cloc.data.ingest.visual_genome import read_visual_genome
from cloc.data.ingest.writer import write_dataset
from cloc.data.processes import processes_of
from cloc.errors import DataError
from cloc.stage import StageResult


@dataclass(frozen=True)
class Inputs:
    """What comes in; which of it a source takes and needs stands in `READERS`.

    Attributes:
        source: kind of the source, a key of `READERS`.
        images: folder of images.
        captions: table of captions (CSV, TSV, JSON, JSONL, Parquet with `file` and `caption`).
        annotations: file or folder of annotations in the source's own format.
        coco_instances, coco_captions: COCO's JSON files.
        tars: WebDataset tars: a folder or `s3://` prefix of them, or one tar.
        table: Parquet file, folder of Parquet files, or folder that `datasets` saved.
        urls: list of image URLs (Parquet, CSV, text), for img2dataset.
        columns: names of the columns of `table` or `urls`, as in "image=img,caption=text,key=id".
        only: text file that lists the file names to keep: how a split is cut out.
        not_in: data sets whose images are left out, exact or near-duplicates: those of the evaluation.
        work: local folder for what `urls` fetches; "" puts it beside the data set.
    """

    source: str = "folder"
    images: str = ""
    captions: str = ""
    annotations: str = ""
    coco_instances: str = ""
    coco_captions: str = ""
    tars: str = ""
    table: str = ""
    urls: str = ""
    columns: str = ""
    only: str = ""
    not_in: tuple[str, ...] = ()
    work: str = ""


@dataclass(frozen=True)
class Outputs:
    """What comes out.

    Attributes:
        data: folder or `s3://` URL of ONE data set, e.g. `data/train`.
    """

    data: str


@dataclass(frozen=True)
class Reader:
    """A kind of source.

    Attributes:
        open: opens it.
        needs, takes: inputs that it cannot do without, and those that it may be given.
    """

    open: Callable[[Inputs, DataConfig], Source]
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()


def _size(settings: DataConfig) -> ShardSize:
    return ShardSize(images=settings.images_per_shard, bytes=settings.bytes_per_shard)


def _open_folder(inputs: Inputs, settings: DataConfig) -> Source:
    return read_folder(
        images=inputs.images,
        captions=inputs.captions,
        columns=inputs.columns,
        only=inputs.only,
        size=_size(settings),
        max_text_bytes=settings.max_text_bytes,
    )


def _open_coco(inputs: Inputs, settings: DataConfig) -> Source:
    return read_coco(
        images=inputs.images,
        instances=inputs.coco_instances,
        captions=inputs.coco_captions,
        only=inputs.only,
        size=_size(settings),
    )


def _open_table(inputs: Inputs, settings: DataConfig) -> Source:
    return read_table(table=inputs.table, images=inputs.images, columns=inputs.columns, size=_size(settings))


def _open_urls(inputs: Inputs, settings: DataConfig) -> Source:
    return read_urls(
        urls=inputs.urls,
        columns=inputs.columns,
        work=inputs.work,
        images_per_shard=settings.images_per_shard,
        processes=processes_of(settings.processes),
    )


def _open_tars(inputs: Inputs, settings: DataConfig) -> Source:
    return read_tars(inputs.tars)


def _annotated(read: Callable[..., Source]) -> Reader:
    """A kind that is a folder of images with annotations in a format of their own."""

    def opened(inputs: Inputs, settings: DataConfig) -> Source:
        return read(annotations=inputs.annotations, images=inputs.images, only=inputs.only, size=_size(settings))

    return Reader(opened, needs=("annotations", "images"), takes=("only",))


READERS: Mapping[str, Reader] = {
    "folder": Reader(_open_folder, needs=("images",), takes=("captions", "columns", "only")),
    "table": Reader(_open_table, needs=("table",), takes=("images", "columns")),
    "coco": Reader(_open_coco, needs=("images",), takes=("coco_instances", "coco_captions", "only")),
    "lvis": _annotated(read_lvis),
    "flickr30k": _annotated(read_flickr30k),
    "visual_genome": _annotated(read_visual_genome),
    "grit": _annotated(read_grit),
    "urls": Reader(_open_urls, needs=("urls",), takes=("columns", "work")),
    "tars": Reader(_open_tars, needs=("tars",)),
}


def open_source(inputs: Inputs, settings: DataConfig, *, output: str) -> Source:
    """Opens what the inputs name, for a data set at `output`.

    Raises:
        DataError: an unknown kind, or inputs that it lacks or does not take.
    """
    if inputs.source not in READERS:
        raise DataError(f"source {inputs.source!r} is unknown; there are: {', '.join(sorted(READERS))}")
    reader = READERS[inputs.source]
    for name in reader.needs:
        if not getattr(inputs, name):
            raise DataError(f"{name}: the source {inputs.source!r} needs it")
    known = {"source", "not_in", *reader.needs, *reader.takes}
    for item in fields(inputs):
        value = getattr(inputs, item.name)
        if value and item.name not in known:
            raise DataError(f"{item.name}: {value!r} means nothing to the source {inputs.source!r}")
    return reader.open(replace(inputs, work=inputs.work or f"{output.rstrip('/')}.downloads"), settings)


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Reads the source, checks every image and box, and writes the data set; resumes where an earlier run stopped.

    Raises:
        DataError: an input is missing or broken, two images have one key, or too large a share was quarantined.
    """
    source = open_source(inputs, config.data, output=outputs.data)
    report = write_dataset(source, output=outputs.data, settings=config.data, not_in=tuple(inputs.not_in))
    counts = report.counts
    return StageResult(
        stage="ingest",
        metrics={
            "data/images": float(counts["images"]),
            "labels/captions_per_image": counts["captions"] / counts["images"],
            "labels/regions_per_image": counts["regions"] / counts["images"],
            "data/quarantined_share": report.quarantined_share,
            "data/left_out_as_known": float(counts["leaked"]),
        },
        counts=counts,
        message=(
            f"{counts['images']} images, {counts['captions']} captions and {counts['regions']} regions in "
            f"{counts['shards']} shards at {outputs.data}; quarantined: {counts['quarantined']} images, "
            f"{counts['quarantined_boxes']} boxes, {counts['quarantined_captions']} captions"
            + (f"; {counts['leaked']} of the images occur in {', '.join(inputs.not_in)}" if counts["leaked"] else "")
        ),
    )
