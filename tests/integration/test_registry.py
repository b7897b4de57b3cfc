"""The model registry on a real SQLite store: what becomes champion, and what others load from it."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from cloc import CLOC
from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError, DataError, GateFailed
from cloc.evaluation import versions
from cloc.evaluation.promotion import Decision
from cloc.model.answers import answer
from cloc.stages import run_stage
from cloc.tracking import Registry, local_model
from tests.evaluations import write_evaluation
from tests.integration.test_evaluation import write_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, "cloc", seed=seed) for seed, name in enumerate("abc")}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose tables stand: making them takes MLflow longer than all that a test does."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class Bench:
    """A store, and registrations in it."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.uri, self.count = folder, f"sqlite:///{folder}/mlflow.db", 0
        shutil.copyfile(store, folder / "mlflow.db")
        self.client = MlflowClient(self.uri)

    def register(self, rows: dict[str, tuple[str, float]], *, rules: dict[str, object] | None = None, **more):
        """Registers the first of the rows; returns the stage's result and the receipt."""
        self.count += 1
        out = self.folder / f"receipt{self.count}"
        evaluation = write_evaluation(self.folder / f"evaluation{self.count}", rows, **more)
        result = run_stage(
            "registration",
            {"tracking": {"uri": self.uri}, "evaluation": rules or {}},
            inputs={"evaluation": evaluation, "model": next(iter(rows.values()))[0]},
            outputs={"receipt": str(out)},
        )
        return result, json.loads((out / "receipt.json").read_text())

    def aliases(self) -> dict[str, str]:
        return {name: str(number) for name, number in self.client.get_registered_model("cloc").aliases.items()}

    def version(self, number: str):
        return self.client.get_model_version("cloc", number)


@pytest.fixture
def bench(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "CLOC_RUN_KEY", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, empty_store)


def test_the_first_is_champion_and_a_better_one_takes_its_place(bench: Bench, models: dict[str, str]) -> None:
    result, _ = bench.register({"CLOC": (models["a"], 0.5)})
    assert bench.aliases() == {"champion": "1"}
    assert result.metrics == {"gate/passed": 1.0, "gate/champion": 1.0}
    assert result.message == "CLOC passed the gate; cloc version 1 is champion: there was no champion"

    result, receipt = bench.register({"CLOC": (models["b"], 0.6)}, seed=1)
    assert bench.aliases() == {"champion": "2"}
    reason = receipt["registered"]["reason"]
    assert reason.startswith("against version 1: region mAcc on test is 60.0, the champion's 50.0: +10.0 points")
    assert "the interval must lie above 0" in reason
    version = bench.version("2")
    assert reason in version.description
    assert version.tags["cloc.decision"] == f"champion: {reason}"
    assert version.tags["cloc.evaluation_set"] == "set-a"
    assert (version.tags["cloc.region_mAcc"], version.tags["cloc.objective"]) == ("60.0", "cloc")
    parts = [line for line in version.description.splitlines() if line.startswith("### ")]
    assert [part.partition(" CLOC")[0] for part in parts] == [
        "### What",
        "### Figures on `test`",
        "### How it was made",
        "### How to use it",
    ]
    assert "| region mAcc | 5.0 " in version.description  # plain CLIP's, beside the version's
    assert "Region mAcc on test: CLOC (Prompter) 60.0, 12.0 times the 5.0 of CLIP" in version.description
    assert version.tags["cloc.protocols"] == "region_recognition 2, retrieval 2"
    assert version.tags["cloc.gate"].startswith("min_region_gain: region mAcc on test is 60.0 (CLOC, Prompter), 12.0")
    assert version.tags["cloc.figures"].startswith("region mAcc 60.0 (55.0 to 65.0, Prompter); region top-1 30.0 (")
    assert "image→text R@1 20.0 (15.0 to 25.0)" in version.tags["cloc.figures"]
    assert bench.version("1").tags["cloc.replaced_by"] == "version 2"
    run = bench.client.get_run(version.run_id)
    assert run.data.tags["cloc.registered"] == f"cloc version 2 is champion: {reason}"
    assert reason in result.message


