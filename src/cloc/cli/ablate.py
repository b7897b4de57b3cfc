"""`cloc ablate`: the paper's ablation on one's own data, beside the paper's figures."""

from typing import Any

import click

from cloc.ablation.rows import BASE, ROWS, select_rows
from cloc.cli.options import resolve, settings_options
from cloc.errors import ConfigError

_EPILOG = "\b\nRows (* by default):\n" + "\n".join(
    f"  {'*' if row.default else ' '} {row.key:<15} {row.title}" for row in ROWS.values()
)


@click.command(epilog=_EPILOG)
@click.option("--data", help="Data set or collection that exists; without it the demo data are rendered.")
@click.option("--out", default="runs/ablation", show_default=True, help="Folder for everything that the run makes.")
@click.option("--rows", help=f"Rows to train, separated by commas, or all; {BASE} must be among them.")
@click.option("--seeds", default="0,1", show_default=True, help="Values of train.seed, separated by commas.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of every row: train.steps.")
@click.option("--captions", default="", help="Where captions tables lie; without it the images are captioned.")
@click.option("--regions", default="", help="Where regions tables lie; without it the images are grounded.")
@settings_options
def ablate(
    data: str | None,
    out: str,
    rows: str | None,
    seeds: str,
    steps: int | None,
    captions: str,
    regions: str,
    **settings: Any,
) -> None:
    """Train the rows of the paper's ablation and set them beside its figures.

    Settings are those of the row `cloc`; every other row changes a few of them. A model that stands already is not
    trained again, and a stopped one goes on: run the same command again.

    \b
    cloc ablate                                     the demo data, two seeds: most of an hour on two cores
    cloc ablate --data data --rows cloc,m2 --seeds 0,1,2
    """
    if any(item.partition("=")[0].strip() == "train.seed" for item in settings["overrides"]):
        raise ConfigError("-S train.seed: every row is trained with each of --seeds; name the seeds there")
    if steps is not None:
        settings["overrides"] = (*settings["overrides"], f"train.steps={steps}")
    config = resolve(**settings)
    chosen = select_rows(_names(rows) if rows is not None else None, config)
    numbers = _numbers(seeds)

    from cloc.ablation.runner import run_ablation

    run_ablation(config, rows=chosen, seeds=numbers, data=data, out=out, captions=captions, regions=regions)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    names = _names(text)
    if not names or not all(name.isdecimal() for name in names) or len({int(name) for name in names}) < len(names):
        raise ConfigError(f"--seeds {text!r}: write different whole numbers from 0 on, separated by commas: 0,1")
    return [int(name) for name in names]
