"""`cloc data digest`: what data and labels are, in a small file."""

import json
from pathlib import Path

import click

from cloc.cli.verify import label_roots
from cloc.errors import DataError


@click.command(short_help="What data and labels are, in a small file for DVC.")
@click.argument("data", metavar="DATA")
@click.option("--tables", "roots", multiple=True, metavar="TABLE=ROOT", help="Labels, too: captions, regions; repeat.")
@click.option("--out", required=True, help="The file, JSON.")
def digest(data: str, roots: tuple[str, ...], out: str) -> None:
    """Write what a data set and its labels are: digests, counts and makers, in a small file that changes when they do.

    DVC tracks that file where the tables themselves lie on S3. The ends of the tables are read. A shard without a table
    is an error (exit code 3): the labels are unfinished.

    \b
    cloc data digest s3://bucket/photos/train --tables captions=s3://bucket/captions --out work/captions.json
    """
    tables = label_roots(roots)

    from cloc.data.dataset import Dataset
    from cloc.data.origin import data_record, tables_record

    dataset = Dataset.open(data, captions=tables.get("captions"), regions=tables.get("regions"))
    body = {"data": data_record(dataset)}
    shards = len(dataset.manifest.shards)
    for table, root in tables.items():
        found = tables_record(dataset, table)
        if found is None or found["shards"] < shards:
            count = found["shards"] if found else 0
            raise DataError(f"{root}: {count:,} of {shards:,} shards of {data} have {table}; make the others first")
        body[table] = found
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1, sort_keys=True) + "\n")
    click.echo(f"{out}: {', '.join(body)} of {shards:,} shards")
