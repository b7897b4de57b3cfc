"""Which questions are asked about an image: drawn by weights for training, all of a fixed kind for the evaluation.

Everything follows from the generator that is handed in: equal facts, pool and state give equal conversations, whichever
process asks.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import numpy as np

from cloc.errors import ConfigError
from cloc.mllm.conversation import Conversation, Task
from cloc.mllm.instructions import captions, grounding, referring, verifying
from cloc.mllm.instructions.asking import Asker
from cloc.mllm.instructions.facts import Facts
from cloc.mllm.instructions.pool import PhrasePool

_ASKED: dict[Task, Callable[[Asker], Iterator[Conversation]]] = {
    Task.DESCRIBE: captions.describe,
    Task.REFER: referring.refer,
    Task.ATTRIBUTE: referring.attribute,
    Task.RELATION: referring.relate,
    Task.COUNT: referring.count,
    Task.GROUND: grounding.ground,
    Task.GROUND_ALL: grounding.ground_all,
    Task.ABSENT: grounding.absent,
    Task.GROUNDED_CAPTION: captions.grounded_caption,
    Task.VERIFY: verifying.verify,
}
# Questions of the evaluation about one image at most; those that are not here are all asked.
_MOST_TESTED = {
    Task.DESCRIBE: 1,
    Task.RELATION: 2,
    Task.COUNT: 2,
    Task.GROUND_ALL: 2,
    Task.ABSENT: 2,
    Task.GROUNDED_CAPTION: 1,
}


def training_conversations(
    facts: Facts,
    *,
    tasks: Mapping[str, float],
    limit: int,
    region_tokens: bool,
    pool: PhrasePool,
    rng: np.random.Generator,
) -> list[Conversation]:
    """At most `limit` conversations about an image, no two of them equal.

    A task is drawn by its weight among those that the facts still allow, then one of its questions.

    Args:
        facts: of the image.
        tasks: weights by name of the task; those of weight 0 and those not named are not asked, "other" neither: such
            conversations come from files.
        limit: conversations at most.
        region_tokens: whether REGION_TOKEN stands behind a region of a question.
        pool: phrases of the corpus.
        rng: the only source of chance.

    Raises:
        ConfigError: a task has no such name, or a weight is negative.
    """
    weights = _weights(tasks)
    asker = Asker(facts, pool, rng, tokens=region_tokens)
    left = {task: _ASKED[task](asker) for task in weights}
    drawn: list[Conversation] = []
    said: set[tuple[Task, str]] = set()
    while left and len(drawn) < limit:
        names = list(left)
        shares = np.array([weights[task] for task in names])
        task = names[int(rng.choice(len(names), p=shares / shares.sum()))]
        conversation = next(left[task], None)
        if conversation is None:
            del left[task]
        elif (known := (task, conversation.turns[0].question)) not in said:
            said.add(known)
            drawn.append(conversation)
    return drawn


def evaluation_conversations(
    facts: Facts,
    *,
    tasks: Mapping[str, float],
    region_tokens: bool,
    pool: PhrasePool,
    rng: np.random.Generator,
    held: bool = False,
) -> list[Conversation]:
    """The questions of the evaluation about an image.

    Every region is referred to, with its attributes; every unambiguous one is grounded, and as many absent objects are
    asked for, at most 2; yes and no are right equally often; of the other tasks there are 1 or 2 questions. Tasks
    without weight are left out.

    Args:
        facts, region_tokens, pool, rng: as in training.
        tasks: as in training; the size of a weight plays no part.
        held: whether the wordings are those that training never sees.

    Raises:
        ConfigError: a task has no such name, or a weight is negative.
    """
    asker = Asker(facts, pool, rng, tokens=region_tokens, held=held)
    found: list[Conversation] = []
    for task in _weights(tasks):
        if task is Task.VERIFY:
            found += _tested_both_ways(asker)
            continue
        most = _MOST_TESTED.get(task)
        if task is Task.ABSENT and facts.regions:
            most = min(most or 0, sum(region.unique for region in facts.regions))
        found += islice(_ASKED[task](asker), most)
    return found


def _tested_both_ways(asker: Asker) -> Iterator[Conversation]:
    """A yes and a no about the image, and about a region."""
    regions = asker.facts.regions
    for about_region in (False, True):
        for index in asker.order(len(regions)):
            pair = verifying.asked_both_ways(asker, regions[index], about_region=about_region)
            if pair is not None:
                yield from pair
                break


def _weights(tasks: Mapping[str, float]) -> dict[Task, float]:
    """The weights above 0 of tasks that are made from facts, in the order of `Task`."""
    known = {task.value for task in Task}
    for name, weight in tasks.items():
        if name not in known:
            raise ConfigError(f"adapter.tasks: there is no task {name!r}; there are {', '.join(sorted(known))}")
        if not weight >= 0:
            raise ConfigError(f"adapter.tasks: the weight of {name} is {weight}; it must be at least 0")
    return {task: float(tasks[task.value]) for task in _ASKED if tasks.get(task.value, 0.0) > 0}
