"""`cloc lineage` over models that the real stages made, on a real SQLite store, and on folders alone."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cloc import tracking
from cloc.cli import lineage as verb
from cloc.config import Config, parse
from cloc.config.schema import TrackingConfig
from cloc.data.dataset import Dataset
from cloc.data.origin import tables_record
from cloc.data.storage import open_storage
from cloc.data.tables import read_table, table_path, write_table
from cloc.errors import ConfigError, DataError
from cloc.labeling.settings import recipe
from cloc.model.provenance import weights_digest
from cloc.stage import StageResult
from cloc.stages import run_stage
from cloc.tracking.lineage import walk
from cloc.tracking.lineage_nodes import NOT_RECORDED, Node, labels_node
from cloc.training.lineage import write_lineage
from tests.conftest import write_dataset
from tests.evaluated_models import write_model
from tests.evaluations import write_evaluation
from tests.integration.training_runs import TINY

SETTINGS = {
    **TINY,
    "train": {**TINY["train"], "steps": 2, "optimizer": "adamw"},
    "captioning": {"backend": "annotations"},
    "grounding": {"backend": "annotations"},
    "validation": {"min_images": 4},
    "evaluation": {"min_region_gain": 0.0},
}


@dataclass(frozen=True)
class World:
    """A pipeline that ran: its folder, its store, and its models by name."""

    folder: Path
    tracking: TrackingConfig
    parent: str

    def node(self, reference: str, name: str, *, check: bool = False) -> Node:
        """A node of a model's lineage."""
        return next(node for node in walk(reference, self.tracking, check=check).everything() if node.name == name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A registered CLOC model and a plain CLIP: all by the stages, but for the figures of the evaluation."""
    folder = tmp_path_factory.mktemp("lineage")
    before, home = dict(os.environ), Path.cwd()
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "CLOC_RUN_KEY", "DVC_ROOT"):
        os.environ.pop(name, None)
    os.chdir(folder)
    config = parse({**SETTINGS, "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}}, source="test")
    labels = {"data": write_dataset("data/train", 16), "captions": "captions", "regions": "regions"}
    with tracking.pipeline_run(config.tracking, name="toy", settings=config.model_dump(mode="json")) as parent:
        run_stage("captioning", config, inputs={"data": "data"}, outputs={"captions": "captions"})
        given = {"data": "data", "captions": "captions"}
        run_stage("grounding", config, inputs=given, outputs={"regions": "regions"})
        run_stage("validation", config, inputs=labels, outputs={"report": "validation"})
        run_stage("pretraining", config, inputs=labels, outputs={"model": "cloc"})
        _plain_clip(config, labels)
        with tracking.stage_run(config.tracking, stage="evaluation", settings={}) as run:
            report = write_evaluation(folder / "evaluation", {"CLOC": ("cloc", 0.5)})
            run.log_result(StageResult("evaluation", artifacts={"metrics": f"{report}/metrics.json"}))
        given = {"evaluation": report, "model": "cloc"}
        run_stage("registration", config, inputs=given, outputs={"receipt": "receipt"})
    yield World(folder, config.tracking, parent.run_id)
    os.chdir(home)
    os.environ.clear()
    os.environ.update(before)
    shutil.rmtree(folder)


def _plain_clip(config: Config, labels: dict[str, str]) -> None:
    """A CLIP beside it, as the stage records one, but for the training."""
    dataset = Dataset.open("data/train", captions=labels["captions"], regions=labels["regions"])
    with tracking.stage_run(config.tracking, stage="pretraining", settings={}) as run:
        write_model(Path("clip"), "clip", steps=3)
        record = write_lineage(Path("clip"), config, dataset, objective="clip", compute_of="cloc")
        run.log_inputs({"objective": "clip"})
        run.log_result(StageResult("pretraining", artifacts={"model": "clip", "lineage": str(record)}))


def ask(world: World, *arguments: str) -> Result:
    return CliRunner().invoke(
        verb.lineage, [*arguments, "-S", f"tracking.uri={world.tracking.uri}", "--preset", "demo"]
    )


def test_a_registered_model_goes_back_to_all_of_it(world: World) -> None:
    root = walk("models:/cloc@champion", world.tracking)
    found = {node.name: node for node in root.everything()}
    dataset = Dataset.open("data/train", captions="captions", regions="regions")
    captions, regions = tables_record(dataset, "captions"), tables_record(dataset, "regions")
    assert captions
    assert regions
    assert root.told == f"cloc version 1, weights {weights_digest('cloc')[:16]}"
    assert found["version"].told == "cloc 1 (champion)"
    assert found["version"].facts["decision"] == "champion: there was no champion"
    assert found["evaluation"].told == "set set-a"
    assert "evaluation" in found["evaluation"].facts["run"]
    assert found["training"].told == "cloc, 2 steps, 16 samples"
    assert found["training"].facts["status"] == "finished"
    assert found["training"].settings["train.batch_size"] == "8"
    assert found["code"].facts["cloc.version"]
    assert found["start"].told == "from random weights"
    assert found["data"].told == f"data/train: 16 images in 4 shards, digest {dataset.digest}"
    assert found["data"].facts["made by"] == "tests"
    assert found["data"].settings == {"seed": "0"}
    assert found["captions"].told == f"captions: 16 on 16 images, digest {captions['digest']}"
    assert found["regions"].told == f"regions: 32 on 16 images, digest {regions['digest']}"
    assert found["captioner"].told == found["detector"].told == "people: the data's own annotations"
    assert "checks passed on 16 images" in found["validation"].told
    assert found["validation"].source.endswith("which read tables of these digests")
    assert found["pipeline"].told.startswith(f"{world.parent[:8]} (toy, ")
    assert all(node.source for node in root.everything() if node.told != NOT_RECORDED)


def test_a_run_its_pipeline_and_its_folder_tell_of_the_same_model(world: World) -> None:
    reader = tracking.Reader(world.tracking)
    parent = reader.find("toy")
    trained, plain = (run for run in reader.children(parent) if run.stage == "pretraining")
    weights = weights_digest("cloc")[:16]
    for reference in (trained.run_id[:12], "toy", "latest", "cloc"):
        assert weights in walk(reference, world.tracking).told
        assert world.node(reference, "version").told == "cloc 1 (champion)"
    told = world.node(plain.run_id, "training")
    assert (told.told, told.facts["as much processor time as"]) == ("clip, 3 steps", "cloc")
    assert world.node(plain.run_id, "version").told.startswith("not registered: no version with these weights in")
    assert world.node(plain.run_id, "evaluation").told == NOT_RECORDED  # the evaluation did not measure it


def test_a_folder_tells_without_mlflow(world: World, tmp_path: Path) -> None:
    shutil.copytree("cloc", tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints", "logs"))
    nowhere = TrackingConfig(uri=f"sqlite:///{tmp_path}/none.db")
    found = {node.name: node for node in walk(str(tmp_path / "model"), nowhere).everything()}
    assert found["version"].told.startswith("not registered: there is no MLflow store")
    assert found["training"].told == "cloc, 2 steps, 16 samples"
    assert found["training"].facts["run"].endswith(f"(not in MLflow at {nowhere.uri})")
    assert found["data"].told.startswith("data/train: 16 images")
    assert found["captioner"].told == "people: the data's own annotations"
    assert found["evaluation"].told == found["validation"].told == NOT_RECORDED


def test_what_an_earlier_release_left_is_not_made_up(world: World, tmp_path: Path) -> None:
    model = tmp_path / "old"
    shutil.copytree("cloc", model, ignore=shutil.ignore_patterns("checkpoints", "logs"))
    for name in ("lineage.json", "config.yaml"):
        (model / name).unlink()
    (model / "model.safetensors").write_bytes(b"other weights")
    found = {node.name: node for node in walk(str(model), world.tracking).everything()}
    assert found["training"].told == "cloc, 2 steps, 16 samples"
    assert found["training"].source == "training.json"
    assert found["training"].facts["run"] == found["training"].facts["settings"] == NOT_RECORDED
    names = ("start", "data", "captions", "regions", "validation", "pipeline", "evaluation")
    assert {found[name].told for name in names} == {NOT_RECORDED}
    assert found["code"].told == f"commit {NOT_RECORDED}"


def test_check_holds_what_is_there_against_the_record(world: World) -> None:
    nodes = walk("cloc", world.tracking, check=True).everything()
    verdicts = {check.what: check.verdict for node in nodes for check in node.checks}
    assert set(verdicts.values()) == {"same"}
    assert {"data/train: 4 tars", "captions/captions", "regions/regions", "cloc: weights"} <= verdicts.keys()
    assert ask(world, "cloc", "--check").exit_code == 0

    tar, table = Path("data/train/images/00003.tar"), Path(table_path("captions", "00001"))
    whole, rows = tar.read_bytes(), Path("captions") / table
    kept = rows.read_bytes()
    tar.write_bytes(whole[:-1] + b"x")
    (checked,) = [check for check in world.node("cloc", "data", check=True).checks if check.verdict != "same"]
    assert (checked.what, checked.verdict) == (str(tar), "differs")
    done = ask(world, "cloc", "--check")
    assert isinstance(done.exception, DataError)
    assert str(done.exception).startswith(f"{tar}: not what was recorded (recorded ")
    tar.unlink()
    assert {check.verdict for check in world.node("cloc", "data", check=True).checks} == {"same", "gone"}
    tar.write_bytes(whole)

    storage = open_storage("captions")
    other = read_table(storage, "captions", "00001").to_pylist()
    write_table(storage, "captions", "00001", [{**row, "text": "another"} for row in other])
    (checked,) = world.node("cloc", "captions", check=True).checks
    assert checked.verdict == "differs"
    rows.write_bytes(kept)
    shutil.move("regions", "elsewhere")
    assert [check.verdict for check in world.node("cloc", "regions", check=True).checks] == ["gone"]
    shutil.move("elsewhere", "regions")


def test_rows_that_were_changed_under_their_hash_are_seen(world: World) -> None:
    """A table that carries the right hash over other rows."""
    import pyarrow.parquet as pq

    path = Path("captions") / table_path("captions", "00000")
    kept = path.read_bytes()
    table = pq.read_table(path)
    pq.write_table(table.take(list(reversed(range(len(table))))), path)
    (checked,) = world.node("cloc", "captions", check=True).checks
    assert (checked.verdict, checked.detail) == ("differs", "captions/00000.parquet: not the rows that were written")
    path.write_bytes(kept)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/cloc@nobody", "has no registered model models:/cloc@nobody"),
        ("models:/other/1", "has no registered model models:/other/1"),
        ("models:/cloc", "write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("nothing", "run 'nothing': no such folder, and no run of that id or name in all experiments of MLflow at"),
        ("captions", r"captions: no model here \(there is no lineage.json, training.json or model.safetensors\)"),
        ("validation", r"run 'validation' \(validation\) trained no encoder|validation: no model here"),
    ],
)
def test_what_is_no_model_is_said_in_a_line(world: World, reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        walk(reference, world.tracking)
    assert "\n" not in str(caught.value)


def test_json_and_lines(world: World) -> None:
    done = ask(world, "models:/cloc/1", "--json")
    body = json.loads(done.output)
    assert [child["name"] for child in body["children"]] == ["version", "evaluation", "training", "pipeline"]
    lines = [line.split("\t") for line in ask(world, "models:/cloc/1").output.splitlines()]
    told = {line[0]: line[1:] for line in lines}
    assert told["model/version"][0] == "cloc 1 (champion)"
    assert told["model/training/regions/detector"][0] == "people: the data's own annotations"
    assert {len(line) for line in lines} == {3}


def test_a_labeller_of_ones_own_is_known_by_its_files_and_what_it_was_fitted_on(tmp_path: Path) -> None:
    """Tables name captioner and detector by the hash of their files, wherever these lie; shards may differ."""
    teacher = tmp_path / "teachers" / "detector"
    teacher.mkdir(parents=True)
    (teacher / "model.safetensors").write_bytes(b"weights")
    fitted = {"split": "seed", "images": 512, "data_digest": "d1", "labels_digest": "l1", "made_by": "tests"}
    teacher.with_name("detector.json").write_text(json.dumps({"made_of": "x", "fitted_on": fitted}))
    config = parse({"grounding": {"backend": "transformers", "model": str(teacher)}}, source="test")
    made_of = recipe(config.grounding, config.data, stage="grounding")
    assert str(tmp_path) not in made_of.made_by
    shutil.move(tmp_path / "teachers", tmp_path / "elsewhere")
    moved = config.grounding.model_copy(update={"model": str(tmp_path / "elsewhere" / "detector")})
    assert recipe(moved, config.data, stage="grounding") == made_of

    data = write_dataset(tmp_path / "data", 8, regions=False)
    storage = open_storage(data)
    for shard, made_by in (("00000", made_of.made_by), ("00001", "")):
        write_table(storage, "regions", shard, [], statistics='{"rows": 3, "images": 4}', made_by=made_by)
    record = tables_record(Dataset.open(data), "regions")
    assert record
    node = labels_node("regions", record, labeller="detector", source="here", checks=())
    assert node.told.startswith(f"{data}: 6 on 8 images, digest ")
    known, unknown = sorted(node.children, key=lambda child: child.told.startswith(NOT_RECORDED))
    digest = json.loads(made_of.made_by)["model_digest"]
    assert known.told == f"detector by transformers, files {digest} (1 of 2 shards)"
    assert known.settings["score_threshold"] == config.grounding.score_threshold
    assert known.children[0].told == "split seed: 512 images, digest d1"
    assert unknown.told == f"{NOT_RECORDED} (1 of 2 shards): the tables do not say what made them"