@pytest.mark.parametrize(
    ("rules", "macc", "champion"),
    [
        ({}, 0.505, "1"),  # better, but not by an interval
        ({"promote_by": "value"}, 0.505, "2"),
        ({"promote_by": "value", "promote_margin": 0.01}, 0.505, "1"),
        ({"promote_margin": 0.09}, 0.6, "1"),  # 0.1 better: the interval reaches below 0.09
        ({"promote_margin": 0.05}, 0.6, "2"),
        ({"promote_margin": -0.1}, 0.48, "2"),
        ({}, 0.4, "1"),
        ({"promote_figure": "retrieval/i2t/R@1", "promote_by": "value"}, 0.9, "1"),  # equal there
    ],
)
def test_what_it_takes_to_replace_the_champion(
    bench: Bench, models: dict[str, str], rules: dict[str, object], macc: float, champion: str
) -> None:
    bench.register({"CLOC": (models["a"], 0.5)})
    _, receipt = bench.register({"CLOC": (models["b"], macc)}, seed=1, rules=rules)
    assert bench.aliases()["champion"] == champion
    assert receipt["registered"]["champion"] is (champion == "2")
    assert ("challenger" in bench.aliases()) is (champion == "1")


def test_figures_on_another_set_are_not_compared(bench: Bench, models: dict[str, str]) -> None:
    """What measures the champion there is said; with it beside the candidate, or kept from before, it is decided."""
    bench.register({"CLOC": (models["a"], 0.5)})
    rows = {"CLOC": (models["b"], 0.9)}
    result, receipt = bench.register(rows, digest="set-b")
    assert bench.aliases() == {"champion": "1", "challenger": "2"}
    assert "the champion (version 1) has no figures on this evaluation set (set-b)" in result.message
    assert "add --model champion=models:/cloc@champion" in result.message
    command = receipt["registered"]["evaluate_champion"]
    assert command.startswith("cloc evaluate --data data --model 'CLIP (equal steps)=work/clip' --model CLOC=")
    assert "--model champion=models:/cloc@champion" in command
    assert command in bench.version("2").description

    bench.register({"CLOC": (models["a"], 0.5)}, digest="set-b")  # the champion again: its figures on this set
    assert bench.aliases()["champion"] == "1"
    _, receipt = bench.register(rows, digest="set-b", seed=1)
    assert (receipt["registered"]["version"], receipt["registered"]["new"]) == ("2", False)
    assert bench.aliases() == {"champion": "2"}
    result, _ = bench.register({"CLOC": (models["c"], 0.4)}, digest="set-b", seed=2)
    assert "against version 2: region mAcc on test is 40.0, the champion's 90.0" in result.message


def test_the_champion_in_the_same_comparison(bench: Bench, models: dict[str, str]) -> None:
    bench.register({"CLOC": (models["a"], 0.5)})
    _, receipt = bench.register({"CLOC": (models["b"], 0.9), "champion": (models["a"], 0.5)}, digest="set-b")
    assert bench.aliases() == {"champion": "2"}
    assert receipt["registered"]["reason"].startswith("against version 1")


def test_a_champion_that_was_replaced_may_come_back(bench: Bench, models: dict[str, str]) -> None:
    for name, macc in (("a", 0.5), ("b", 0.7), ("a", 0.9)):
        bench.register({"CLOC": (models[name], macc)}, rules={"promote_by": "value"})
    assert bench.aliases() == {"champion": "1"}
    assert "cloc.replaced_by" not in bench.version("1").tags
    assert bench.version("2").tags["cloc.replaced_by"] == "version 1"


def test_without_resamples_nothing_is_told_apart(bench: Bench, models: dict[str, str]) -> None:
    bench.register({"CLOC": (models["a"], 0.5)}, estimates=False)
    result, _ = bench.register({"CLOC": (models["b"], 0.9)})
    assert "resamples were not kept" in result.message
    assert bench.aliases() == {"champion": "1", "challenger": "2"}
    result, _ = bench.register({"CLOC": (models["c"], 0.9), "champion": (models["a"], 0.5)}, digest="x", images=5)
    assert "on too few images (5)" in result.message


def test_the_same_weights_make_no_new_version(bench: Bench, models: dict[str, str]) -> None:
    bench.register({"CLOC": (models["a"], 0.5)})
    result, receipt = bench.register({"another name": (models["a"], 0.5)})
    assert "cloc version 1 (the same weights were registered before: no new version) is champion" in result.message
    assert "it is the champion already; there was no champion" in result.message
    assert receipt["registered"]["new"] is False
    assert len(bench.client.search_model_versions("name = 'cloc'")) == 1
    result, _ = bench.register({"another name": (models["a"], 0.5)})
    assert result.message.count("already") == 1


