"""infra/docker/Dockerfile as stages and instructions."""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "infra" / "docker"
DOCKERFILE = DOCKER / "Dockerfile"
TARGETS = ("validate", "train", "label", "pipeline")


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: after AS.
        base: image or stage that it starts from, with arguments filled in.
        steps: instructions after FROM, as (RUN, the rest).
    """

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def of(self, instruction: str) -> list[str]:
        """The arguments of all instructions of a kind."""
        return [rest for name, rest in self.steps if name == instruction]


def parse(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile, in their order. Arguments before the first one are filled into FROM."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        if not line.strip():
            continue
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            image, _, name = rest.split()
            current = stages[name] = Stage(name, re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], image))
        elif current is None:
            assert instruction == "ARG", line
            key, value = rest.split("=", 1)
            arguments[key] = value
        else:
            current.steps.append((instruction, rest))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage and those that it starts from, the first one first."""
    stage = stages[name]
    return [*(lineage(stages, stage.base) if stage.base in stages else []), stage]


def extras(stages: dict[str, Stage], name: str) -> list[str]:
    """The extras whose libraries an image holds."""
    return [
        extra
        for stage in lineage(stages, name)
        for run in stage.of("RUN")
        for found in re.findall(r"libraries\.py install ([\w ]+)", run)
        for extra in found.split()
    ]
