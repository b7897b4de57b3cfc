"""The expectations of our own, the sums that they and the limits are judged by, and the levels of checks."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest

from cloc.config import Config
from cloc.config.schema import ValidationConfig
from cloc.errors import ConfigError, DataError

pytest.importorskip("great_expectations")

from cloc.validation import passes, texts
from cloc.validation.distributions import distance
from cloc.validation.drift import Reference
from cloc.validation.engine import Engine, Suite
from cloc.validation.expectations import (
    BOX,
    ExpectBoxesFinite,
    ExpectBoxesInsideImage,
    ExpectBoxesOrdered,
    ExpectKeysKnown,
    ExpectTextComplete,
    ExpectTextNotGarbled,
    ExpectTextWithoutMarkup,
)
from cloc.validation.languages import language_share
from cloc.validation.passes import Sums, check_shards
from cloc.validation.sketches import CommonTexts, DistinctTexts, MostCommon
from cloc.validation.suites import suites

NAN = math.nan


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def broken(engine: Engine, expectation: Any, frame: pd.DataFrame) -> list[int]:
    """Positions of the rows that break an expectation, as Great Expectations says."""
    (result,) = Suite(engine._context, name=uuid4().hex, expectations=[expectation]).judge(frame)
    assert not result.exception_info.get("raised_exception")
    return list(result.result["unexpected_index_list"])


def box_frame(*rows: Sequence[float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=BOX, dtype="float64")


def test_boxes_inside_their_image(engine: Engine) -> None:
    frame = box_frame((0, 0, 1, 1), (-0.01, 0, 1, 1), (0, 0, 1, 1.01), (10, 20, 30, 40), (0, NAN, 1, 1), (NAN,) * 4)
    assert broken(engine, ExpectBoxesInsideImage(column_list=BOX), frame) == [1, 2, 3]


def test_boxes_in_order(engine: Engine) -> None:
    frame = box_frame((0, 0, 1, 1), (0.5, 0, 0.5, 1), (0, 0.9, 1, 0.1), (NAN, 0, 1, 1))
    assert broken(engine, ExpectBoxesOrdered(column_list=BOX), frame) == [1, 2]


def test_boxes_finite(engine: Engine) -> None:
    frame = box_frame((0, 0, 1, 1), (0, NAN, 1, 1), (NAN,) * 4, (0, 0, math.inf, 1))
    assert broken(engine, ExpectBoxesFinite(column_list=BOX), frame) == [1, 2, 3]


def test_keys_known(engine: Engine) -> None:
    assert broken(engine, ExpectKeysKnown(column="images"), pd.DataFrame({"images": [1, 0, 2]})) == [1]


CLEAN = (
    "a café in Paris", "the woman\u2019s hat", "Красный дом", "赤い家の前の犬", "a plain text",
    "5 ° below zero \u2013 cold",
)  # fmt: skip
GARBLED = (*(text.encode().decode("latin-1") for text in CLEAN[:3]), "a broken \ufffd sign")


def test_text_not_garbled(engine: Engine) -> None:
    frame = pd.DataFrame({"text": [*CLEAN, None, *GARBLED]})
    assert broken(engine, ExpectTextNotGarbled(column="text"), frame) == [7, 8, 9, 10]


def test_text_without_markup(engine: Engine) -> None:
    clean = ("3 < 5 and 7 > 2", "Rock & Roll; a poster", "tab\there", "the http of things", None)
    marked = (
        "<b>bold</b>",
        "a&nbsp;b",
        "it&#39;s",
        "see https://example.com",
        "WWW.example.com",
        "bell\x07",
        "\u202eabc",
    )
    frame = pd.DataFrame({"text": [*clean, *marked]})
    assert broken(engine, ExpectTextWithoutMarkup(column="text"), frame) == list(range(5, 12))


def test_text_complete(engine: Engine) -> None:
    whole = ("a dog on a sofa", "a dog on a sofa.", "A Dog On A Sofa ", "letters a to z", "the van", None)
    cut = ("a dog on a", "a dog with THE ", "a dog, a cat,", "a dog (black", "a dog…", "a dog and a cat left of the")
    frame = pd.DataFrame({"text": [*whole, *cut]})
    found = broken(engine, ExpectTextComplete(column="text"), frame)
    assert found == [6, 7, 8, 10, 11]  # a bracket that is open further back is not looked for
    assert broken(engine, ExpectTextComplete(column="text", language="de"), frame) == [8, 10]


@pytest.mark.parametrize(
    ("expectation", "words"),
    [
        (ExpectBoxesInsideImage(column_list=BOX, mostly=0.99), "inside their image: all coordinates from 0 to 1"),
        (ExpectBoxesOrdered(column_list=BOX), "corners of boxes must be in order"),
        (ExpectBoxesFinite(column_list=BOX), "four finite coordinates"),
        (ExpectKeysKnown(column="images"), "must belong to an image"),
        (ExpectTextNotGarbled(column="text"), "wrong encoding"),
        (ExpectTextWithoutMarkup(column="text"), "HTML or web addresses"),
        (ExpectTextComplete(column="text", mostly=0.98), "in at least 98 % of the rows"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_docs_say_it_in_words(expectation: Any, words: str) -> None:
    (content,) = expectation._prescriptive_renderer(configuration=expectation.configuration)
    template = content.to_json_dict()["string_template"]
    assert words in template["template"]
    assert "expectation_type" not in template["template"]
    if "$column" in template["template"]:
        assert template["params"]["column"] == "text"
    expectation.render()
    assert words in expectation.rendered_content[0].value.template


def test_normalised_texts_are_found_by_whole_words() -> None:
    sentence, word, part = texts.normalised(pd.Series(["A Red-Car, parked.", "red car", "red ca"]))
    assert word in sentence
    assert part not in sentence
    assert texts.normalised(pd.Series(["Café, ÉTÉ"])) == [" café été "]


def stream(count: int, *, seed: int = 0) -> list[str]:
    """Texts of which some come again and one comes often."""
    rng = np.random.default_rng(seed)
    return ["the same"] * (count // 5) + [f"text {number}" for number in rng.integers(0, 2 * count, count - count // 5)]


def test_distinct_texts_are_the_same_however_they_were_split() -> None:
    values = stream(5000)
    whole, parts = DistinctTexts(capacity=200), DistinctTexts(capacity=200)
    whole.add(pd.Series(values))
    for first in range(0, len(values), 700):
        part = DistinctTexts(capacity=200)
        part.add(pd.Series(values[first : first + 700]))
        parts.merge(part)
    assert whole.to_json() == parts.to_json()
    exact = Counter(values)
    assert all(exact[text] == count for text, count in zip(whole.texts, whole.counts, strict=True))
    assert DistinctTexts.from_json(json.loads(json.dumps(whole.to_json()))).to_json() == whole.to_json()


def test_repeated_share_is_exact_for_few_and_near_for_many() -> None:
    few = DistinctTexts()
    few.add(pd.Series(["a", "b", "b", "c"]))
    assert few.repeated_share == 0.5
    values = stream(60_000)
    many = DistinctTexts(capacity=2048)
    many.add(pd.Series(values))
    exact = Counter(values)
    assert many.distinct == pytest.approx(len(exact), rel=0.07)
    share = sum(count for count in exact.values() if count > 1) / len(values)
    assert many.repeated_share == pytest.approx(share, abs=0.06)
    common = CommonTexts()
    common.add(values)
    squares = many.sum_over(lambda counts: counts.astype(float) ** 2, common)
    assert squares == pytest.approx(sum(count**2 for count in exact.values()), rel=0.05)


def test_most_common_values_survive_merging() -> None:
    merged = MostCommon(capacity=20)
    for seed in range(10):
        part = MostCommon(capacity=20)
        part.add(stream(500, seed=seed))
        merged.merge(part)
    value, count = merged.top()
    assert value == "the same"
    assert 1000 - 5000 / 20 <= count <= 1000
    assert merged.total == 5000
    assert len(merged.counts) <= 20
    assert MostCommon.from_json(json.loads(json.dumps(merged.to_json()))).to_json() == merged.to_json()


def test_distance_of_histograms() -> None:
    assert distance([10, 0], [0, 10]) == pytest.approx(1.0, abs=0.2)
    assert distance([10**6, 0], [0, 10**6]) == pytest.approx(1.0, abs=1e-3)
    assert distance([500, 300, 200], [5000, 3000, 2000]) == 0.0
    assert distance([], []) == distance([0, 0], [3, 4]) == 0.0
    # By hand: p (0.5, 0.5), q (0.75, 0.25): 1/2 KL(p|m) + 1/2 KL(q|m) with m (0.625, 0.375).
    by_hand = 0.5 * (0.5 * math.log2(0.5 / 0.625) + 0.5 * math.log2(0.5 / 0.375))
    by_hand += 0.5 * (0.75 * math.log2(0.75 / 0.625) + 0.25 * math.log2(0.25 / 0.375))
    assert distance([5 * 10**7, 5 * 10**7], [75 * 10**6, 25 * 10**6]) == pytest.approx(math.sqrt(by_hand), rel=1e-5)


def test_two_draws_of_one_distribution_are_no_drift() -> None:
    rng = np.random.default_rng(0)
    draws = [np.bincount(rng.integers(0, 10, 300), minlength=10).tolist() for _ in range(40)]
    assert max(distance(draws[0], other) for other in draws[1:]) < 0.1


def test_language_of_a_sample() -> None:
    sample = DistinctTexts()
    english = [f"a man rides a horse along the beach near house {number}" for number in range(30)]
    german = [f"ein Mann reitet am Strand in der Nähe von Haus {number}" for number in range(10)]
    sample.add(pd.Series([*english, *german, "ok"]))
    assert language_share(sample, code="en") == 0.75
    assert language_share(DistinctTexts(), code="en") is None
    with pytest.raises(ConfigError, match=r"validation\.language: 'english' is no language that can be told; use one"):
        language_share(sample, code="english")


def levels(**settings: Any) -> dict[str, str]:
    return {check.id: check.level for check in suites(Config(validation=ValidationConfig(**settings))).all}


def test_levels_are_set_by_id_and_by_prefix() -> None:
    assert levels()["captions/text_plain"] == "fail"
    assert levels()["set/repeated_captions"] == "warn"
    found = levels(warn=["captions/", "set/images"], fail=["captions/text_plain", "set/"])
    assert found["captions/text_short"] == "warn"
    assert found["captions/text_plain"] == "fail"
    assert found["set/images"] == "warn"
    assert found["set/repeated_captions"] == "fail"
    assert found["regions/box_inside"] == "fail"


def test_ids_of_checks_are_unique() -> None:
    ids = [check.id for check in suites(Config()).all]
    assert len(ids) == len(set(ids))


def test_unknown_check_is_named_with_those_near_it() -> None:
    with pytest.raises(ConfigError, match=r"validation\.warn: there is no check 'captions/text_plane'.*text_plain"):
        levels(warn=["captions/text_plane"])
    with pytest.raises(ConfigError, match=r"validation\.fail: there is no check 'boxes/'; near it are: .*regions/"):
        levels(fail=["boxes/"])
    with pytest.raises(ValueError, match="warn and fail both name 'set/'"):
        ValidationConfig(warn=("set/",), fail=("set/",))


def test_findings_are_the_same_for_any_number_of_processes(
    tmp_path: Path, make_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloc.data.dataset import Dataset

    monkeypatch.setattr(passes, "_BLOCK_IMAGES", 20)
    dataset = Dataset.open(make_dataset(tmp_path / "data", 60, shard_size=10))
    one, two = (check_shards(Config(validation=ValidationConfig(processes=processes)), dataset) for processes in (1, 2))
    assert len(passes._blocks(Config(), dataset, kept="")) == 3
    assert one.sums.to_json() == two.sums.to_json()
    assert one.samples.pictures() == two.samples.pictures()
    body = json.loads(json.dumps(one.sums.to_json()))
    assert Sums.from_json(body).to_json() == one.sums.to_json()
    assert Sums.from_json(body).summary.numbers() == one.sums.summary.numbers()
    assert one.sums.summary.images == 60
    assert one.sums.tallies["regions/box_inside"].elements == 120


def test_reference_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"validation\.reference '.*nowhere': there is no validation\.json; name"):
        Reference.load(str(tmp_path / "nowhere"))
    (tmp_path / "validation.json").write_text('{"histograms": 3}')
    with pytest.raises(DataError, match="not the JSON of a validation report"):
        Reference.load(str(tmp_path))
    (tmp_path / "validation.json").write_text('{"histograms": {}, "numbers": {}}')
    reference = Reference.load(str(tmp_path / "validation.json"))
    with pytest.raises(DataError, match="'regions_per_image' is absent or has other bins; validate the reference"):
        reference.numbers_of(Sums().summary)