def test_a_failed_gate_registers_nothing(bench: Bench, models: dict[str, str]) -> None:
    with pytest.raises(GateFailed, match="min_region_gain"):
        bench.register({"CLOC": (models["a"], 0.5)}, rules={"min_region_gain": 50.0})
    assert not bench.client.search_registered_models()
    (run,) = bench.client.search_runs([bench.client.get_experiment_by_name("cloc").experiment_id])
    assert run.data.tags["cloc.failure"].startswith("CLOC is not registered: min_region_gain")


def test_a_figure_that_there_is_not(bench: Bench, models: dict[str, str]) -> None:
    bench.register({"CLOC": (models["a"], 0.5)})
    with pytest.raises(ConfigError, match=r"promote_figure: 'region/mAp' is no share .* take one of region/mAcc, reg"):
        bench.register({"CLOC": (models["b"], 0.5)}, rules={"promote_figure": "region/mAp"})


def test_two_registrations_at_once(bench: Bench, models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version becomes champion between the decision and its alias: it is decided anew, against that one."""
    bench.register({"CLOC": (models["a"], 0.5)})
    settings, decide, seen = TrackingConfig(uri=bench.uri), versions.decide, list[str]()

    def meanwhile(candidate, champion, config) -> Decision:
        if not seen:
            version = Registry(settings).add(models["c"], weights="c" * 64, metadata={})
            registry = Registry(settings)
            files = {"metrics.json": json.dumps({**champion.metrics, "models": {"CLOC": {"weights_sha256": "c" * 64}}})}
            registry.log_evaluation(version, {name: text.encode() for name, text in files.items()}, digest="set-a")
            assert registry.promote(version, over=registry.champion())
        seen.append(champion.model)
        return decide(candidate, champion, config)

    monkeypatch.setattr(versions, "decide", meanwhile)
    _, receipt = bench.register({"CLOC": (models["b"], 0.9)}, seed=1)
    assert len(seen) == 2
    assert receipt["registered"]["reason"].startswith("against version 3")  # whose resamples were not kept
    assert bench.aliases() == {"champion": "3", "challenger": "2"}


def test_promotion_is_refused_over_another_champion(bench: Bench, models: dict[str, str]) -> None:
    bench.register({"CLOC": (models["a"], 0.5)})
    registry = Registry(TrackingConfig(uri=bench.uri))
    version = registry.add(models["b"], weights="b", metadata={})
    assert not registry.promote(version, over=None)
    assert bench.aliases() == {"champion": "1"}


PREDICT = """
import json, sys
import mlflow, pandas as pd
table = pd.read_pickle(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/cloc@champion")
print(json.dumps(model.predict(table).to_dict("records")))
"""


def _picture(width: int, height: int, *, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_a_fresh_process_answers_as_the_model_does(bench: Bench, models: dict[str, str], tmp_path: Path) -> None:
    bench.register({"CLOC": (models["a"], 0.5)})
    pictures = [_picture(60, 40, seed=0), _picture(30, 50, seed=1), _picture(20, 20, seed=2)]
    rows = [
        {"image": pictures[0], "boxes": [[0.1, 0.1, 0.6, 0.9], [0.5, 0, 1, 1]], "texts": ["a red box", "a blue key"]},
        {"image": base64.b64encode(pictures[1]).decode(), "boxes": [], "texts": ["a red box"]},
        {"image": pictures[2], "boxes": [[0.0, 0.0, 1.0, 1.0]], "texts": []},
    ]
    pd.DataFrame(rows).to_pickle(tmp_path / "table.pkl")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {key: os.environ[key] for key in ("PATH", "HOME", "OMP_NUM_THREADS") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(tmp_path / "table.pkl")],
        cwd=elsewhere,
        env={**environment, "MLFLOW_TRACKING_URI": bench.uri},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    cloc = CLOC.from_pretrained(models["a"])
    for row, body, said in zip(rows, pictures, found, strict=True):
        photo = cloc.encode(Image.open(io.BytesIO(body)))
        close = {"rel": 1e-4, "abs": 1e-5}
        assert said["image_embedding"] == pytest.approx(photo.embedding.tolist(), **close)
        regions = photo.embed(row["boxes"]) if row["boxes"] else np.zeros((0, 16))
        texts = cloc.embed_texts(row["texts"]) if row["texts"] else np.zeros((0, 16))
        assert np.asarray(said["region_embeddings"]).reshape(-1, 16) == pytest.approx(regions, **close)
        assert np.asarray(said["text_embeddings"]).reshape(-1, 16) == pytest.approx(texts, **close)
        scores = np.asarray(said["region_text_scores"]).reshape(len(regions), len(texts))
        assert scores == pytest.approx(regions @ texts.T, **close)
        boxes = [photo.find(text).tolist() for text in row["texts"]]
        assert np.asarray(said["text_boxes"]) == pytest.approx(np.asarray(boxes), abs=1e-4)


def test_registered_models_load_by_address(
    bench: Bench, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.register({"CLOC": (models["a"], 0.5)})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", bench.uri)
    texts = ["a red box"]
    expected = CLOC.from_pretrained(models["a"]).embed_texts(texts)
    for address in ("models:/cloc@champion", "models:/cloc/1"):
        assert CLOC.from_pretrained(address).embed_texts(texts) == pytest.approx(expected)
    assert local_model(models["a"]) == models["a"]
    for address, message in (
        ("models:/cloc@nobody", "has no registered model models:/cloc@nobody"),
        ("models:/other/1", "has no registered model models:/other/1"),
        ("models:/cloc", "write models:/NAME@ALIAS"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            local_model(address)
        assert "\n" not in str(caught.value)


def test_what_a_version_holds(bench: Bench, models: dict[str, str]) -> None:
    (Path(models["a"]) / "checkpoints").mkdir(exist_ok=True)
    (Path(models["a"]) / "checkpoints" / "large").write_text("no part of the model")
    bench.register({"CLOC": (models["a"], 0.5)})
    place = Path(bench.client.get_model_version_download_uri("cloc", "1").removeprefix("file://"))
    names = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert {"MLmodel", "requirements.txt", "served.py", "input_example.json", "code/cloc/boxes.py"} <= names
    assert {"artifacts/model/model.safetensors", "evaluation/set-a/metrics.json"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pyc")) or "checkpoints" in name]
    pins = (place / "requirements.txt").read_text().splitlines()
    assert "torch==2.13.0" in pins
    assert not [pin for pin in pins if pin.startswith("cloc") or "+" in pin]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "photo.jpg"}, r"row 0: image: 'photo\.jpg' is not base64; paths and addresses are not read"),
        ({"image": "https://example.org/a.jpg"}, "is not base64"),
        ({"image": "/etc/passwd"}, "is not base64|not an image"),
        ({"image": b"GIF89a"}, r"not an image \(jpeg, png, webp\); give the whole file"),
        ({"image": None}, "expected the bytes of an image file or their base64 text, got NoneType"),
        ({"boxes": [[0.5, 0.5, 0.2, 0.9]]}, r"row 0: boxes.* is empty"),
        ({"boxes": [[0, 0, 40, 40]]}, r"row 0: boxes"),
        ({"boxes": [[0, 0, 1]]}, r"row 0: boxes: expected \[x1, y1, x2, y2\] each"),
        ({"boxes": "all"}, "row 0: boxes: expected a list, got 'all'"),
        ({"texts": "a red box"}, "row 0: texts: expected a list, got 'a red box'"),
        ({"texts": [3]}, "row 0: texts: expected strings, got '3'"),
        ({"labels": []}, "row 0: the column 'labels' is unknown; there are image, boxes, texts"),
    ],
)
def test_rows_that_cannot_be_answered(models: dict[str, str], row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        answer(CLOC.from_pretrained(models["a"]), [{"image": _picture(8, 8, seed=0), **row}])
    assert "\n" not in str(caught.value)


def test_a_model_without_a_prompter_finds_no_boxes(tmp_path: Path) -> None:
    cloc = CLOC.from_pretrained(write_model(tmp_path / "model", "cloc", kind="roi_align"))
    (said,) = answer(cloc, [{"image": _picture(9, 9, seed=0), "boxes": [[0, 0, 1, 1]], "texts": ["a key"]}])
    assert said.text_boxes is None
    assert said.region_text_scores.shape == (1, 1)
