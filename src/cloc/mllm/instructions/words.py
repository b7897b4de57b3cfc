"""The little English that instructions need: articles, plurals, the head of a noun phrase, words that exclude others.

Rules and short lists, no tagger: texts are noun phrases ("large red key", "man with a red umbrella"). Where a rule is
in doubt, it errs to the side on which nothing false is asked.
"""

import re
from functools import lru_cache

from cloc.mllm.conversation import IMAGE_TOKEN, REGION_TOKEN

_WORD = re.compile(r"[^\W_]+(?:['\u2019\-][^\W_]+)*")
_ARTICLES = ("a ", "an ", "the ")


def _set(words: str) -> frozenset[str]:
    """The words of a list that is written as a text."""
    return frozenset(words.split())


_FOLLOWERS = _set("sits stands lies rides holds walks looks can does where left right next behind too")
_SILENT_H = ("hour", "honest", "heir")
_LIKE_YOU = ("uni", "use", "usa", "eu", "one", "ufo", "ute")
_NOT_LIKE_YOU = ("unin", "unim", "unid")

PREPOSITIONS = _set(
    """
    of in on at with without by for from to under over above below behind beside near next between into onto inside
    outside around along across against through atop upon during like that which who whose is are was has having
    while and or wearing holding
    """
)
_NOUNS_IN_ING = _set(
    """
    string building painting ceiling clothing railing awning earring swing icing topping pudding dumpling dressing
    crossing drawing siding flooring wedding
    """
)
_DETERMINERS = frozenset(("a", "an", "the", "his", "her", "its", "their", "some", "two", "three"))

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "foot": "feet", "tooth": "teeth",
    "mouse": "mice", "goose": "geese", "ox": "oxen", "leaf": "leaves", "knife": "knives", "wolf": "wolves",
    "shelf": "shelves", "loaf": "loaves", "scarf": "scarves", "half": "halves", "calf": "calves", "life": "lives",
    "wife": "wives", "elf": "elves", "bus": "buses", "gas": "gases", "lens": "lenses", "shoe": "shoes",
    "horseshoe": "horseshoes", "canoe": "canoes", "toe": "toes", "axe": "axes", "cookie": "cookies",
    "movie": "movies", "tie": "ties", "pie": "pies", "selfie": "selfies", "photo": "photos", "piano": "pianos",
    "radio": "radios", "zebra": "zebras", "policeman": "policemen", "fireman": "firemen", "snowman": "snowmen",
    "cactus": "cacti", "bath": "baths",
}  # fmt: skip
_SINGULAR = {many: one for one, many in _IRREGULAR.items()}
# Plurals that name one thing, or one thing and many: never counted by their ending.
_PLURAL_ONLY = _set(
    """
    scissors glasses headphones earphones skis pants jeans shorts trousers binoculars goggles sunglasses clothes pliers
    tongs pajamas tights stairs cattle
    """
)
_SAME = frozenset(("sheep", "fish", "deer", "shrimp", "salmon", "series", "species", "aircraft", "moose"))
_MASS = _set(
    """
    grass water sand snow sky food furniture rice bread broccoli hair clothing luggage wood ice fruit traffic meat
    cheese pasta spinach dirt soil mud smoke foliage greenery equipment jewelry paper gravel concrete fur butter
    """
)
# A head of these fits what other heads name: such a phrase is never taken to be absent.
GENERIC = _set(
    """
    object thing item animal vehicle toy furniture food fruit vegetable clothing clothes equipment appliance device
    board plant container instrument tool building structure group pair set part piece side one other area background
    """
)
_GROUPS = (
    "person man woman boy girl child kid baby toddler lady guy gentleman player people human rider skier surfer "
    "skateboarder snowboarder pedestrian driver adult passenger worker officer policeman fireman batter catcher "
    "pitcher umpire crowd spectator chef groom bride couple family male female teenager student men women figure face",
    "car automobile sedan suv taxi cab van jeep minivan",
    "truck lorry pickup",
    "sofa couch loveseat",
    "chair seat stool armchair",
    "phone telephone cellphone smartphone",
    "television tv monitor screen",
    "bicycle bike motorcycle motorbike scooter moped cycle",
    "plane airplane aeroplane aircraft jet jetliner",
    "boat ship sailboat canoe kayak vessel",
    "bag handbag purse backpack suitcase luggage tote",
    "plate dish platter saucer",
    "bowl basin",
    "cup mug teacup",
    "glass glasses",
    "table desk counter countertop",
    "hat cap helmet",
    "shirt t-shirt top blouse jersey sweater jacket coat",
    "pants trousers jeans shorts",
    "shoe sneaker boot sandal slipper",
    "stove oven range cooker",
    "fridge refrigerator",
    "cabinet cupboard drawer",
    "picture painting photo photograph frame poster",
    "lamp light bulb lantern",
    "bush shrub hedge tree",
    "donut doughnut",
    "racket racquet",
    "cat kitten",
    "dog puppy",
    "cow bull calf cattle",
    "horse pony foal",
    "sheep lamb",
    "bird duck goose seagull pigeon parrot",
    "bear cub",
    "laptop computer notebook",
    "road street",
    "pillow cushion",
    "rug carpet mat",
)
_GROUP = {word: words.split()[0] for words in _GROUPS for word in words.split()}
# Words of one family exclude each other; those in one string do not.
_FAMILIES = {
    "colour": (
        "red crimson scarlet maroon", "orange", "yellow gold golden", "green", "blue navy", "purple violet",
        "pink magenta", "white cream ivory", "black", "brown tan beige", "grey gray silver", "turquoise teal cyan",
    ),
    "size": ("small little tiny", "large big huge giant"),
    "material": (
        "wooden wood", "metal metallic steel", "plastic", "glass", "leather", "ceramic porcelain", "paper", "stone",
        "brick", "rattan wicker", "wool woollen woolen",
    ),
    "pattern": ("striped", "checkered plaid", "dotted spotted", "plain"),
    "age": ("young", "old elderly"),
    "state": ("open", "closed"),
    "filling": ("empty", "full"),
}  # fmt: skip
_FAMILY = {
    word: (family, words.split()[0]) for family, lists in _FAMILIES.items() for words in lists for word in words.split()
}


