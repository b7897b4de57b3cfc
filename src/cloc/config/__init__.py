"""Settings: typed, frozen, validated once at the edge. `params.yaml` is their single source."""

from cloc.config.load import (
    apply_overrides,
    dump,
    flatten,
    load_params,
    load_preset,
    parse,
    preset_names,
    read_yaml,
)
from cloc.config.schema import Config

__all__ = [
    "Config",
    "apply_overrides",
    "dump",
    "flatten",
    "load_params",
    "load_preset",
    "parse",
    "preset_names",
    "read_yaml",
]
