"""The libraries of a role: installed in versions that fit, and they can be imported."""

import subprocess
import sys
from importlib import metadata

from packaging.requirements import Requirement

from cloc.errors import ConfigError
from cloc.training.doctor.registry import Subject, check

_TIMEOUT_S = 600
_IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    print(name, flush=True)
    importlib.import_module(name)
"""
# What a distribution is imported as, where that is another name; None is no library of Python.
_MODULES: dict[str, str | None] = {
    "fontawesomefree": None,
    "great-expectations": "great_expectations",
    "kfp-kubernetes": "kfp.kubernetes",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "torchx-nightly": "torchx",
    "dvc-s3": "dvc_s3",
}


@check("libraries")
def libraries(subject: Subject) -> str:
    """Distributions of cloc's extra for the role, by their metadata."""
    wrong, found = [], []
    for wanted in _wanted(subject.role):
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version} is not {wanted.specifier}")
        found.append(wanted.name)
    if wrong:
        raise ConfigError(f"{'; '.join(wrong)}: pip install 'cloc[{subject.role}]'")
    main = [name for name in ("torch", "transformers", "torchx-nightly", "kfp", "dvc", "peft") if name in found]
    return f"{len(found)} there" + "".join(f", {name} {metadata.version(name)}" for name in main)


@check("imports")
def imports(subject: Subject) -> str:
    """Those of the extra are imported, in a process of its own: a broken one may take its process with it."""
    extra = [wanted for wanted in _wanted(subject.role) if wanted.marker]
    names = [_MODULES.get(wanted.name, wanted.name.replace("-", "_")) for wanted in extra]
    modules = list(dict.fromkeys(name for name in names if name))
    if not modules:
        return "the role has no libraries of its own"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT, *modules], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        last = (error.stdout or b"").decode().split()[-1:]
        raise ConfigError(f"importing {''.join(last) or 'libraries'} takes longer than {_TIMEOUT_S} s") from None
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        reason = said[-1] if said else f"exit status {done.returncode}"
        raise ConfigError(f"{done.stdout.split()[-1]} cannot be imported: {reason}; install cloc[{subject.role}] anew")
    return ", ".join(modules)


def _wanted(role: str) -> list[Requirement]:
    """What cloc requires for a role, as its package says."""
    found = dict[str, Requirement]()
    for text in metadata.requires("cloc") or ():
        item = Requirement(text)
        if item.marker is None or item.marker.evaluate({"extra": role}):
            found.setdefault(item.name, item)
    return list(found.values())
