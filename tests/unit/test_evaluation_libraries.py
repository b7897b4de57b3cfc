"""The protocols' figures against scikit-learn, torchmetrics and pycocotools, on random features."""

import numpy as np
import pytest
import torch
from pycocotools import mask
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score, top_k_accuracy_score
from torchmetrics.retrieval import RetrievalHitRate, RetrievalRecall

from cloc.boxes import Letterbox
from cloc.evaluation import (
    classification,
    coherence,
    grounding,
    ranking,
    region_recognition,
    region_retrieval,
    retrieval,
    statistics,
)

SIZES = ((10, 7), (57, 3), (200, 21))  # items, classes


@pytest.fixture(params=SIZES, ids=str)
def named(request):
    """Embeddings of items and of classes, and labels of which some class lacks."""
    items, classes = request.param
    rng = np.random.default_rng(items)
    labels = rng.integers(classes, size=items)
    labels[labels == classes - 1] = 0
    embeds = rng.normal(size=(classes, 5))
    return embeds[labels] + 1.2 * rng.normal(size=(items, 5)), embeds, labels


def _scores(items, classes):
    return ranking.unit(items) @ ranking.unit(classes).T


def test_region_recognition(named):
    items, classes, labels = named
    found = region_recognition.recognize(items, classes, labels)
    names = [str(i) for i in range(len(classes))]
    draws = statistics.draws(len(labels))
    scores = region_recognition.score(found.credit, labels, np.arange(len(labels)), classes=names, draws_SN=draws)
    occurring = np.isin(np.arange(len(classes)), labels)
    recall = confusion_matrix(labels, found.predicted, labels=np.arange(len(classes)))
    assert (region_recognition.confusion(labels, found.predicted, classes=len(classes)) == recall).all()
    assert scores.figures["mAcc"].value == pytest.approx(
        (recall.diagonal() / recall.sum(axis=1).clip(1))[occurring].mean()
    )
    top1 = top_k_accuracy_score(labels, _scores(items, classes), k=1, labels=np.arange(len(classes)))
    assert scores.figures["top1"].value == pytest.approx(top1)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_mean_accuracy_is_balanced_accuracy(named):
    items, classes, labels = named
    names = [str(i) for i in range(len(classes))]
    draws = statistics.draws(len(labels))
    scores = classification.score(items, classes, labels, classes=names, draws_SN=draws)
    assert scores.figures["mAcc"].value == pytest.approx(balanced_accuracy_score(labels, scores.predicted))
    for name, k in (("top1", 1), ("top5", 5)):
        if k < len(classes):
            expected = top_k_accuracy_score(labels, _scores(items, classes), k=k, labels=np.arange(len(classes)))
            assert scores.figures[name].value == pytest.approx(expected)


def _hit_rate(scores_QX, right_QX, k, metric=RetrievalHitRate):
    queries = np.repeat(np.arange(len(scores_QX)), scores_QX.shape[1])
    value = metric(top_k=k)(
        torch.from_numpy(scores_QX.ravel()), torch.from_numpy(right_QX.ravel()), indexes=torch.from_numpy(queries)
    )
    return float(value)


def test_retrieval():
    rng = np.random.default_rng(0)
    images = ranking.unit(rng.normal(size=(40, 6)))
    owners = np.array([*range(40), *rng.integers(40, size=60)])
    texts = ranking.unit(images[owners] + 0.5 * rng.normal(size=(100, 6)))
    scores = retrieval.score(images, texts, owners, draws_SN=statistics.draws(40))
    right_NT = np.arange(40)[:, None] == owners
    for k in ranking.KS:
        assert scores.image_to_text.figures[f"R@{k}"].value == pytest.approx(_hit_rate(images @ texts.T, right_NT, k))
        expected = _hit_rate(texts @ images.T, right_NT.T, k, metric=RetrievalRecall)  # one right image a caption
        assert scores.text_to_image.figures[f"R@{k}"].value == pytest.approx(expected)
    assert 0.1 < scores.image_to_text.figures["R@1"].value < 0.95


def test_region_retrieval():
    rng = np.random.default_rng(1)
    texts = ranking.unit(rng.normal(size=(30, 6)))
    numbers = rng.permutation([*range(30), *rng.integers(30, size=90)])
    regions = ranking.unit(texts[numbers] + 0.6 * rng.normal(size=(120, 6)))
    images = np.arange(120) // 4
    scores = region_retrieval.score(regions, texts, numbers, images, draws_SN=statistics.draws(30))
    right_RU = numbers[:, None] == np.arange(30)
    for k in ranking.KS:
        assert scores.region_to_text.figures[f"R@{k}"].value == pytest.approx(_hit_rate(regions @ texts.T, right_RU, k))
        expected = _hit_rate(texts @ regions.T, right_RU.T, k)
        assert scores.text_to_region.figures[f"R@{k}"].value == pytest.approx(expected)


def test_grounding_overlaps():
    rng = np.random.default_rng(2)
    corners = rng.random((2, 60, 4))
    a, b = (np.concatenate([np.minimum(c[:, :2], c[:, 2:]), np.maximum(c[:, :2], c[:, 2:])], axis=1) for c in corners)

    def xywh(boxes):
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)

    crowd = np.zeros(60, dtype=np.uint8)
    expected = np.diag(mask.iou(xywh(a), xywh(b), crowd))
    scores = grounding.score(a, b, np.arange(60), draws_SN=statistics.draws(60))
    assert scores.iou == pytest.approx(expected)
    assert scores.figures["mean_iou"].value == pytest.approx(expected.mean())
    assert scores.figures["acc@0.5"].value == (expected >= 0.5).mean()


def test_coherence_auc():
    rng = np.random.default_rng(3)
    tokens = rng.normal(size=(64, 4))
    inside = np.zeros((8, 8), dtype=bool)
    inside[2:6, 1:5] = True
    inside = inside.ravel()
    tokens[inside] += 0.7
    frame = Letterbox(width=80, height=80, size=80)
    found = coherence.measure(tokens, np.array([[1 / 8, 2 / 8, 5 / 8, 6 / 8]]), grid=(8, 8), frame=frame)
    unit = ranking.unit(tokens)
    total = unit[inside].sum(axis=0)
    means = np.where(inside[:, None], total - unit, total)
    cosines = (unit * ranking.unit(means)).sum(axis=1)
    assert found[0, 2] == pytest.approx(roc_auc_score(inside, cosines))
    assert 0.6 < found[0, 2] < 1
