"""What `cloc runs` says of a run, as plain values: for its tables and for JSON."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cloc.config.beside import beside
from cloc.evaluation.summary import FIGURES
from cloc.tracking.names import plain
from cloc.tracking.recorded import Family, Recorded
from cloc.tracking.troubles import shown

_LOCAL = "http://localhost:5000"
_ARTIFACT = "artifact."
_KFP_URLS = ("kfp.run_url", "cloc_kfp_run_url")


def summary(family: Family, *, experiment: str, stages: bool = False) -> dict[str, Any]:
    """A run in a line of the list."""
    run = family.run
    told = {
        "run": run.run_id,
        "name": run.name,
        "stage": run.stage,
        "experiment": experiment,
        "started": run.started,
        "seconds": round(family.seconds, 1),
        "status": family.status,
        "reason": family.failure,
        "started_by": run.started_by,
        "commit": run.commit,
        "dirty": run.dirty,
        "data": family.data,
        "figures": headline(family.figures),
    }
    if stages:
        told["stages"] = [stage_summary(item) for item in family.stages]
    return told


def headline(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures that reports begin with, in their order; where there are none of these, all that name no reader.

    Args:
        figures: by name, without "eval/": {"region/test/mAcc": 0.6}.
    """
    order = {(path.partition("/")[0], plain(path.partition("/")[2])): place for place, path in enumerate(FIGURES)}
    best = {name: value for name, value in figures.items() if name.count("/") == 2}
    known = {name: order.get((name.split("/")[0], name.split("/")[2])) for name in best}
    chosen = sorted((place, name) for name, place in known.items() if place is not None)
    return {name: best[name] for _, name in chosen} or best


def stage_summary(run: Recorded) -> dict[str, Any]:
    """A stage under a run."""
    return {
        "run": run.run_id,
        "name": run.name,
        "stage": run.stage,
        "started": run.started,
        "seconds": round(run.seconds, 1),
        "status": run.status,
        "reason": run.failure if run.status in ("FAILED", "KILLED") else "",
    }


def details(family: Family, *, experiment: str, uri: str, kept: list[str]) -> dict[str, Any]:
    """All of a run that a person asks.

    Args:
        family: the run and its stages.
        experiment: name of its experiment.
        uri: address of the store.
        kept: names of its artifacts in MLflow.
    """
    run = family.run
    own = beside(run.params)
    members = (run, *family.stages)
    return {
        **summary(family, experiment=experiment, stages=True),
        "message": run.tags.get("mlflow.note.content", "").split("\n", maxsplit=1)[0] if run.stage else "",
        "settings_differ_from": own.base,
        "settings": {key: {"value": value, "usual": usual} for key, (value, usual) in own.differences.items()},
        "data_sets": {name: text for member in members for name, text in member.data.items()},
        "metrics": dict(run.metrics),
        "artifacts": kept,
        "outputs": {name: place for member in members for name, place in _outputs(member)},
        "links": links(family, uri=uri),
    }


def links(family: Family, *, uri: str) -> dict[str, str]:
    """Addresses by what is there: the run in MLflow's pages, report pages, the run of Kubeflow."""
    run = family.run
    found = {"MLflow": page(run, uri=uri)}
    if not uri.startswith("http"):
        found["its pages are started by"] = f"mlflow ui --backend-store-uri {shown(uri)}"
    for member in (run, *family.stages):
        for name, place in _outputs(member):
            if place.endswith(".html"):
                here = Path(place).is_file()
                found[name] = str(Path(place).absolute()) if here else f"{page(member, uri=uri)}/artifacts"
        for tag in _KFP_URLS:
            if member.tags.get(tag):
                found.setdefault("Kubeflow", member.tags[tag])
    return found


def page(run: Recorded, *, uri: str) -> str:
    """Address of a run in MLflow's pages: the server's; of a database those that `mlflow ui` shows on this machine."""
    base = shown(uri).rstrip("/") if uri.startswith("http") else _LOCAL
    return f"{base}/#/experiments/{run.experiment}/runs/{run.run_id}"


def _outputs(run: Recorded) -> Iterator[tuple[str, str]]:
    """Name and place of what a stage made."""
    for tag, value in sorted(run.tags.items()):
        if tag.startswith(_ARTIFACT):
            yield tag.removeprefix(_ARTIFACT), value
