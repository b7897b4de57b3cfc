"""`cloc data`: making data sets."""

from typing import Any

import click

from cloc.cli.options import resolve, settings_options
from cloc.stages import run_stage


@click.group()
def data() -> None:
    """Make data sets: render the demo's, or bring in your own images."""


@data.command()
@click.option("--out", default="data", show_default=True, help="Folder of the collection.")
@settings_options
def scenes(out: str, **settings: Any) -> None:
    """Render the embedded demo data set (deterministic from data.scenes.seed)."""
    run_stage("scenes", resolve(**settings), outputs={"data": out})


@data.command()
@click.option("--images", required=True, help="Folder of the images.")
@click.option("--captions", default="", help="CSV, JSON or JSON lines with file and caption.")
@click.option("--coco-instances", default="", help="COCO JSON with boxes.")
@click.option("--coco-captions", default="", help="COCO JSON with captions.")
@click.option("--only", default="", help="Text file with the names of the files to take (a split).")
@click.option("--out", required=True, help="Folder of the data set, e.g. data/train.")
@settings_options
def ingest(
    images: str, captions: str, coco_instances: str, coco_captions: str, only: str, out: str, **settings: Any
) -> None:
    """Bring a folder of images, or COCO JSON, into a data set.

    \b
    cloc data ingest --images photos/ --captions photos.csv --out data/train
    """
    inputs = {
        "images": images,
        "source": "coco" if coco_instances or coco_captions else "folder",
        "captions": captions,
        "coco_instances": coco_instances,
        "coco_captions": coco_captions,
        "only": only,
    }
    run_stage("ingest", resolve(**settings), inputs=inputs, outputs={"data": out})
