"""Protocol `linear_probe`: multinomial logistic regression on frozen features (scikit-learn).

Half of the images that hold items, drawn with a seed, are for training, the other half for the test: no image is on
both sides. Of the training items at most `max_train` are drawn. Features are standardised by the training part; the
penalty is L2 with C = 0.1 and is not searched for. Reported are top-1 and mAcc on the test part.

Classes that occur in the test part alone cannot be learned: their items are wrong, and they are listed. With a single
class in the training part everything is called that. Where the solver stops at its limit the figures are of what it
has then, and `converged` says so. Without training or test items both figures are 0 of 0 items.
Shapes: I items (regions or images), E embedding width.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from cloc.evaluation.statistics import Draws, Estimate, Floats, Indices, macro_estimate, mean_estimate

NAME = "linear_probe"
VERSION = 1
SEED = 0
_ITERATIONS = 500
_C = 0.1  # some hundred items are fewer than the weights: at 1 the solver takes many times as long to fit noise


@dataclass(frozen=True, eq=False)
class Division:
    """Numbers of the items to train on and to test on, ascending."""

    train: Indices
    test: Indices


@dataclass(frozen=True, eq=False)
class ProbeScores:
    """The protocol's figures, in [0, 1].

    Attributes:
        figures: "top1", "mAcc", of the test part.
        train_items, test_items: how many.
        missing: classes of the test part that the training part lacks.
        converged: whether the solver reached its tolerance; True where there was nothing to solve.
        test: numbers of the test items; `predicted` is the class of each (-1 where nothing could be trained).
    """

    figures: Mapping[str, Estimate]
    train_items: int
    test_items: int
    missing: tuple[str, ...]
    converged: bool
    test: Indices
    predicted: Indices


def divide(images_I: Indices, *, max_train: int, seed: int = SEED) -> Division:
    """Divides items by image; the same for every model.

    Args:
        images_I: image of each item.
        max_train: most training items, at least 1.

    Raises:
        ValueError: `max_train` is below 1.
    """
    if max_train < 1:
        raise ValueError(f"linear_probe: max_train must be at least 1, got {max_train}")
    random = np.random.default_rng(seed)
    images = random.permutation(np.unique(images_I))
    of_train = np.isin(images_I, images[: len(images) // 2])
    train = random.permutation(np.flatnonzero(of_train))[:max_train]
    return Division(np.sort(train), np.flatnonzero(~of_train))


def score(
    features_IE: Floats,
    labels_I: Indices,
    images_I: Indices,
    *,
    classes: Sequence[str],
    draws_SN: Draws,
    max_train: int,
    seed: int = SEED,
) -> ProbeScores:
    """Trains on one part and scores the other.

    Args:
        features_IE: frozen features of each item.
        labels_I: class of each item.
        images_I: index of each item's image.
        classes: names of all classes.
        draws_SN: resamples of the images (`statistics.draws`).
        max_train: most training items.
        seed: of the division.
    """
    labels_I, images_I = np.asarray(labels_I, dtype=np.int64), np.asarray(images_I, dtype=np.int64)
    parts = divide(images_I, max_train=max_train, seed=seed)
    train, test = parts.train, parts.test if len(parts.train) else np.zeros(0, dtype=np.int64)
    scores = score_given(
        features_IE[train],
        labels_I[train],
        features_IE[test],
        labels_I[test],
        images_I[test],
        classes=classes,
        draws_SN=draws_SN,
    )
    return replace(scores, test=test)


def score_given(
    train_IE: Floats,
    train_labels_I: Indices,
    test_IE: Floats,
    test_labels_I: Indices,
    images_I: Indices,
    *,
    classes: Sequence[str],
    draws_SN: Draws,
) -> ProbeScores:
    """Trains on items and scores others, which the caller has divided.

    Args:
        train_IE, train_labels_I: frozen features and classes to train on.
        test_IE, test_labels_I: those to test on.
        images_I: index of each test item's image.
        classes: names of all classes.
        draws_SN: resamples of the images of the test items.
    """
    predicted, converged = _predict(train_IE, train_labels_I, test_IE)
    hit = (predicted == test_labels_I).astype(np.float64)
    return ProbeScores(
        figures={
            "top1": mean_estimate(hit, images_I, draws_SN),
            "mAcc": macro_estimate(hit, images_I, test_labels_I, draws_SN),
        },
        train_items=len(train_IE),
        test_items=len(test_IE),
        missing=tuple(classes[c] for c in np.setdiff1d(test_labels_I, train_labels_I)),
        converged=converged,
        test=np.arange(len(test_IE)),
        predicted=predicted,
    )


def _predict(train_IE: Floats, labels_I: Indices, test_IE: Floats) -> tuple[Indices, bool]:
    """Class of each test item, and whether the solver converged."""
    if not len(test_IE) or len(np.unique(labels_I)) < 2:
        return np.full(len(test_IE), labels_I[0] if len(labels_I) else -1, dtype=np.int64), True
    scaler = StandardScaler().fit(np.asarray(train_IE, dtype=np.float64))
    model = LogisticRegression(C=_C, max_iter=_ITERATIONS)
    # The products are small: threads would only wait for each other, four times as long as one takes.
    with threadpool_limits(1), warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(scaler.transform(np.asarray(train_IE, dtype=np.float64)), labels_I)
    others = [warning for warning in raised if not issubclass(warning.category, ConvergenceWarning)]
    converged = len(others) == len(raised)
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model.predict(scaler.transform(np.asarray(test_IE, dtype=np.float64))), converged
