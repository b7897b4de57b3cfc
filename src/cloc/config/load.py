"""Reading settings: `params.yaml`, presets, and `key=value` overrides; every mistake is one clear line."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cloc.config.schema import Config
from cloc.errors import ConfigError

_OPEN = frozenset({"evaluation.models"})  # their keys are the user's


class _Loader(yaml.SafeLoader):
    """YAML with 1.2's floats, so that `5e-4` is a number (as DVC reads it) and not a string; no duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                message = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, message, key_node.start_mark)
            keys.append(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(text: str, *, source: str) -> Any:
    """Parses YAML. Raises ConfigError naming `source` and the line where the text is broken."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("cloc.config") / "presets"
    return sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_preset(name: str) -> Config:
    """The settings of a preset: the defaults, overlaid with its file. Raises ConfigError for an unknown name."""
    if name not in preset_names():
        raise ConfigError(f"preset {name!r} is unknown; there are: {', '.join(preset_names())}")
    text = (resources.files("cloc.config") / "presets" / f"{name}.yaml").read_text()
    return parse(read_yaml(text, source=f"preset {name}") or {}, source=f"preset {name}")


def load_params(path: str | Path, *, overrides: Iterable[str] = ()) -> Config:
    """The settings in a complete `params.yaml`, with `section.key=value` overrides on top.

    Raises:
        ConfigError: the file cannot be read, or a key is missing, unknown, or of the wrong type or range.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the settings {path}: {error}") from None
    tree = read_yaml(text, source=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections like `train:`, got {type(tree).__name__}")
    _check_complete(tree, source=str(path))
    return parse(apply_overrides(tree, overrides), source=str(path))


def apply_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of the nested settings with `section.key=value` items set; values are YAML."""
    result = _copy(tree)
    for item in overrides:
        name, sign, value = item.partition("=")
        if not sign:
            raise ConfigError(f"override {item!r}: write it as section.key=value")
        *parents, leaf = name.strip().split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {item!r}: {parent!r} is a value, not a section")
        node[leaf] = read_yaml(value, source=f"override {item!r}")
    return result


def parse(tree: Mapping[str, Any], *, source: str) -> Config:
    """Validates nested settings; what is not given keeps its default. Raises ConfigError naming each bad key."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors(include_url=False)]
        raise ConfigError(f"{source}: {'; '.join(lines)}") from None


def dump(config: BaseModel) -> str:
    """The complete settings as YAML, in the schema's order."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `section.key` -> value; settings with names of the user's own are one value."""
    return dict(_walk(tree, prefix))


def _walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in _OPEN:
            yield from _walk(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _check_complete(tree: Mapping[str, Any], *, source: str) -> None:
    """Every setting must stand in the file: DVC can only track what is written down."""
    known = flatten(Config().model_dump(mode="json"))
    given = flatten(tree)
    missing = [f"{key} (default {known[key]!r})" for key in known if key not in given]
    unknown_sections = [key for key in given if key not in known]
    if missing and not unknown_sections:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConfigError(f"{source}: missing key {', '.join(missing[:3])}{more}; add it to the file")


def _explain(item: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, flatten(Config().model_dump(mode="json")), n=1)
        return f"unknown key {name}" + (f" (did you mean {near[0]}?)" if near else "")
    message = item["msg"].removeprefix("Value error, ")
    told = f"{name}: {message[0].lower() + message[1:]}" if name else message  # a rule over sections names them itself
    # A rule over several settings names their values itself.
    return told if isinstance(item["input"], dict) else f"{told}, got {item['input']!r}"
