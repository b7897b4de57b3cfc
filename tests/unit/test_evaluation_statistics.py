"""Intervals over images and paired differences, against textbook formulas and plain loops."""

import numpy as np
import pytest

from cloc.evaluation import statistics
from cloc.evaluation.statistics import Estimate, difference, draws, macro_estimate, mean_estimate

ONES = np.ones(8)


def _mean(values, images=None, **how):
    images = np.arange(len(values)) if images is None else np.asarray(images)
    return mean_estimate(np.asarray(values, dtype=float), images, draws(int(images.max(initial=-1)) + 1, **how))


class TestDraws:
    def test_they_are_reproducible_and_complete(self):
        drawn = draws(7)
        assert drawn.shape == (statistics.RESAMPLES, 7)
        assert (drawn.sum(axis=1) == 7).all()
        assert (drawn == draws(7)).all()
        assert (drawn != draws(7, seed=1)).any()

    def test_they_are_the_same_on_every_machine(self):
        assert draws(5, resamples=3).tolist() == [[0, 2, 1, 1, 1], [4, 0, 0, 0, 1], [0, 0, 1, 2, 2]]

    def test_each_image_is_drawn_once_on_average(self):
        drawn = draws(20, resamples=5000)
        assert drawn.mean(axis=0) == pytest.approx(np.ones(20), abs=0.06)  # four standard errors
        assert drawn.var() == pytest.approx(1 - 1 / 20, abs=0.03)

    def test_no_images(self):
        assert draws(0).shape == (statistics.RESAMPLES, 0)


class TestEstimate:
    def test_the_interval_of_a_mean_is_the_textbook_one(self):
        found = _mean(np.arange(400) % 4 == 0, resamples=4000)
        deviation = 1.96 * np.sqrt(0.25 * 0.75 / 400)
        assert (found.value, found.n, found.images) == (0.25, 400, 400)
        assert found.interval.low == pytest.approx(0.25 - deviation, abs=0.006)
        assert found.interval.high == pytest.approx(0.25 + deviation, abs=0.006)

    def test_one_image_has_no_spread(self):
        found = _mean([1, 1, 1, 0], [0, 0, 0, 0])
        assert (found.value, found.interval.to_json(), found.n, found.images) == (0.75, [0.75, 0.75], 4, 1)

    def test_no_items(self):
        found = mean_estimate(np.zeros(0), np.zeros(0, dtype=int), draws(5))
        assert (found.value, found.interval.to_json(), found.n, found.images) == (0, [0, 0], 0, 0)
        assert np.isnan(found.samples_S).all()

    def test_no_images(self):
        assert mean_estimate(np.zeros(0), np.zeros(0, dtype=int), draws(0)).interval.to_json() == [0, 0]

    def test_items_of_an_image_come_together(self):
        # Ten images of 40 items that are all right or all wrong: as wide as ten items, not as 400.
        found = _mean(np.repeat([0.0, 1.0], 200), np.repeat(np.arange(10), 40))
        assert found.interval.high - found.interval.low > 0.5

    def test_a_resample_without_items_is_left_out(self):
        # Of four images one alone holds items: a resample misses it with (3/4)^4 = 0.32.
        found = mean_estimate(np.array([1.0, 0.0]), np.array([2, 2]), draws(4))
        assert set(found.samples_S[~np.isnan(found.samples_S)]) == {0.5}
        assert np.isnan(found.samples_S).mean() == pytest.approx(0.32, abs=0.07)

    def test_against_one_resample_at_a_time(self, monkeypatch):
        rng = np.random.default_rng(0)
        images, classes = rng.integers(20, size=100), rng.integers(6, size=100)
        hits = rng.random(100)
        drawn = draws(20, resamples=101)
        means, macros = [], []
        for weights in drawn:
            each = weights[images]
            means.append((each * hits).sum() / each.sum())
            sums = [(each * hits)[classes == c].sum() / n for c in range(6) if (n := each[classes == c].sum())]
            macros.append(np.mean(sums))
        for chunk in (1, 777, 1 << 21):
            monkeypatch.setattr(statistics, "_CHUNK", chunk)
            macro = macro_estimate(hits, images, classes, drawn)
            assert mean_estimate(hits, images, drawn).samples_S == pytest.approx(np.array(means))
            assert macro.samples_S == pytest.approx(np.array(macros))
            assert macro.interval.to_json() == pytest.approx(np.percentile(macros, [2.5, 97.5]).tolist())

    def test_classes_that_do_not_occur_do_not_count(self):
        found = macro_estimate(np.array([1.0, 1, 0]), np.arange(3), np.array([7, 7, 1000]), draws(3))
        assert found.value == 0.5

    def test_lengths_must_agree(self):
        with pytest.raises(ValueError, match="2 values, 1 images, 2 classes"):
            mean_estimate(np.ones(2), np.zeros(1, dtype=int), draws(1))

    def test_scores_as_json(self):
        found = statistics.scores({"top1": _mean([1, 0, 0, 1], [0, 0, 1, 1])})
        assert found == {"top1": 0.5, "n": 4, "images": 2, "interval": {"top1": [0.5, 0.5]}}
        assert statistics.scores({}) == {"n": 0, "images": 0, "interval": {}}


