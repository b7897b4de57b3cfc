"""What `dvc metrics` and `dvc plots` show of an evaluation and its trainings, now and against a commit."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.dvc_clone import ROOT, commit, run

PLOTS = (
    "Training losses",
    "Learning rate",
    "Region accuracy by class",
    "Recall at K",
    "Grounding recall by IoU",
    "Confusion of regions",
)
MODELS = ("CLIP (equal steps)", "CLOC")


def _shares(**shares: float) -> dict[str, Any]:
    names = {name.replace("R", "R@"): share for name, share in shares.items()}
    return {**names, "n": 4, "interval": {name: [share, share] for name, share in names.items()}}


def _row(model: str, *, reader: str, accuracy: float) -> dict[str, Any]:
    ways = {way: _shares(R1=accuracy / 2, R5=accuracy, R10=1.0) for way in ("r2t", "t2r")}
    per_class = {"cat": {"accuracy": accuracy, "n": 3}, "dog": {"accuracy": accuracy / 2, "n": 1}}
    return {
        "model": model,
        "reader": reader,
        "region": {**_shares(mAcc=accuracy), "per_class": per_class},
        "region_retrieval": ways,
    }


def _write_results(folder: Path, *, gain: float) -> None:
    """An evaluation and two trainings, as their stages leave them."""
    evaluation = folder / "work/evaluation"
    evaluation.mkdir(parents=True, exist_ok=True)
    rows = [_row("CLIP (equal steps)", reader="crop", accuracy=0.2)]
    rows += [_row("CLOC", reader=reader, accuracy=share) for reader, share in (("crop", 0.1), ("region_head", gain))]
    image = {model: {way: _shares(R1=0.1, R5=0.4, R10=0.6) for way in ("i2t", "t2i")} for model in MODELS}
    metrics = {
        "headline": {"split": "test", "candidate": "CLOC", "baselines": ["CLIP (equal steps)"]},
        "models": {model: {"slug": re.sub(r"\W+", "-", model.lower()).strip("-")} for model in MODELS},
        "splits": {"test": {"rows": rows, "retrieval": image}},
    }
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    (evaluation / "confusion.json").write_text(json.dumps({"categories": ["cat", "dog"], "matrix": [[2, 1], [0, 1]]}))
    recall = {"CLOC": [{"iou": 0.25, "recall": 0.75}, {"iou": 0.5, "recall": 0.25}]}
    (evaluation / "grounding_recall.json").write_text(json.dumps(recall))
    for name, more in (("clip_equal_steps", {}), ("cloc", {"loss/region": 2.0, "loss/grounding": 0.5})):
        (folder / "work/models" / name).mkdir(parents=True, exist_ok=True)
        records = [{"step": step, "loss/image": 3.0 / step, "train/learning_rate": 0.1, **more} for step in (1, 2)]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "work/models" / name / "metrics.jsonl").write_text(text)
    command = [sys.executable, "-m", "cloc.pipeline.figures", "--out", "work/figures"]
    command += ["--evaluation", "work/evaluation"]
    command += [f"{name}=work/models/{item}" for name, item in zip(MODELS, ("clip_equal_steps", "cloc"), strict=True)]
    subprocess.run(command, cwd=folder, check=True)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with dvc.yaml's metrics and plots alone: one state committed, another one in the workspace."""
    folder = tmp_path_factory.mktemp("plots") / "repository"
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
    shutil.copyfile(ROOT / ".dvc/config", folder / ".dvc/config")
    shown = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    shown["metrics"] = [path for path in shown["metrics"] if "figures" in path]
    del shown["stages"], shown["vars"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(shown, sort_keys=False))
    run(folder, "git", "init", "-q")
    _write_results(folder, gain=0.3)
    commit(folder)
    _write_results(folder, gain=0.5)
    return folder


@pytest.fixture(scope="module")
def drawn(compared: Path) -> dict[str, dict[str, Any]]:
    """Vega-Lite of every plot of `dvc plots diff`."""
    found = json.loads(run(compared, "dvc", "plots", "diff", "HEAD", "--json"))
    assert not found.get("errors")
    plots = found.get("data", found)
    assert tuple(plots) == PLOTS
    return {
        name: json.loads(content) if isinstance(content := plot["content"], str) else content
        for name, (plot,) in plots.items()
    }


def test_metrics_diff_names_figure_and_model(compared: Path) -> None:
    changed = json.loads(run(compared, "dvc", "metrics", "diff", "--json"))["work/figures/metrics.json"]
    assert changed["region mAcc.cloc"] == {"old": 0.3, "new": 0.5, "diff": pytest.approx(0.2)}
    assert not [name for name in changed if "clip" in name]


def test_plots_hold_both_revisions_and_every_model(drawn: dict[str, dict[str, Any]]) -> None:
    rows = {name: plot["data"]["values"] for name, plot in drawn.items()}
    for name in PLOTS:
        assert {row["rev"] for row in rows[name]} == {"HEAD", "workspace"}, name
    for name in ("Training losses", "Learning rate", "Region accuracy by class", "Recall at K"):
        assert {row["model"] for row in rows[name]} == set(MODELS), name
    new = [row for row in rows["Region accuracy by class"] if row["rev"] == "workspace" and row["class"] == "cat"]
    assert {row["model"]: row["accuracy"] for row in new} == {"CLIP (equal steps)": 20.0, "CLOC": 50.0}
    panels = {(row["panel"], row["model"]) for row in rows["Training losses"]}
    assert ("grounding", "CLOC") in panels
    assert ("grounding", "CLIP (equal steps)") not in panels
    ways = {row["panel"] for row in rows["Recall at K"]}
    assert ways == {"image to text", "text to image", "region to text", "text to region"}
    cells = {(row["right"], row["taken_for"]): row["share"] for row in rows["Confusion of regions"]}
    assert cells["cat", "dog"] == pytest.approx(100 / 3)


def _colors(node: Any) -> list[Any]:
    """Colours by model in a plot."""
    if isinstance(node, list):
        return [found for item in node for found in _colors(item)]
    if not isinstance(node, dict):
        return []
    own = node.get("color")
    found = [own] if isinstance(own, dict) and own.get("field") == "model" else []
    return found + [inner for value in node.values() for inner in _colors(value)]


def test_plots_are_complete_and_coloured_alike(drawn: dict[str, dict[str, Any]]) -> None:
    colors = [color for plot in drawn.values() for color in _colors(plot["spec"])]
    assert len(colors) == len(PLOTS) - 1  # the confusion is of one model
    assert all(color == colors[0] for color in colors)
    for name, plot in drawn.items():
        assert plot["title"] == name
        assert "DVC_METRIC" not in json.dumps(plot), "an anchor that DVC did not fill in"
        assert plot["spec"]["encoding"]["x"]["title"]
        assert plot["spec"]["encoding"]["y"]["title"]


def test_the_page_needs_no_network(compared: Path) -> None:
    run(compared, "dvc", "plots", "diff", "HEAD")
    page = (compared / "dvc_plots/index.html").read_text()
    assert not re.search(r"<(?:script|link)[^>]+(?:src|href)=", page)
    assert page.count("vegaEmbed('#") == len(PLOTS)
    assert page.index("vegaEmbed = (where, spec)") < page.index("vegaEmbed('#")
