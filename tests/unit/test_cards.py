"""The model card and the data card: front matter that Hugging Face's own reader takes, figures, and texts of others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard

from cloc.config import Config, dump, load_preset
from cloc.data.dataset import Dataset
from cloc.evaluation.card import model_card
from cloc.validation import stage
from cloc.validation.card import CARD_FILE
from tests.evaluation_data import CLOC, make_metrics


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    trained = {"objective": "cloc", "steps": 500, "samples": 64_000, "batch_size": 128, "cpu_seconds": 140.2}
    (folder / "training.json").write_text(json.dumps(trained))
    (folder / "config.yaml").write_text(dump(load_preset("finetune")))
    return str(folder)


def test_a_model_card_is_read_by_the_hub(model: str) -> None:
    card = ModelCard(model_card(make_metrics(), model=CLOC, folder=model, source="models:/cloc/3"))
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results or ()}
    assert figures["region/mAcc"] == 0.7
    assert figures["grounding/acc@0.5"] == 0.72
    assert card.data.base_model == load_preset("finetune").model.init_from
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    for text in (
        "**70.0** (Prompter",
        "| images seen | 64,000 |",
        'CLOC.from_pretrained("models:/cloc/3")',
        "loses to",
    ):
        assert text in card.text


def test_a_model_of_others_has_a_card_without_its_training(tmp_path: Path) -> None:
    text = model_card(make_metrics(), model=CLOC, folder=str(tmp_path), source="models:/cloc/3")
    assert "| objective |" not in text
    assert ModelCard(text).data.base_model is None


def test_a_name_cannot_format_the_card(model: str) -> None:
    metrics = json.loads(json.dumps(make_metrics()).replace(f'"{CLOC}"', '"<b>x</b>|y"'))
    text = model_card(metrics, model="<b>x</b>|y", folder=model, source="models:/cloc/3")
    assert "<b>" not in ModelCard(text).text.replace(r"\<b\>", "")


def test_validation_leaves_a_data_card(tmp_path: Path, make_dataset: Callable[..., str]) -> None:
    data = make_dataset(tmp_path / "good", 120, shard_size=40)
    inputs = stage.Inputs(data=data, captions=data, regions=data)
    stage.run(Config(), inputs=inputs, outputs=stage.Outputs(str(tmp_path / "report")))
    card = DatasetCard((tmp_path / "report" / CARD_FILE).read_text())
    assert card.data.size_categories == ["n<1K"]
    assert f"`{Dataset.open(data).digest}`" in card.text
    assert "120 images in 3 shards" in card.text
    assert "`cloc validate` passed" in card.text
