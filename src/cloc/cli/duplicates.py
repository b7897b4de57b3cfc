"""`cloc data duplicates`: which images occur again."""

from typing import Any

import click

from cloc.cli.options import resolve, settings_options
from cloc.stages import run_stage


@click.command(short_help="Find images that occur twice, or in a test set.")
@click.option("--data", required=True, help="Data set, or a collection, whose data.train_split is meant.")
@click.option("--against", multiple=True, metavar="DATA", help="Another data set (a test set) to look in; repeat.")
@click.option("--out", default="", help="Where the tables go [default: beside the data].")
@click.option("--report", default="", help="Folder of a page with pairs of pictures side by side.")
@settings_options
def duplicates(data: str, against: tuple[str, ...], out: str, report: str, **settings: Any) -> None:
    """Find images that occur twice, exactly or nearly (data.near_duplicate_bits).

    \b
    cloc data duplicates --data data/train --report work/duplicates
    cloc data duplicates --data data/test --against data/train
    """
    run_stage(
        "duplicates",
        resolve(**settings),
        inputs={"data": data, "against": against},
        outputs={"tables": out, "report": report},
    )
