"""Protocols of images and of frozen features on hand-made cases: classification, linear probe, coherence."""

import warnings

import numpy as np
import pytest

from cloc.boxes import Letterbox
from cloc.errors import ConfigError
from cloc.evaluation import classification, coherence, linear_probe, ranking, statistics
from cloc.evaluation.classification import PLAIN, TEMPLATES, embed_classes, fill, read_templates

SQUARE = Letterbox(width=40, height=40, size=40)


def values(scores):
    return {name: estimate.value for name, estimate in scores.figures.items()}


def _classify(images, classes, labels):
    names = [f"class {i}" for i in range(len(classes))]
    draws = statistics.draws(len(labels))
    images, labels = np.asarray(images, dtype=float), np.asarray(labels, dtype=int)
    return classification.score(images, np.asarray(classes, dtype=float), labels, classes=names, draws_SN=draws)


class TestClassification:
    def test_perfect_features(self):
        labels = np.arange(30) % 10
        scores = _classify(3 * np.eye(10)[labels], 5 * np.eye(10), labels)
        assert values(scores) == {"top1": 1, "top5": 1, "mAcc": 1}
        assert scores.predicted.tolist() == labels.tolist()
        assert scores.classes == 10

    def test_always_the_first_class_on_skewed_classes(self):
        # Class 0 is always first and class 9 always last.
        image = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
        scores = _classify(np.tile(image, (10, 1)), np.eye(10), [0] * 7 + [3] * 2 + [9])
        assert values(scores) == pytest.approx({"top1": 0.7, "top5": 0.9, "mAcc": 1 / 3})
        assert scores.per_class == {"class 0": (1, 7), "class 3": (0, 2), "class 9": (0, 1)}

    def test_the_fifth_place_counts_and_the_sixth_does_not(self):
        image = [[1.0, 0.9, 0.8, 0.7, 0.6, 0.5]]
        assert values(_classify(image, np.eye(6), [4]))["top5"] == 1
        assert values(_classify(image, np.eye(6), [5]))["top5"] == 0

    def test_permuted_labels(self):
        labels = np.arange(10)
        assert values(_classify(np.eye(10)[(labels + 1) % 10], np.eye(10), labels))["top1"] == 0

    def test_one_embedding_for_everything_gets_chance(self):
        scores = _classify(np.ones((20, 3)), np.ones((20, 3)), range(20))
        assert values(scores) == pytest.approx({"top1": 1 / 20, "top5": 5 / 20, "mAcc": 1 / 20})

    def test_few_classes_none_and_one(self):
        assert values(_classify([[0.0, 1]], np.eye(2), [0])) == {"top1": 0, "top5": 1, "mAcc": 0}
        empty = _classify(np.zeros((0, 2)), np.eye(2), [])
        assert (values(empty), empty.figures["top1"].n) == ({"top1": 0, "top5": 0, "mAcc": 0}, 0)

    def test_chunks_change_nothing(self, monkeypatch):
        rng = np.random.default_rng(0)
        images, classes, labels = rng.normal(size=(40, 6)), rng.normal(size=(9, 6)), rng.integers(9, size=40)
        whole = _classify(images, classes, labels)
        monkeypatch.setattr(ranking, "_CELLS", 30)
        pieces = _classify(images, classes, labels)
        assert values(whole) == values(pieces)
        assert (whole.predicted == pieces.predicted).all()


