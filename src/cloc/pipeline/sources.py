"""Which source a stage runs, and its hash: a pipeline's cache sees a stage's settings and inputs, but not its code."""

import ast
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import cloc
from cloc.stages import stage_spec

_ROOT = Path(cloc.__file__).parent
# A stage is given its settings, resolved and checked: how that was done cannot change what it does, nor can what
# records it. The package's own front door imports for people, not for stages.
_MODULE = re.compile(r"cloc(\.\w+)+")
_NEUTRAL = ("config", "errors.py", "tracking", "__init__.py")


def stage_sources(stage: str) -> list[Path]:
    """Files of this package that a stage's module imports, directly or not, and files that lie beside these.

    Imports inside functions count, and names of modules in strings: what is run by `python -m`. Raises ConfigError for
    an unknown stage.
    """
    found: set[Path] = set()
    waiting = [stage_spec(stage).module]
    while waiting:
        for path in _files(waiting.pop()):
            if path not in found and path.relative_to(_ROOT).parts[0] not in _NEUTRAL:
                found.add(path)
                waiting += _imports(path)
    folders = {path.parent for path in found if path.parent != _ROOT}
    return sorted(found | {item for folder in folders for item in _resources(folder)})


def code_version(stage: str) -> str:
    """Hash of the stage's source, 16 hexadecimal digits. Comments and layout of Python files do not count."""
    digest = hashlib.sha256(cloc.__version__.encode())
    for path in stage_sources(stage):
        body = path.read_bytes()
        content = ast.dump(ast.parse(body)).encode() if path.suffix == ".py" else body
        digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def _files(module: str) -> list[Path]:
    """The module's file and the `__init__` of every package above it; none for a name that is no module."""
    parts = module.split(".")[1:]
    base = _ROOT.joinpath(*parts)
    own = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not own.is_file():
        return []
    packages = [_ROOT.joinpath(*parts[:depth]) / "__init__.py" for depth in range(len(parts))]
    return [own, *(path for path in packages if path.is_file())]


def _imports(path: Path) -> Iterator[str]:
    """Names of this package that a file imports or runs; what is imported `from` a package may be a module or not."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names = [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{item.name}" for item in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            names = [node.value]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "cloc" and name != "cloc")


def _resources(folder: Path) -> Iterator[Path]:
    """Files beside a module that are no Python: templates and the like."""
    for item in folder.rglob("*"):
        if item.is_file() and item.suffix not in (".py", ".pyc"):
            yield item
