"""The command line: verbs over the stages, and over the pipeline.

Nothing heavy is imported here: `cloc --help` answers at once.
"""

import importlib
import sys
from typing import NamedTuple

import click

from cloc import __version__
from cloc.errors import ClocError


class _Verb(NamedTuple):
    """A verb: where it is, which is imported when it is used, and what the list of verbs says of it."""

    module: str
    attribute: str
    help: str


_GROUPS = {
    "The pipeline": {
        "run": _Verb("cloc.cli.pipeline", "run", "The whole pipeline on this machine, by KFP's local runner."),
        "pipeline": _Verb("cloc.cli.pipeline", "pipeline", "Compile it, run it on Kubeflow, look at its runs there."),
        "config": _Verb("cloc.cli.settings", "config", "Show, explain and create settings."),
        "plan": _Verb("cloc.cli.plan", "plan", "Memory, days, storage and network of a training, beforehand."),
        "doctor": _Verb("cloc.cli.doctor", "doctor", "What would fail: libraries, services, settings, data."),
    },
    "Data": {
        "data": _Verb("cloc.cli.data", "data", "Make data sets of your images, or render the demo's."),
        "storage": _Verb("cloc.cli.storage", "storage", "Whether a folder or an S3 endpoint will do."),
    },
    "Labels": {
        "teachers": _Verb("cloc.cli.stages", "teachers", "Labelling models of your own from a labelled part."),
        "caption": _Verb("cloc.cli.stages", "caption", "Caption every image."),
        "ground": _Verb("cloc.cli.stages", "ground", "Find boxes for the phrases of the captions."),
        "validate": _Verb("cloc.cli.stages", "validate", "The gate before training: do the labels hold?"),
    },
    "Training and evaluation": {
        "pretrain": _Verb("cloc.cli.stages", "pretrain", "Train CLOC, or plain CLIP by the same code."),
        "evaluate": _Verb("cloc.cli.stages", "evaluate", "Models side by side on the test splits, with a report."),
        "register": _Verb("cloc.cli.stages", "register", "The gate before the registry, and the registry."),
        "ablate": _Verb("cloc.cli.ablate", "ablate", "The rows of the paper's ablation."),
        "playground": _Verb("cloc.cli.playground", "playground", "Models in the browser: name, find, search."),
        "export": _Verb("cloc.cli.export", "export", "Write a trained model for other programs."),
    },
    "Language model": {
        "tune": _Verb("cloc.cli.stages", "tune", "Tune an adapter on an encoder: refer, ground, describe."),
        "answers": _Verb("cloc.cli.answers", "answers", "Compare what tuned adapters answered."),
        "chat": _Verb("cloc.cli.chat", "chat", "Ask a tuned adapter about an image."),
    },
    "Runs": {
        "compare": _Verb("cloc.cli.compare", "compare", "What differs between runs: settings, data, code, figures."),
        "runs": _Verb("cloc.cli.runs", "runs", "What ran and what came of it: list, show, compare, link."),
        "lineage": _Verb("cloc.cli.lineage", "lineage", "From a model back to run, code, data, labels, labellers."),
    },
    "This command": {
        "completion": _Verb("cloc.cli.completion", "completion", "Completion for bash, zsh or fish."),
    },
}
_VERBS = {name: verb for verbs in _GROUPS.values() for name, verb in verbs.items()}


class _Lazy(click.Group):
    """A group whose verbs are imported when used; they are listed in groups, in the order of the pipeline."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        verb = _VERBS[cmd_name]
        command: click.Command = getattr(importlib.import_module(verb.module), verb.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, _VERBS))
        for title, verbs in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), verb.help) for name, verb in verbs.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _VERBS, n=1)
            hint = f"did you mean {near[0]}?" if near else "`cloc --help` lists them"
            raise click.UsageError(f"no such verb {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="cloc")
def cloc() -> None:
    """CLOC: a CLIP encoder that understands regions, and the whole pipeline that makes one.

    \b
    cloc run                               the whole pipeline on this machine
    cloc data ingest --images photos/ --out data/train
    cloc pretrain --help                   one stage alone
    """


def main() -> None:
    """Entry point: a failure that the user can act on is one line on stderr and an exit code."""
    try:
        code = cloc.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        code = 130
    except ClocError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)
