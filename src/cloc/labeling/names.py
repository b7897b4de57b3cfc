"""Whether a text names a class: by the class's words as a run, in singular or plural, or by another common word for it.

The judge of labels (`quality`) reads by these rules; how phrases are made (`phrases`) has no part in them.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

MAX_CHARACTERS = 20_000
_CACHE = 1 << 16
_WORD = re.compile(r"[^\W_]+")
_ARTICLES = frozenset({"a", "an", "the"})

# Other common words for COCO's classes. People hardly ever write "person" or "sports ball".
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "person": (
        "adult", "baby", "batter", "boy", "catcher", "child", "cyclist", "gentleman", "girl", "guy", "kid", "lady",
        "man", "pedestrian", "pitcher", "player", "rider", "skateboarder", "skier", "snowboarder", "surfer", "toddler",
        "umpire", "woman",
    ),
    "bicycle": ("bike",),
    "car": ("automobile", "cab", "minivan", "sedan", "suv", "taxi"),
    "motorcycle": ("moped", "motor bike", "motorbike", "scooter"),
    "airplane": ("aeroplane", "aircraft", "airliner", "jet", "plane"),
    "bus": ("minibus",),
    "train": ("locomotive", "tram"),
    "truck": ("lorry", "pickup"),
    "boat": ("canoe", "ferry", "kayak", "sailboat", "ship", "yacht"),
    "traffic light": ("stop light", "stoplight", "traffic signal"),
    "fire hydrant": ("hydrant",),
    "stop sign": ("stopsign",),
    "bird": ("duck", "goose", "gull", "parrot", "pigeon", "seagull"),
    "cat": ("kitten",),
    "dog": ("puppy",),
    "horse": ("foal", "pony"),
    "sheep": ("lamb",),
    "cow": ("bull", "calf", "cattle", "ox"),
    "backpack": ("rucksack",),
    "umbrella": ("parasol",),
    "handbag": ("hand bag", "purse"),
    "tie": ("bow tie", "bowtie", "necktie"),
    "suitcase": ("luggage",),
    "sports ball": ("ball", "baseball", "basketball", "football", "soccer ball", "tennis ball", "volleyball"),
    "baseball bat": ("bat",),
    "baseball glove": ("baseball mitt", "mitt"),
    "surfboard": ("surf board",),
    "skateboard": ("skate board",),
    "snowboard": ("snow board",),
    "tennis racket": ("racket", "racquet"),
    "wine glass": ("glass", "goblet", "wineglass"),
    "cup": ("mug",),
    "hot dog": ("hotdog",),
    "donut": ("doughnut",),
    "couch": ("sofa",),
    "potted plant": ("houseplant", "plant"),
    "dining table": ("table",),
    "tv": ("monitor", "television"),
    "laptop": ("notebook computer",),
    "remote": ("controller", "wiimote"),
    "cell phone": ("cellphone", "mobile phone", "phone", "smartphone"),
    "oven": ("stove",),
    "refrigerator": ("fridge",),
    "teddy bear": ("stuffed animal", "stuffed bear"),
    "hair drier": ("blow dryer", "hair dryer", "hairdryer"),
    "toothbrush": ("tooth brush",),
}  # fmt: skip


def words_of(text: str) -> list[str]:
    """Lower-case words of a text in order, without articles; hyphens and apostrophes part words."""
    return [word for word in _WORD.findall(text[:MAX_CHARACTERS].lower()) if word not in _ARTICLES]


def same(one: str, other: str) -> bool:
    """Whether two lower-case words are one word, in singular or plural: "buses" and "bus"."""
    return one == other or not _forms(one).isdisjoint(_forms(other))


def contains(whole: Sequence[str], part: Sequence[str]) -> bool:
    """Whether the words of `part` stand in `whole` as a run; no words stand nowhere."""
    starts = range(len(whole) - len(part) + 1) if part else ()
    return any(all(map(same, whole[start : start + len(part)], part)) for start in starts)


class Names:
    """What the classes of a data set are called.

    Args:
        classes: names of all classes of the data (`Manifest.classes`). With them, `SYNONYMS` name their class too,
            except where a synonym names another class of the data ("mug" is no "cup" where there are mugs). Without
            them, only a class's own words name it.
    """

    def __init__(self, classes: Collection[str] = ()) -> None:
        known = {name: words_of(name) for name in classes}
        self._synonyms = {
            name: [words_of(text) for text in SYNONYMS.get(name.lower(), ()) if not _taken(text, name, known)]
            for name in known
        }

    def named(self, name: str, words: Sequence[str]) -> bool:
        """Whether a text names a class.

        Args:
            name: of the class.
            words: of the text, as `words_of` gives them.
        """
        return any(contains(words, part) for part in (words_of(name), *self._synonyms.get(name, ())))


def _taken(synonym: str, name: str, known: Mapping[str, Sequence[str]]) -> bool:
    words = words_of(synonym)
    return any(other != name and len(words) == len(own) and contains(words, own) for other, own in known.items())


@lru_cache(maxsize=_CACHE)
def _forms(word: str) -> frozenset[str]:
    """The word and what may be its singular; the library alone takes "bus" for a plural, "ties" for that of "ty"."""
    from textblob.en.inflect import singularize

    plain = {word[:-1]} if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else set()
    return frozenset({word, singularize(word), *plain})
