"""`cloc doctor`: what would fail, before hours are lost."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cloc.cli.options import resolve, settings_options
from cloc.config import Config
from cloc.errors import ConfigError

if TYPE_CHECKING:
    from cloc.training.doctor import Finding


@click.command()
@click.option("--data", default="", help="Data set, or collection with splits.")
@click.option("--captions", default="", help="Where the captions tables lie.  [default: with the data]")
@click.option("--regions", default="", help="Where the regions tables lie.  [default: with the data]")
@click.option("--out", default="", help="Where the stage will write.")
@click.option("--cluster", is_flag=True, help="Look at the Kubernetes cluster instead of this machine.")
@click.option("--role", default="train", show_default=True, help="What this machine is for; see below.")
@click.option("--objective", type=click.Choice(["cloc", "clip"]), default="cloc", show_default=True)
@click.option("--skip", multiple=True, metavar="CHECK", help="Leave a check out; repeat.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@settings_options
def doctor(
    cluster: bool,
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
    cloc doctor --cluster

    A line a check: passed (✓), failed (✗), a warning (!), or skipped (-) and why. The exit code is 0 when nothing
    failed, else that of the stage's own failure. Roles: train, label, validate, evaluate, mllm, export, scenes,
    ingest, pipeline, dvc.

    --cluster asks the cluster of the kube config, or the one that this runs in, for what cloc needs there: interfaces,
    queue, settings, secrets, rights, room, servers. Names are those of train.kubernetes where train.scheduler is
    kubernetes, else those that infra/k8s makes.
    """
    from cloc.training.doctor import failure

    config = resolve(params, preset, overrides)
    findings = _cluster(config, skip) if cluster else _machine(config, subject, skip)
    found = []
    for finding in findings:
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


def _machine(config: Config, subject: dict[str, Any], skip: tuple[str, ...]) -> "Iterator[Finding]":
    from cloc.training.doctor import Subject, examine

    return examine(Subject(config, **subject), skip=skip)


def _cluster(config: Config, skip: tuple[str, ...]) -> "Iterator[Finding]":
    """Raises ConfigError for options that say something of this machine."""
    for name in ("data", "captions", "regions", "out", "role", "objective"):
        if click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise ConfigError(f"--cluster looks at the cluster alone: leave --{name} out")
    from cloc.cluster import examine

    return examine(config, skip=skip)
