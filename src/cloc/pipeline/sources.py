"""Which source a stage runs, and its hash: a pipeline's cache sees a stage's settings and inputs, but not its code."""

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import cloc
from cloc.stages import stage_spec

_ROOT = Path(cloc.__file__).parent
# A stage is given its settings, resolved and checked: how that was done cannot change what it does, nor can what
# records it. The package's own front door imports for people, not for stages.
_MODULE = re.compile(r"cloc(\.\w+)+")
_NEUTRAL = ("config", "errors.py", "tracking", "__init__.py")


def stage_sources(stage: str) -> list[Path]:
    """The `module_sources` of a stage's module. Raises ConfigError for an unknown stage."""
    return module_sources(stage_spec(stage).module)


def module_sources(module: str) -> list[Path]:
    """Files of this package that a module imports, directly or not, and files that lie beside these.

    Imports inside functions count, and names of modules in strings: what is run by `python -m`.
    """
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        for path in _files(waiting.pop()):
            if path not in found and path.relative_to(_ROOT).parts[0] not in _NEUTRAL:
                found.add(path)
                waiting += _imports(path.read_bytes())
    folders = {path.parent for path in found if path.parent != _ROOT}
    return sorted(found | {item for folder in folders for item in _resources(folder)})


def code_version(stage: str) -> str:
    """Hash of the stage's source, 16 hexadecimal digits. Comments and layout of Python files do not count."""
    digest = hashlib.sha256(cloc.__version__.encode())
    for path in stage_sources(stage):
        digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + source_content(path))
    return digest.hexdigest()[:16]


def source_content(path: Path) -> bytes:
    """What counts of a file: of Python neither comments nor layout."""
    body = path.read_bytes()
    return ast.dump(ast.parse(body)).encode() if path.suffix == ".py" else body


def _files(module: str) -> list[Path]:
    """The module's file and the `__init__` of every package above it; none for a name that is no module."""
    parts = module.split(".")[1:]
    base = _ROOT.joinpath(*parts)
    own = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not own.is_file():
        return []
    packages = [_ROOT.joinpath(*parts[:depth]) / "__init__.py" for depth in range(len(parts))]
    return [own, *(path for path in packages if path.is_file())]


@lru_cache(maxsize=1024)  # stages share most of their source
def _imports(source: bytes) -> tuple[str, ...]:
    """Names of this package that a file imports or runs; what is imported `from` a package may be a module or not."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{item.name}" for item in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            names.append(node.value)
    return tuple(name for name in names if name.split(".")[0] == "cloc" and name != "cloc")


def _resources(folder: Path) -> Iterator[Path]:
    """Files beside a module that are no Python: templates and the like."""
    for item in folder.rglob("*"):
        if item.is_file() and item.suffix not in (".py", ".pyc"):
            yield item
