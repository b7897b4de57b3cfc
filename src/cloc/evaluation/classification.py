"""Protocol `classification`: zero-shot naming of whole images among the classes of a set (METHOD, Evaluation).

A class is embedded as its plain name, or with templates: each template filled with the name is embedded and normalised,
and the normalised mean of these is the class. An image's class is the nearest by cosine. Reported are top-1, top-5 and
mAcc, the mean over the classes that OCCUR of top-1 in each. With five classes or fewer top-5 is always 1: it is of use
only together with the number of classes, which is reported.

Ties as in `retrieval`: classes that tie stand in random order. Without images all figures are 0 of 0 images.
Shapes: N images, C classes, E embedding width.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloc.errors import ConfigError
from cloc.evaluation.ranking import chunks, credits, own_place, unit
from cloc.evaluation.statistics import Draws, Estimate, Floats, Indices, macro_estimate, mean_estimate

NAME = "classification"
VERSION = 1

PLAIN = ("{}",)
TEMPLATES = (
    "a photo of a {}.",
    "a picture of the {}.",
    "a blurry photo of a {}.",
    "a close-up of a {}.",
    "a dark photo of a {}.",
    "a drawing of a {}.",
    "a small {} in the distance.",
    "there is a {} in the scene.",
)
_PLACE = re.compile(r"\{c?\}")
_CLASSES = 64  # classes embedded at a time


@dataclass(frozen=True, eq=False)
class ClassificationScores:
    """The protocol's figures, in [0, 1].

    Attributes:
        figures: "top1", "top5", "mAcc".
        classes: number of classes to choose from (chance is 1 / classes).
        per_class: top-1 and number of images of each class that occurs.
        predicted: class of each image (the first of those that tie).
        credit: of each image at top-1.
    """

    figures: Mapping[str, Estimate]
    classes: int
    per_class: Mapping[str, tuple[float, int]]
    predicted: Indices
    credit: Floats


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Templates of a text file, one a line, with `{}` or `{c}` where the name goes; empty lines do not count.

    Raises:
        ConfigError: the file cannot be read, is empty, or a line has no place for the name.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"evaluation.templates: cannot read {str(path)!r} ({error}); name a text file") from error
    templates = tuple(line.strip() for line in lines if line.strip())
    if not templates:
        raise ConfigError(
            f"evaluation.templates: {str(path)!r} is empty; write one template a line, like {TEMPLATES[0]!r}"
        )
    for template in templates:
        fill(template, "")
    return templates


def fill(template: str, name: str) -> str:
    """The template with the class name in its place or places.

    Raises:
        ConfigError: it has no place for the name.
    """
    if not _PLACE.search(template):
        raise ConfigError(
            f"evaluation.templates: {template!r} has no place for the class name; write {{}} or {{c}} there"
        )
    return _PLACE.sub(lambda _: name, template)


def embed_classes(classes: Sequence[str], templates: Sequence[str], embed: Callable[[Sequence[str]], Floats]) -> Floats:
    """Embeddings of the classes, (C, E), normalised.

    Args:
        classes: their names.
        templates: `PLAIN` for the names alone.
        embed: texts -> embeddings (T, E), normalised or not.

    Raises:
        ConfigError: there is no template, or one has no place for the name.
    """
    if not templates:
        raise ConfigError("evaluation.templates: there is none; write one template a line, or leave the setting empty")
    parts: list[Floats] = []
    for first in range(0, len(classes), _CLASSES):
        names = classes[first : first + _CLASSES]
        rows = unit(embed([fill(template, name) for name in names for template in templates]))
        parts.append(unit(rows.reshape(len(names), len(templates), -1).mean(axis=1)))
    return np.concatenate(parts) if parts else unit(embed([]))


def score(
    images_NE: Floats, classes_CE: Floats, labels_N: Indices, *, classes: Sequence[str], draws_SN: Draws
) -> ClassificationScores:
    """Names images and scores them.

    Args:
        images_NE, classes_CE: embeddings, normalised or not.
        labels_N: the right class of each image, below C.
        classes: names of all classes.
        draws_SN: resamples of the images (`statistics.draws`).
    """
    labels_N = np.asarray(labels_N, dtype=np.int64)
    classes_CE = unit(classes_CE)
    predicted, above, tied = (np.zeros(len(images_NE), dtype=np.int64) for _ in range(3))
    for rows in chunks(len(images_NE), columns=len(classes_CE)):
        scores_NC = unit(images_NE[rows]) @ classes_CE.T
        predicted[rows] = scores_NC.argmax(axis=1)
        above[rows], tied[rows] = own_place(scores_NC, labels_N[rows])
    credit = credits(above, np.ones_like(above), tied, ks=(1, 5))
    images = np.arange(len(images_NE))
    counts_C = np.bincount(labels_N, minlength=len(classes))
    hits_C = np.bincount(labels_N, weights=credit[1], minlength=len(classes))
    return ClassificationScores(
        figures={
            "top1": mean_estimate(credit[1], images, draws_SN),
            "top5": mean_estimate(credit[5], images, draws_SN),
            "mAcc": macro_estimate(credit[1], images, labels_N, draws_SN),
        },
        classes=len(classes),
        per_class={
            classes[c]: (float(hits_C[c] / counts_C[c]), int(counts_C[c])) for c in np.flatnonzero(counts_C).tolist()
        },
        predicted=predicted,
        credit=credit[1],
    )
