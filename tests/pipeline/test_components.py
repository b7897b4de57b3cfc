"""Each component through its `python_func`, with artifacts on disk and small real data."""

import json
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from cloc.pipeline.component import FAILURE_VARIABLE
from cloc.pipeline.parameters import OTHER, arguments, stage_parameters
from components.adapter_tuning.component import adapter_tuning
from components.captioning.component import captioning, captioning_part
from components.evaluation.component import evaluation
from components.grounding.component import grounding
from components.ingest.component import ingest
from components.label_parts.component import label_parts
from components.outcome.component import outcome
from components.pretraining.component import pretraining
from components.registration.component import registration
from components.settings.component import settings
from components.summary.component import summary
from components.teachers.component import teachers
from components.validation.component import validation
from tests.pipeline import toy


class Folder:
    """Artifacts of a run, made as KFP makes them: a URI under the task's root, nothing there yet."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, name: str, kind: type[dsl.Artifact] = dsl.Artifact) -> Any:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return kind(name=name, uri=str(path))


@pytest.fixture(scope="module", autouse=True)
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        yield


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module")
def given() -> dict[str, str]:
    """What the stages' tasks are given; two images are enough for this validation."""
    return stage_parameters(toy.config(validation__min_images="2", train__steps="2"))


@pytest.fixture(scope="module")
def data(new: Folder, given: dict[str, str]) -> Any:
    artifact, metrics = new("data", dsl.Dataset), new("data_metrics", dsl.Metrics)
    ingest.python_func(parameters=given["scenes"], data=artifact, metrics=metrics)
    return artifact


@pytest.fixture(scope="module")
def teachers_made(new: Folder, given: dict[str, str], data: Any) -> Any:
    artifact, metrics = new("teachers", dsl.Model), new("teachers_metrics", dsl.Metrics)
    teachers.python_func(parameters=given["teachers"], data=data, teachers=artifact, metrics=metrics)
    assert artifact.metadata["message"] == "no teachers are needed"
    return artifact


def show(new: Folder, name: str) -> dict[str, Any]:
    """The outputs of a labelling task that people look at."""
    return {"report": new(f"{name}_report"), "page": new(f"{name}.html", dsl.HTML)}


@pytest.fixture(scope="module")
def captions(new: Folder, given: dict[str, str], data: Any, teachers_made: Any) -> Any:
    artifact, metrics, shown = new("captions", dsl.Dataset), new("captions_metrics", dsl.Metrics), show(new, "captions")
    captioning.python_func(
        parameters=given["captioning"], data=data, teachers=teachers_made, captions=artifact, metrics=metrics, **shown
    )
    assert "<html" in Path(shown["page"].path).read_text()
    assert metrics.metadata["labels/captions_per_image"] >= 1
    return artifact


@pytest.fixture(scope="module")
def regions(new: Folder, given: dict[str, str], data: Any, captions: Any, teachers_made: Any) -> Any:
    artifact, metrics, shown = new("regions", dsl.Dataset), new("regions_metrics", dsl.Metrics), show(new, "regions")
    grounding.python_func(
        parameters=given["grounding"],
        data=data,
        captions=captions,
        teachers=teachers_made,
        regions=artifact,
        metrics=metrics,
        **shown,
    )
    assert "<html" in Path(shown["page"].path).read_text()
    assert metrics.metadata["labels/regions_per_image"] > 0
    return artifact


def _train(new: Folder, given: dict[str, str], name: str, **inputs: Any) -> Any:
    model, metrics = new(name, dsl.Model), new(f"{name}_metrics", dsl.Metrics)
    pretraining.python_func(parameters=given["pretraining"], model=model, metrics=metrics, **inputs)
    return model


@pytest.fixture(scope="module")
def models(new: Folder, given: dict[str, str], data: Any, captions: Any, regions: Any) -> dict[str, Any]:
    labels = {"data": data, "captions": captions, "regions": regions}
    cloc = _train(new, given, "cloc", objective="cloc", **labels)
    clip = _train(new, given, "clip", objective="clip", **labels)
    return {"clip_equal_steps": clip, "clip_equal_compute": clip, "cloc": cloc}


@pytest.fixture(scope="module")
def report(new: Folder, given: dict[str, str], data: Any, models: dict[str, Any]) -> Any:
    report, page, metrics = new("report"), new("page.html", dsl.HTML), new("report_metrics", dsl.Metrics)
    confusion = new("confusion", dsl.ClassificationMetrics)
    outputs = {"report": report, "page": page, "metrics": metrics, "confusion": confusion}
    evaluation.python_func(parameters=given["evaluation"], data=data, **outputs, **models)
    matrix = confusion.metadata["confusionMatrix"]
    assert len(matrix["annotationSpecs"]) == len(matrix["rows"]) <= 11
    assert "<html" in Path(page.path).read_text()
    assert any("region" in name for name in metrics.metadata)
    return report


