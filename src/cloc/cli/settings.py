"""`cloc config`: what the settings are and mean."""

from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from cloc.cli.options import override_option, resolve, settings_options
from cloc.config import dump
from cloc.errors import ConfigError


@click.group()
def config() -> None:
    """Show, explain and create settings.

    \b
    cloc config init --preset finetune --out photos.yaml
    """


@config.command()
@settings_options
def show(params: str | None, preset: str | None, overrides: tuple[str, ...]) -> None:
    """Print the resolved settings as YAML.

    \b
    cloc config show --preset b16 -S train.steps=1000
    """
    click.echo(dump(resolve(params, preset, overrides)), nl=False)


@config.command(short_help="Say what each setting means, and its value.")
@click.argument("prefix", default="")
@settings_options
def explain(prefix: str, params: str | None, preset: str | None, overrides: tuple[str, ...]) -> None:
    """Say what each setting means, and its value; of all, or of those whose names begin with PREFIX.

    \b
    cloc config explain train.learning_rate
    """
    shown = 0
    for name, value, text in _walk(resolve(params, preset, overrides), ""):
        if name.startswith(prefix):
            click.echo(f"{click.style(name, bold=True)} = {value!r}\n    {text}")
            shown += 1
    if not shown:
        raise ConfigError(f"no setting begins with {prefix!r}")


@config.command()
@click.option("--preset", default="finetune", show_default=True, help="Preset to start from.")
@override_option
@click.option("--out", default="params.yaml", show_default=True, help="File to write.")
def init(preset: str, overrides: tuple[str, ...], out: str) -> None:
    """Write a complete settings file from a preset.

    \b
    cloc config init --preset finetune --out photos.yaml
    """
    if Path(out).exists():
        raise ConfigError(f"{out} exists; remove it or name another with --out")
    head = f"# Preset {preset}, complete. `cloc config explain` says what each key means.\n"
    Path(out).write_text(head + dump(resolve(None, preset, overrides)))
    click.echo(f"wrote {out}")


def _walk(section: BaseModel, prefix: str) -> list[tuple[str, Any, str]]:
    found: list[tuple[str, Any, str]] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            found += _walk(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value, " ".join((field.description or "").split())))
    return found
