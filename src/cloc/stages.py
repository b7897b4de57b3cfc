"""The registry of stages, and the one way to run them: `run_stage`.

The command line, DVC stages and KFP components call it with a stage's name, its settings and its paths. Around the
stage's own `run` it checks names, saves the resolved settings and the result beside the outputs, and records an MLflow
run (a child of the pipeline's).
"""

import importlib
import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cloc import tracking
from cloc.config import Config, dump, parse
from cloc.errors import ClocError, ConfigError, GateFailed
from cloc.stage import CONFIG_FILE, StageResult


@dataclass(frozen=True)
class StageSpec:
    """A stage.

    Attributes:
        name: as in the registry, the CLI, DVC and the pipeline.
        module: where its `run`, `Inputs` and `Outputs` are.
        sections: sections of the settings that it reads; nothing else can change what it does.
        home: the output whose folder, where it is wanted, also gets the settings and the result; empty where the only
            output is a data set, which holds nothing that differs between equal runs.
        title: for people.
        reads: setting that names the splits of a collection that it reads.
        purpose: what it reads them for, as MLflow tells of a data set.
    """

    name: str
    module: str
    sections: tuple[str, ...]
    home: str
    title: str
    reads: str = "data.train_split"
    purpose: str = ""


STAGES: Mapping[str, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec("scenes", "cloc.data.scenes.stage", ("data",), "", "Render the demo data set"),
        StageSpec("ingest", "cloc.data.ingest.stage", ("data",), "", "Bring images into a data set"),
        StageSpec("duplicates", "cloc.data.duplicates.stage", ("data",), "report", "Find images that occur again"),
        StageSpec("attributes", "cloc.data.attributes.stage", ("data",), "", "Bring in hard negatives"),
        StageSpec(
            "teachers",
            "cloc.labeling.teachers.stage",
            ("data", "teachers"),
            "teachers",
            "Fit labelling models",
            reads="teachers.split",
            purpose="training",
        ),
        StageSpec(
            "captioning",
            "cloc.labeling.captioning",
            ("data", "captioning"),
            "report",
            "Caption every image",
            purpose="labelling",
        ),
        StageSpec(
            "grounding",
            "cloc.labeling.grounding",
            ("data", "grounding"),
            "report",
            "Find what captions name",
            purpose="labelling",
        ),
        StageSpec(
            "validation",
            "cloc.validation.stage",
            ("data", "validation"),
            "report",
            "Check the labels",
            purpose="validation",
        ),
        StageSpec(
            "pretraining",
            "cloc.training.stage",
            ("data", "model", "loss", "train"),
            "model",
            "Train an encoder",
            purpose="training",
        ),
        StageSpec(
            "evaluation",
            "cloc.evaluation.stage",
            ("data", "evaluation"),
            "report",
            "Compare the encoders",
            reads="data.test_splits",
            purpose="evaluation",
        ),
        StageSpec(
            "registration", "cloc.evaluation.registration", ("evaluation", "tracking"), "receipt", "Gate and registry"
        ),
        StageSpec(
            "adapter_tuning",
            "cloc.mllm.stage",
            ("data", "train", "adapter"),
            "adapter",
            "Tune an MLLM adapter",
            purpose="training",
        ),
    )
}


def stage_spec(name: str) -> StageSpec:
    """The stage of that name. Raises ConfigError when there is none."""
    if name not in STAGES:
        raise ConfigError(f"stage {name!r} is unknown; there are: {', '.join(STAGES)}")
    return STAGES[name]


def stage_settings(name: str, config: Config) -> dict[str, Any]:
    """The part of the settings that a stage reads, as JSON values."""
    tree = config.model_dump(mode="json")
    return {section: tree[section] for section in stage_spec(name).sections}


def run_stage(
    name: str,
    config: Config | Mapping[str, Any],
    *,
    inputs: Mapping[str, Any] | None = None,
    outputs: Mapping[str, str],
    result_dir: str | None = None,
) -> StageResult:
    """Runs a stage.

    Args:
        name: of the stage.
        config: all settings, or the nested part that the stage reads (as `stage_settings` gives).
        inputs, outputs: values for the fields of the stage's `Inputs` and `Outputs`.
        result_dir: folder for stage_result.json and config.yaml where it is not an output's (see `StageSpec.home`).

    Returns:
        What the stage reports.

    Raises:
        ConfigError: an unknown stage, setting, input or output.
        ClocError: the stage failed in a way that the message explains.
    """
    spec = stage_spec(name)
    resolved = config if isinstance(config, Config) else parse(config, source=f"settings of {name}")
    module = importlib.import_module(spec.module)
    given_inputs = _fill(module.Inputs, inputs or {}, stage=name, what="input")
    given_outputs = _fill(module.Outputs, outputs, stage=name, what="output")
    home = result_dir or (getattr(given_outputs, spec.home) if spec.home else None)
    started = time.monotonic()
    print(f"== {spec.title} ({name})", flush=True)
    settings, title = stage_settings(name, resolved), _run_title(spec, given_inputs, given_outputs)
    with (
        tracking.ending_as_its_stage(resolved.tracking),
        tracking.stage_run(resolved.tracking, stage=name, settings=settings, name=title) as run,
    ):
        read = {key: value for key, value in vars(given_inputs).items() if value}
        run.log_inputs(read, tracking.data_sets(read, splits=_splits(spec, resolved), context=spec.purpose))
        try:
            result: StageResult = module.run(resolved, inputs=given_inputs, outputs=given_outputs)
        except ClocError as error:
            run.fail(str(error))
            if isinstance(error, GateFailed) and error.result is not None:
                run.log_result(error.result)
                tracking.log_family(resolved.tracking, run, error.result)
                if home:
                    (Path(home) / CONFIG_FILE).write_text(dump(resolved))
            raise
        if home:
            result.save(home)
            (Path(home) / CONFIG_FILE).write_text(dump(resolved))
        run.log_result(result)
        tracking.log_family(resolved.tracking, run, result)
        result = replace(result, mlflow_run=run.run_id)
    print(f"== {name}: {result.message} ({time.monotonic() - started:.0f} s)", flush=True)
    return result


def _splits(spec: StageSpec, config: Config) -> list[str]:
    found = config.model_dump(mode="json")
    for part in spec.reads.split("."):
        found = found[part]
    return [found] if isinstance(found, str) else list(found)


def _run_title(spec: StageSpec, inputs: Any, outputs: Any) -> str:
    """Name of the stage's run; its `Inputs.title`, where there is one, says what tells it from others."""
    return tracking.stage_title(
        spec.name,
        made=str(getattr(outputs, spec.home)) if spec.home else "",
        fields=frozenset(vars(outputs)),
        title=str(getattr(inputs, "title", "")),
        worker=str(getattr(inputs, "worker", "")),
    )


def _fill(cls: Any, values: Mapping[str, Any], *, stage: str, what: str) -> Any:
    known = {item.name: item for item in fields(cls)}
    for name in values:
        if name not in known:
            raise ConfigError(f"stage {stage} has no {what} {name!r}; there are: {', '.join(known) or 'none'}")
    for name, item in known.items():
        if name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"stage {stage} needs the {what} {name!r}")
    return cls(**values)
