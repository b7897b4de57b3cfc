"""`cloc runs`: what ran, what came of it, and where it is to be seen."""

import json
from typing import Any

import click

from cloc.cli.compare import compare
from cloc.cli.options import settings_options, tracking_settings
from cloc.errors import ClocError, ConfigError

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
everywhere_option = click.option("--all-experiments", "everywhere", is_flag=True, help="Not tracking.experiment alone.")


class _ListByDefault(click.Group):
    """A group whose verb `list` need not be said."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, args if args and args[0] in known else ["list", *args])


@click.group(cls=_ListByDefault)
def runs() -> None:
    """Runs in MLflow: list them, look at one, compare, link.

    `cloc runs` alone is `cloc runs list`. A RUN is its id, the start of its id, its name, or `latest`.

    \b
    cloc runs
    cloc runs show latest
    cloc runs compare latest 3f2a91c0
    """


@runs.command(name="list")
@click.argument("run", required=False)
@click.option("--stages", is_flag=True, help="Also the stages under each run; a RUN alone has them shown.")
@click.option("--filter", "condition", default="", metavar="EXPR", help="MLflow's: 'metrics.`eval/a/b/c` > 0.5'.")
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="How many runs.")
@everywhere_option
@json_option
@settings_options
def list_(
    run: str | None, stages: bool, condition: str, limit: int, everywhere: bool, as_json: bool, **settings: Any
) -> None:
    """The newest runs, how they ended and their headline figures.

    Who started each, its git commit (* with changes that are not in it), the digest of its data.

    \b
    cloc runs --limit 3 --stages
    cloc runs --filter "attributes.status = 'FAILED'"
    """
    reader = _reader(settings, everywhere=everywhere)
    if run and condition:
        raise ConfigError("give a RUN or --filter, not both")
    found = reader.families([reader.find(run)]) if run else reader.newest(limit=limit, condition=condition)

    from cloc.cli.run_facts import summary
    from cloc.cli.run_tables import print_runs

    told = [summary(item, experiment=reader.experiment(item.run), stages=stages or bool(run)) for item in found]
    if as_json:
        click.echo(json.dumps(told, indent=1))
    elif told:
        print_runs(told)
    else:
        click.echo("no run" + (f" where {condition}" if condition else ""), err=True)


@runs.command()
@click.argument("run")
@everywhere_option
@json_option
@settings_options
def show(run: str, everywhere: bool, as_json: bool, **settings: Any) -> None:
    """Everything of a run: stages, settings, data, metrics, links.

    Its settings are those that differ from the preset that it is nearest to.

    \b
    cloc runs show latest
    """
    reader = _reader(settings, everywhere=everywhere)
    found = reader.find(run)

    from cloc.cli.run_facts import details
    from cloc.cli.run_tables import print_details

    told = details(
        reader.families([found])[0],
        experiment=reader.experiment(found),
        uri=reader.uri,
        kept=reader.artifacts(found),
    )
    if as_json:
        click.echo(json.dumps(told, indent=1))
    else:
        print_details(told)


runs.add_command(compare)


@runs.command()
@click.argument("run")
@everywhere_option
@json_option
@settings_options
def link(run: str, everywhere: bool, as_json: bool, **settings: Any) -> None:
    """Addresses of a run: MLflow's pages, reports, Kubeflow.

    \b
    cloc runs link latest
    """
    reader = _reader(settings, everywhere=everywhere)

    from cloc.cli.run_facts import links
    from cloc.cli.run_tables import print_links

    found = links(reader.families([reader.find(run)])[0], uri=reader.uri)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        print_links(found)


@runs.command()
@settings_options
def deliver(**settings: Any) -> None:
    """Send what MLflow was not there to take.

    Stages go on without it, and leave what it was to be told in this folder's outbox.

    \b
    cloc runs deliver
    """
    config = tracking_settings(**settings)

    from cloc import tracking  # heavy: not for --help

    found = tracking.deliver(config)
    for item in found:
        click.echo(str(item))
    left = [item for item in found if item.left]
    if left:
        raise ClocError(f"{len(left)} of {len(found)} runs are not delivered whole: {left[0].reason}")
    if not found:
        click.echo("nothing is left to deliver")


def _reader(settings: dict[str, Any], *, everywhere: bool) -> Any:
    from cloc.tracking import Reader  # heavy: not for --help

    return Reader(tracking_settings(**settings), everywhere=everywhere)
