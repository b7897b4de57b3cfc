"""The demo data set: determinism, exact boxes, what stays unseen, true captions, the data contract."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cloc.config import Config, parse
from cloc.data.dataset import Dataset
from cloc.data.scenes import attributes, captions, render, splits, stage, wording
from cloc.data.scenes.alt_text import alt_text, region_text
from cloc.data.scenes.glyphs import character, stamp
from cloc.data.scenes.vocabulary import (
    KINDS,
    TINTS,
    TRAINED_KINDS,
    UNSEEN_KINDS,
    Kind,
    Size,
    trained_pairs,
    unseen_kind_pairs,
    unseen_pairs,
)
from cloc.errors import ClocError
from cloc.evaluation.class_data import open_classes

KIND_BY_NAME = {kind.name: kind for kind in KINDS}
SIZES = {"train": 20, "seed": 4, "val": 4, "test": 6, "unseen_pairs": 6, "unseen_kinds": 6}


def _config(*, processes: int = 1, seed: int = 3, **scenes: int) -> Config:
    images = {f"{split}_images": count for split, count in SIZES.items()}
    section = {"seed": seed, "image_size": 64, **images, **scenes}
    tree = {"data": {"processes": processes, "images_per_shard": 8, "scenes": section}}
    return parse(tree, source="test")


def _run(folder: Path, config: Config) -> dict[str, bytes]:
    stage.run(config, inputs=stage.Inputs(), outputs=stage.Outputs(data=str(folder)))
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    _run(folder, _config())
    return folder


@pytest.fixture(scope="module")
def scenes() -> list[render.Scene]:
    pairs = trained_pairs() + unseen_kind_pairs()
    return [render.render(np.random.default_rng([5, i]), pairs=pairs, size=96, closeup_share=0.4) for i in range(120)]


def test_vocabulary_has_the_promised_sizes_and_distinct_names() -> None:
    assert (len(TRAINED_KINDS), len(UNSEEN_KINDS), len(TINTS)) == (80, 30, 8)
    names = [kind.name for kind in KINDS]
    assert len(set(names)) == len(names)
    assert len({character(kind) for kind in KINDS}) == len(names)
    assert not {tint.name for tint in TINTS} & set(names)
    assert all(name == name.lower() and len(name.split()) <= 2 for name in names)


def test_held_out_pairs_are_a_tenth_and_every_kind_keeps_its_other_tints() -> None:
    held_out, shown = set(unseen_pairs()), set(trained_pairs())
    assert len(held_out) == 64
    assert not held_out & shown
    assert len(held_out | shown) == 640
    assert {sum(tint == other for _, other in held_out) for tint in TINTS} == {8}
    assert {sum(kind == other for other, _ in shown) for kind in TRAINED_KINDS} <= {7, 8}


def test_unknown_glyph_is_one_clear_error() -> None:
    with pytest.raises(ClocError, match="no solid icon 'no-such-icon'"):
        character(Kind("thing", "no-such-icon", "things"))


@pytest.mark.parametrize("angle", [-25.0, 0.0, 17.0])
def test_box_is_tight_around_what_is_drawn_in_the_picture(angle: float) -> None:
    """The mask pasted into an empty picture, partly outside: the box is exactly that of its pixels."""
    for kind in (KIND_BY_NAME["guitar"], KIND_BY_NAME["bicycle"], KIND_BY_NAME["clock"]):
        drawn = stamp(kind, extent=60, angle=angle)
        left, top = 30 - drawn.body.shape[1] // 2, 64 - drawn.body.shape[0] // 2  # partly outside, on the left
        box = render.silhouette_box(drawn.body, left=left, top=top, width=128, height=128)
        canvas = Image.new("L", (128, 128))
        canvas.paste(255, (left, top), Image.fromarray(np.ascontiguousarray(drawn.body)))
        rows, columns = np.nonzero(np.asarray(canvas) >= 128)
        expected = (columns.min() / 128, rows.min() / 128, (columns.max() + 1) / 128, (rows.max() + 1) / 128)
        assert box == pytest.approx(expected)


def test_boxes_are_tight_in_rendered_pictures() -> None:
    """A lone red star on a muted backdrop: red pixels reach the edges of the box, and none lies outside."""
    checked = 0
    for index in range(60):
        rng = np.random.default_rng([11, index])
        scene = render.render(rng, pairs=[(KIND_BY_NAME["star"], TINTS[0])], size=128, closeup_share=1.0)
        if len(scene.objects) != 1 or scene.objects[0].visible < 1:
            continue
        pixels = scene.pixels.astype(int)
        red = (pixels[..., 0] - pixels[..., 1:].max(axis=2)) > 90
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        height, width = red.shape
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(found - np.array(scene.objects[0].box) * [width, height, width, height]).max() <= 2.5
        checked += 1
    assert checked >= 15


def test_scenes_and_closeups_have_the_promised_numbers_of_visible_objects(scenes: list[render.Scene]) -> None:
    for scene in scenes:
        assert len(scene.objects) in (range(1, 3) if scene.closeup else range(3, 9))
        assert scene.pixels.dtype == np.uint8
        assert max(scene.pixels.shape[:2]) == 96
        for item in scene.objects:
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1
            assert item.visible >= render.MIN_VISIBLE
    assert {scene.closeup for scene in scenes} == {False, True}
    assert len({scene.pixels.shape for scene in scenes}) > 3


@pytest.mark.parametrize(("share", "expected"), [(0.0, {False}), (1.0, {True})])
def test_closeup_share_is_obeyed(share: float, expected: set[bool]) -> None:
    made = [render.render(np.random.default_rng(i), pairs=trained_pairs(), closeup_share=share) for i in range(10)]
    assert {scene.closeup for scene in made} == expected


def test_captions_name_every_object_with_its_number(scenes: list[render.Scene]) -> None:
    for index, scene in enumerate(scenes):
        text = f" {captions.caption(np.random.default_rng(index), scene)} ".replace(",", " ")
        groups = {(item.kind, item.tint): 0 for item in scene.objects}
        for item in scene.objects:
            groups[item.kind, item.tint] += 1
        for (kind, tint), count in groups.items():
            phrases = [wording.indefinite(kind, tint, size, count=count) for size in (None, *Size)]
            assert any(f" {phrase} " in text for phrase in phrases), (phrases, text)


def test_relations_are_true_by_the_boxes(scenes: list[render.Scene]) -> None:
    checked = 0
    for index, scene in enumerate(scenes):
        rng = np.random.default_rng(index)
        for clause in captions.plan(rng, captions.group(rng, scene.objects)):
            if clause.relation is None:
                continue
            assert clause.other is not None
            for one, two in itertools.product(clause.subject.objects, clause.other.objects):
                dx = (two.box[0] + two.box[2] - one.box[0] - one.box[2]) / 2
                dy = (two.box[1] + two.box[3] - one.box[1] - one.box[3]) / 2
                distance = {"left": dx, "right": -dx, "above": dy, "below": -dy}[clause.relation.value]
                assert distance > 0.05
            checked += 1
    assert checked > 80


def test_every_group_is_introduced_once_and_references_are_to_earlier_ones(scenes: list[render.Scene]) -> None:
    for index, scene in enumerate(scenes):
        rng = np.random.default_rng(index)
        groups = captions.group(rng, scene.objects)
        introduced: list[captions.Group] = []
        for clause in captions.plan(rng, groups):
            introduced.append(clause.subject)
            if clause.again:
                assert clause.other in introduced
            elif clause.other is not None:
                introduced.append(clause.other)
        assert sorted(map(id, introduced)) == sorted(map(id, groups))


@pytest.mark.parametrize(
    ("name", "tint", "size", "count", "expected"),
    [
        ("apple", 1, None, 1, "an orange apple"),
        ("hourglass", None, None, 1, "an hourglass"),
        ("key", 0, Size.LARGE, 1, "a large red key"),
        ("scissors", 0, Size.SMALL, 1, "a pair of small red scissors"),
        ("scissors", 0, None, 2, "two pairs of red scissors"),
        ("leaf", 4, None, 3, "three blue leaves"),
        ("bus", 4, None, 2, "two blue buses"),
        ("piggy bank", 4, None, 2, "two blue piggy banks"),
        ("wrench", None, None, 4, "four wrenches"),
        ("fish", 2, None, 2, "two yellow fish"),
    ],
)
def test_noun_phrases(name: str, tint: int | None, size: Size | None, count: int, expected: str) -> None:
    colour = None if tint is None else TINTS[tint]
    assert wording.indefinite(KIND_BY_NAME[name], colour, size, count=count) == expected


def test_alt_text_misses_objects_and_has_web_words(scenes: list[render.Scene]) -> None:
    texts = [alt_text(np.random.default_rng(index), scene) for index, scene in enumerate(scenes)]
    assert all(texts)
    complete = sum(
        all(item.kind.name in text.lower().replace("-", " ") for item in scene.objects)
        for text, scene in zip(texts, scenes, strict=True)
    )
    assert 0.1 < complete / len(texts) < 0.9
    joined = " ".join(texts).lower()
    assert all(word in joined for word in ("photo", "download", "free stock image", ".jpg"))


def test_region_texts_are_mostly_tint_and_kind(scenes: list[render.Scene]) -> None:
    items = [item for scene in scenes for item in scene.objects]
    texts = [region_text(np.random.default_rng(index), item) for index, item in enumerate(items)]
    plain = sum(text == f"{item.tint.name} {item.kind.name}" for text, item in zip(texts, items, strict=True))
    assert all(text.endswith(item.kind.name) for text, item in zip(texts, items, strict=True))
    assert plain > len(texts) / 2


def test_same_bytes_with_one_and_two_processes(collection: Path, tmp_path: Path) -> None:
    first = {str(path.relative_to(collection)): path.read_bytes() for path in collection.rglob("*") if path.is_file()}
    second = _run(tmp_path, _config(processes=2))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_another_seed_gives_other_pictures(collection: Path, tmp_path: Path) -> None:
    config = _config(seed=4, train_images=0, seed_images=0, val_images=0, unseen_pairs_images=0, unseen_kinds_images=0)
    other = _run(tmp_path, config)
    assert sorted({name.split("/")[0] for name in other}) == ["test"]
    assert other["test/images/00000.tar"] != (collection / "test/images/00000.tar").read_bytes()


def test_a_finished_collection_is_skipped_and_a_partial_one_completed(tmp_path: Path) -> None:
    config, place = _config(), stage.Outputs(data=str(tmp_path))
    before = _run(tmp_path, config)
    again = stage.run(config, inputs=stage.Inputs(), outputs=place)
    assert (again.counts["rendered"], again.counts["images"]) == (0, sum(SIZES.values()))
    (tmp_path / "train/manifest.json").unlink()
    (tmp_path / "train/regions/00001.parquet").unlink()
    tar = tmp_path / "train/images/00002.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    repaired = stage.run(config, inputs=stage.Inputs(), outputs=place)
    assert repaired.counts["rendered"] == 8 + 4
    after = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_other_settings_replace_what_was_there(tmp_path: Path) -> None:
    _run(tmp_path, _config())
    result = stage.run(_config(seed=9), inputs=stage.Inputs(), outputs=stage.Outputs(data=str(tmp_path)))
    assert result.counts["rendered"] == sum(SIZES.values())
    assert Dataset.open(tmp_path / "test").manifest.made_by["seed"] == 9


def test_collection_follows_the_contract(collection: Path) -> None:
    keys: set[str] = set()
    for split, count in SIZES.items():
        data = Dataset.open(collection / split)
        assert data.manifest.images == count
        assert data.manifest.classes == tuple(kind.name for kind in KINDS)
        for item in data.read_all():
            sample = item.sample
            assert sample.key not in keys
            keys.add(sample.key)
            picture = Image.open(io.BytesIO(sample.image))
            assert picture.size == (sample.meta["width"], sample.meta["height"])
            assert {"alt_text", "source", "licence"} <= sample.meta.keys()
            assert [(row["kind"], bool(row["text"])) for row in item.captions] == [("human", True)]
            assert item.regions
            for row in item.regions:
                assert (row["source"], row["score"]) == ("human", 1.0)
                assert row["label"] in data.manifest.classes
    assert "train-00000012" in keys


def test_unseen_kinds_and_pairs_stay_unseen(collection: Path) -> None:
    held_out = {f"{tint.name} {kind.name}" for kind, tint in unseen_pairs()}
    unseen, trained = {kind.name for kind in UNSEEN_KINDS}, {kind.name for kind in TRAINED_KINDS}
    for split in SIZES:
        rows = [row for item in Dataset.open(collection / split).read_all() for row in item.regions]
        assert {row["label"] for row in rows} <= (unseen if split == "unseen_kinds" else trained)
        pairs = {text for row in rows if (text := row["text"].removeprefix("small ").removeprefix("large "))}
        named = {text for text in pairs if text.split()[0] in {tint.name for tint in TINTS}}
        assert named
        if split == "unseen_pairs":
            assert named <= held_out
        else:
            assert not named & held_out


@pytest.mark.parametrize("split", ["train", "seed", "val", "test"])
def test_no_held_out_pair_is_ever_drawn_for_the_trained_splits(split: str) -> None:
    allowed = set(splits.SPLITS[split]())
    assert not allowed & set(unseen_pairs())
    job = splits.ShardJob("", split, "00000", start=0, stop=60, seed=0, image_size=64, closeup_share=0.2)
    for index in range(job.start, job.stop):
        _, scene = splits.picture(job, index)
        assert {(item.kind, item.tint) for item in scene.objects} <= allowed


# --- questions about attributes


@pytest.mark.parametrize(
    ("text", "kind", "one", "two"),
    [
        ("key", "key", 0, 0),
        ("red key", "key", 7, 0),
        ("large red key", "key", 7 + 1, 7),
        ("small orange candy cane", "candy cane", 7 + 1, 7),
    ],
)
def test_hard_negatives_change_one_or_two_attributes(text: str, kind: str, one: int, two: int) -> None:
    found = attributes.hard_negatives(text, kind)
    assert {level: len(texts) for level, texts in found.items()} == {
        level: count for level, count in zip(attributes.LEVELS, (one, two), strict=True) if count
    }
    for changes, level in enumerate(attributes.LEVELS, start=1):
        for negative in found.get(level, []):
            assert negative.endswith(f" {kind}")
            assert sum(a != b for a, b in zip(negative.split(), text.split(), strict=True)) == changes
        assert len(set(found.get(level, []))) == len(found.get(level, []))


def test_the_texts_of_a_scene_have_hard_negatives_that_are_wrong_for_it(scenes: list[render.Scene]) -> None:
    rng, asked = np.random.default_rng(0), 0
    for item in (item for scene in scenes for item in scene.objects):
        text = region_text(rng, item)
        right = {wording.name(item.kind, item.tint, size) for size in (None, item.size)}
        for negatives in attributes.hard_negatives(text, item.kind.name).values():
            asked += 1
            assert not right & set(negatives)
    assert asked > 200


def test_evaluated_splits_ask_about_every_region_that_states_an_attribute(collection: Path) -> None:
    for split in SIZES:
        data = Dataset.open(collection / split)
        for shard in data.manifest.shards:
            asked = data.rows("attributes", shard)
            if split in ("train", "seed"):
                assert not asked
                continue
            for key, regions in data.rows("regions", shard).items():
                place = [
                    (*(row[name] for name in ("x1", "y1", "x2", "y2", "text")), level)
                    for row in regions
                    for level in attributes.hard_negatives(row["text"], row["label"])
                ]
                rows = asked.pop(key, [])
                assert [tuple(row[n] for n in ("x1", "y1", "x2", "y2", "text", "level")) for row in rows] == place
                assert all(len(row["negatives"]) >= 7 for row in rows)
            assert not asked
            data.check(shard)


def test_questions_are_added_to_pictures_that_were_rendered_before(tmp_path: Path) -> None:
    config, place = _config(train_images=0, seed_images=0), stage.Outputs(data=str(tmp_path))
    before = _run(tmp_path, config)
    for path in tmp_path.glob("*/attributes/*.parquet"):
        path.unlink()
    again = stage.run(config, inputs=stage.Inputs(), outputs=place)
    assert again.counts["rendered"] == 0
    after = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


# --- the classification set


def test_classification_set_shows_one_kind_a_picture(tmp_path: Path) -> None:
    none = dict.fromkeys((f"{split}_images" for split in SIZES), 0)
    before = _run(tmp_path, _config(**none, class_images=1))
    found = open_classes(tmp_path / "classes")
    assert found.classes == tuple(kind.name for kind in TRAINED_KINDS)
    assert (found.test.images, found.notes) == (len(TRAINED_KINDS), ())
    assert np.bincount(found.test.labels).tolist() == [1] * len(TRAINED_KINDS)
    bodies = {image.body for chunk in found.test.chunks for image in chunk.read()}
    assert len(bodies) == found.test.images
    assert {max(Image.open(io.BytesIO(body)).size) for body in bodies} == {64}
    assert _run(tmp_path, _config(**none, class_images=1)) == before
    assert open_classes(tmp_path / "classes").digest == found.digest
    _run(tmp_path, _config(**none, class_images=2))
    assert open_classes(tmp_path / "classes").test.images == 2 * len(TRAINED_KINDS)
