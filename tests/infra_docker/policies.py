"""What the Dockerfile keeps to. Each check returns a line for everything that does not; the empty list is good."""

import re
from pathlib import Path

from tests.infra_docker.dockerfile import Stage, lineage

_DIGEST = re.compile(r"^[a-z0-9.-]+\.[a-z]+(/[\w.-]+)+:[\w.-]*\d[\w.-]*@sha256:[0-9a-f]{64}$")
_LABELS = ("title", "version", "revision", "source", "licenses", "base.name")
_COMPILERS = re.compile(r"\b(gcc|g\+\+|clang|make|cmake|build-essential|git|curl|wget)\b")
Stages = dict[str, Stage]


def pinned(stages: Stages) -> list[str]:
    """What is not made here has a registry, a version and a digest."""
    return [
        f"{stage.name}: base {stage.base!r} has no registry, version or digest"
        for stage in stages.values()
        if stage.base not in stages and not _DIGEST.match(stage.base)
    ]


def user(stages: Stages, target: str) -> list[str]:
    """It runs as user 10001, by number so that a cluster can tell it from root; what comes after only checks."""
    steps = stages[target].steps
    users = [rest for name, rest in steps if name == "USER"]
    if users != ["10001:0"]:
        return [f"{target}: users are {users}"]
    after = steps[steps.index(("USER", "10001:0")) + 1 :]
    return [f"{target}: {name} {rest}" for name, rest in after if name != "RUN" or "/check " not in rest]


def checked(stages: Stages, target: str, roles: list[str]) -> list[str]:
    """At its end, doctor asks for every role whose libraries it holds."""
    name, rest = stages[target].steps[-1]
    found = rest.split()[1:] if name == "RUN" and "/check " in rest else []
    return [f"{target}: no check of {role}" for role in roles if role not in found]


def labels(stages: Stages, target: str) -> list[str]:
    """It has the labels that OCI names."""
    text = " ".join(rest for stage in lineage(stages, target) for rest in stage.of("LABEL"))
    return [f"{target}: no label {name}" for name in _LABELS if not re.search(rf'\.image\.{name}="?[^\s"]', text)]


def lean(stages: Stages, target: str) -> list[str]:
    """No layer of it installs build tools, or holds what package managers keep."""
    found = []
    for stage in lineage(stages, target):
        for run in stage.of("RUN"):
            where = f"{stage.name}: RUN {run[:60]}"
            if re.search(r"\bapt(-get)? ", run) and not re.search(r"rm -rf /var/lib/apt/lists/\*", run):
                found.append(f"{where}: leaves lists of apt")
            if re.search(r"\bapt(-get)? .*install", run) and _COMPILERS.search(run):
                found.append(f"{where}: build tools")
            if re.search(r"\bpip\b.* install", run) and "--no-cache-dir" not in run:
                found.append(f"{where}: leaves pip's cache")
    return found


def copies(stages: Stages, root: Path, ignore: str) -> list[str]:
    """What is copied is there, and .dockerignore lets it through; stages that are copied from are earlier ones."""
    let_through = [line[1:] for line in ignore.splitlines() if line.startswith("!")]
    found, seen = [], set[str]()
    for stage in stages.values():
        for rest in stage.of("COPY"):
            *sources, _ = [word for word in rest.split() if not word.startswith("--")]
            for source in [] if "--from=" in rest else sources:
                if not (root / source).exists():
                    found.append(f"{stage.name}: {source} is not there")
                if not any(f"{source}/".startswith(f"{item}/") for item in let_through):
                    found.append(f"{stage.name}: {source} is ignored")
        for other in re.findall(r"from=([\w-]+)", " ".join(rest for _, rest in stage.steps)):
            if other not in seen:
                found.append(f"{stage.name}: copies from {other}, which is no earlier stage")
        seen.add(stage.name)
    return found


def used(stages: Stages, targets: tuple[str, ...]) -> list[str]:
    """Every stage is part of a target."""
    reached, waiting = set[str](), list(targets)
    while waiting:
        for stage in lineage(stages, waiting.pop()):
            if stage.name not in reached:
                reached.add(stage.name)
                waiting += re.findall(r"from=([\w-]+)", " ".join(rest for _, rest in stage.steps))
    return [f"{name} is part of no image" for name in stages if name not in reached]
