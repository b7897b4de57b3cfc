"""The stage with rows of public models, questions about attributes, and a classification set."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from cloc.data.dataset import Dataset
from cloc.data.storage import open_storage
from cloc.data.tables import read_table, write_table
from cloc.errors import ConfigError
from cloc.evaluation import stage
from cloc.evaluation.confusion import OTHERS, square
from cloc.evaluation.scoring import set_digest
from cloc.evaluation.truth import open_splits
from cloc.tracking.names import problem
from tests.evaluated_models import settings, write_model, write_public

NAMES = ("red square", "green square", "blue square")


def ask(data: str) -> None:
    """Two levels of questions about the first box of every image."""
    storage = open_storage(data)
    for shard in Dataset.open(data).manifest.shards:
        seen: dict[str, dict] = {}
        for row in read_table(storage, "regions", shard.name).to_pylist():
            seen.setdefault(row["key"], row)
        rows = [
            {**{side: row[side] for side in ("key", "x1", "y1", "x2", "y2", "text")}, "source": "human", **level}
            for row in seen.values()
            for level in (
                {"level": "hard", "negatives": [f"pale {row['text']}"]},
                {"level": "easy", "negatives": ["a purple whale", "a grey cloud", row["text"]]},
            )
        ]
        write_table(storage, "attributes", shard.name, rows)


def class_folders(root: Path) -> str:
    for number, name in enumerate(NAMES):
        color = [40, 40, 40]
        color[number] = 220
        for part, count in (("test", 4), ("train", 3)):
            (root / part / name).mkdir(parents=True)
            for image in range(count):
                shown = Image.new("RGB", (40 + image, 36), tuple(color))
                shown.save(root / part / name / f"{image}.png")
    return str(root)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[dict, dict[str, dict[str, float]], Path]:
    """metrics.json, each model's metrics, and the report's folder."""
    from tests.conftest import write_dataset

    root = tmp_path_factory.mktemp("evaluated")
    data = write_dataset(root / "data", 12)
    ask(data)
    config = settings(
        pictures=2,
        models={"SigLIP": write_public(root / "siglip", family="siglip"), "CLIP": write_public(root / "hub")},
        classification=class_folders(root / "colours"),
    )
    inputs = stage.Inputs(data=data, models={"CLOC": write_model(root / "cloc", "cloc")})
    result = stage.run(config, inputs=inputs, outputs=stage.Outputs(report=str(root / "report")))
    flat = {name: dict(own.metrics) for name, own in result.models.items()}
    return json.loads((root / "report" / "metrics.json").read_text()), flat, root / "report"


def test_public_rows_stand_beside_trained_ones(evaluated) -> None:
    metrics, _, _ = evaluated
    assert list(metrics["models"]) == ["CLOC", "SigLIP", "CLIP"]
    assert metrics["headline"] == {"split": "test", "candidate": "CLOC", "baselines": ["SigLIP", "CLIP"]}
    for name in ("SigLIP", "CLIP"):
        model = metrics["models"][name]
        assert (model["objective"], model["origin"], model["steps"]) == ("clip", "public", None)
        assert model["readers"] == ["crop", "roi_align", "masked"]
    rows = [(row["model"], row["reader"]) for row in metrics["splits"]["test"]["rows"]]
    assert rows == [(name, reader) for name, model in metrics["models"].items() for reader in model["readers"]]
    assert list(metrics["splits"]["test"]["grounding"]) == ["CLOC"]


def test_every_protocol_has_its_block(evaluated) -> None:
    metrics, _, _ = evaluated
    split = metrics["splits"]["test"]
    for row in split["rows"]:
        assert row.keys() == {"model", "reader", "region", "region_retrieval", "attributes", "probe"}
        assert list(row["attributes"]) == ["hard", "easy"]
        assert row["attributes"]["hard"]["n"] == row["attributes"]["easy"]["n"] == 12
        assert row["attributes"]["hard"]["chance"] == 0.5
        assert row["attributes"]["easy"]["negatives"] == 2  # its own text is no negative
        assert row["region"]["n"] == 24
        assert sum(size["n"] for size in row["region"]["by_size"].values()) == 24
        # Six of the twelve images are trained on; each holds two boxes.
        assert (row["probe"]["train_items"], row["probe"]["test_items"], row["probe"]["n"]) == (12, 12, 12)
    assert split["coherence"].keys() == split["retrieval"].keys() == metrics["models"].keys()
    assert metrics["protocols"].keys() >= {"region_recognition", "region_retrieval", "attributes", "linear_probe"}


def test_the_candidate_is_held_against_every_other_model(evaluated) -> None:
    metrics, _, _ = evaluated
    differences = metrics["splits"]["test"]["differences"]
    assert {item["a"]["model"] for item in differences} == {"CLOC"}
    for figure in ("region/mAcc", "retrieval/i2t/R@1", "attributes/hard/accuracy", "coherence/gap", "probe/top1"):
        assert [item["b"]["model"] for item in differences if item["figure"] == figure] == ["SigLIP", "CLIP"]
    assert not [item for item in differences if item["figure"].startswith("grounding")], "no other model grounds"


def test_resamples_are_kept_beside_the_figures(evaluated) -> None:
    metrics, _, report = evaluated
    samples = load_file(report / "estimates.safetensors")
    for row in metrics["splits"]["test"]["rows"]:
        kept = samples[f"test/region/mAcc|{row['model']}|{row['reader']}"]
        assert kept.shape == (metrics["bootstrap"]["resamples"],)
        low, high = np.nanpercentile(kept, [2.5, 97.5])
        assert row["region"]["interval"]["mAcc"] == pytest.approx([low, high])
    assert "test/grounding/acc@0.5|CLOC|" in samples


def test_classification(evaluated) -> None:
    metrics, flat, _ = evaluated
    (found,) = metrics["classification"].values()
    assert (found["images"], found["classes"]) == (12, 3)
    for scores in found["models"].values():
        assert scores.keys() == {"plain", "templates", "probe"}
        assert scores["plain"]["top5"] == 1  # of three classes
        assert (scores["probe"]["train_items"], scores["probe"]["test_items"]) == (9, 12)
        assert scores["probe"]["top1"] == 1  # one colour a class
    gaps = {(item["figure"], item["b"]["model"]): item for item in found["differences"]}
    for way in ("plain", "templates", "probe"):
        for name, blocks in found["models"].items():
            if name != metrics["headline"]["candidate"]:
                own = found["models"][metrics["headline"]["candidate"]]
                gap = gaps[f"{way}/top1", name]
                assert gap["value"] == pytest.approx(own[way]["top1"] - blocks[way]["top1"])
    assert flat["SigLIP"]["eval/classification/colours/probe_top1"] == 1


def test_names_of_metrics(evaluated) -> None:
    _, flat, _ = evaluated
    for model, name in (
        ("SigLIP", "eval/region/test/masked/mAcc"),
        ("CLOC", "eval/region/test/prompter/top1"),
        ("CLIP", "eval/region_retrieval/test/crop/r2t_R10"),
        ("CLOC", "eval/attributes/test/prompter/hard_accuracy"),
        ("CLOC", "eval/probe/test/crop/mAcc"),
        ("SigLIP", "eval/retrieval/test/t2i_R1"),
        ("CLOC", "eval/grounding/test/acc_0.5"),
        ("CLIP", "eval/coherence/test/auc"),
    ):
        assert name in flat[model]
    assert not [wrong for own in flat.values() for name in own if (wrong := problem(name))]


def test_a_figure_of_what_reads_regions_is_that_of_its_best_reader(evaluated) -> None:
    metrics, flat, _ = evaluated
    for model, own in flat.items():
        readers = metrics["models"][model]["readers"]
        for figure in ("mAcc", "top1"):
            assert own[f"eval/region/test/{figure}"] == max(own[f"eval/region/test/{way}/{figure}"] for way in readers)


def test_the_confusion_of_the_candidate(evaluated) -> None:
    metrics, _, report = evaluated
    found = json.loads((report / "confusion.json").read_text())
    assert found["model"] == "CLOC"
    assert sum(map(sum, found["matrix"])) == metrics["splits"]["test"]["regions"]


def test_small_confusions() -> None:
    counts = np.array([[5, 1, 0, 0], [0, 9, 0, 0], [2, 1, 0, 0], [0, 0, 0, 0]])
    found = square(counts, ["a", "b", "c", "d"], limit=2)
    assert found == {"categories": ["c", "a", OTHERS], "matrix": [[0, 2, 1], [0, 5, 1], [0, 0, 9]]}
    whole = square(counts[:3, :3], ["a", "b", "c"])
    assert whole == {"categories": ["c", "a", "b"], "matrix": [[0, 2, 1], [0, 5, 1], [0, 0, 9]]}


def test_a_model_without_the_reader_that_is_asked_for(tmp_path, make_dataset) -> None:
    data = make_dataset(tmp_path / "data", 4)
    models = {"CLIP": write_public(tmp_path / "hub"), "CLOC": write_model(tmp_path / "cloc", "cloc")}
    config = settings(pictures=2, readers=["prompter"])
    report = str(tmp_path / "report")
    stage.run(config, inputs=stage.Inputs(data=data, models=models), outputs=stage.Outputs(report=report))
    split = json.loads((tmp_path / "report" / "metrics.json").read_text())["splits"]["test"]
    assert [(row["model"], row["reader"]) for row in split["rows"]] == [("CLOC", "prompter")]
    assert list(split["retrieval"]) == ["CLIP", "CLOC"]


def test_a_name_that_stands_twice(tmp_path, make_dataset) -> None:
    data = make_dataset(tmp_path / "data", 4)
    inputs = stage.Inputs(data=data, models={"CLOC": "here"})
    config = settings(models={"CLOC": "there"})
    with pytest.raises(ConfigError, match=r"evaluation\.models: the row 'CLOC' stands among the models"):
        stage.run(config, inputs=inputs, outputs=stage.Outputs(report=str(tmp_path / "report")))


def test_the_evaluation_set_has_a_hash_of_what_is_asked(tmp_path, make_dataset) -> None:
    data = make_dataset(tmp_path / "data", 4)
    before = set_digest(open_splits(data, ("test",))[0])
    assert set_digest(open_splits(data, ("any name",))[0]) == before
    storage = open_storage(data)
    rows = read_table(storage, "captions", "00000").to_pylist()
    write_table(storage, "captions", "00000", [row for row in rows if row["kind"] == "human"])
    assert set_digest(open_splits(data, ("test",))[0]) == before, "the alt-text is no truth"
    ask(data)
    assert set_digest(open_splits(data, ("test",))[0]) != before
