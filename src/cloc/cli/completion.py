"""`cloc completion`: what a shell needs to complete verbs, options and paths."""

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_CLOC_COMPLETE"  # click's, for a program of this name


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete verbs and options.

    \b
    eval "$(cloc completion bash)"                               in ~/.bashrc; zsh alike
    cloc completion fish > ~/.config/fish/completions/cloc.fish
    """
    made = get_completion_class(shell)
    assert made is not None
    root = ctx.find_root()
    click.echo(made(root.command, {}, "cloc", _VARIABLE).source())
