"""`cloc data verify`: whether a data set is what its manifest says."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloc.errors import ConfigError, DataError

if TYPE_CHECKING:
    from cloc.data.schema import Table

_LABELS: "dict[str, Table]" = {"captions": "captions", "regions": "regions"}
_S3_THREADS = 16  # requests that wait at a time


@click.command(short_help="Check a data set against a manifest.")
@click.argument("data", metavar="DATA")
@click.option("--against", default="", metavar="MANIFEST", help="Another manifest than DATA's own: a file or object.")
@click.option(
    "--tables", "roots", multiple=True, metavar="TABLE=ROOT", help="Labels to check: captions, regions; repeat."
)
@click.option("--sizes-only", is_flag=True, help="Names and sizes from the listing; nothing is read.")
@click.option("--sample", type=click.IntRange(min=1), help="Hash so many shards, drawn anew each time.")
@click.option("--no-tables", is_flag=True, help="Leave the tables beside the images unread.")
@click.option("--fresh", is_flag=True, help="Read all, whatever the record and the store know.")
@click.option("--record", help="File that keeps what was read.  [default: in ~/.cache/cloc/verified]")
@click.option("--threads", type=click.IntRange(min=1), help="Shards at a time.  [default: one a core; 16 on S3]")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def verify(
    data: str,
    against: str,
    roots: tuple[str, ...],
    sizes_only: bool,
    sample: int | None,
    no_tables: bool,
    fresh: bool,
    record: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Check a folder or s3:// prefix against its manifest, and name what differs.

    \b
    cloc data verify s3://bucket/photos/train
    cloc data verify data/train --against manifests/train.json --sizes-only
    cloc data verify data/train --tables captions=work/captions --tables regions=work/regions

    A shard counts as verified when its bytes were read, when the store itself keeps their SHA-256, or when an earlier
    run read them and size and ETag (in a folder: time) are the same since; the report says which. Killed, it goes on
    where it stopped. Exit code 0: all equal; 3: something differs, or cannot be read; 2: wrong use.
    """
    if sizes_only and sample:
        raise ConfigError("give --sizes-only or --sample, not both")
    if no_tables and roots:
        raise ConfigError("give --no-tables or --tables, not both")
    if sizes_only and fresh:
        raise ConfigError("--fresh reads shards and --sizes-only reads none: give one of them")
    tables = label_roots(roots)

    from cloc.data.processes import processes_of
    from cloc.data.verify.check import Request
    from cloc.data.verify.check import verify as check
    from cloc.data.verify.record import Record, default_path

    request = Request(
        data=data,
        against=against,
        tables=tables,
        hashed=0 if sizes_only else sample,
        reads_tables=not (sizes_only or no_tables),
        threads=threads or (_S3_THREADS if "://" in data else processes_of(0)),
        fresh=fresh,
    )
    path = Path(record) if record else default_path(data)
    with Record(None if sizes_only else path, of=data, forget=fresh) as kept:
        report = check(request, record=kept)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        for line in report.lines():
            click.echo(line)
    if not report.ok:
        raise DataError(report.summary)
    if not as_json:
        click.echo(report.summary)


def label_roots(roots: tuple[str, ...]) -> "dict[Table, str]":
    """What --tables says: roots by table. Raises ConfigError."""
    found: dict[Table, str] = {}
    for item in roots:
        name, _, root = item.partition("=")
        if name not in _LABELS or not root:
            raise ConfigError(f"--tables {item!r}: write captions=ROOT or regions=ROOT")
        if _LABELS[name] in found:
            raise ConfigError(f"--tables: {name} are named twice")
        found[_LABELS[name]] = root
    return found
