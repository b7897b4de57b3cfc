"""Protocols of regions and texts on hand-made cases: by size, confusions, region-text retrieval, attributes."""

import tracemalloc

import numpy as np
import pytest

from cloc.evaluation import attributes, ranking, region_recognition, region_retrieval, statistics
from cloc.evaluation.region_retrieval import distinct


def values(scores):
    return {name: estimate.value for name, estimate in scores.figures.items()}


class TestBySize:
    def _score(self, credit, labels, areas):
        return region_recognition.score(
            np.asarray(credit, dtype=float),
            np.asarray(labels, dtype=int),
            np.arange(len(labels)),
            classes=("a", "b"),
            draws_SN=statistics.draws(len(labels)),
            areas_R=np.asarray(areas, dtype=float),
        )

    def test_figures_of_each_size_are_of_its_own_regions_and_classes(self):
        scores = self._score([1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [10, 20, 30, 40, 5000])
        assert {name: {key: e.value for key, e in part.items()} for name, part in scores.by_size.items()} == {
            "small": {"mAcc": 0.5, "top1": 0.75},
            "medium": {"mAcc": 0.0, "top1": 0.0},
        }
        assert [part["top1"].n for part in scores.by_size.values()] == [4, 1]
        assert values(scores) == {"mAcc": 0.375, "top1": 0.6}

    @pytest.mark.parametrize(
        ("area", "size"),
        [(0, "small"), (1023.9, "small"), (1024, "medium"), (9215.9, "medium"), (9216, "large"), (1e9, "large")],
    )
    def test_the_bounds_are_those_of_coco(self, area, size):
        assert list(self._score([1], [0], [area]).by_size) == [size]

    def test_areas_are_pixels_of_the_original_image(self):
        boxes = np.array([[0, 0, 0.5, 0.25], [0.25, 0.5, 0.75, 1]])
        areas = region_recognition.box_areas(boxes, widths_R=np.array([640, 100]), heights_R=np.array([480, 40]))
        assert areas.tolist() == [320 * 120, 50 * 20]

    def test_without_areas_or_regions(self):
        assert self._score([], [], []).by_size == {}
        scores = region_recognition.score(
            np.ones(1), np.zeros(1, dtype=int), np.zeros(1, dtype=int), classes=("a",), draws_SN=statistics.draws(1)
        )
        assert scores.by_size == {}


def test_confusions_are_counted_by_right_class_and_answer():
    counts = region_recognition.confusion(np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 0, 0]), classes=3)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [2, 0, 1]]
    assert region_recognition.confusion(np.zeros(0, int), np.zeros(0, int), classes=2).tolist() == [[0, 0], [0, 0]]


def _retrieve(regions, texts, numbers, images=None):
    images = np.arange(len(numbers)) if images is None else np.asarray(images)
    return region_retrieval.score(
        np.asarray(regions, dtype=float),
        np.asarray(texts, dtype=float).reshape(-1, np.shape(regions)[-1]),
        np.asarray(numbers, dtype=int),
        images,
        draws_SN=statistics.draws(int(images.max(initial=-1)) + 1),
    )


