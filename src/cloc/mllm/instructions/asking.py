"""What all tasks share: facts, the source of chance, and how a question with its answer becomes a conversation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloc.boxes import BoxesXYXY, as_boxes
from cloc.mllm.boxtext import write_region
from cloc.mllm.conversation import Conversation, Task, Turn
from cloc.mllm.instructions.facts import Facts
from cloc.mllm.instructions.pool import PhrasePool
from cloc.mllm.instructions.templates import WORDINGS, Form, fields_of

MOST_BOXES = 6  # of an answer, and the highest number that is counted to


@dataclass(frozen=True)
class Asker:
    """Asks about one image.

    Attributes:
        facts: of the image.
        pool: phrases of the corpus.
        rng: draws wordings, regions and phrases.
        tokens: whether REGION_TOKEN stands behind a region of a question.
        held: whether to use the wordings that training never sees.
    """

    facts: Facts
    pool: PhrasePool
    rng: np.random.Generator
    tokens: bool = False
    held: bool = False

    def ask(
        self,
        task: Task,
        form: Form,
        answer: str,
        *,
        texts: dict[str, str] | None = None,
        places: dict[str, BoxesXYXY] | None = None,
        truth: Sequence[BoxesXYXY] = (),
        label: str = "",
    ) -> Conversation:
        """A question in one of the form's wordings, with its answer.

        Args:
            task, answer, label: of the conversation.
            form: of the question.
            texts: of the wording's fields.
            places: padded boxes (4,) of the wording's fields that are regions.
            truth: padded boxes (T, 4) that the answer names.
        """
        wordings = WORDINGS[form].held if self.held else WORDINGS[form].trained
        wording, places = wordings[int(self.rng.integers(len(wordings)))], places or {}
        named = {name: write_region(box, tokens=self.tokens) for name, box in places.items()}
        question = wording.format_map({**(texts or {}), **named})
        asked = [places[name] for name in fields_of(wording) if name in places] if self.tokens else []
        return Conversation(
            task=task,
            turns=(Turn(question, answer),),
            regions=as_boxes(asked),
            truth=as_boxes(list(truth)),
            label=label,
        )

    def order(self, count: int) -> list[int]:
        """The numbers below `count` in random order."""
        return [int(index) for index in self.rng.permutation(count)]

    def coin(self, chance: float = 0.5) -> bool:
        """True with a chance."""
        return bool(self.rng.random() < chance)


def in_order(boxes: Sequence[BoxesXYXY]) -> list[BoxesXYXY]:
    """Boxes (4,) from left to right, those that begin equally from top to bottom."""
    return sorted(boxes, key=lambda box: tuple(float(value) for value in box))