def without_special_tokens(text: str) -> str:
    """A text of the web in lower case and single blanks; what would stand for an image or a region is left out."""
    text = text.lower()
    for token in (IMAGE_TOKEN, REGION_TOKEN):
        text = text.replace(token, " ")
    return " ".join(text.split())


@lru_cache(maxsize=1 << 14)
def plain(text: str) -> str:
    """A region's text in lower case, without surplus blanks, leading article, closing full stops and special tokens."""
    text = without_special_tokens(text).rstrip(".,;:! ")
    for article in _ARTICLES:
        text = text.removeprefix(article)
    return text


@lru_cache(maxsize=1 << 14)
def words_of(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, in order."""
    return tuple(_WORD.findall(text.lower()))


@lru_cache(maxsize=1 << 14)
def singular(word: str) -> str:
    """The singular of a noun; a word that is no plural, or no other than its singular, as it is."""
    if word in _SINGULAR:
        return _SINGULAR[word]
    if word in _IRREGULAR or word in _PLURAL_ONLY or word in _SAME or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("xes", "ches", "shes", "sses", "oes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and len(word) > 3 else word


def plural(noun: str) -> str:
    """The plural of a noun of one or more words ("wine glasses"), of a plural the same."""
    *before, word = noun.split()
    return " ".join([*before, _plural(word)])


def _plural(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if is_plural(word) or word in _SAME or word in _MASS:
        return word
    if word.endswith("y") and len(word) > 1 and word[-2] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "z", "ch", "sh", "to")) else f"{word}s"


def is_plural(word: str) -> bool:
    """Whether a noun takes "are"."""
    return word in _PLURAL_ONLY or (word not in _SAME and singular(word) != word)


def is_countable(noun: str) -> bool:
    """Whether "how many" goes with a noun, and one of it is told from two."""
    last = noun.split()[-1]
    return last not in _MASS and last not in _PLURAL_ONLY and not is_plural(last) and last.isalpha()


def indefinite(text: str, *, head: str) -> str:
    """A phrase with its indefinite article, where it takes one: "a red key", "an apple", "red scissors"."""
    if is_plural(head) or head in _MASS or words_of(text)[:1] in (("two",), ("three",), ("four",), ("some",)):
        return text
    return f"{_article(text)} {text}"


def _article(text: str) -> str:
    if text.startswith(_SILENT_H):
        return "an"
    if text.startswith(_LIKE_YOU) and not text.startswith(_NOT_LIKE_YOU):
        return "a"
    return "an" if text[:1] in "aeiou" else "a"


def may_follow_noun(word: str) -> bool:
    """Whether a word can follow a noun in a sentence without making another noun of it ("key ring")."""
    return word in PREPOSITIONS | _DETERMINERS | _FOLLOWERS or word.endswith(("ing", "ed"))


@lru_cache(maxsize=1 << 14)
def group_of(word: str) -> str:
    """One word for all that may name the same thing: "people", "woman" and "boy" are "person"."""
    one = singular(word)
    return _GROUP.get(word) or _GROUP.get(one, one)


def family_of(word: str) -> tuple[str, str] | None:
    """What a word is a value of, and the value: ("colour", "grey") for "silver"; None for other words."""
    return _FAMILY.get(word)


def before_head(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a noun phrase up to its head, which is the last of them: of "mug with a rim" those of "mug"."""
    for place in range(1, len(words)):
        if words[place] == "and" and all(map(family_of, words[place - 1 : place + 2 : 2])) and place + 2 < len(words):
            continue  # "black and white cat"
        if words[place] in PREPOSITIONS:
            participle = place > 1 and (words[place - 1].endswith("ed") or words[place - 1] == "made")
            return words[: place - 1 if participle else place]  # "truck parked on grass", "slipper made of wool"
        if _begins_clause(words[place:]):
            return words[:place]
    return words


def _begins_clause(words: tuple[str, ...]) -> bool:
    """Whether words go on as "riding a horse" or "skiing"; not as "building" or "swimming pool"."""
    if not words[0].endswith("ing") or len(words[0]) < 6:
        return False
    if len(words) == 1:
        return words[0] not in _NOUNS_IN_ING
    return words[1] in PREPOSITIONS or words[1] in _DETERMINERS
