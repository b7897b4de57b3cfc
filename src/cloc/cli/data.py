"""`cloc data`: making data sets."""

from typing import Any

import click

from cloc.cli.digest import digest
from cloc.cli.duplicates import duplicates
from cloc.cli.options import resolve, settings_options
from cloc.cli.verify import verify
from cloc.errors import ConfigError
from cloc.stages import run_stage


@click.group()
def data() -> None:
    """Make data sets: render the demo's, or bring in your own images.

    \b
    cloc data ingest --images photos/ --captions photos.csv --out data/train
    """


data.add_command(duplicates)
data.add_command(verify)
data.add_command(digest)


@data.command(short_help="Render the embedded demo data set.")
@click.option("--out", default="data", show_default=True, help="Folder of the collection.")
@settings_options
def scenes(out: str, **settings: Any) -> None:
    """Render the embedded demo data set (deterministic from data.scenes.seed).

    \b
    cloc data scenes --out data --preset demo
    """
    run_stage("scenes", resolve(**settings), outputs={"data": out})


@data.command(short_help="Bring images with their labels into a data set.")
@click.option("--source", default="", metavar="KIND", help="What it is, where the options do not tell; see below.")
@click.option("--images", default="", help="Folder of the images.")
@click.option("--captions", default="", help="Table with file and caption: CSV, JSON, JSON lines, Parquet.")
@click.option("--coco-instances", default="", help="COCO JSON with boxes.")
@click.option("--coco-captions", default="", help="COCO JSON with captions.")
@click.option("--annotations", default="", help="Annotations of LVIS, Flickr30k, Visual Genome or GRIT.")
@click.option("--tars", default="", help="WebDataset tars (img2dataset's), taken as they are: folder or s3:// prefix.")
@click.option("--table", default="", help="Parquet with an image column, or a folder that `datasets` saved.")
@click.option("--urls", default="", help="List of URLs, which img2dataset fetches where it is installed.")
@click.option("--work", default="", help="Local folder for what --urls fetches.  [default: beside --out]")
@click.option("--columns", default="", metavar="NAME=COLUMN,...", help="Columns of a table or a list of URLs.")
@click.option("--only", default="", help="Text file with the names of the files to take (a split).")
@click.option("--not-in", multiple=True, metavar="DATA", help="Leave out images of this data set (a test set); repeat.")
@click.option("--out", required=True, help="Folder or s3:// prefix of the data set, e.g. data/train.")
@settings_options
def ingest(out: str, params: str | None, preset: str | None, overrides: tuple[str, ...], **inputs: Any) -> None:
    """Bring images with their labels into a data set; running it again goes on where it stopped.

    \b
    cloc data ingest --images photos/ --captions photos.csv --out data/train
    cloc data ingest --images coco/ --coco-instances instances.json --out data/test
    cloc data ingest --images vg/ --annotations vg/ --source visual_genome --out data/vg
    cloc data ingest --tars s3://crawl/shards --not-in data/test --out data/train

    Kinds of source: folder, coco, lvis, flickr30k, visual_genome, grit, tars, table, urls.
    """
    inputs["source"] = inputs["source"] or _kind(inputs)
    run_stage("ingest", resolve(params, preset, overrides), inputs=inputs, outputs={"data": out})


@data.command(short_help="Add hard negatives to a data set, for evaluation.")
@click.argument("data", metavar="DATA")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@settings_options
def attributes(data: str, files: tuple[str, ...], **settings: Any) -> None:
    """Add hard negatives to a data set, for evaluation: texts that differ from a box's in a few attributes.

    FILE is one of FG-OVD's benchmarks (its name is the level) or JSON lines with `file`, `width`, `height` and
    `regions` of `box` (pixels), `text`, `negatives`. Images are matched by file name. Name all files at once.

    \b
    cloc data attributes data/test fg-ovd/1_attributes.json fg-ovd/color.json
    """
    run_stage("attributes", resolve(**settings), inputs={"files": files}, outputs={"data": data})


def _kind(inputs: dict[str, Any]) -> str:
    """The kind of source that the options tell."""
    if inputs["annotations"]:
        raise ConfigError("--annotations: say of which --source: lvis, flickr30k, visual_genome or grit")
    for option, kind in _TELLING.items():
        if inputs[option]:
            return kind
    return "folder"


_TELLING = {"coco_instances": "coco", "coco_captions": "coco", "tars": "tars", "table": "table", "urls": "urls"}
