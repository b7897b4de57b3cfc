"""`cloc answers`: tuned adapters side by side."""

import click

from cloc.errors import ConfigError


@click.command()
@click.argument("adapters", nargs=-1, required=True, metavar="NAME=ADAPTER...")
@click.option("--out", required=True, help="Folder of the report.")
@click.option("--title", default="MLLM adapters by their encoder", show_default=True, help="Of the page.")
def answers(adapters: tuple[str, ...], out: str, title: str) -> None:
    """Compare what tuned adapters answered: figures with intervals, paired differences, and pictures.

    An ADAPTER is a folder that `cloc tune` wrote; the first one is the baseline. They must have been asked the same
    questions (same data, adapter.tasks, adapter.eval_images and adapter.seeds). Nothing is run again.

    \b
    cloc answers CLIP=work/adapters/clip CLOC=work/adapters/cloc --out work/answers
    """
    rows: dict[str, str] = {}
    for item in adapters:
        name, sign, folder = item.partition("=")
        if not sign or not name or not folder:
            raise ConfigError(f"answers: {item!r}: write it as NAME=FOLDER")
        if name in rows:
            raise ConfigError(f"answers: there are two rows {name!r}; give each a name of its own")
        rows[name] = folder

    from cloc.mllm.report import PAGE, markdown, write_report

    comparison = write_report(rows, out, title=title)
    click.echo(markdown(comparison))
    click.echo(f"report: {out.rstrip('/')}/{PAGE}")
