"""Questions as single turns about a region, for modules that do not read conversations yet."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloc.mllm.boxtext import box_to_text
from cloc.mllm.conversation import Task
from cloc.mllm.instructions.facts import Region
from cloc.mllm.instructions.templates import WORDINGS, Form

TEMPLATES: dict[Task, tuple[str, ...]] = {
    Task.REFER: WORDINGS[Form.REFER].trained,
    Task.GROUND: tuple(wording.replace("{be}", "is") for wording in WORDINGS[Form.GROUND].trained),
}


@dataclass(frozen=True)
class Turn:
    """A question about a region, and its answer."""

    task: Task
    question: str
    answer: str
    region: Region


def ask(region: Region, task: Task, *, rng: np.random.Generator) -> Turn:
    """A question about the region in one of the task's wordings."""
    wording = TEMPLATES[task][int(rng.integers(len(TEMPLATES[task])))]
    box = box_to_text(region.padded)
    if task is Task.REFER:
        return Turn(task, wording.format(box=box), region.text, region)
    return Turn(task, wording.format(phrase=region.text), box, region)


def sampled_questions(regions: Sequence[Region], *, limit: int, rng: np.random.Generator) -> list[Turn]:
    """At most `limit` of an image's questions, in random order."""
    turns = questions(regions, rng=rng)
    return [turns[index] for index in rng.permutation(len(turns))[:limit]]


def questions(regions: Sequence[Region], *, rng: np.random.Generator) -> list[Turn]:
    """All that is asked about an image: every region by its box, and every unambiguous one by its text."""
    tasks = [(region, task) for region in regions for task in TEMPLATES if task is Task.REFER or region.unique]
    return [ask(region, task, rng=rng) for region, task in tasks]
