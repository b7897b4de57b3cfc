"""Questions and answers about images, made from their captions and regions (METHOD, Evaluation, MLLM).

    facts = facts_of(key, captions, regions, frame=frame)
    pool = PhrasePool.of(texts of the corpus' regions)
    training_conversations(facts, tasks={"refer": 1.0, "ground": 1.0}, limit=8, pool=pool, rng=rng, region_tokens=False)

`facts` holds what is known of an image, `words` and `phrases` read its texts, `pool` draws what it does not show,
`templates` has the wordings, `referring`, `grounding`, `captions` and `verifying` the tasks, `drawing` chooses.
"""

from cloc.mllm.instructions.drawing import evaluation_conversations, training_conversations
from cloc.mllm.instructions.facts import Facts, facts_of
from cloc.mllm.instructions.pool import PhrasePool
from cloc.mllm.instructions.templates import bare_wordings
from cloc.mllm.instructions.words import plain

__all__ = [
    "Facts",
    "PhrasePool",
    "bare_wordings",
    "evaluation_conversations",
    "facts_of",
    "plain",
    "training_conversations",
]
