"""The ablation's rows, labels, verdicts and report; what is trained is in tests/integration/test_ablation.py."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloc.ablation import report, runner
from cloc.ablation.compare import (
    FIGURES,
    PAPER_NOISE,
    Model,
    Score,
    Verdict,
    compare,
    difference,
    noise_of,
    paper_difference,
    read_scores,
)
from cloc.ablation.labels import Labels, _describe, _thin_out
from cloc.ablation.paper import CLOC_2B, PAPER
from cloc.ablation.rows import ROWS, LabelKind, select_rows
from cloc.cli.ablate import ablate
from cloc.config import Config, apply_overrides, load_preset, parse
from cloc.data.dataset import Dataset
from cloc.errors import ConfigError, DataError
from cloc.evaluation.summary import DASH, MINUS
from cloc.stage import StageResult


def demo(*overrides: str) -> Config:
    return parse(apply_overrides(load_preset("demo").model_dump(mode="json"), overrides), source="test")


# Rows.


def test_rows_are_the_papers_in_its_order_then_extensions() -> None:
    named = [row.paper for row in ROWS.values() if row.paper]
    # The base row trains on all region labels already: the paper's 2B row is what the row before it is compared with.
    expected = ["CLOC 300M region labels" if name == CLOC_2B else name for name in PAPER]
    assert named == expected
    assert [row.key for row in ROWS.values() if not row.paper] == ["plain-prompter", "pool-all"]
    assert all(row.reference in PAPER for row in ROWS.values())


@pytest.mark.parametrize("key", [key for key in ROWS if key != "cloc"])
def test_every_row_differs_from_the_base_row_in_what_it_names(key: str) -> None:
    row, config = ROWS[key], demo()
    assert not row.is_base(config)
    changes = row.changes(config)
    assert set(changes) == {item.partition("=")[0] for item in row.overrides} | (
        {"model.vision.width", "model.vision.layers"} if row.growth else set()
    )
    assert bool(changes) or row.objective == "clip" or row.labels is not LabelKind.ALL


@pytest.mark.parametrize(("preset", "sizes"), [("demo", (128, 4, 160, 5)), ("b16", (1020, 24, 1284, 32))])
def test_larger_encoders_grow_with_the_base_row(preset: str, sizes: tuple[int, ...]) -> None:
    found = []
    for key in ("larger", "largest"):
        vision = ROWS[key].config(load_preset(preset)).model.vision
        assert vision.width % 4 == 0
        found += [vision.width, vision.layers]
    assert tuple(found) == sizes


def test_a_checkpoint_has_no_larger_encoder() -> None:
    with pytest.raises(ConfigError, match=r"row larger: model\.init_from is 'openai/clip'"):
        ROWS["larger"].config(demo("model.init_from=openai/clip"))


def test_rows_by_default_and_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    config = demo()
    assert [row.key for row in select_rows(None, config)] == [row.key for row in ROWS.values() if row.default]
    assert [row.key for row in select_rows(["m2", "cloc"], config)] == ["cloc", "m2"]
    assert len(select_rows(["all"], config)) == len(ROWS)
    assert capsys.readouterr().out == ""


def test_rows_that_would_be_the_base_row_again_are_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_preset("b16")
    keys = [row.key for row in select_rows(None, config)]
    assert not {"plain-prompter", "pool-all"} & set(keys)
    assert "under these settings: plain-prompter, pool-all" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"pool-all \(model.prompter.pool=all\) is the row cloc itself"):
        select_rows(["cloc", "pool-all"], config)


@pytest.mark.parametrize(
    ("names", "message"), [(["cloc", "m3"], "no row 'm3'; there are: clip, cloc"), (["m2"], "lacks cloc")]
)
def test_wrong_rows_are_one_line(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select_rows(names, demo())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,x"], "--seeds '0,x': write different whole numbers"),
        (["--seeds", "1,1"], "--seeds '1,1': write different whole numbers"),
        (["--seeds", ""], "--seeds '': write different whole numbers"),
        (["-S", "train.seed=3"], "name the seeds there"),
        (["--rows", "nothing"], "no row 'nothing'"),
    ],
)
def test_wrong_arguments_are_one_line_and_nothing_is_made(tmp_path: Path, arguments: list[str], message: str) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(ablate, ["--preset", "demo", "--out", str(out), *arguments])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)
    assert not out.exists()


# Verdicts.


def score(value: float, half: float = 1.0) -> Score:
    return Score(value, value - half, value + half)


def test_noise_is_the_larger_of_spread_and_interval() -> None:
    base = [score(50.0), score(53.0)]
    assert noise_of([score(40.0), score(41.0)], base) == pytest.approx(3.0)
    assert noise_of([score(40.0, half=6.0), score(41.0, half=8.0)], base) == pytest.approx((6 + 8 + 1 + 1) / 4)
    assert noise_of([score(40.0)], [score(50.0)]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("row", "paper", "verdict"),
    [
        ((45.0, 46.0), -3.0, Verdict.AGREES),
        ((55.0, 56.0), 3.0, Verdict.AGREES),
        ((45.0, 46.0), 3.0, Verdict.DISAGREES),
        ((45.0, 46.0), -0.9, Verdict.DISAGREES),
        ((45.0, 46.0), -PAPER_NOISE, Verdict.AGREES),
        ((45.0, 46.0), 0.0, Verdict.DISAGREES),
        ((49.5, 50.5), -3.0, Verdict.NOISE),
        ((40.0, 52.0), -3.0, Verdict.NOISE),  # a mean beyond noise, but not for every seed
        ((45.0, 46.0), None, Verdict.NO_FIGURE),
    ],
)
def test_verdicts(row: tuple[float, float], paper: float | None, verdict: Verdict) -> None:
    found = difference([score(value) for value in row], [score(50.0), score(51.0)], paper=paper)
    assert found.verdict is verdict
    assert found.seeds == (row[0] - 50.0, row[1] - 51.0)
    assert found.mean == pytest.approx(sum(row) / 2 - 50.5)


def test_the_papers_differences_are_to_the_row_that_the_paper_compares_with() -> None:
    figures = {figure.key: figure for figure in FIGURES}
    assert paper_difference(ROWS["no-prompter"], figures["region"]) == -3.0
    assert paper_difference(ROWS["no-vesl"], figures["region"]) == -4.8
    assert paper_difference(ROWS["fewer-labels"], figures["i2t"]) == -3.1
    assert paper_difference(ROWS["clip"], figures["t2i"]) == -4.2
    assert paper_difference(ROWS["clip"], figures["region"]) is None
    assert paper_difference(ROWS["m2"], figures["grounding"]) is None
    assert paper_difference(ROWS["pool-all"], figures["i2t"]) is None


def metrics_of(names: list[str]) -> dict:
    def figure(key: str, value: float) -> dict:
        return {key: value, "interval": {key: [value - 0.01, value + 0.01]}}

    rows = [
        {"model": name, "reader": reader, "region": figure("mAcc", value)}
        for name in names
        for reader, value in (("crop", 0.1), ("prompter", 0.3))
    ]
    split = {"images": 8, "regions": 16, "classes": 4, "captions": 8, "rows": rows}
    split |= {
        "retrieval": {name: {"i2t": figure("R@1", 0.2), "t2i": figure("R@1", 0.25)} for name in names},
        "grounding": {name: figure("acc@0.5", 0.4) for name in names},
    }
    models = {name: {"steps": 2, "cpu_seconds": 7.0, "parameters": 99, "weights_sha256": "ab"} for name in names}
    return {"headline": {"split": "test"}, "splits": {"test": split}, "models": models}


def test_scores_are_those_of_the_headline_split_and_the_best_reader() -> None:
    scores = read_scores(metrics_of(["a"]), "a", grounds=True)
    assert {key: found.value for key, found in scores.items()} == pytest.approx(
        {"i2t": 20, "t2i": 25, "region": 30, "grounding": 40}
    )
    assert (scores["region"].low, scores["region"].high) == pytest.approx((29, 31))
    assert "grounding" not in read_scores(metrics_of(["a"]), "a", grounds=False)


# The report.


def model(row: str, seed: int, region: float, *, code: str = "c", grounds: bool = True) -> Model:
    scores = {"i2t": score(20.0), "t2i": score(30.0), "region": score(region)}
    scores |= {"grounding": score(10.0)} if grounds else {}
    name = f"{ROWS[row].title}, seed {seed}"
    return Model(row, seed, name, f"models/{row}-seed{seed}", scores, "Prompter", 800, 100.0, 1000, "w", code)


def result(*, code: str = "c") -> report.Result:
    rows = [ROWS[key] for key in ("clip", "cloc", "no-prompter", "m2", "pool-all")]
    region = {"clip": 10.0, "cloc": 50.0, "no-prompter": 40.0, "m2": 44.0, "pool-all": 49.5}
    models = [
        model(row.key, seed, region[row.key] + seed, grounds=row.key not in ("clip", "no-prompter"))
        for seed in (0, 1)
        for row in rows
    ]
    models[0] = replace(models[0], code=code)
    labels = Labels("c", "r", "d", "cloc data scenes", 100, 350, 700, 100)
    kinds = {LabelKind.ALL: labels, LabelKind.ALT_TEXT: replace(labels, regions_count=225, covered=83)}
    return report.Result(demo(), (0, 1), compare(rows, models), kinds, metrics_of([]))


def test_report_has_the_table_the_differences_and_what_they_say() -> None:
    text = report.to_markdown(result()).replace(MINUS, "-").replace(DASH, "-")
    assert (
        "| CLIP | 20.0 (20.0, 20.0) | 30.0 (30.0, 30.0) | 10.5 (10.0, 11.0) | - | 100 | CLIP | 66.3 / 45.1 | not"
        in text
    )
    assert "| M = 2 | region mAcc | -6.0 (-6.0, -6.0) | 1.0 | -0.3 (COCO mAcc, to 300M) | does not agree |" in text
    assert "- without Prompter (RoIAlign): region mAcc -10.0, in the paper -3.0." in text
    assert "- pool over all tokens: image→text R@1 0.0 (noise 1.0)" in text
    assert "800 steps of 32 images out of 100" in text
    assert "This is the demo's scale" in text
    assert "| without VESL | 2.2 | 3.1 | 83 % |" in text
    assert "`loss.grounding` l1_giou (l2)" in text
    order = [text.index(f"\n| {title} |") for title in ("CLIP", "CLOC", "without Prompter (RoIAlign)", "M = 2")]
    assert order == sorted(order)
    assert "different versions of the code" not in text
    assert "trained by 2 different versions of the code" in report.to_markdown(result(code="other"))


def test_one_seed_is_said_and_has_no_brackets() -> None:
    one = result()
    table = compare([item.row for item in one.table], [item.models[0] for item in one.table])
    text = report.to_markdown(replace(one, table=table, seeds=(0,)))
    assert "one seed (0), so that the spread between seeds is not known" in text
    assert "| M = 2 | 20.0 | 30.0 | 44.0 | 10.0 |" in text


def test_json_holds_every_seed_and_the_terminal_shows_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = report.write(result(), tmp_path)
    body = json.loads(Path(written["figures"]).read_text())
    assert [row["row"] for row in body["rows"]] == ["clip", "cloc", "no-prompter", "m2", "pool-all"]
    m2 = body["rows"][3]
    assert [item["scores"]["region"]["value"] for item in m2["models"]] == [44.0, 45.0]
    assert m2["differences"]["region"] == {
        "seeds": [-6.0, -6.0],
        "mean": -6.0,
        "noise": 1.0,
        "paper": -0.3,
        "verdict": "does not agree",
    }
    assert m2["changes"] == {"loss.max_regions": 2}
    assert body["paper"]["CLIP"]["i2t"] == 66.3
    assert body["rows"][0]["mean"]["grounding"] is None
    report.print_result(result())
    printed = capsys.readouterr().out
    assert "40.5 [67.1]" in printed
    assert report.brief(result().table) in printed
    assert "8 differences to CLOC stand beside the paper's: 1 agreeing, 1 not agreeing, 6 within noise." in printed


# Labels and folders.


def test_fewer_region_labels_keep_whole_images_of_a_share(tmp_path: Path, make_dataset) -> None:
    data = Dataset.open(make_dataset(tmp_path / "data", 40, shard_size=20))
    root = str(tmp_path / "fewer")
    _thin_out(data, root, share=0.4)
    thin = Dataset.open(tmp_path / "data", regions=root)
    whole, kept = ({}, {})
    for shard in data.manifest.shards:
        whole |= data.rows("regions", shard)
        kept |= thin.rows("regions", shard)
    assert 8 <= len(kept) <= 24
    assert all(rows == whole[key] for key, rows in kept.items())
    found = _describe(str(tmp_path / "data"), str(tmp_path / "data"), root)
    assert (found.images, found.covered, found.regions_count) == (40, len(kept), 2 * len(kept))
    assert found.words_per_region == 2.0
    stamps = {path: path.stat().st_mtime_ns for path in Path(root).rglob("*.parquet")}
    _thin_out(data, root, share=0.4)
    assert {path: path.stat().st_mtime_ns for path in Path(root).rglob("*.parquet")} == stamps
    _thin_out(data, root, share=0.1)
    assert sum(len(thin.rows("regions", shard)) for shard in thin.manifest.shards) < len(kept)
    with pytest.raises(DataError, match="is the source of the regions"):
        _thin_out(data, str(tmp_path / "data"), share=0.4)


@pytest.fixture
def stage_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trainings that were started; each leaves what a finished one leaves."""
    calls: list[str] = []

    def run_stage(name: str, config: Config, *, inputs: dict, outputs: dict) -> StageResult:
        calls.append(f"{Path(outputs['model']).name} {inputs['objective']} seed {config.train.seed}")
        (Path(outputs["model"]) / "training.json").write_text("{}")
        return StageResult(name)

    monkeypatch.setattr(runner, "run_stage", run_stage)
    return calls


