"""The phrase step: captions a second and core, for each tagger that is here.

    python benchmarks/phrases.py
    python benchmarks/phrases.py --nltk-data ../shared/data/nltk_data --spacy-model en_core_web_sm
    python benchmarks/phrases.py --coco ../shared/data/coco_val2017_dev/captions.json --json phrases.json

The baseline is the recipe from its ready-made parts: NLTK's RegexpParser over TextBlob's tagger, on the same words.
Texts are the demo's captions, captions of the paper's length (45 words) in which every twentieth word is a new one, and
with --coco four human captions of an image in one. Rows are measured in turn, again and again, on new texts each time,
in CPU seconds of one thread; speed and ratio are medians over the rounds.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from nltk import RegexpParser
from textblob.en import parser

from cloc.data.scenes.captions import caption
from cloc.data.scenes.render import render
from cloc.data.scenes.vocabulary import trained_pairs
from cloc.errors import ConfigError
from cloc.labeling.phrases import GRAMMAR, STOP_WORDS, PhraseExtractor, words

MAX_PHRASES = 20
Extract = Callable[[str], Sequence[str]]
# Captions of a round.
Texts = Callable[[int], list[str]]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        texts: which captions.
        words: of a caption, on average.
        tagger: name, or "baseline".
        captions_per_second: of CPU time of one thread.
        over_baseline: how many times the baseline's speed.
        phrases: of a caption, on average.
    """

    texts: str
    words: float
    tagger: str
    captions_per_second: float
    over_baseline: float
    phrases: float


def main() -> None:
    arguments = parse()
    extractors: dict[str, Extract] = {"baseline": Baseline()}
    for tagger in ("lexicon", "nltk", "spacy"):
        try:
            extract = PhraseExtractor(
                tagger=tagger,
                max_phrases=MAX_PHRASES,
                nltk_data=arguments.nltk_data,
                spacy_model=arguments.spacy_model,
            )
        except ConfigError as error:
            print(f"not measured: {error}\n")
            continue
        extractors[tagger] = lambda text, extract=extract: extract([text])
    texts: dict[str, Texts] = {
        "demo": partial(demo_captions, arguments.captions),
        "45 words": partial(long_captions, arguments.captions),
    }
    if arguments.coco:
        texts["COCO, four in one"] = partial(coco_captions, arguments.coco, arguments.captions)
    print("| captions | words | tagger | captions/s/core | over baseline | phrases |\n|---|---|---|---|---|---|")
    rows = []
    for name, make in texts.items():
        for row in measure(name, make, extractors, rounds=arguments.rounds):
            rows.append(row)
            cells = (row.texts, f"{row.words:.0f}", row.tagger, f"{row.captions_per_second:,.0f}")
            print("|", " | ".join((*cells, f"{row.over_baseline:.1f}", f"{row.phrases:.1f}")), "|", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--captions", type=int, default=200, help="texts of each sort a round")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--nltk-data", default="")
    options.add_argument("--spacy-model", default="en_core_web_sm")
    options.add_argument("--coco", help="a captions file in COCO's schema")
    options.add_argument("--json", help="where the rows are written")
    return options.parse_args()


class Baseline:
    """The recipe from NLTK's and TextBlob's parts."""

    def __init__(self) -> None:
        self._chunker = RegexpParser(GRAMMAR)

    def __call__(self, text: str) -> list[str]:
        tree = self._chunker.parse([tuple(pair) for pair in parser.find_tags(words(text))])
        found: dict[str, None] = {}
        for chunk in tree.subtrees(lambda node: node.label() == "NP"):
            leaves = chunk.leaves()
            kept = [word for place, (word, tag) in enumerate(leaves) if place or tag != "DT"]
            if any(word not in STOP_WORDS for word in kept):
                found.setdefault(" ".join(kept))
        return list(found)[:MAX_PHRASES]


def demo_captions(count: int, seed: int) -> list[str]:
    """Captions of `cloc scenes`."""
    rng = np.random.default_rng(seed)
    return [caption(rng, render(rng, pairs=trained_pairs(), size=64)) for _ in range(count)]


NOUNS = ("boat", "harbor", "warehouse", "window", "mountain", "bridge", "child", "bicycle", "table", "lamp", "garden")
ADJECTIVES = ("old", "wooden", "small", "bright", "narrow", "yellow", "tall", "broken", "quiet", "stone", "snowy")
VERBS = ("stands", "rests", "leans", "waits", "shines")
PLACES = ("near", "behind", "under", "above", "beside")


def long_captions(count: int, seed: int) -> list[str]:
    """Sentences of 45 words in all, of which every twentieth was never seen before."""
    draw = random.Random(seed)  # noqa: S311 (test captions, nothing that must not be guessed)
    texts = []
    for number in range(count):
        found: list[str] = []
        while len(found) < 45:
            noun = draw.choice(NOUNS)
            if draw.random() < 0.45:
                noun += f"{draw.choice(NOUNS)}{seed}of{number}"
            found += ["the", draw.choice(ADJECTIVES), draw.choice(ADJECTIVES), noun, draw.choice(VERBS)]
            found += [draw.choice(PLACES), "a", draw.choice(ADJECTIVES), draw.choice(NOUNS) + draw.choice((",", "."))]
        texts.append(" ".join(found))
    return texts


def coco_captions(path: str, count: int, seed: int) -> list[str]:
    """Four captions of each image, one after another."""
    by_image: dict[int, list[str]] = {}
    for item in json.loads(Path(path).read_text())["annotations"]:
        by_image.setdefault(item["image_id"], []).append(item["caption"].strip().rstrip(".") + ".")
    texts = [" ".join(captions[:4]) for captions in by_image.values()]
    start = seed * count % len(texts)
    return (texts[start:] + texts[:start])[:count]


def measure(name: str, texts: Texts, extractors: dict[str, Extract], *, rounds: int) -> list[Row]:
    """A row for each extractor, the baseline's first."""
    spent: dict[str, list[float]] = {tagger: [] for tagger in extractors}
    phrases: dict[str, list[int]] = {tagger: [] for tagger in extractors}
    lengths: list[int] = []
    for number in range(rounds + 1):  # the first warms
        captions = texts(number)
        lengths += [len(text.split()) for text in captions]
        for tagger, extract in extractors.items():
            started = time.process_time()
            found = [len(extract(text)) for text in captions]
            if number:
                spent[tagger].append((time.process_time() - started) / len(captions))
                phrases[tagger] += found
    return [
        Row(
            texts=name,
            words=statistics.mean(lengths),
            tagger=tagger,
            captions_per_second=1 / statistics.median(seconds),
            over_baseline=statistics.median(base / own for base, own in zip(spent["baseline"], seconds, strict=True)),
            phrases=statistics.mean(phrases[tagger]),
        )
        for tagger, seconds in spent.items()
    ]


if __name__ == "__main__":
    main()
