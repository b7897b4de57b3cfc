"""Back from a model to what it was made of: version, evaluation, training, code, data, labels, labellers, pipeline.

    walk("models:/cloc@champion", config)      a tree of `Node`s; each says where it was read

What training recorded lies beside the model (`LINEAGE_FILE`), so that a folder alone tells most; MLflow adds the runs.
What was not recorded is said to be so, and never guessed.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cloc.config.beside import PARAM_LIMIT, beside
from cloc.config.load import flatten
from cloc.config.schema import TrackingConfig
from cloc.data.origin import Check, check_data, check_tables, compared
from cloc.data.schema import Table
from cloc.errors import ClocError
from cloc.model.provenance import weights_digest
from cloc.stage import LINEAGE_FILE
from cloc.tracking.lineage_nodes import DIGITS, NOT_RECORDED, Node, data_node, known, labels_node
from cloc.tracking.lineage_sources import Sources, Subject
from cloc.tracking.reading import quoted
from cloc.tracking.recorded import Recorded

_SECTIONS = ("data", "model", "loss", "train")  # that training reads


def walk(reference: str, config: TrackingConfig, *, check: bool = False) -> Node:
    """The lineage of a model.

    Args:
        reference: models:/NAME@ALIAS, models:/NAME/VERSION, a folder, a run, or a pipeline's run.
        config: section `tracking`.
        check: whether what still lies where it lay is held against the recorded hashes; reads all of it.

    Raises:
        ConfigError: there is no such model.
    """
    sources = Sources(config)
    return _Walk(sources, sources.find(reference), check=check).model()


class _Walk:
    def __init__(self, sources: Sources, subject: Subject, *, check: bool) -> None:
        self._sources, self._subject, self._check = sources, subject, check
        self._files = f"{LINEAGE_FILE} of {subject.label}"
        self._tags: Mapping[str, str] = {
            **(subject.lineage.get("run", {}).get("tags", {})),
            **(subject.run.tags if subject.run else {}),
        }

    def model(self) -> Node:
        subject = self._subject
        told = f"{subject.label}, weights {subject.weights[:DIGITS] or NOT_RECORDED}"
        checks = self._checked(self._weights) if subject.weights else ()
        children = (self._version(), self._evaluation(), self._training(), self._pipeline())
        return Node("model", told, subject.place, children=children, checks=checks)

    def _weights(self) -> Iterable[Check]:
        for place in self._sources.places(self._subject):
            if not Path(place).is_dir():
                yield Check(place, "gone")
            else:
                yield compared(f"{place}: weights", expected=self._subject.weights, found=weights_digest(place))

    def _version(self) -> Node:
        version = self._subject.version
        if version is None:
            missing = self._sources.trouble or f"no version with these weights in {self._sources.where}"
            return Node("version", f"not registered: {missing}")
        tags = dict(version.tags or {})
        aliases = ", ".join(version.aliases) if version.aliases else ""
        told = f"{version.name} {version.version}" + (f" ({aliases})" if aliases else " (no alias)")
        facts = {
            "decision": tags.get("cloc.decision", NOT_RECORDED),
            "replaced by": tags.get("cloc.replaced_by", ""),
            "registered by run": version.run_id or NOT_RECORDED,
        }
        return Node("version", told, f"registry of {self._sources.where}", known(facts))

    def _evaluation(self) -> Node:
        version = self._subject.version
        tags = dict(version.tags or {}) if version is not None else {}
        run = self._evaluation_run()
        if "cloc.evaluation_set" in tags:
            facts = {
                "data": tags.get("cloc.evaluation_data", ""),
                "figures": tags.get("cloc.figures", ""),
                "gate": tags.get("cloc.gate", ""),
                "protocols": tags.get("cloc.protocols", ""),
                "run": str(run) if run else NOT_RECORDED,
            }
            return Node("evaluation", f"set {tags['cloc.evaluation_set']}", "tags of the version", known(facts))
        if run is None:
            return Node("evaluation", NOT_RECORDED)
        figures = {name: value for name, value in sorted(run.metrics.items()) if name.startswith("eval/")}
        return Node("evaluation", _message(run), f"run {run}", {**run.data, **figures})

    def _evaluation_run(self) -> Recorded | None:
        """The newest run that measured these weights, of the same pipeline's, of those that were given this model's
        folder, and of what the registration read."""
        version, run, sources = self._subject.version, self._subject.run, self._sources
        registration = sources.get(version.run_id) if version is not None and version.run_id else None
        read = registration.tags.get("input.evaluation", "").rstrip("/") if registration else ""
        made = run.tags.get("artifact.model", "") if run else ""
        written = quoted(f"{read}/metrics.json") if read else ""
        conditions = [f"tags.`artifact.metrics` = {written}"] if written else []
        conditions += [f"tags.`input.models` LIKE '%\"{made}\"%'"] if made and "'" not in made else []
        conditions = [f"tags.`cloc.stage` = 'evaluation' and {one}" for one in conditions]
        found = [item for one in conditions for item in sources.runs(one)] + sources.siblings(run, "evaluation")
        newest = sorted(found, key=lambda item: item.started, reverse=True)
        return next((item for item in newest if self._measured(item)), None)

    def _measured(self, run: Recorded) -> bool:
        body = self._sources.files(run, "metrics.json").get("metrics.json", b"{}")
        try:
            models = json.loads(body).get("models", {}).values()
            return any(model["weights_sha256"] == self._subject.weights for model in models)
        except (ValueError, LookupError, TypeError, AttributeError):
            return False  # not of an evaluation

    def _training(self) -> Node:
        subject, run = self._subject, self._subject.run
        summary, lineage = subject.training, subject.lineage
        if not (summary or lineage or run):
            return Node("training", NOT_RECORDED)
        counted = {name.removeprefix("count/"): value for name, value in run.metrics.items()} if run else {}
        steps, samples = (summary.get(name, counted.get(name)) for name in ("steps", "samples"))
        objective = lineage.get("objective") or summary.get("objective")
        told = f"{objective or 'objective ' + NOT_RECORDED}"
        told += f", {steps:,.0f} steps" if steps is not None else ", steps not recorded"
        told += f", {samples:,.0f} samples" if samples is not None else ""
        named = str(lineage.get("run", {}).get("id", ""))
        facts: dict[str, Any] = {name: summary.get(name) for name in ("batch_size", "processes", "wall_seconds")}
        facts["as much processor time as"] = lineage.get("compute_of", "")
        facts["run"] = str(run) if run else f"{named} (not in {self._sources.where})" if named else NOT_RECORDED
        facts["status"] = f"{run.status.lower()}{': ' + run.failure if run.failure else ''}" if run else ""
        read = self._settings()
        found = beside(read)
        facts["settings"] = f"{len(found.differences)} differ from {found.base}" if read else NOT_RECORDED
        settings = {name: now for name, (now, _) in found.differences.items()}
        read_in = {self._files: lineage, "training.json": summary, f"run {run}": run}
        source = ", ".join(name for name, there in read_in.items() if there)
        labels = (self._labels("captions", by="captioner"), self._labels("regions", by="detector"))
        children = (self._code(), self._start(), self._data(), *labels, self._validation())
        return Node("training", told, source, known(facts), settings, children)

    def _settings(self) -> dict[str, str]:
        """Of the sections that training reads, flat; empty where nobody recorded them."""
        tree = {name: self._subject.settings[name] for name in _SECTIONS if name in self._subject.settings}
        own = {name: str(value)[:PARAM_LIMIT] for name, value in flatten(tree).items()}
        return own or dict(self._subject.run.params if self._subject.run else {})

    def _code(self) -> Node:
        commit = self._tags.get("mlflow.source.git.commit", "")
        dirty = {"true": "with changes that are not in it", "false": "clean"}.get(self._tags.get("git.dirty", ""))
        facts = {name: self._tags.get(name, "") for name in ("cloc.version", "torch", "transformers", "python")}
        facts["branch"] = self._tags.get("mlflow.source.git.branch", "")
        told = f"commit {commit[:12]} ({dirty or 'changes ' + NOT_RECORDED})" if commit else f"commit {NOT_RECORDED}"
        return Node("code", told, self._tag_source() if self._tags else "", known(facts))

    def _tag_source(self) -> str:
        return f"tags of run {self._subject.run}" if self._subject.run else self._files

    def _start(self) -> Node:
        if not self._subject.lineage:
            return Node("start", NOT_RECORDED)
        start = self._subject.lineage.get("started_from")
        if not start:
            return Node("start", "from random weights", self._files)
        source, weights = str(start["source"]), str(start["weights_sha256"])
        told = f"{source}, weights {weights[:DIGITS] or NOT_RECORDED}"

        def same() -> Iterable[Check]:
            if not Path(source).is_dir():
                return [Check(source, "gone")]
            return [compared(f"{source}: weights", expected=weights, found=weights_digest(source))]

        return Node("start", told, self._files, checks=self._checked(same) if weights else ())

    def _data(self) -> Node:
        record = self._subject.lineage.get("data")
        if not record:
            data = dict(self._subject.run.data) if self._subject.run else {}
            told = "; ".join(f"{name} {text}" for name, text in data.items()) or NOT_RECORDED
            return Node("data", told, f"inputs of run {self._subject.run}" if data else "")
        md5, checks = self._tags.get("dvc.data_md5", ""), self._checked(lambda: check_data(record))
        return data_node(record, dvc=md5, source=self._files, checks=checks)

    def _labels(self, table: Table, *, by: str) -> Node:
        lineage = self._subject.lineage
        record = lineage.get(table)
        if not record:
            return Node(table, f"there were no {table}", self._files) if lineage else Node(table, NOT_RECORDED)
        checks = self._checked(lambda: check_tables(record, table, data=str(lineage["data"]["place"])))
        return labels_node(table, record, labeller=by, source=self._files, checks=checks)

    def _validation(self) -> Node:
        """The verdict on these very labels: of a run that read tables of the same digests."""
        lineage, run = self._subject.lineage, self._subject.run
        digests = {table: lineage[table]["digest"] for table in ("captions", "regions") if lineage.get(table)}
        found: list[Recorded] = []
        for digest in list(digests.values())[:1]:
            found = self._sources.runs(f"tags.`cloc.stage` = 'validation' and datasets.digest = '{digest}'")
        same = [item for item in found if set(digests.values()) <= set(item.digests.values())]
        if same:
            return Node("validation", _verdict(same[-1]), f"run {same[-1]}, which read tables of these digests")
        beside_it = self._sources.siblings(run, "validation")
        if beside_it and not beside_it[-1].digests.keys() & digests.keys():
            what = f"{_verdict(beside_it[-1])}; which labels it read is {NOT_RECORDED}"
            return Node("validation", what, f"run {beside_it[-1]}, of the same pipeline's run")
        return Node("validation", NOT_RECORDED)

    def _pipeline(self) -> Node:
        run = self._subject.run
        parent = self._sources.get(run.parent) if run else None
        started = self._tags.get("cloc.started_by", "").upper()
        facts = {
            "Kubeflow": self._tags.get("kfp.run_url") or self._tags.get("kfp.run_id", ""),
            "DVC experiment": self._tags.get("dvc.experiment", ""),
            "DVC baseline": self._tags.get("dvc.baseline", ""),
        }
        if parent is not None:
            told = f"{parent} {parent.status.lower()}" + (f", started by {started}" if started else "")
            return Node("pipeline", told, self._sources.where, known(facts))
        if not self._tags:
            return Node("pipeline", NOT_RECORDED)
        return Node("pipeline", f"none; started by {started or NOT_RECORDED}", self._tag_source(), known(facts))

    def _checked(self, look: Callable[[], Iterable[Check]]) -> tuple[Check, ...]:
        if not self._check:
            return ()
        try:
            return tuple(look())
        except ClocError as error:
            return (Check(str(error), "gone"),)


def _message(run: Recorded) -> str:
    return run.tags.get("mlflow.note.content", "").split("\n", maxsplit=1)[0] or run.status.lower()


def _verdict(run: Recorded) -> str:
    return run.failure if run.status == "FAILED" and run.failure else _message(run)
