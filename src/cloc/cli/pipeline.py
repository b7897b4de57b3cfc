"""`cloc run` and `cloc pipeline`: the DAG, here and on a Kubeflow server.

The DAG lives outside the package (`pipelines/` and `components/` of a checkout), since the package never imports kfp.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click

import cloc
from cloc.cli.options import resolve, settings_options
from cloc.errors import ConfigError


def _pipelines(module: str) -> ModuleType:
    checkout = str(Path(cloc.__file__).parents[2])
    if checkout not in sys.path:
        sys.path.append(checkout)
    try:
        return importlib.import_module(f"pipelines.{module}")
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] not in ("pipelines", "components", "kfp"):
            raise
        raise ConfigError(
            f"the pipeline needs {error.name}: run it in a checkout of cloc with `pip install -e '.[pipeline]'`"
        ) from None


@click.command()
@click.option("--data", help="Collection that exists (splits train and test); without it the demo data is rendered.")
@click.option("--out", default="runs/demo", show_default=True, help="Folder for everything that the run makes.")
@click.option("--cache/--no-cache", default=True, show_default=True, help="Reuse results of equal tasks.")
@settings_options
def run(data: str | None, out: str, cache: bool, **settings: Any) -> None:
    """Run the whole pipeline on this machine, by KFP's local runner.

    \b
    cloc run                                   the demo
    cloc run --data data/photos --out runs/photos
    """
    _pipelines("local").run_local(resolve(**settings), data=data, out=out, cache=cache)


@click.group()
def pipeline() -> None:
    """Compile the pipeline, and submit it to a Kubeflow server."""


@pipeline.command(name="compile")
@click.option("--out", default="pipelines/cloc_pipeline.yaml", show_default=True, help="File to write.")
def compile_(out: str) -> None:
    """Compile the pipeline to YAML."""
    _pipelines("compile").compile_pipeline(out)
    click.echo(f"wrote {out}")


@pipeline.command()
@click.option("--host", help="URL of the KFP API [default: KFP_ENDPOINT].")
@click.option("--namespace", help="Namespace in a multi-user deployment.")
@click.option("--experiment", default="cloc", show_default=True, help="Experiment of the run.")
@click.option("--data", help="Collection to use (s3:// prefix or path that the tasks see).")
@click.option("--wait/--no-wait", default=False, show_default=True, help="Wait for the end; exit 1 when it failed.")
@settings_options
def submit(
    host: str | None, namespace: str | None, experiment: str, data: str | None, wait: bool, **settings: Any
) -> None:
    """Start a run on a Kubeflow server."""
    _pipelines("submit").submit(
        resolve(**settings), host=host, namespace=namespace, experiment=experiment, data=data, wait=wait
    )