class TestTemplates:
    def test_a_class_is_the_normalised_mean_of_normalised_texts(self):
        coded = {"a cat": [3.0, 0.0], "the cat": [0.0, 0.5], "a dog": [0.0, 2.0], "the dog": [0.0, 7.0]}
        found = embed_classes(["cat", "dog"], ["a {}", "the {c}"], lambda texts: np.array([coded[t] for t in texts]))
        assert found == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [0, 1]]))

    def test_the_plain_name_is_a_template_too(self):
        asked = []

        def embed(texts):
            asked.extend(texts)
            return np.ones((len(texts), 2))

        embed_classes([f"name {i}" for i in range(150)], PLAIN, embed)
        assert asked == [f"name {i}" for i in range(150)]
        assert embed_classes([], PLAIN, lambda texts: np.zeros((len(texts), 2))).shape == (0, 2)

    def test_names_are_never_templates_themselves(self):
        assert fill("a {c} and a {}", "{} {c} \\1") == "a {} {c} \\1 and a {} {c} \\1"

    def test_the_default_list_is_usable(self):
        assert len({fill(template, "cat") for template in TEMPLATES}) == len(TEMPLATES)
        assert all("cat" in fill(template, "cat") for template in TEMPLATES)

    def test_a_file_of_templates(self, tmp_path):
        (tmp_path / "own.txt").write_text("a {}\n\n  the {c}, too \n")
        assert read_templates(tmp_path / "own.txt") == ("a {}", "the {c}, too")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, r"evaluation\.templates: cannot read .*own\.txt"),
            (b" \n", "is empty; write one template a line"),
            (b"a {}\na photo\n", "'a photo' has no place for the class name"),
            (b"\xff\xfe{}", "cannot read"),
        ],
    )
    def test_files_that_cannot_be_used(self, tmp_path, text, message):
        if text is not None:
            (tmp_path / "own.txt").write_bytes(text)
        with pytest.raises(ConfigError, match=message) as error:
            read_templates(tmp_path / "own.txt")
        assert "\n" not in str(error.value)

    def test_no_templates(self):
        with pytest.raises(ConfigError, match="there is none"):
            embed_classes(["cat"], [], lambda texts: np.ones((len(texts), 2)))


def _probe(features, labels, images=None, *, max_train=1000, seed=0, classes=("a", "b", "c", "d")):
    images = np.arange(len(labels)) if images is None else np.asarray(images)
    return linear_probe.score(
        np.asarray(features, dtype=np.float32),
        np.asarray(labels),
        images,
        classes=classes,
        draws_SN=statistics.draws(int(images.max(initial=-1)) + 1),
        max_train=max_train,
        seed=seed,
    )