def plan(folder: Path, *overrides: str, seeds: tuple[int, ...] = (0, 1), digest: str = "d") -> list[runner.Run]:
    labels = dict.fromkeys(LabelKind, Labels("c", "r", digest, "", 1, 1, 1, 1))
    return runner.plan(demo(*overrides), rows=[ROWS["clip"], ROWS["cloc"]], seeds=seeds, labels=labels, models=folder)


def test_what_is_trained_is_not_trained_again(tmp_path: Path, stage_calls: list[str]) -> None:
    runner.train(plan(tmp_path, seeds=(0,)), data="data")
    assert stage_calls == ["clip-seed0 clip seed 0", "cloc-seed0 cloc seed 0"]
    (tmp_path / "cloc-seed0" / "training.json").unlink()  # a stopped training
    (tmp_path / "cloc-seed0" / "checkpoints" / "step-00000001").mkdir(parents=True)
    runner.train(plan(tmp_path, "train.log_every=7", "evaluation.pictures=1"), data="data")
    assert stage_calls[2:] == ["cloc-seed0 cloc seed 0", "clip-seed1 clip seed 1", "cloc-seed1 cloc seed 1"]


@pytest.mark.parametrize(("overrides", "digest"), [(("train.steps=7",), "d"), ((), "other")])
def test_other_settings_or_labels_do_not_mix_into_a_folder(
    tmp_path: Path, stage_calls: list[str], overrides: tuple[str, ...], digest: str
) -> None:
    runner.train(plan(tmp_path, seeds=(0,)), data="data")
    with pytest.raises(
        ConfigError, match=r"clip-seed0 was trained with other settings, data or labels than CLIP, seed 0"
    ):
        plan(tmp_path, *overrides, digest=digest)
    (tmp_path / "clip-seed0" / runner.RECORD_FILE).unlink()
    with pytest.raises(ConfigError, match="clip-seed0 holds a model that is not of this ablation"):
        plan(tmp_path)