class TestCoverage:
    """Intervals hold the truth as often as they say, also where the items of an image hang together."""

    def test_of_a_mean_of_clustered_items(self):
        rng = np.random.default_rng(3)
        drawn = draws(120, resamples=200)
        images = np.repeat(np.arange(120), 5)
        held = 0
        for _ in range(300):
            rate = np.repeat(rng.beta(2, 3, size=120), 5)  # mean 0.4
            interval = mean_estimate((rng.random(600) < rate).astype(float), images, drawn).interval
            held += interval.low <= 0.4 <= interval.high
        # 95 % of 300; five standard errors of 0.0126, and a little that percentiles of 200 resamples lose.
        assert 0.88 <= held / 300 <= 0.99

    def test_of_a_difference(self):
        rng = np.random.default_rng(4)
        drawn = draws(150, resamples=200)
        images, said = np.arange(150), {"a": 0, "b": 0, "": 0}
        for _ in range(300):
            ease = rng.random(150)  # one picture is as hard for both models
            a, b = ((rng.random(150) < ease).astype(float) for _ in range(2))
            said[difference(mean_estimate(a, images, drawn), mean_estimate(b, images, drawn)).better] += 1
        assert (said["a"] + said["b"]) / 300 <= 0.11  # equal models are told apart in 5 % of the cases
        assert said["a"]
        assert said["b"]


class TestDifference:
    def test_paired_is_narrower_than_unpaired(self):
        rng = np.random.default_rng(0)
        hard = rng.random(300) < 0.5
        a = np.where(hard, rng.random(300) < 0.05, rng.random(300) < 0.95).astype(float)
        b = np.where(hard, rng.random(300) < 0.01, rng.random(300) < 0.85).astype(float)
        first, second = _mean(a), _mean(b)
        found = difference(first, second)
        wide = np.hypot(*(e.interval.high - e.interval.low for e in (first, second)))  # as if independent
        assert found.value == pytest.approx(a.mean() - b.mean())
        assert found.interval.high - found.interval.low < 0.7 * wide
        # The two intervals overlap, and yet the difference is established.
        assert first.interval.low < second.interval.high
        assert found.better == "a"
        assert difference(second, first).better == "b"
        assert difference(second, first).interval.high == pytest.approx(-found.interval.low)

    def test_a_model_is_not_better_than_itself(self):
        found = difference(_mean(np.arange(100) % 3 == 0), _mean(np.arange(100) % 3 == 0))
        assert (found.value, found.interval.to_json(), found.better) == (0, [0, 0], "")

    def test_rounding_makes_nothing_better(self):
        third = Estimate(1 / 3, np.full(9, 1 / 3), 50, 50)
        assert difference(third, Estimate(1 / 3, np.full(9, 1 / 3 - 1e-16), 50, 50)).better == ""

    def test_where_lower_is_better(self):
        one, four = _mean(np.ones(30)), _mean(np.full(30, 4.0))
        assert difference(one, four, higher_is_better=False).better == "a"
        assert difference(one, four).better == "b"

    @pytest.mark.parametrize(("images", "better"), [(1, ""), (5, ""), (6, "a"), (30, "a")])
    def test_a_handful_of_images_settles_nothing(self, images, better):
        place = np.repeat(np.arange(images), 20)
        found = difference(_mean(np.ones(len(place)), place), _mean(np.zeros(len(place)), place))
        assert (found.value, found.better) == (1, better)

    def test_without_items_nothing_is_said(self):
        none = mean_estimate(np.zeros(0), np.zeros(0, dtype=int), draws(8))
        for found in (difference(_mean(ONES), none), difference(none, _mean(ONES)), difference(none, none)):
            assert (found.value, found.interval.to_json(), found.better) == (0, [0, 0], "")

    def test_other_resamples_are_refused(self):
        with pytest.raises(ValueError, match="same resamples, got 500 and 9"):
            difference(_mean(ONES), _mean(ONES, resamples=9))
