"""`cloc doctor`: what would fail, before hours are lost."""

import json
from dataclasses import asdict
from typing import Any

import click

from cloc.cli.options import resolve, settings_options


@click.command()
@click.option("--data", default="", help="Data set, or collection with splits.")
@click.option("--captions", default="", help="Where the captions tables lie.  [default: with the data]")
@click.option("--regions", default="", help="Where the regions tables lie.  [default: with the data]")
@click.option("--out", default="", help="Where the stage will write.")
@click.option("--role", default="train", show_default=True, help="What this machine is for; see below.")
@click.option("--objective", type=click.Choice(["cloc", "clip"]), default="cloc", show_default=True)
@click.option("--skip", multiple=True, metavar="CHECK", help="Leave a check out; repeat.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@settings_options
def doctor(
    skip: tuple[str, ...],
    as_json: bool,
    params: str | None,
    preset: str | None,
    overrides: tuple[str, ...],
    **subject: Any,
) -> None:
    """Say what would fail, before hours are lost: libraries, settings, data, this machine, servers.

    \b
    cloc doctor --data data --captions work/captions --regions work/regions --out work/cloc
    cloc doctor --role label --preset b16

    A line a check: passed (✓), failed (✗), a warning (!), or skipped (-) and why. The exit code is 0 when nothing
    failed, else that of the stage's own failure. Roles: train, label, validate, evaluate, mllm, export, scenes,
    ingest, pipeline, dvc.
    """
    from cloc.training.doctor import Subject, examine, failure

    found = []
    for finding in examine(Subject(resolve(params, preset, overrides), **subject), skip=skip):
        found.append(finding)
        if not as_json:
            click.echo(finding.check.line)
    error = failure(found)
    if as_json:
        reason = str(error) if error else ""
        checks = [asdict(finding.check) for finding in found]
        click.echo(json.dumps({"ok": error is None, "reason": reason, "checks": checks}, indent=1))
    if error is not None:
        raise error
    if not as_json:
        warnings = sum(finding.check.outcome == "warning" for finding in found)
        click.echo("nothing would fail" + (f", {warnings} warnings" if warnings else ""))