def test_settings_gives_each_stage_its_own() -> None:
    values = arguments(toy.config())
    stages = settings.python_func(data="", other_settings=values.pop(OTHER), **values)
    assert dict(stages._asdict()) == stage_parameters(toy.config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training_steps": 0}, "train.steps"),
        ({"captioner": "magic"}, "captioning.backend"),
        ({OTHER: ["train.stepz=3"]}, "unknown key train.stepz (did you mean train.steps?)"),
        ({OTHER: ["nonsense"]}, "write it as section.key=value"),
        ({"data": "/nowhere"}, "/nowhere"),
    ],
)
def test_wrong_settings_are_one_line(change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        settings.python_func(**{"data": "", **arguments(toy.config()), **change})
    assert ended.value.code in (2, 3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_ingest_renders(data: Any) -> None:
    assert (Path(data.path) / "train/manifest.json").is_file()
    assert data.metadata["images"] == 120
    assert data.metadata["mlflow_run"]


def test_ingest_points_at_what_is_given(tmp_path: Path, make_dataset: Any, teachers_made: Any) -> None:
    for split in ("train", "test"):
        make_dataset(tmp_path / "photos" / split, 8)
    given, new = stage_parameters(toy.config(), data=str(tmp_path / "photos")), Folder(tmp_path / "run")
    artifact = new("data", dsl.Dataset)
    ingest.python_func(parameters=given["scenes"], data=artifact, metrics=new("m", dsl.Metrics))
    assert [path.name for path in Path(artifact.path).iterdir()] == ["location.json"]
    assert artifact.metadata["digest"]
    captions, metrics = new("captions", dsl.Dataset), new("m2", dsl.Metrics)
    captioning.python_func(
        parameters=given["captioning"],
        data=artifact,
        teachers=teachers_made,
        captions=captions,
        metrics=metrics,
        **show(new, "captions"),
    )
    assert captions.metadata["labelled"] == 8
    assert json.loads(Path(metrics.path).read_text())["labelled"] == 8


def test_validation_shows_its_report(
    new: Folder, given: dict[str, str], data: Any, captions: Any, regions: Any
) -> None:
    shown = {"page": new("checks.html", dsl.HTML), "data_docs": new("docs.html", dsl.HTML)}
    metrics = new("checks_metrics", dsl.Metrics)
    labels = {"data": data, "captions": captions, "regions": regions}
    validation.python_func(parameters=given["validation"], **labels, report=new("checks"), metrics=metrics, **shown)
    assert "Validation passed" in Path(shown["page"].path).read_text()
    assert "Data Docs" in Path(shown["data_docs"].path).read_text()
    assert metrics.metadata["checks/failed"] == 0


def test_validation_that_fails_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: Any,
    captions: Any,
    regions: Any,
) -> None:
    monkeypatch.setenv(FAILURE_VARIABLE, str(tmp_path / "failure.json"))
    new, given = Folder(tmp_path), stage_parameters(toy.config(validation__min_images="1000"))
    page, data_docs = new("page", dsl.HTML), new("data_docs", dsl.HTML)
    with pytest.raises(SystemExit) as ended:
        validation.python_func(
            parameters=given["validation"],
            data=data,
            captions=captions,
            regions=regions,
            report=new("report"),
            page=page,
            data_docs=data_docs,
            metrics=new("metrics", dsl.Metrics),
        )
    assert ended.value.code == 4
    assert "Validation failed" in Path(page.path).read_text()
    assert "Data Docs" in Path(data_docs.path).read_text()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: validation: 1 of ")
    told = json.loads((tmp_path / "failure.json").read_text())
    assert (told["task"], told["exit_code"], f"error: {told['message']}") == ("validation", 4, last)


def test_a_defect_keeps_its_traceback(tmp_path: Path, data: Any, teachers_made: Any) -> None:
    """Only failures that the user can act on are one line."""
    (tmp_path / "metrics").write_text("a file where a folder is needed")
    given = stage_parameters(toy.config())
    metrics = dsl.Metrics(name="metrics", uri=str(tmp_path / "metrics" / "metrics"))
    with pytest.raises(FileExistsError):
        captioning.python_func(
            parameters=given["captioning"],
            data=data,
            teachers=teachers_made,
            captions=Folder(tmp_path)("captions", dsl.Dataset),
            metrics=metrics,
            **show(Folder(tmp_path), "captions"),
        )


def test_pretraining_makes_models(models: dict[str, Any]) -> None:
    for name, objective in (("cloc", "cloc"), ("clip_equal_steps", "clip")):
        training = json.loads((Path(models[name].path) / "training.json").read_text())
        assert training["objective"] == objective
        assert models[name].metadata["steps"] == 2


def test_evaluation_registration_adapter_and_summary(
    new: Folder,
    given: dict[str, str],
    data: Any,
    captions: Any,
    regions: Any,
    models: dict[str, Any],
    report: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    strict = stage_parameters(toy.config(evaluation__min_region_gain="1000.0"))["registration"]
    with pytest.raises(SystemExit) as ended:
        registration.python_func(
            parameters=strict,
            evaluation=report,
            model=models["cloc"],
            receipt=new("refused"),
            metrics=new("refused_metrics", dsl.Metrics),
        )
    assert ended.value.code == 4
    assert "min_region_gain" in capsys.readouterr().err.splitlines()[-1]
    labels = {"data": data, "captions": captions, "regions": regions}
    adapter, metrics = new("adapter", dsl.Model), new("adapter_metrics", dsl.Metrics)
    answers = new("adapter.html", dsl.HTML)
    adapter_tuning.python_func(
        parameters=given["adapter_tuning"],
        **labels,
        encoder=models["cloc"],
        adapter=adapter,
        report=new("adapter_report"),
        page=answers,
        metrics=metrics,
    )
    assert "eval/mllm_refer/test/accuracy" in metrics.metadata
    assert "refers, word for word" in Path(answers.path).read_text()
    results, page, figures = new("results"), new("page.md", dsl.Markdown), new("figures", dsl.Metrics)
    side_by_side = new("answers.html", dsl.HTML)
    summary.python_func(
        **labels,
        **models,
        teachers=labels["captions"],
        label_report=report,
        validation=report,
        evaluation=report,
        receipt=report,
        clip_adapter=adapter,
        cloc_adapter=adapter,
        sampler_adapter=adapter,
        results=results,
        page=page,
        answers=side_by_side,
        metrics=figures,
    )
    text = Path(page.path).read_text()
    assert "region mAcc" in text
    assert "refers, word for word" in text
    assert "CLOC, Prompter as sampler" in Path(side_by_side.path).read_text()
    assert "region mAcc/CLOC" in figures.metadata
    assert json.loads((Path(results.path) / "summary.json").read_text())["places"]["model"] == models["cloc"].path


def test_parts_label_their_shares_and_the_last_task_finds_them_done(
    tmp_path: Path, make_dataset: Any, teachers_made: Any
) -> None:
    for split in ("train", "test"):
        make_dataset(tmp_path / "photos" / split, 12)  # three shards
    changes = {"pipeline__labels_at": str(tmp_path / "labels"), "pipeline__label_parts": "5"}
    given, new = stage_parameters(toy.config(**changes), data=str(tmp_path / "photos")), Folder(tmp_path / "run")
    data = new("data", dsl.Dataset)
    ingest.python_func(parameters=given["scenes"], data=data, metrics=new("m", dsl.Metrics))
    assert label_parts.python_func(parameters=stage_parameters(toy.config())["captioning"], data=data) == []
    shares = label_parts.python_func(parameters=given["captioning"], data=data)
    assert [json.loads(share)["part"] for share in shares] == ["0/3", "1/3", "2/3"]
    for number, share in enumerate(shares):
        captions = new(f"captions-{number}", dsl.Dataset)
        captioning_part.python_func(
            parameters=share,
            data=data,
            teachers=teachers_made,
            captions=captions,
            metrics=new(f"m-{number}", dsl.Metrics),
        )
        told = json.loads((Path(captions.path) / "location.json").read_text())
        assert (told["part"], told["labelled"], told["skipped"]) == (f"{number}/3", 4, 0)
        assert [path.name for path in Path(captions.path).iterdir()] == ["location.json"]
    whole, shown = new("captions", dsl.Dataset), show(new, "captions")
    captioning.python_func(
        parameters=given["captioning"],
        data=data,
        teachers=teachers_made,
        captions=whole,
        metrics=new("m-whole", dsl.Metrics),
        **shown,
    )
    assert (whole.metadata["labelled"], whole.metadata["skipped"]) == (12, 12)
    assert len(list(Path(told["location"]).rglob("captions/*.parquet"))) == 3
    grown = stage_parameters(toy.config(**changes), data=str(tmp_path / "photos"))["captioning"]
    assert json.loads(grown)["at"] == told["location"]
    other = stage_parameters(toy.config(**changes, captioning__batch_size="3"), data=str(tmp_path / "photos"))
    assert json.loads(other["captioning"])["at"] != told["location"]


def test_what_is_left_out_says_why_and_nothing_is_made_of_it(
    new: Folder, tmp_path: Path, data: Any, captions: Any, regions: Any, models: dict[str, Any], report: Any
) -> None:
    given, made = stage_parameters(toy.config(pipeline__baselines="false")), Folder(tmp_path)
    labels = {"data": data, "captions": captions, "regions": regions}
    clip, metrics = made("clip", dsl.Model), made("clip_metrics", dsl.Metrics)
    pretraining.python_func(parameters=given["baseline"], objective="clip", model=clip, metrics=metrics, **labels)
    assert "without a plain CLIP" in clip.metadata["skipped"]
    adapter, page = made("adapter", dsl.Model), made("page", dsl.HTML)
    adapter_tuning.python_func(
        parameters=given["adapter_tuning"],
        encoder=clip,
        adapter=adapter,
        report=made("adapter_report"),
        page=page,
        metrics=made("adapter_metrics", dsl.Metrics),
        **labels,
    )
    assert adapter.metadata["skipped"] == clip.metadata["skipped"]
    assert "Skipped: the run was started without a plain CLIP" in Path(page.path).read_text()
    alone, shown = made("report"), {"page": made("p", dsl.HTML), "confusion": made("c", dsl.ClassificationMetrics)}
    evaluation.python_func(
        parameters=given["evaluation"],
        data=data,
        clip_equal_steps=clip,
        clip_equal_compute=clip,
        cloc=models["cloc"],
        report=alone,
        metrics=made("em", dsl.Metrics),
        **shown,
    )
    assert list(json.loads((Path(alone.path) / "metrics.json").read_text())["models"]) == ["CLOC"]
    registration.python_func(
        parameters=given["registration"],
        evaluation=alone,
        model=models["cloc"],
        receipt=made("receipt"),
        metrics=made("rm", dsl.Metrics),
    )
    nothing = dict.fromkeys(("clip_adapter", "cloc_adapter", "sampler_adapter"), adapter)
    results, answers = made("results"), made("answers.html", dsl.HTML)
    summary.python_func(
        **labels,
        teachers=clip,
        label_report=alone,
        validation=alone,
        clip_equal_steps=clip,
        clip_equal_compute=clip,
        cloc=models["cloc"],
        evaluation=alone,
        receipt=made("receipt"),
        **nothing,
        results=results,
        page=made("summary.md", dsl.Markdown),
        answers=answers,
        metrics=made("sm", dsl.Metrics),
    )
    body = json.loads((Path(results.path) / "summary.json").read_text())
    assert "adapters" not in body
    assert not {"clip_adapter", "clip_equal_steps", "answers"} & body["places"].keys()
    assert "No adapter was tuned" in Path(answers.path).read_text()


@pytest.mark.parametrize(
    ("state", "error", "status"),
    [("SUCCEEDED", "", "FINISHED"), ("FAILED", "validation failed", "FAILED"), ("CANCELED", "", "KILLED")],
)
def test_the_outcome_is_recorded_in_the_run_of_the_settings_experiment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: str, error: str, status: str
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("CLOC_RUN_KEY", f"run-{state}")
    others = [f"tracking.experiment=other-{state}"]
    values = arguments(toy.config())
    values[OTHER] += others
    settings.python_func(data="", run_name="nightly", **values)
    told = dsl.PipelineTaskFinalStatus(
        state=state, pipeline_job_resource_name="", pipeline_task_name="CLOC", error_code=None, error_message=error
    )
    outcome.python_func(status=told, other_settings=others)
    client = MlflowClient()
    experiment = client.get_experiment_by_name(f"other-{state}")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("nightly", status)
    assert run.data.tags["cloc.outcome"] == state
    assert run.data.tags.get("cloc.failure", "") == (f"CLOC: {error}" if error else "")
    assert run.data.params["train.steps"] == "4"
    assert f"recorded in the MLflow run {run.info.run_id}" in capsys.readouterr().out


def test_an_outcome_that_cannot_be_recorded_is_only_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("CLOC_OUTBOX", str(tmp_path))
    told = dsl.PipelineTaskFinalStatus(
        state="FAILED", pipeline_job_resource_name="", pipeline_task_name="CLOC", error_code=None, error_message="x"
    )
    outcome.python_func(status=told, other_settings=[])
    assert "there is no MLflow run to record it in" in capsys.readouterr().out
    monkeypatch.setenv("CLOC_RUN_KEY", "run-away")
    outcome.python_func(status=told, other_settings=[])
    said = capsys.readouterr()
    assert "not recorded: MLflow does not answer" in said.out
    assert "MLflow at http://127.0.0.1:9 takes no records (connection refused)" in said.err
