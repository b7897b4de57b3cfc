"""The protocols on hand-made cases where the right number is known."""

import numpy as np
import pytest

from cloc.evaluation import grounding, ranking, region_recognition, retrieval, statistics
from cloc.evaluation.region_recognition import recognize


def _values(scores):
    return {name: estimate.value for name, estimate in scores.figures.items()}


def _regions(credit, labels, images=None, *, classes=("a", "b", "c")):
    images = np.arange(len(labels)) if images is None else np.asarray(images)
    n = int(images.max()) + 1 if len(images) else 0
    return region_recognition.score(
        np.asarray(credit, dtype=float),
        np.asarray(labels, dtype=int),
        images,
        classes=classes,
        draws_SN=statistics.draws(n),
    )


class TestRegionRecognition:
    def test_perfect_features_are_right_everywhere(self):
        labels = np.array([0, 1, 2, 1])
        found = recognize(7 * np.eye(3)[labels], np.eye(3), labels)
        assert found.predicted.tolist() == [0, 1, 2, 1]
        scores = _regions(found.credit, labels)
        assert _values(scores) == {"mAcc": 1, "top1": 1}
        assert scores.figures["mAcc"].interval.to_json() == [1, 1]

    def test_permuted_labels_are_wrong_everywhere(self):
        labels = np.array([0, 1, 2])
        found = recognize(np.eye(3)[(labels + 1) % 3], np.eye(3), labels)
        assert found.credit.tolist() == [0, 0, 0]

    def test_always_the_first_class_on_skewed_classes(self):
        labels = np.array([0] * 8 + [1] * 2)
        always_first = np.tile([1.0, 0.1, 0.1], (10, 1))
        scores = _regions(recognize(always_first, np.eye(3), labels).credit, labels)
        assert scores.figures["top1"].value == pytest.approx(0.8)
        assert scores.figures["mAcc"].value == pytest.approx(0.5)  # over the two classes that occur, not over three
        assert scores.per_class == {"a": (1.0, 8), "b": (0.0, 2)}
        assert scores.classes == 3

    def test_a_tie_gives_what_an_arbitrary_choice_gets(self):
        labels = np.array([0, 1, 2, 2])
        found = recognize(np.ones((4, 3)), np.eye(3), labels)
        assert found.credit == pytest.approx(1 / 3)
        two_equal_names = np.array([[1.0, 0], [1, 0], [0, 1]])
        found = recognize(np.array([[1.0, 0], [0, 1]]), two_equal_names, np.array([1, 2]))
        assert found.credit.tolist() == [0.5, 1]

    def test_cosine_ignores_lengths(self):
        classes = np.array([[100.0, 0], [0.6, 0.8]])
        assert recognize(np.array([[0.3, 0.4]]), classes, np.array([1])).predicted.tolist() == [1]

    def test_no_regions(self):
        found = recognize(np.zeros((0, 3)), np.eye(3), np.zeros(0, dtype=int))
        scores = _regions(found.credit, [])
        assert (_values(scores), scores.figures["top1"].n, scores.per_class) == ({"mAcc": 0, "top1": 0}, 0, {})
        assert scores.figures["mAcc"].interval.to_json() == [0, 0]

    def test_many_regions_are_scored_as_few(self, monkeypatch):
        rng = np.random.default_rng(0)
        regions, classes, labels = rng.normal(size=(50, 8)), rng.normal(size=(5, 8)), rng.integers(5, size=50)
        whole = recognize(regions, classes, labels)
        monkeypatch.setattr(ranking, "_CELLS", 7 * 5)
        pieces = recognize(regions, classes, labels)
        assert (whole.predicted == pieces.predicted).all()
        assert (whole.credit == pieces.credit).all()


def _retrieve(images, texts, owners):
    images, texts = np.asarray(images, dtype=float), np.asarray(texts, dtype=float)
    return retrieval.score(images, texts, np.asarray(owners), draws_SN=statistics.draws(len(images)))


