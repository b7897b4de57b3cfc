"""Settings beside what they would be: which preset a run's are nearest to, and where they differ from it."""

from collections.abc import Mapping
from dataclasses import dataclass

from cloc.config.load import flatten, load_preset, preset_names
from cloc.config.schema import Config

PARAM_LIMIT = 500
"""Characters that a run in MLflow keeps of a setting."""


@dataclass(frozen=True)
class Beside:
    """Settings that differ.

    Attributes:
        base: "preset demo" or "the defaults": what differs least.
        differences: by setting its value, and the usual one (None for a setting that this release does not have).
    """

    base: str
    differences: Mapping[str, tuple[str, str | None]]


def beside(settings: Mapping[str, str]) -> Beside:
    """Settings beside the defaults and every preset.

    Args:
        settings: some or all, flat, as text: {"train.steps": "100"}.
    """
    known = {"the defaults": Config(), **{f"preset {name}": load_preset(name) for name in preset_names()}}
    found = {name: _differences(settings, config) for name, config in known.items()}
    nearest = min(found, key=lambda name: len(found[name]))
    return Beside(nearest, found[nearest])


def _differences(settings: Mapping[str, str], config: Config) -> dict[str, tuple[str, str | None]]:
    usual = {key: str(value)[:PARAM_LIMIT] for key, value in flatten(config.model_dump(mode="json")).items()}
    return {key: (value, usual.get(key)) for key, value in sorted(settings.items()) if value != usual.get(key)}
