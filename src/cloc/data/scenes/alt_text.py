"""Texts as the web has them: alt-text that misses objects and advertises, and short names of regions."""

from collections.abc import Sequence

import numpy as np

from cloc.data.scenes.render import Scene, SceneObject
from cloc.data.scenes.wording import name

_MENTIONED = 0.65  # chance that alt-text mentions an object at all
_FILE_NAME_ONLY = 0.05  # chance that it says nothing about the picture
_TEMPLATES = (
    "{things}",
    "{things}",
    "{things} photo",
    "photo of {things}",
    "free stock image of {things}",
    "{things} stock photo - download",
    "{things} | free download",
    "{things} picture, royalty free",
    "{things} wallpaper hd {number}",
    "buy {things} online",
    "best {things} for sale",
    "image {number}: {things}",
    "{slug}-{number}.jpg",
    "{slug}_{number} large preview",
)
_FILE_NAMES = ("IMG_{number}.jpg", "DSC0{number}", "untitled-{number} download", "photo {number}", "image.jpg")
_JOINTS = (", ", " and ", " ", " with ")


def alt_text(rng: np.random.Generator, scene: Scene) -> str:
    """Noisy alt-text, never empty: some of the objects, most without their tint, and words of the web."""
    number = f"{int(rng.integers(1000, 10000))}"
    if rng.random() < _FILE_NAME_ONLY:
        return _pick(rng, _FILE_NAMES).format(number=number)
    kept = [item for item in scene.objects if rng.random() < _MENTIONED]
    if not kept:
        kept = [scene.objects[int(rng.integers(len(scene.objects)))]]
    words = list(dict.fromkeys(_mention(rng, kept[index]) for index in rng.permutation(len(kept))))
    things = _pick(rng, _JOINTS).join(words)
    slug = "-".join(words).replace(" ", "-")
    text = _pick(rng, _TEMPLATES).format(things=things, slug=slug, number=number)
    return text[0].upper() + text[1:] if rng.random() < 0.3 else text


def region_text(rng: np.random.Generator, item: SceneObject) -> str:
    """What a region is called: mostly "red key", sometimes "large red key" or just "key"."""
    draw = rng.random()
    if draw < 0.15:
        return name(item.kind)
    return name(item.kind, item.tint, item.size if draw < 0.35 else None)


def _mention(rng: np.random.Generator, item: SceneObject) -> str:
    return name(item.kind, item.tint if rng.random() < 0.4 else None)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