class TestRegionRetrieval:
    def test_equal_texts_are_one_candidate(self):
        found = distinct(["A  red cup", "dog", " a red Cup ", "dog", "red cup"])
        assert found.texts == ("A  red cup", "dog", "red cup")
        assert found.number == (0, 1, 0, 1, 2)
        assert distinct([]) == region_retrieval.DistinctTexts((), ())

    def test_an_empty_text_is_refused(self):
        with pytest.raises(ValueError, match="a text is empty"):
            distinct(["dog", " "])

    def test_perfect_features(self):
        numbers = np.array([0, 1, 2, 0, 1, 0, *range(3, 20)])
        scores = _retrieve(np.eye(20)[numbers], np.eye(20), numbers)
        for way in (scores.region_to_text, scores.text_to_region):
            assert values(way) == {"R@1": 1, "R@5": 1, "R@10": 1}
        assert (scores.region_to_text.queries, scores.region_to_text.candidates) == (23, 20)
        assert (scores.text_to_region.queries, scores.text_to_region.candidates) == (20, 23)
        assert scores.text_to_region.figures["R@1"].n == 20

    def test_any_region_with_the_text_is_right(self):
        # Text 0 finds its second region first; text 1 finds a region of text 0 first, its own second.
        regions = [[0.1, 0.9], [1.0, 0.0], [0.0, 0.8]]
        scores = _retrieve(regions, np.eye(2), [0, 0, 1])
        assert scores.text_to_region.credit.tolist() == [1, 0]
        assert scores.text_to_region.nearest.tolist() == [1, 0]
        assert scores.text_to_region.figures["R@5"].value == 1
        # Each region asks: the first is nearer to the other text.
        assert scores.region_to_text.credit.tolist() == [0, 1, 1]

    def test_a_common_text_asks_once(self):
        # 98 regions of text 0 are all right, one of text 1 is taken for text 0.
        numbers = [0] * 98 + [1]
        scores = _retrieve(np.tile([1.0, 0.5], (99, 1)), np.eye(2), numbers)
        assert scores.region_to_text.figures["R@1"].value == pytest.approx(98 / 99)
        # All regions are equal, so a text's chance of one of its own is its share of the regions.
        assert scores.text_to_region.figures["R@1"].value == pytest.approx((98 / 99 + 1 / 99) / 2)

    def test_one_embedding_for_everything_gets_chance(self):
        scores = _retrieve(np.ones((40, 4)), np.ones((40, 4)), range(40))
        for way in (scores.region_to_text, scores.text_to_region):
            assert values(way) == pytest.approx({"R@1": 1 / 40, "R@5": 5 / 40, "R@10": 10 / 40})

    def test_permuted_texts(self):
        # Region i is most like text i + 1 and then like its own: never first, always second.
        regions = 0.8 * np.eye(12) + 0.9 * np.roll(np.eye(12), 1, axis=1)
        assert values(_retrieve(regions, np.eye(12), range(12)).region_to_text) == {"R@1": 0, "R@5": 1, "R@10": 1}

    def test_a_text_is_drawn_with_the_image_where_it_first_stands(self):
        # Right in both: the texts of the first image alone. Resamples without it know of no hit.
        regions = np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])
        scores = _retrieve(regions, np.eye(3), [0, 1, 2], images=[0, 1, 2])
        drawn = statistics.draws(3)
        for way in (scores.region_to_text, scores.text_to_region):
            assert way.credit.tolist() == [1, 0, 0]
            assert way.figures["R@1"].samples_S == pytest.approx(drawn[:, 0] / 3)
        repeated = _retrieve(np.eye(2)[[0, 1, 0]], np.eye(2), [0, 1, 0], images=[1, 0, 0])
        assert repeated.text_to_region.figures["R@1"].images == 2

    def test_empty_and_one(self):
        empty = _retrieve(np.zeros((0, 3)), np.zeros((0, 3)), [])
        assert values(empty.region_to_text) == values(empty.text_to_region) == {"R@1": 0, "R@5": 0, "R@10": 0}
        assert empty.text_to_region.figures["R@1"].n == 0
        one = _retrieve([[0.0, 1.0]], [[1.0, 0.0]], [0])
        assert values(one.region_to_text) == {"R@1": 1, "R@5": 1, "R@10": 1}  # of one candidate

    def test_a_text_without_region_is_refused(self):
        with pytest.raises(ValueError, match="1 of 2 texts have no region"):
            _retrieve(np.eye(2)[:1], np.eye(2), [0])

    def test_chunks_change_nothing(self, monkeypatch):
        rng = np.random.default_rng(0)
        numbers = rng.permutation(np.arange(90) % 30)
        regions, texts = rng.normal(size=(90, 8)), rng.normal(size=(30, 8))
        whole = _retrieve(regions, texts, numbers)
        monkeypatch.setattr(ranking, "_CELLS", 100)
        pieces = _retrieve(regions, texts, numbers)
        for a, b in ((whole.region_to_text, pieces.region_to_text), (whole.text_to_region, pieces.text_to_region)):
            assert values(a) == values(b)
            assert (a.nearest == b.nearest).all()

    def test_memory_stays_flat_with_many_regions(self):
        rng = np.random.default_rng(0)
        numbers = rng.permutation(np.arange(36_000) % 3_000)
        regions, texts = (rng.normal(size=(n, 8)).astype(np.float32) for n in (36_000, 3_000))
        tracemalloc.start()
        _retrieve_float32(regions, texts, numbers)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 60e6  # all scores at once would be 432 MB, and their masks 108 MB each


def _retrieve_float32(regions, texts, numbers):
    images = np.arange(len(numbers)) // 8
    draws = statistics.draws(int(images[-1]) + 1)
    return region_retrieval.score(regions, texts, numbers, images, draws_SN=draws)


