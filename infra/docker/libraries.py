"""Puts libraries into an image: those that cloc's extras ask for, in the versions of requirements.lock and no other.

    libraries.py install EXTRA...   what cloc itself and these extras of pyproject.toml ask for
    libraries.py torch INDEX        torch alone, from the index of packages that has the wanted build of it
    libraries.py check              whether all that is installed is as locked

Works on the environment of the Python that runs it, with the pip of the Python that the environment is made from. Lies
beside pyproject.toml and requirements.lock.
"""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAME = re.compile(r"[A-Za-z0-9._-]+")


def wanted(project: dict[str, Any], extras: list[str]) -> list[str]:
    """Requirements of a project (as pyproject.toml has it) and of its extras; an extra may name others.

    Raises:
        SystemExit: there is no such extra.
    """
    found = list(project["dependencies"])
    waiting, seen = list(extras), set[str]()
    while waiting:
        extra = waiting.pop(0)
        if extra in seen:
            continue
        seen.add(extra)
        if extra not in project["optional-dependencies"]:
            known = ", ".join(sorted(project["optional-dependencies"]))
            raise SystemExit(f"error: pyproject.toml has no extra {extra!r}; there are: {known}")
        for requirement in project["optional-dependencies"][extra]:
            if own := re.fullmatch(rf"{project['name']}\[(.+)\]", requirement):
                waiting += own[1].split(",")
            else:
                found.append(requirement)
    return list(dict.fromkeys(found))


def canonical(requirement: str) -> str:
    """The name in a requirement, as indexes compare it."""
    name = NAME.match(requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def locked(text: str) -> dict[str, str]:
    """Versions in a lock, by name."""
    lines = [line.split("#")[0].split(";")[0].strip() for line in text.splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonical(name): version for name, version in pairs}


def differences(lock: dict[str, str]) -> list[str]:
    """What is installed here and not as locked. torch is in no lock, nor is what torch alone brings: it says itself
    which versions."""
    own, waiting = {"cloc"}, ["torch"]
    while waiting:
        name = waiting.pop()
        if name in own or name in lock:
            continue
        own.add(name)
        try:
            waiting += [canonical(item) for item in metadata.requires(name) or () if "extra ==" not in item]
        except metadata.PackageNotFoundError:
            continue  # on another system
    found = []
    for item in metadata.distributions():
        name = canonical(item.name)
        if name not in own and lock.get(name) != item.version:
            found.append(f"{name} {item.version} is installed, locked is {lock.get(name, 'none')}")
    return sorted(found)


def pip(*arguments: str) -> None:
    """Installs, keeping nothing that is not part of the image. Raises SystemExit with pip's status when it fails."""
    command = [f"{sys.base_prefix}/bin/python3", "-m", "pip", "--python", sys.executable, "install"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off", *arguments]
    if status := subprocess.run(command, check=False).returncode:
        raise SystemExit(status)


def main(arguments: list[str]) -> None:
    """Does what the arguments say. Raises SystemExit when it cannot be done, or when `check` finds something."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    lock = HERE / "requirements.lock"
    match arguments:
        case ["install", *extras]:
            pip("--constraint", str(lock), *wanted(project, extras))
        case ["torch", index]:
            torch = [item for item in wanted(project, ["torch"]) if canonical(item) == "torch"]
            pip("--no-deps", "--index-url", index, *torch)
        case ["check"]:
            if found := differences(locked(lock.read_text())):
                raise SystemExit("\n".join(f"error: {line}" for line in found))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