class TestRetrieval:
    def test_perfect_features(self):
        scores = _retrieve(np.eye(12), np.eye(12), range(12))
        assert _values(scores.image_to_text) == {"R@1": 1, "R@5": 1, "R@10": 1}
        assert _values(scores.text_to_image) == {"R@1": 1, "R@5": 1, "R@10": 1}
        assert (scores.image_to_text.candidates, scores.image_to_text.queries) == (12, 12)

    def test_shifted_features_are_found_second(self):
        # Each image is most like the next one's caption, and then like its own.
        images = np.eye(12) * 0.8 + np.roll(np.eye(12), 1, axis=1) * 0.9
        scores = _retrieve(images, np.eye(12), range(12))
        assert _values(scores.image_to_text) == {"R@1": 0, "R@5": 1, "R@10": 1}
        assert scores.image_to_text.nearest.tolist() == [*range(1, 12), 0]

    def test_any_of_an_images_captions_counts(self):
        # Two images, two captions each: image 0 is found by its second caption alone.
        texts = [[0.0, 0.9], [1, 0], [0, 1], [0, 0.8]]
        scores = _retrieve(np.eye(2), texts, [0, 0, 1, 1])
        assert scores.image_to_text.figures["R@1"].value == 1
        assert scores.text_to_image.figures["R@1"].value == 0.75  # the caption [0, 0.9] of image 0 finds image 1
        assert (scores.text_to_image.queries, scores.text_to_image.candidates) == (4, 2)

    def test_one_embedding_for_everything_gets_chance(self):
        scores = _retrieve(np.ones((20, 3)), np.ones((20, 3)), range(20))
        assert scores.image_to_text.figures["R@1"].value == pytest.approx(1 / 20)
        assert scores.text_to_image.figures["R@10"].value == pytest.approx(10 / 20)

    def test_equal_captions_share_the_hit(self):
        scores = _retrieve(np.eye(3), [[1, 0, 0], [1, 0, 0], [0, 0, 1]], range(3))
        # Image 0: two captions tie, one is its own. Image 1: both tie below or at others.
        assert scores.image_to_text.credit[0] == 0.5
        assert scores.image_to_text.credit[2] == 1

    def test_ties_against_drawing_at_random(self):
        rng = np.random.default_rng(1)
        scores = rng.integers(0, 4, size=(1, 30)).astype(float)
        right = rng.random((1, 30)) < 0.1
        hits = dict.fromkeys(ranking.KS, 0)
        for _ in range(4000):
            order = np.lexsort((rng.random(30), -scores[0]))
            for k in ranking.KS:
                hits[k] += right[0, order[:k]].any()
        credit = ranking.hits(scores, right)
        for k in ranking.KS:
            assert credit[k][0] == pytest.approx(hits[k] / 4000, abs=0.03)

    def test_few_candidates_are_all_hits_at_ten(self):
        assert _values(_retrieve(np.eye(2)[::-1], np.eye(2), range(2)).image_to_text) == {"R@1": 0, "R@5": 1, "R@10": 1}

    def test_an_image_without_caption_is_refused(self):
        with pytest.raises(ValueError, match="1 of 2 images have no caption"):
            _retrieve(np.eye(2), np.eye(2)[:1], [0])


class TestGrounding:
    def test_known_overlaps(self):
        labelled = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
        predicted = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.25], [0, 0, 0.4, 0.4]])
        scores = grounding.score(predicted, labelled, np.arange(3), draws_SN=statistics.draws(3))
        assert scores.iou.tolist() == [1, 0.5, 0]
        assert scores.figures["acc@0.5"].value == pytest.approx(2 / 3)  # 0.5 itself counts
        assert scores.figures["mean_iou"].value == pytest.approx(0.5)
        assert scores.figures["mean_iou"].n == 3

    def test_swapped_corners_overlap_nothing(self):
        box = np.array([[0.2, 0.2, 0.6, 0.6]])
        assert grounding.paired_iou(box[:, [2, 3, 0, 1]], box).tolist() == [0]

    def test_no_phrases(self):
        none = np.zeros((0, 4))
        scores = grounding.score(none, none, np.zeros(0, dtype=int), draws_SN=statistics.draws(5))
        assert (_values(scores), scores.figures["mean_iou"].n) == ({"acc@0.5": 0, "mean_iou": 0}, 0)

    def test_only_phrases_that_stand_once_are_asked(self):
        phrases = ["a red key", "A  red key ", "blue cup", "", "blue  cups"]
        assert grounding.unambiguous(phrases) == [2, 4]
