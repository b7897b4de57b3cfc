"""The stage `teachers`, and labelling with what it made: from a labelled split to captions and regions."""

import json
from pathlib import Path

import pytest

from cloc.config import Config
from cloc.data.dataset import Dataset
from cloc.errors import ConfigError, DataError
from cloc.labeling import captioning, grounding
from cloc.labeling.teachers import stage
from cloc.stage import StageResult


def settings(**changes) -> Config:
    """Teachers of a few steps, with `section__key=value` changes."""
    tree = {
        "data": {"train_split": "train", "processes": 1, "quarantine_limit": 1.0},
        "teachers": {
            "vision": {"width": 32, "layers": 1, "heads": 2, "image_size": 32, "patch_size": 8},
            "distances": (),
            "detector": {"text": {"width": 32, "layers": 1, "heads": 2}, "steps": 3, "batch_size": 4, "threads": 1},
            "captioner": {
                "decoder": {"width": 48, "layers": 1, "heads": 2},
                "steps": 3,
                "batch_size": 4,
                "context_length": 24,
                "threads": 1,
            },
            "vocab_size": 600,
            "held_out": 0.3,
        },
        "captioning": {
            "model": "",
            "alt_text_prompt": "{alt_text} :",
            "dtype": "float32",
            "batch_size": 8,
            "generation": {"max_new_tokens": 8},
            "guards": {"min_words": 1, "repeated_ngram": 0},
        },
        "grounding": {"model": "", "phrases": "captions_and_alt_text", "image_size": 0, "score_threshold": 0.0},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        tree[section][key] = value
    return Config.model_validate(tree)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.conftest import write_dataset

    folder = tmp_path_factory.mktemp("teachers") / "data"
    write_dataset(folder / "seed", 24)
    write_dataset(folder / "train", 8, seed=1)
    return folder


def fit(config: Config, data: Path, out: Path) -> StageResult:
    return stage.run(config, inputs=stage.Inputs(data=str(data)), outputs=stage.Outputs(teachers=str(out)))


@pytest.fixture(scope="module")
def teachers(data: Path) -> Path:
    out = data.parent / "out"
    result = fit(settings(), data, out)
    assert result.metrics["speed/detector_cpu_seconds"] > 0
    assert 0 <= result.metrics["labels/named_objects"] <= 1
    assert result.counts["detector_held_out_images"] == result.counts["captioner_held_out_images"] > 0
    return out


def test_teachers_are_checkpoints_that_the_backends_load(data: Path, teachers: Path, tmp_path: Path) -> None:
    config = settings()
    captioning.run(
        config,
        inputs=captioning.Inputs(data=str(data), teachers=str(teachers)),
        outputs=captioning.Outputs(captions=str(tmp_path / "captions"), report=str(tmp_path / "report")),
    )
    captions = Dataset.open(data / "train", captions=tmp_path / "captions")
    rows = [row for sample in captions.read_all() for row in sample.captions]
    assert {row["model"] for row in rows if row["kind"] == "generated"} <= {"captioner"}
    result = grounding.run(
        config,
        inputs=grounding.Inputs(data=str(data), captions=str(tmp_path / "captions"), teachers=str(teachers)),
        outputs=grounding.Outputs(regions=str(tmp_path / "regions")),
    )
    regions = Dataset.open(data / "train", regions=tmp_path / "regions")
    found = [row for sample in regions.read_all() for row in sample.regions]
    assert found
    assert {row["source"] for row in found} == {"detector"}
    assert result.counts["labelled"] >= 6  # every alt-text names a thing, and a threshold of 0 keeps boxes
    assert 0 < result.metrics["labels/recall"] <= 1


def test_what_stands_is_kept_and_what_changed_is_fitted(data: Path, teachers: Path) -> None:
    before = {path: path.read_bytes() for path in teachers.rglob("*") if path.is_file()}
    again = fit(settings(), data, teachers)
    assert {path: path.read_bytes() for path in teachers.rglob("*") if path.is_file()} == before
    other = settings(teachers__fit=("detector",))
    assert fit(other, data, teachers).metrics.keys() < again.metrics.keys()
    tree = settings().model_dump()
    for name in ("captioner", "detector"):
        tree["teachers"][name]["threads"] = 2
    fit(Config.model_validate(tree), data, teachers)
    assert {path: path.read_bytes() for path in teachers.rglob("*") if path.is_file()} == before
    tree["teachers"]["captioner"] |= {"steps": 4, "threads": 1}
    fit(Config.model_validate(tree), data, teachers)
    after = {path: path.read_bytes() for path in teachers.rglob("*") if path.is_file()}
    changed = {path.relative_to(teachers).parts[0] for path in after if after[path] != before.get(path)}
    assert changed == {"captioner", "captioner.json", "captioner.metrics.jsonl"}
    assert len((teachers / "captioner.metrics.jsonl").read_text().splitlines()) == 1
    assert json.loads((teachers / "captioner.json").read_text())["images"] > 0


def test_equal_settings_give_equal_teachers(
    data: Path, teachers: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is printed is the stage's own."""
    fit(settings(), data, tmp_path)
    name = "detector/model.safetensors"
    assert (tmp_path / name).read_bytes() == (teachers / name).read_bytes()
    told = capfd.readouterr()
    assert {line.partition(":")[0] for line in told.out.splitlines()} == {"teachers"}
    assert "weights" not in told.err
    assert "[transformers]" not in told.err


def test_no_teachers_are_made_when_none_is_wanted(tmp_path: Path) -> None:
    result = fit(settings(teachers__fit=()), tmp_path / "nowhere", tmp_path / "out")
    assert result.message == "no teachers are needed"
    assert list((tmp_path / "out").iterdir()) == []


def test_data_without_labels_are_one_clear_line(tmp_path: Path, make_dataset) -> None:
    make_dataset(tmp_path / "data/seed", 8, regions=False)
    with pytest.raises(DataError, match="no image has what a teacher learns from"):
        fit(settings(), tmp_path / "data", tmp_path / "out")
    with pytest.raises(DataError, match="split 'seed'"):
        fit(settings(), tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("teachers", "message"), [("", "--teachers is not given"), ("nowhere", "there is no nowhere/captioner")]
)
def test_an_empty_model_needs_teachers(data: Path, tmp_path: Path, teachers: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"captioning\.model is empty.*{message}"):
        captioning.run(
            settings(),
            inputs=captioning.Inputs(data=str(data), teachers=teachers),
            outputs=captioning.Outputs(captions=str(tmp_path / "captions")),
        )
