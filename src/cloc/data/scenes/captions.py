"""Rich captions: every object by name, equal ones counted, and relations that are true by the boxes."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from cloc.data.scenes.render import Scene, SceneObject
from cloc.data.scenes.vocabulary import Kind, Size, Tint
from cloc.data.scenes.wording import article, definite, indefinite, listed

_CLEARLY = 0.06  # middles nearer than this share of the picture stand in no relation
_SIZE_WORD = 0.6  # chance that a group's size is mentioned
_OPENINGS = ("", "", "", "", "a photo of ", "a picture showing ", "there is ")
_CLOSEUP_OPENINGS = ("", "", "a close-up of ", "a photo of ", "a close view of ")


class Relation(StrEnum):
    """Where one group of objects is with respect to another."""

    LEFT = "left"
    RIGHT = "right"
    ABOVE = "above"
    BELOW = "below"


_WORDS = {
    Relation.LEFT: ("left of", "to the left of"),
    Relation.RIGHT: ("right of", "to the right of"),
    Relation.ABOVE: ("above", "above"),
    Relation.BELOW: ("below", "under"),
}


@dataclass(frozen=True)
class Group:
    """Objects of one kind and tint; `size` is the size word that is mentioned, which fits them all."""

    kind: Kind
    tint: Tint
    size: Size | None
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class Clause:
    """A group, alone or in a relation to another, which is new or (`again`) was mentioned before."""

    subject: Group
    relation: Relation | None = None
    other: Group | None = None
    again: bool = False


def caption(rng: np.random.Generator, scene: Scene) -> str:
    """A caption in lower case, one line, no full stop."""
    clauses = plan(rng, group(rng, scene.objects))
    text = listed([_say(rng, clause) for clause in clauses])
    openings = _CLOSEUP_OPENINGS if scene.closeup else _OPENINGS
    opening = openings[int(rng.integers(len(openings)))]
    if opening == "there is " and _count(clauses[0].subject) > 1:
        opening = "there are "
    if rng.random() < 0.25:
        text += f" on {article(scene.backdrop.value)} {scene.backdrop.value} background"
    return opening + text


def group(rng: np.random.Generator, objects: Sequence[SceneObject]) -> list[Group]:
    """Groups equal objects, in random order."""
    found: dict[tuple[Kind, Tint], list[SceneObject]] = {}
    for item in objects:
        found.setdefault((item.kind, item.tint), []).append(item)
    groups = []
    for (kind, tint), members in found.items():
        sizes = {item.size for item in members}
        size = members[0].size if len(sizes) == 1 and rng.random() < _SIZE_WORD else None
        groups.append(Group(kind, tint, size, tuple(members)))
    return [groups[index] for index in rng.permutation(len(groups))]


def plan(rng: np.random.Generator, groups: Sequence[Group]) -> list[Clause]:
    """Clauses that mention every group once as new; relations only where they are true."""
    clauses: list[Clause] = []
    waiting, mentioned = list(groups), list[Group]()
    while waiting:
        subject = waiting.pop(0)
        partners = [other for other in waiting if relation(subject, other)] if rng.random() < 0.85 else []
        earlier = [other for other in mentioned if relation(subject, other)] if rng.random() < 0.5 else []
        if partners:
            other = partners[int(rng.integers(len(partners)))]
            waiting.remove(other)
            clauses.append(Clause(subject, relation(subject, other), other))
            mentioned.append(other)
        elif earlier and not waiting:
            other = earlier[int(rng.integers(len(earlier)))]
            clauses.append(Clause(subject, relation(subject, other), other, again=True))
        else:
            clauses.append(Clause(subject))
        mentioned.append(subject)
    return clauses


def relation(first: Group, second: Group) -> Relation | None:
    """Where all of `first` are with respect to all of `second`: the direction in which they are farthest apart."""
    gaps = {
        Relation.LEFT: _gap(first, second, axis=0),
        Relation.RIGHT: _gap(second, first, axis=0),
        Relation.ABOVE: _gap(first, second, axis=1),
        Relation.BELOW: _gap(second, first, axis=1),
    }
    best = max(gaps, key=lambda item: gaps[item])
    return best if gaps[best] > _CLEARLY else None


def _gap(before: Group, after: Group, *, axis: int) -> float:
    """By how much the last middle of `before` comes before the first middle of `after`, along x (0) or y (1)."""
    last = max((item.box[axis] + item.box[axis + 2]) / 2 for item in before.objects)
    first = min((item.box[axis] + item.box[axis + 2]) / 2 for item in after.objects)
    return first - last


def _count(item: Group) -> int:
    return len(item.objects)


def _say(rng: np.random.Generator, clause: Clause) -> str:
    subject = indefinite(clause.subject.kind, clause.subject.tint, clause.subject.size, count=_count(clause.subject))
    if clause.relation is None or clause.other is None:
        return subject
    words = _WORDS[clause.relation]
    other = clause.other
    if clause.again:
        target = definite(other.kind, other.tint, count=_count(other))
    else:
        target = indefinite(other.kind, other.tint, other.size, count=_count(other))
    return f"{subject} {words[int(rng.integers(len(words)))]} {target}"
