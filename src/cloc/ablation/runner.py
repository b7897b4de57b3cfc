"""Trains the rows that are not trained yet, evaluates them together, and writes the comparison.

What lies under `out`:

    labels/        the label tables
    models/        a folder a row and seed; a complete one is not trained again, a stopped one goes on
    evaluation/    the evaluation's report over all models
    ablation.json, ablation.md
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloc import tracking
from cloc.ablation import report
from cloc.ablation.compare import FIGURES, Model, TableRow, compare, read_scores
from cloc.ablation.labels import Labels, make_labels
from cloc.ablation.rows import LabelKind, Row
from cloc.config import Config
from cloc.config.schema import RECORDING
from cloc.errors import ConfigError
from cloc.evaluation.summary import READERS, best_row
from cloc.pipeline.sources import code_version
from cloc.stage import StageResult, fingerprint
from cloc.stages import run_stage

RECORD_FILE, TRAINING_FILE = "ablation_row.json", "training.json"


@dataclass(frozen=True)
class Run:
    """A model to train.

    Attributes:
        row, seed: what it is.
        config: its settings.
        folder: where it goes.
        labels: what it is trained with.
    """

    row: Row
    seed: int
    config: Config
    folder: Path
    labels: Labels

    @property
    def name(self) -> str:
        """For people, and in the evaluation."""
        return f"{self.row.title}, seed {self.seed}"

    @property
    def record(self) -> dict[str, Any]:
        """What the folder says of itself; only `fingerprint` decides whether it may be used again."""
        train = self.config.train.model_dump(mode="json", exclude=set(RECORDING))
        settings = [self.config.model.model_dump(mode="json"), self.config.loss.model_dump(mode="json"), train]
        return {
            "row": self.row.key,
            "seed": self.seed,
            "fingerprint": fingerprint(settings, self.row.objective, self.labels.digest),
            "code": code_version("pretraining"),
        }


def run_ablation(
    config: Config,
    *,
    rows: Sequence[Row],
    seeds: Sequence[int],
    data: str | None,
    out: str,
    captions: str = "",
    regions: str = "",
) -> list[TableRow]:
    """Runs the ablation and prints its table.

    Args:
        config: settings of the base row.
        rows: rows to train, the base row among them, in the order of the table.
        seeds: values of `train.seed`.
        data: data set or collection; without it the demo data are rendered.
        out: folder for everything.
        captions, regions: label tables that exist; empty makes them.

    Returns:
        The table.

    Raises:
        ConfigError: a model folder holds something else.
        ClocError: a stage failed; running again goes on.
    """
    started, root = time.monotonic(), Path(out)
    root.mkdir(parents=True, exist_ok=True)
    with tracking.pipeline_run(config.tracking, name="ablation", settings=config.model_dump(mode="json")) as parent:
        place = data or _render(config, f"{out}/data")
        kinds = {row.labels for row in rows}
        labels = make_labels(kinds, config, data=place, out=f"{out}/labels", captions=captions, regions=regions)
        runs = plan(config, rows=rows, seeds=seeds, labels=labels, models=root / "models")
        train(runs, data=place)
        metrics = _evaluate(config, runs, data=place, folder=root / "evaluation")
        table = compare(rows, [_model(run, metrics) for run in runs])
        result = report.Result(config, tuple(seeds), table, labels, metrics)
        artifacts = report.write(result, root)
        summary = StageResult("ablation", _flat(table), message=report.brief(table), artifacts=artifacts)
        parent.log_result(summary)
    report.print_result(result)
    for name, path in {**artifacts, "report": str(root / "evaluation" / "index.html")}.items():
        print(f"{name:<10} {path}")
    print(f"ablation: {len(runs)} models, {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
    return table


def _render(config: Config, folder: str) -> str:
    run_stage("scenes", config, outputs={"data": folder})
    return folder


def plan(
    config: Config, *, rows: Sequence[Row], seeds: Sequence[int], labels: Mapping[LabelKind, Labels], models: Path
) -> list[Run]:
    """The models to train: all rows of a seed, then the next seed.

    Raises:
        ConfigError: a folder holds a model of other settings or labels. Nothing was trained yet.
    """
    runs = []
    for seed in seeds:
        for row in rows:
            own = row.config(config)
            seeded = own.model_copy(update={"train": own.train.model_copy(update={"seed": seed})})
            runs.append(Run(row, seed, seeded, models / f"{row.key}-seed{seed}", labels[row.labels]))
    for run in runs:
        _check_folder(run)
    return runs


def _check_folder(run: Run) -> None:
    begun = (run.folder / TRAINING_FILE).is_file() or any(run.folder.glob("checkpoints/step-*"))
    if not begun:
        return
    record = run.folder / RECORD_FILE
    if not record.is_file():
        raise ConfigError(f"{run.folder} holds a model that is not of this ablation; remove it, or give another --out")
    if json.loads(record.read_text())["fingerprint"] != run.record["fingerprint"]:
        raise ConfigError(
            f"{run.folder} was trained with other settings, data or labels than {run.name} has now; "
            "remove it, or give another --out"
        )


def train(runs: Sequence[Run], *, data: str) -> None:
    """Trains every model that is not complete."""
    for number, run in enumerate(runs, start=1):
        if (run.folder / TRAINING_FILE).is_file():
            print(f"ablation: {run.name} stands already ({number} of {len(runs)})", flush=True)
            continue
        print(f"ablation: {run.name} ({number} of {len(runs)})", flush=True)
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / RECORD_FILE).write_text(json.dumps(run.record, indent=1) + "\n")
        inputs = {
            "data": data,
            "captions": run.labels.captions,
            "regions": run.labels.regions,
            "objective": run.row.objective,
        }
        run_stage("pretraining", run.config, inputs=inputs, outputs={"model": str(run.folder)})


def _evaluate(config: Config, runs: Sequence[Run], *, data: str, folder: Path) -> dict[str, Any]:
    models = {run.name: str(run.folder) for run in runs}
    # The table has no probes, which take far longer than all else.
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"probe_items": 0})})
    run_stage("evaluation", config, inputs={"data": data, "models": models}, outputs={"report": str(folder)})
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def _model(run: Run, metrics: Mapping[str, Any]) -> Model:
    trained = metrics["models"][run.name]
    best = best_row(metrics, split=metrics["headline"]["split"], model=run.name)
    record = json.loads((run.folder / RECORD_FILE).read_text())
    return Model(
        row=run.row.key,
        seed=run.seed,
        name=run.name,
        folder=str(run.folder),
        scores=read_scores(metrics, run.name, grounds=run.config.loss.grounding != "none"),
        reader=READERS[best["reader"]] if best else "",
        steps=trained["steps"],
        cpu_seconds=trained["cpu_seconds"],
        parameters=trained["parameters"],
        weights=trained["weights_sha256"],
        code=record["code"],
    )


def _flat(table: Sequence[TableRow]) -> dict[str, float]:
    """The means for tracking, as shares like the evaluation's: "ablation/<row>/<figure>"."""
    flat = {}
    for item in table:
        for figure in FIGURES:
            mean = item.mean(figure.key)
            if mean is not None:
                flat[f"ablation/{item.row.key}/{figure.key}"] = mean / 100
        flat[f"ablation/{item.row.key}/cpu_seconds"] = item.cpu_seconds
    return flat
