"""Settings: every mistake is one clear line, and params.yaml is complete."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloc.config import Config, apply_overrides, dump, flatten, load_params, load_preset, parse, preset_names, read_yaml
from cloc.errors import ConfigError
from cloc.pipeline.parameters import OTHER, arguments

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree() -> dict[str, Any]:
    """The complete defaults, as a params.yaml holds them."""
    return Config().model_dump(mode="json")


def params(tmp_path: Path, tree: dict[str, Any]) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_params_file_equals_the_demo_preset() -> None:
    assert load_params(ROOT / "params.yaml") == load_preset("demo")


def test_written_settings_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(dump(load_preset("demo")))
    assert load_params(path) == load_preset("demo")


@pytest.mark.parametrize("name", preset_names())
def test_presets_load(name: str) -> None:
    assert load_preset(name).train.steps >= 1


def test_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"preset 'dmeo' is unknown.*demo"):
        load_preset("dmeo")


def test_missing_key_is_named_with_its_default(tmp_path: Path, tree: dict[str, Any]) -> None:
    del tree["train"]["steps"]
    with pytest.raises(ConfigError, match=r"params\.yaml: missing key train\.steps \(default 439087\)"):
        load_params(params(tmp_path, tree))


def test_unknown_key_gets_a_suggestion(tmp_path: Path, tree: dict[str, Any]) -> None:
    tree["train"]["learning_rat"] = tree["train"].pop("learning_rate")
    with pytest.raises(ConfigError, match=r"unknown key train\.learning_rat \(did you mean train\.learning_rate\?\)"):
        load_params(params(tmp_path, tree))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=many", r"train\.steps: .*got 'many'"),
        ("train.steps=1.5", r"train\.steps: .*got 1\.5"),
        ("train.steps=true", r"train\.steps: .*got True"),
        ("train.steps=0", r"train\.steps: .*greater than or equal to 1.*got 0"),
        ("train.learning_rate='5e-4'", r"train\.learning_rate: .*got '5e-4'"),
        ("train.learning_rate=.nan", r"train\.learning_rate: .*finite"),
        ("data.quarantine_limit=1.5", r"data\.quarantine_limit: .*got 1\.5"),
        ("captioning.backend=gpt", r"captioning\.backend: .*'annotations'.*got 'gpt'"),
        ("model.vision.heads=7", r"width 768 must be divisible by heads 7"),
        ("train", "write it as section.key=value"),
        ("train.steps.more=1", "'steps' is a value, not a section"),
    ],
)
def test_wrong_value_is_one_line_naming_key_and_value(
    tmp_path: Path, tree: dict[str, Any], override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_params(params(tmp_path, tree), overrides=[override])
    assert "\n" not in str(caught.value)


def test_all_bad_keys_are_named_at_once(tree: dict[str, Any]) -> None:
    tree["train"]["steps"], tree["loss"]["max_regions"] = "x", "y"
    with pytest.raises(ConfigError, match=r"train\.steps.*loss\.max_regions|loss\.max_regions.*train\.steps"):
        parse(tree, source="test")


def test_exponents_without_a_point_are_numbers() -> None:
    assert read_yaml("rate: 5e-4\nbig: 1E3\nminus: -2e+1", source="test") == {"rate": 5e-4, "big": 1e3, "minus": -20.0}
    assert apply_overrides({"train": {}}, ["train.learning_rate=5e-4"]) == {"train": {"learning_rate": 5e-4}}


def test_overrides_leave_the_original_alone(tree: dict[str, Any]) -> None:
    assert apply_overrides(tree, ["train.steps=7"])["train"]["steps"] == 7
    assert tree == Config().model_dump(mode="json")


def test_duplicate_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"test: not valid YAML.*'steps' stands twice.*line 3"):
        read_yaml("train:\n  steps: 1\n  steps: 2\n", source="test")


@pytest.mark.parametrize("text", ["train: [1, 2", "\tx: 1", "!!python/object/apply:os.system ['true']"])
def test_broken_yaml_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="test: not valid YAML") as caught:
        read_yaml(text, source="test")
    assert "\n" not in str(caught.value)


def test_file_that_is_absent_or_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"cannot read the settings {tmp_path}/none.yaml")):
        load_params(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected sections"):
        load_params(tmp_path / "list.yaml")


def test_every_setting_has_a_help_text() -> None:
    def without(model: Any, prefix: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            section = hasattr(field.annotation, "model_fields")
            found += without(field.annotation, f"{prefix}{name}.") if section else []
            found += [f"{prefix}{name}"] if not section and not field.description else []
        return found

    assert without(Config, "") == []
    assert "train.steps" in flatten(Config().model_dump())


def test_rows_of_the_users_own_names() -> None:
    tree = Config().model_dump(mode="json")
    one = apply_overrides(tree, ["evaluation.models.SigLIP=google/siglip-base-patch16-224"])
    both = apply_overrides(one, ['evaluation.models={"A b.c": "here", "SigLIP": "there"}'])
    assert parse(one, source="test").evaluation.models == {"SigLIP": "google/siglip-base-patch16-224"}
    assert parse(both, source="test").evaluation.models == {"A b.c": "here", "SigLIP": "there"}
    assert flatten(both)["evaluation.models"] == {"A b.c": "here", "SigLIP": "there"}, "one value, not a section"
    assert arguments(parse(both, source="test"))[OTHER].count('evaluation.models={"A b.c": "here", "SigLIP": "there"}')