class TestLinearProbe:
    def test_separable_features_are_learned_and_noise_is_not(self):
        rng = np.random.default_rng(0)
        labels = rng.integers(4, size=600)
        clean = np.eye(4)[labels] + 0.05 * rng.normal(size=(600, 4))
        scores = _probe(clean, labels)
        assert values(scores) == {"top1": 1, "mAcc": 1}
        assert (scores.train_items, scores.test_items, scores.missing, scores.converged) == (300, 300, (), True)
        noise = _probe(rng.normal(size=(600, 4)), labels)
        assert values(noise)["top1"] == pytest.approx(0.25, abs=0.1)  # four standard errors

    def test_the_scale_of_features_does_not_matter(self):
        rng = np.random.default_rng(0)
        labels = rng.integers(4, size=200)
        features = np.eye(4)[labels] + 0.4 * rng.normal(size=(200, 4))
        small, large = _probe(features, labels), _probe(1000 * features + 50, labels)
        assert (small.predicted == large.predicted).mean() > 0.98
        assert values(small)["top1"] > 0.7

    def test_no_image_is_on_both_sides(self):
        images = np.repeat(np.arange(21), 5)
        parts = linear_probe.divide(images, max_train=1000)
        assert not set(images[parts.train]) & set(images[parts.test])
        assert sorted([*parts.train, *parts.test]) == list(range(105))
        assert (len(parts.train), len(parts.test)) == (50, 55)
        other = linear_probe.divide(images, max_train=1000, seed=1)
        assert set(other.train) != set(parts.train)

    def test_at_most_so_many_items_are_trained_on(self):
        images = np.repeat(np.arange(20), 5)
        few, all_of_them = (linear_probe.divide(images, max_train=n) for n in (7, 1000))
        assert len(few.train) == 7
        assert set(few.train) < set(all_of_them.train)
        assert few.test.tolist() == all_of_them.test.tolist()
        with pytest.raises(ValueError, match="at least 1, got 0"):
            linear_probe.divide(images, max_train=0)

    def test_it_is_deterministic(self):
        rng = np.random.default_rng(1)
        labels, features = rng.integers(4, size=120), rng.normal(size=(120, 6))
        a, b = _probe(features, labels), _probe(features, labels)
        assert values(a) == values(b)
        assert (a.predicted == b.predicted).all()

    def test_a_class_that_training_lacks_is_wrong_and_told(self):
        images = np.arange(40)
        parts = linear_probe.divide(images, max_train=1000)
        labels = images % 2
        labels[parts.test[:5]] = 3
        scores = _probe(np.eye(4)[labels], labels)
        assert scores.missing == ("d",)
        assert values(scores)["top1"] == 15 / 20
        assert values(scores)["mAcc"] == pytest.approx(2 / 3)
        assert not (scores.predicted == 3).any()

    def test_one_class_in_training_is_said_always(self):
        images = np.arange(20)
        parts = linear_probe.divide(images, max_train=1000)
        labels = np.full(20, 2)
        labels[parts.test[:4]] = 1
        scores = _probe(np.random.default_rng(0).normal(size=(20, 3)), labels)
        assert set(scores.predicted) == {2}
        assert values(scores) == {"top1": 0.6, "mAcc": 0.5}
        assert (scores.missing, scores.converged) == (("b",), True)

    @pytest.mark.parametrize("items", [0, 1])
    def test_nothing_to_divide(self, items):
        scores = _probe(np.ones((items, 3)), np.zeros(items, dtype=int))
        assert values(scores) == {"top1": 0, "mAcc": 0}
        assert (scores.figures["top1"].n, scores.train_items, scores.test_items) == (0, 0, 0)

    def test_a_solver_that_stops_early_is_told(self, monkeypatch):
        monkeypatch.setattr(linear_probe, "_ITERATIONS", 1)
        rng = np.random.default_rng(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scores = _probe(rng.normal(size=(120, 6)), rng.integers(4, size=120))
        assert scores.converged is False
        assert scores.figures["top1"].n == 60


def _tokens(grid, inside, *, own, other):
    """Tokens `own` where `inside` is set, `other` elsewhere."""
    mask = np.asarray(inside, dtype=bool).reshape(grid)
    return np.where(mask.reshape(-1, 1), np.asarray(own, dtype=float), np.asarray(other, dtype=float))


class TestCoherence:
    LEFT = np.tile([1, 1, 0, 0], (4, 1))
    BOX = ((0.0, 0.0, 0.5, 1.0),)

    def _measure(self, tokens, boxes=BOX, grid=(4, 4), frame=SQUARE):
        return coherence.measure(np.asarray(tokens, dtype=np.float32), np.array(boxes), grid=grid, frame=frame)

    def test_an_object_unlike_its_surroundings(self):
        tokens = _tokens((4, 4), self.LEFT, own=[2, 0], other=[0, 5])
        assert self._measure(tokens) == pytest.approx(np.array([[1, 0, 1]]))

    def test_opposite_tokens(self):
        tokens = _tokens((4, 4), self.LEFT, own=[1, 0], other=[-1, 0])
        assert self._measure(tokens) == pytest.approx(np.array([[1, -1, 1]]))

    def test_equal_tokens_everywhere_are_chance(self):
        rng = np.random.default_rng(0)
        assert self._measure(np.tile(rng.normal(size=7), (16, 1))) == pytest.approx(np.array([[1, 1, 0.5]]))

    def test_a_token_is_not_compared_with_itself(self):
        # Two orthogonal tokens in the box: with itself in the mean each would be at cos 45 degrees.
        tokens = np.eye(4)
        assert self._measure(tokens, boxes=[[0, 0, 1, 0.5]], grid=(2, 2)) == pytest.approx(np.array([[0, 0, 0.5]]))

    def test_against_plain_loops(self):
        rng = np.random.default_rng(0)
        tokens, box = rng.normal(size=(30, 6)), (0.2, 0.1, 0.8, 0.7)
        found = self._measure(tokens, boxes=[box], grid=(5, 6))[0]
        unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        centres = [((i % 6 + 0.5) / 6, (i // 6 + 0.5) / 5) for i in range(30)]
        inside = [i for i, (x, y) in enumerate(centres) if box[0] <= x < box[2] and box[1] <= y < box[3]]
        outside = [i for i in range(30) if i not in inside]

        def cosine(token, others):
            mean = unit[others].mean(axis=0)
            return unit[token] @ mean / np.linalg.norm(mean)

        own = [cosine(i, [j for j in inside if j != i]) for i in inside]
        other = [cosine(i, inside) for i in outside]
        auc = np.mean([(a > b) + (a == b) / 2 for a in own for b in other])
        assert found == pytest.approx([np.mean(own), np.mean(other), auc], abs=1e-5)

    def test_boxes_with_too_little_in_or_around_them_are_left_out(self):
        boxes = [[0, 0, 0.3, 0.3], [0, 0, 0.05, 0.05], [0, 0, 1, 1], [0, 0, 0.5, 0.25]]
        found = self._measure(np.eye(16), boxes=boxes)
        assert np.isnan(found).all(axis=1).tolist() == [True, True, True, False]
        scores = coherence.score(found, np.array([0, 0, 1, 1]), draws_SN=statistics.draws(2))
        assert (scores.left_out, scores.figures["gap"].n, scores.figures["gap"].images) == (3, 1, 1)

    def test_padding_is_neither_inside_nor_outside(self):
        # A wide image: its lower half is padding, whose tokens are like those of the box.
        wide = Letterbox(width=40, height=20, size=40)
        tokens = _tokens((4, 4), [[1, 1, 0, 0]] * 2 + [[1, 1, 1, 1]] * 2, own=[1, 0], other=[0, 1])
        assert self._measure(tokens, frame=wide) == pytest.approx(np.array([[1, 0, 1]]))
        # A box of the whole image leaves nothing outside it, whatever the padding holds.
        assert np.isnan(self._measure(tokens, boxes=[[0, 0, 1, 1]], frame=wide)).all()

    def test_boxes_are_of_the_original_image(self):
        wide = Letterbox(width=40, height=20, size=40)
        upper_row = _tokens((4, 4), [[1] * 4] + [[0] * 4] * 3, own=[1, 0], other=[0, 1])
        assert self._measure(upper_row, boxes=[[0, 0, 1, 0.5]], frame=wide) == pytest.approx(np.array([[1, 0, 1]]))

    def test_tokens_of_zeros_give_no_nan(self):
        found = self._measure(np.zeros((16, 3)))
        assert found.tolist() == [[0, 0, 0.5]]

    def test_tokens_that_cancel_out_give_no_nan(self):
        found = self._measure([[1, 0], [-1, 0], [0, 1], [0, -1]], boxes=[[0, 0, 1, 0.5]], grid=(2, 2))
        assert found == pytest.approx(np.array([[-1, 0, 0]]))

    def test_figures_are_means_over_boxes(self):
        found = np.array([[0.8, 0.2, 0.9], [0.4, 0.2, 0.7], [np.nan, np.nan, np.nan]])
        scores = coherence.score(found, np.array([0, 1, 1]), draws_SN=statistics.draws(2))
        assert values(scores) == pytest.approx({"inside": 0.6, "outside": 0.2, "gap": 0.4, "auc": 0.8})
        assert (scores.left_out, scores.figures["auc"].n) == (1, 2)

    def test_no_boxes(self):
        assert self._measure(np.eye(16), boxes=np.zeros((0, 4))).shape == (0, 3)
        scores = coherence.score(np.zeros((0, 3)), np.zeros(0, dtype=int), draws_SN=statistics.draws(4))
        assert values(scores) == {"inside": 0, "outside": 0, "gap": 0, "auc": 0}

    def test_a_grid_that_does_not_fit(self):
        with pytest.raises(ValueError, match="16 tokens do not fill a grid of 3 x 5"):
            self._measure(np.eye(16), grid=(3, 5))