def _attributes(regions, texts, own, negatives, images=None):
    images = np.arange(len(own)) if images is None else np.asarray(images)
    return attributes.score(
        np.asarray(regions, dtype=float),
        np.asarray(texts, dtype=float),
        np.asarray(own),
        images,
        attributes.collect(own, negatives),
        draws_SN=statistics.draws(len(own)),
    )


class TestAttributes:
    # Texts on a circle: the region [1, 0] has the cosines 1, 0.8, 0.6, 0 to texts 0, 1, 2, 3.
    TEXTS = ((1.0, 0.0), (0.8, 0.6), (0.6, 0.8), (0.0, 1.0))

    def test_rank_among_the_negatives_of_a_level(self):
        scores = _attributes(
            [[1, 0], [1, 0], [1, 0]],
            self.TEXTS,
            [0, 1, 2],
            [{"hard": [1, 2, 3], "easy": [3]}, {"hard": [0, 2, 3], "easy": [2, 3]}, {"hard": [0, 1]}],
        )
        assert list(scores) == ["hard", "easy"]
        assert scores["hard"].rank.tolist() == [1, 2, 3]
        assert values(scores["hard"]) == pytest.approx({"accuracy": 1 / 3, "mean_rank": 2})
        assert values(scores["easy"]) == {"accuracy": 1, "mean_rank": 1}
        assert scores["easy"].figures["accuracy"].n == 2
        assert scores["easy"].regions.tolist() == [0, 1]

    def test_unequal_numbers_of_negatives_count_each_region_once(self):
        scores = _attributes([[1, 0], [1, 0]], self.TEXTS, [0, 3], [{"hard": [1]}, {"hard": [0, 1, 2]}])["hard"]
        assert values(scores) == {"accuracy": 0.5, "mean_rank": 2.5}
        assert scores.negatives == 2
        assert scores.chance == pytest.approx((1 / 2 + 1 / 4) / 2)

    def test_a_model_that_knows_nothing_gets_chance(self):
        scores = _attributes(np.ones((2, 2)), np.ones((4, 2)), [0, 1], [{"hard": [1, 2, 3]}, {"hard": [0]}])["hard"]
        assert scores.credit.tolist() == [1 / 4, 1 / 2]
        assert scores.figures["accuracy"].value == scores.chance
        assert scores.rank.tolist() == [2.5, 1.5]

    def test_a_tie_below_the_first_place_is_no_hit(self):
        texts = [*self.TEXTS, self.TEXTS[1]]
        scores = _attributes([[1, 0]], texts, [1], [{"hard": [0, 4, 3]}])["hard"]
        assert (scores.credit.tolist(), scores.rank.tolist()) == ([0], [2.5])

    def test_negatives_that_are_none_do_not_count(self):
        collected = attributes.collect([0, 1], [{"hard": [0, 2, 2], "easy": [0]}, {"hard": [], "easy": [3]}])
        assert collected["hard"].region_J.tolist() == [0]
        assert collected["hard"].text_J.tolist() == [2]
        assert collected["easy"].region_J.tolist() == [1]
        scores = _attributes([[1, 0], [1, 0]], self.TEXTS, [0, 1], [{"hard": [0, 2, 2]}, {"hard": []}])["hard"]
        assert (scores.figures["accuracy"].n, scores.negatives, scores.chance) == (1, 1, 0.5)

    def test_nobody_is_asked(self):
        scores = _attributes([[1, 0]], self.TEXTS, [0], [{"hard": [0]}])["hard"]
        assert values(scores) == {"accuracy": 0, "mean_rank": 0}
        assert (scores.figures["accuracy"].n, scores.negatives, scores.chance) == (0, 0, 0)
        assert _attributes(np.zeros((0, 2)), self.TEXTS, [], []) == {}

    def test_chunks_and_plain_loops_agree(self, monkeypatch):
        rng = np.random.default_rng(2)
        regions, texts = rng.normal(size=(30, 4)), rng.normal(size=(50, 4))
        own = rng.integers(50, size=30).tolist()
        negatives = [{"hard": rng.integers(50, size=rng.integers(1, 9)).tolist()} for _ in own]
        monkeypatch.setattr(ranking, "_CELLS", 17)
        found = _attributes(regions, texts, own, negatives)["hard"]
        ranks = []
        for region, text, levels in zip(regions, own, negatives, strict=True):
            others = set(levels["hard"]) - {text}
            if others:
                ranks.append(1 + sum(texts[other] @ region > texts[text] @ region for other in others))
        assert found.rank.tolist() == ranks
        assert found.figures["accuracy"].value == pytest.approx(np.mean(np.array(ranks) == 1))
