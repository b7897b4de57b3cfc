"""What the demo pictures show: 110 everyday kinds of object, 8 tints, 2 size words, and what training never sees.

A kind is a word that a person would use for a pictogram of the icon font. 80 kinds are trained; 30 are kept for
the split `unseen_kinds`. Of the trained kinds' pairs with a tint, a tenth is kept for the split `unseen_pairs`.
All of it is fixed: no seed changes which kinds and pairs are unseen.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache


class Size(StrEnum):
    """Size word of an object; those between the two have none."""

    SMALL = "small"
    LARGE = "large"


@dataclass(frozen=True)
class Kind:
    """One kind of object.

    Attributes:
        name: singular, lower case, one or two words; the class label.
        glyph: name of the icon in the font's metadata.
        plural: plural of `name`.
        pair: the name is a plural that is counted in pairs ("a pair of scissors").
        see_through: holes and gaps of the pictogram are holes of the object (a key), not marks on it (a clock).
    """

    name: str
    glyph: str
    plural: str
    pair: bool = False
    see_through: bool = False


@dataclass(frozen=True)
class Tint:
    """A colour: its name and sRGB value (0 to 255)."""

    name: str
    rgb: tuple[int, int, int]


TINTS = (
    Tint("red", (208, 34, 36)),
    Tint("orange", (243, 128, 20)),
    Tint("yellow", (247, 212, 40)),
    Tint("green", (46, 148, 56)),
    Tint("blue", (36, 96, 214)),
    Tint("purple", (122, 48, 170)),
    Tint("pink", (246, 132, 186)),
    Tint("white", (246, 246, 242)),
)

# name[:glyph]; the glyph is named where the font calls it something else.
_TRAINED = """
apple:apple-whole, umbrella, bicycle, anchor, stroller:baby-carriage, basket:basket-shopping, bathtub:bath, bed, bell,
bomb, bone, book:book-open, bottle:wine-bottle, broom, bucket, bug, burger, bus, cake:cake-candles, camera,
candy cane:candy-cane, car:car-side, carrot, cat, chair, clock, cloud, clover, cookie:cookie-bite, sofa:couch, cow,
crown, dog, door:door-open, drum, dumbbell, egg, envelope, eye, feather, fish:fish-fins, flag, frog, gift, glasses,
guitar, hammer, hand, headphones, heart, helicopter, house, ice cream:ice-cream, key, leaf, light bulb:lightbulb,
padlock:lock, magnet, medal, mitten, moon, mug:mug-hot, paperclip, pencil, pizza slice:pizza-slice, plane, rocket,
sailboat, scissors, shirt, skull, snowflake, spider, star, sun, tent, tree, truck, television:tv, wrench
"""
_UNSEEN = """
robot, rainbow, puzzle piece:puzzle-piece, suitcase, spoon, soccer ball:futbol, snowman, sleigh, shrimp, tooth,
tractor, trophy, wheelchair, toilet, traffic light:traffic-light, volcano, wine glass:wine-glass, globe,
shopping cart:cart-shopping, church, dove, horse, hourglass, cowboy hat:hat-cowboy, piggy bank:piggy-bank, dragon,
ghost, microphone, palette, parachute:parachute-box
"""
_PAIRS = frozenset({"glasses", "headphones", "scissors"})
_PLURALS = {"fish": "fish", "leaf": "leaves", "shrimp": "shrimp", "tooth": "teeth"}
_SEE_THROUGH = """
anchor, basket, bicycle, bucket, bug, chair, cow, dragon, feather, glasses, hand, headphones, helicopter, horse, key,
leaf, mug, padlock, paperclip, parachute, rainbow, scissors, shopping cart, shrimp, sleigh, snowflake, spider,
stroller, trophy, umbrella, wheelchair, wine glass, wrench
"""


def _plural(name: str) -> str:
    if name in _PLURALS:
        return _PLURALS[name]
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def _items(text: str) -> list[str]:
    return " ".join(text.split()).split(", ")


def _kinds(text: str) -> tuple[Kind, ...]:
    kinds, see_through = [], frozenset(_items(_SEE_THROUGH))
    for item in _items(text):
        name, _, glyph = item.partition(":")
        pair = name in _PAIRS
        plural = name if pair else _plural(name)
        kinds.append(Kind(name, glyph or name, plural, pair=pair, see_through=name in see_through))
    return tuple(kinds)


TRAINED_KINDS = _kinds(_TRAINED)
UNSEEN_KINDS = _kinds(_UNSEEN)
KINDS = TRAINED_KINDS + UNSEEN_KINDS

Pair = tuple[Kind, Tint]


@cache
def unseen_pairs() -> tuple[Pair, ...]:
    """The pairs (trained kind, tint) that training never shows: one tint of four in five kinds, each tint as often."""
    kinds = [kind for index, kind in enumerate(TRAINED_KINDS) if index % 5 != 4]
    return tuple((kind, TINTS[(index * 3) % len(TINTS)]) for index, kind in enumerate(kinds))


@cache
def trained_pairs() -> tuple[Pair, ...]:
    """The pairs (trained kind, tint) that training may show."""
    held_out = set(unseen_pairs())
    return tuple((kind, tint) for kind in TRAINED_KINDS for tint in TINTS if (kind, tint) not in held_out)


@cache
def unseen_kind_pairs() -> tuple[Pair, ...]:
    """Every pair (unseen kind, tint)."""
    return tuple((kind, tint) for kind in UNSEEN_KINDS for tint in TINTS)
