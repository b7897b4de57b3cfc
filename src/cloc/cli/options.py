"""Options that several verbs share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cloc.config import Config, apply_overrides, load_params, load_preset, parse
from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_PARAMS = "params.yaml"

override_option = click.option(
    "-S", "overrides", multiple=True, metavar="KEY=VALUE", help="Set one setting: train.steps=100."
)


def settings_options(function: F) -> F:
    """--params, --preset and -S, which `resolve` turns into the settings."""
    decorators = [
        click.option("--params", type=click.Path(), help=f"Settings file [default: {DEFAULT_PARAMS}]."),
        click.option("--preset", help="Settings of a preset instead of a file: demo, finetune, b16, l14, h14."),
        override_option,
    ]
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def resolve(params: str | None, preset: str | None, overrides: tuple[str, ...]) -> Config:
    """The settings: from a preset, or from a file, with overrides on top."""
    if preset and params:
        raise ConfigError("give --params or --preset, not both")
    if preset:
        tree = load_preset(preset).model_dump(mode="json")
        return parse(apply_overrides(tree, overrides), source=f"preset {preset}")
    path = params or DEFAULT_PARAMS
    if not params and not Path(path).is_file():
        raise ConfigError(f"there is no {DEFAULT_PARAMS} here; name one with --params, or take a --preset")
    return load_params(path, overrides=overrides)


def tracking_settings(params: str | None, preset: str | None, overrides: tuple[str, ...]) -> TrackingConfig:
    """Section `tracking`, for verbs that read what was recorded: where no settings are, the defaults."""
    given = params or preset or overrides
    return (resolve(params, preset, overrides) if given or Path(DEFAULT_PARAMS).is_file() else Config()).tracking
