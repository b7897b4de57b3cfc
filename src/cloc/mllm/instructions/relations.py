"""Where one region lies as seen from another one, by their boxes, and only where nobody would doubt it."""

from enum import StrEnum

from cloc import boxes
from cloc.boxes import BoxesXYXY

_INSIDE = 0.95  # share of a region that lies in the other one
_SMALLER = 0.6  # what is inside has at most this share of the other one's area
_TOUCHING = 0.1  # up to this share of the smaller one, an overlap is none
_OVERLAPPING = (0.25, 0.8)  # share of the smaller one that overlaps clearly, without being inside
_CLEARLY = 2.0  # by this factor the one distance of the middles exceeds the other


class Relation(StrEnum):
    """Where the first of two regions lies; the value is the answer."""

    LEFT = "left of it"
    RIGHT = "right of it"
    ABOVE = "above it"
    BELOW = "below it"
    INSIDE = "inside it"
    OVERLAPPING = "overlapping it"


def relation(first: BoxesXYXY, second: BoxesXYXY) -> Relation | None:
    """Where a region (4,) lies as seen from another one (4,), in a frame of square pixels; None where it is unclear.

    Left, right, above and below: hardly any overlap, and the middles are at least twice as far apart in that direction
    as in the other.
    """
    shared = _shared(first, second)
    own, other = (float(boxes.area(box[None])[0]) for box in (first, second))
    if min(own, other) <= 0:
        return None
    if shared >= _INSIDE * own and own <= _SMALLER * other:
        return Relation.INSIDE
    share = shared / min(own, other)
    if _OVERLAPPING[0] <= share <= _OVERLAPPING[1]:
        return Relation.OVERLAPPING
    if share > _TOUCHING:
        return None
    across, down = ((first[axis] + first[axis + 2] - second[axis] - second[axis + 2]) / 2 for axis in (0, 1))
    if abs(across) >= _CLEARLY * abs(down):
        return Relation.LEFT if across < 0 else Relation.RIGHT
    if abs(down) >= _CLEARLY * abs(across):
        return Relation.ABOVE if down < 0 else Relation.BELOW
    return None


def share_inside(box: BoxesXYXY, of: BoxesXYXY) -> float:
    """The share of a box (4,) that lies in another one (4,)."""
    area = float(boxes.area(box[None])[0])
    return _shared(box, of) / area if area > 0 else 0.0


def _shared(first: BoxesXYXY, second: BoxesXYXY) -> float:
    """The area that two boxes (4,) have in common."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return float(max(width, 0.0) * max(height, 0.0))
