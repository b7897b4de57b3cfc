"""What `cloc compare` holds beside each other: a run of MLflow, or a folder that a stage or `cloc run` wrote."""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from cloc.config import load_params
from cloc.config.load import flatten
from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError, DataError
from cloc.evaluation.comparison import Subject
from cloc.evaluation.promotion import ESTIMATES_FILE, METRICS_FILE, Measured
from cloc.stage import CONFIG_FILE, RESULT_FILE
from cloc.stages import STAGES, stage_settings
from cloc.tracking import Reader, Recorded

_FILES = (METRICS_FILE, ESTIMATES_FILE)
_PARAM_LIMIT = 500  # what a run of MLflow keeps of a setting
_CODE = {"mlflow.source.git.commit": "git commit", "git.dirty": "uncommitted changes", "cloc.version": "cloc"}


class Subjects:
    """Finds runs; the store is looked at when a run is no folder."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self._tracking = tracking

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self._tracking)

    def find(self, reference: str) -> Subject:
        """What is known of a run.

        Raises:
            ConfigError: there is none, or several.
            DataError: a folder holds nothing that a run wrote.
        """
        folder = Path(reference)
        if folder.is_dir():
            return _of_folder(folder)
        run = self._reader.find(reference)
        return self._of_run(run)

    def _of_run(self, run: Recorded) -> Subject:
        """A stage's run; or a pipeline's with its stages, whose metrics then begin with the stage's name."""
        stages = [run] if run.stage else [run, *self._reader.children(run)]
        names = _names([item.stage for item in stages])
        metrics, data = dict[str, float](), dict[str, str]()
        evaluation: Measured | None = None
        for name, item in zip(names, stages, strict=True):
            prefix = f"{name}: " if name and not run.stage else ""
            metrics |= {f"{prefix}{key}": value for key, value in item.metrics.items()}
            data |= {f"{prefix}{key}": value for key, value in item.data.items()}
            if item.stage == "evaluation":
                files = self._reader.files(item, _FILES)
                evaluation = _candidate(files, where=str(item)) or evaluation
                data |= {f"{prefix}{key}": value for key, value in _sets(evaluation).items()}
        return Subject(
            label=f"{run.name} {run.run_id[:8]}",
            config=run.params,
            data=data,
            code={shown: run.tags[tag] for tag, shown in _CODE.items() if tag in run.tags},
            metrics=metrics,
            evaluation=evaluation,
        )


def _names(stages: list[str]) -> list[str]:
    """Stages by name; those that occur again are numbered in the order that they began."""
    seen = dict[str, int]()
    found = []
    for stage in stages:
        seen[stage] = seen.get(stage, 0) + 1
        found.append(stage if stages.count(stage) == 1 else f"{stage} {seen[stage]}")
    return found


def _of_folder(folder: Path) -> Subject:
    """A stage's folder, or one whose folders are stages' (as `cloc run --out` makes it)."""
    config, data, metrics = dict[str, str](), dict[str, str](), dict[str, float]()
    evaluation: Measured | None = None
    places = list(_places(folder))
    for name, place in places:
        prefix = f"{name}: " if name else ""
        if (place / RESULT_FILE).is_file():
            result = _read(place / RESULT_FILE)
            metrics |= {f"{prefix}{key}": value for key, value in result["metrics"].items()}
            metrics |= {f"{prefix}count/{key}": float(value) for key, value in result["counts"].items()}
            for model, own in result.get("models", {}).items():  # not in what earlier releases wrote
                metrics |= {f"{prefix}{model}: {key}": value for key, value in own["metrics"].items()}
            config |= _settings(place, result["stage"])
        if (place / METRICS_FILE).is_file():
            files = {name: (place / name).read_bytes() for name in _FILES if (place / name).is_file()}
            if (found := _candidate(files, where=str(place))) is not None:
                evaluation = found
                data |= _sets(found)
    if not places:
        raise DataError(
            f"{folder}: nothing that a run wrote (no {RESULT_FILE} and no {METRICS_FILE}, here or one folder below)"
        )
    return Subject(label=str(folder), config=config, data=data, metrics=metrics, evaluation=evaluation)


def _places(folder: Path) -> Iterator[tuple[str, Path]]:
    """The folders of stages: the folder itself, else those in it."""
    known = (RESULT_FILE, METRICS_FILE)
    if any((folder / name).is_file() for name in known):
        yield "", folder
        return
    for place in sorted(folder.iterdir()):
        if any((place / name).is_file() for name in known):
            yield place.name, place


def _settings(place: Path, stage: str) -> dict[str, str]:
    """The settings that a stage read; of the others the file knows nothing."""
    path = place / CONFIG_FILE
    if not path.is_file() or stage not in STAGES:
        return {}
    found = flatten(stage_settings(stage, load_params(path)))
    return {name: str(value)[:_PARAM_LIMIT] for name, value in found.items()}


def _candidate(files: Mapping[str, bytes], *, where: str) -> Measured | None:
    """The candidate's part in an evaluation; None where it has no CLOC model."""
    if METRICS_FILE not in files:
        return None
    try:
        metrics = json.loads(files[METRICS_FILE])
        model = metrics["headline"]["candidate"]
        return Measured.of(files, weights=metrics["models"][model]["weights_sha256"]) if model else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where}: its {METRICS_FILE} is not of an evaluation ({type(error).__name__}: {error}); evaluate again"
        ) from None


def _sets(evaluation: Measured | None) -> dict[str, str]:
    """The evaluation's sets, by split, and whose figures they are."""
    if evaluation is None:
        return {}
    weights = str(evaluation.metrics["models"][evaluation.model]["weights_sha256"])
    found = {"candidate": f"{evaluation.model}, weights {weights[:12]}"}
    for name, split in evaluation.metrics["splits"].items():
        found[f"evaluation set {name}"] = f"{str(split['digest'])[:16]} ({split['images']} images)"
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(path.read_text())
        body["metrics"], body["counts"], body["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read as a stage's result ({error}); run the stage again") from None
    return body
