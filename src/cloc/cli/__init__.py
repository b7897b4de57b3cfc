"""The command line: verbs over the stages, and over the pipeline.

Nothing heavy is imported here: `cloc --help` answers at once.
"""

import importlib
import sys

import click

from cloc import __version__
from cloc.errors import ClocError

# Verb -> module and attribute; a verb's module is imported when the verb is used (or its help asked for).
_VERBS = {
    "config": ("cloc.cli.settings", "config"),
    "data": ("cloc.cli.data", "data"),
    "storage": ("cloc.cli.storage", "storage"),
    "teachers": ("cloc.cli.stages", "teachers"),
    "caption": ("cloc.cli.stages", "caption"),
    "ground": ("cloc.cli.stages", "ground"),
    "validate": ("cloc.cli.stages", "validate"),
    "plan": ("cloc.cli.plan", "plan"),
    "doctor": ("cloc.cli.doctor", "doctor"),
    "pretrain": ("cloc.cli.stages", "pretrain"),
    "evaluate": ("cloc.cli.stages", "evaluate"),
    "register": ("cloc.cli.stages", "register"),
    "compare": ("cloc.cli.compare", "compare"),
    "tune": ("cloc.cli.stages", "tune"),
    "answers": ("cloc.cli.answers", "answers"),
    "chat": ("cloc.cli.chat", "chat"),
    "export": ("cloc.cli.export", "export"),
    "run": ("cloc.cli.pipeline", "run"),
    "ablate": ("cloc.cli.ablate", "ablate"),
    "pipeline": ("cloc.cli.pipeline", "pipeline"),
}


class _Lazy(click.Group):
    """A group whose verbs are imported when used; they are listed in the order of the pipeline."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module, attribute = _VERBS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


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
