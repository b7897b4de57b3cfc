"""What a lineage is read from: a registered version, a run, or a folder, and the runs that belong to it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cloc.config.schema import TrackingConfig
from cloc.errors import ConfigError
from cloc.model.provenance import TRAINING_FILE, WEIGHTS_FILE, weights_digest
from cloc.stage import CONFIG_FILE, LINEAGE_FILE
from cloc.tracking.packing import MODEL_PATH
from cloc.tracking.reading import Reader, quoted
from cloc.tracking.recorded import Recorded
from cloc.tracking.registered import download, is_registered, version_of
from cloc.tracking.registry import WEIGHTS_TAG
from cloc.tracking.store import asked, connect, existing, tracking_uri
from cloc.tracking.troubles import shown

_FILES = (LINEAGE_FILE, TRAINING_FILE, CONFIG_FILE)
_MODEL_TAG, _KEY_TAG = "artifact.model", "cloc.key"


@dataclass(frozen=True)
class Subject:
    """A model, and what there is to say where it comes from.

    Attributes:
        label: what was asked for.
        weights: sha256 of its weights; "" where nothing tells.
        place: folder or address of its files; "" for a run that left none.
        lineage, training, settings: content of `LINEAGE_FILE`, training.json and config.yaml; empty where absent.
        version: of the registry (MLflow's); None for a model that is not registered.
        run: that trained it; None where it is unknown.
    """

    label: str
    weights: str
    place: str
    lineage: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    version: Any = None
    run: Recorded | None = None


class Sources:
    """Finds models and runs.

    Args:
        config: section `tracking`. Where its store is not there, folders tell all that is told.
    """

    def __init__(self, config: TrackingConfig) -> None:
        self._config = config
        self.store = tracking_uri(config)
        self.reader: Reader | None = None
        self.trouble = ""
        try:
            self.reader = Reader(config, everywhere=True)
        except ConfigError as error:
            self.trouble = str(error)

    @property
    def where(self) -> str:
        """The store, to print."""
        return f"MLflow at {shown(self.store)}"

    def find(self, reference: str) -> Subject:
        """The model that is meant: models:/NAME@ALIAS, models:/NAME/VERSION, a folder, or a run.

        Raises:
            ConfigError: there is none.
        """
        if is_registered(reference):
            return self._registered(reference)
        if Path(reference).is_dir():
            return self._folder(reference)
        if self.reader is None:
            raise ConfigError(f"{reference}: no such folder, and no run to look for: {self.trouble}")
        return self._of_run(self.reader.find(reference), reference)

    def places(self, subject: Subject) -> Iterator[str]:
        """Folders on this machine where the model's weights may lie."""
        if subject.place:
            yield subject.place
        made = subject.run.tags.get(_MODEL_TAG, "") if subject.run else ""
        if made and made != subject.place:
            yield made

    def runs(self, condition: str) -> list[Recorded]:
        """Runs by a condition in MLflow's language; none without a store."""
        return self.reader.where(condition) if self.reader else []

    def get(self, run_id: str) -> Recorded | None:
        """A run by its id; None where it is not in the store, or there is no store."""
        return self.reader.get(run_id) if self.reader else None

    def siblings(self, run: Recorded | None, stage: str) -> list[Recorded]:
        """Runs of a stage in the same pipeline's run."""
        if run is None or not run.parent:
            return []
        return self.runs(f"tags.`cloc.stage` = '{stage}' and tags.`mlflow.parentRunId` = '{run.parent}'")

    def files(self, run: Recorded, *names: str) -> dict[str, bytes]:
        """Artifacts of a run: those of these names that there are."""
        return self.reader.files(run, names) if self.reader else {}

    def _registered(self, reference: str) -> Subject:
        uri = existing(self.store)
        client = connect(uri)
        version = version_of(reference, client, uri=uri)
        with asked(uri, f"does not tell the files of {reference}"):
            root = f"{client.get_model_version_download_uri(version.name, version.version)}/{MODEL_PATH}"
        found = {name: self._read(f"{root}/{name}") for name in _FILES}
        label = f"{version.name} version {version.version}"
        weights = dict(version.tags or {}).get(WEIGHTS_TAG, "")
        return self._subject(label, weights, root.removeprefix("file://"), found, version=version)

    def _read(self, address: str) -> bytes:
        """A file of a store's artifacts; empty where there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return Path(download(address, uri=self.store)).read_bytes()
        except (MlflowException, OSError):
            return b""  # a version that was registered by an earlier release, or otherwise

    def _folder(self, reference: str) -> Subject:
        folder = Path(reference)
        found = {name: (folder / name).read_bytes() for name in _FILES if (folder / name).is_file()}
        if not found.keys() & {LINEAGE_FILE, TRAINING_FILE} and not (folder / WEIGHTS_FILE).is_file():
            raise ConfigError(
                f"{reference}: no model here (there is no {LINEAGE_FILE}, {TRAINING_FILE} or {WEIGHTS_FILE}); give the "
                "output of pretraining, a run, or models:/NAME@ALIAS"
            )
        weights = weights_digest(folder) if (folder / WEIGHTS_FILE).is_file() else ""
        return self._subject(str(folder), weights, str(folder), found)

    def _of_run(self, run: Recorded, reference: str) -> Subject:
        trained = self._trained(run)
        if trained is None:
            raise ConfigError(
                f"run {reference!r} ({run.name}) trained no encoder; give one that did, or its pipeline's"
            )
        found = self.files(trained, *_FILES)
        place = trained.tags.get(_MODEL_TAG, "")
        for name in _FILES:
            if name not in found and (Path(place) / name).is_file() and place:
                found[name] = (Path(place) / name).read_bytes()
        return self._subject(f"the model of run {trained}", "", place, found, run=trained)

    def _trained(self, run: Recorded) -> Recorded | None:
        """The training that a run is, or that made the model which it reads; of a pipeline's several the registered
        one's, else the last CLOC."""
        if run.stage == "pretraining":
            return run
        assert self.reader is not None
        parent = run if not run.stage else self.reader.get(run.parent)
        stages = self.reader.children(parent) if parent else []
        given = run.tags.get("input.model", "") or next(
            (item.tags["input.model"] for item in reversed(stages) if item.tags.get("input.model")), ""
        )
        found = [item for item in stages if item.stage == "pretraining"]
        if given and (place := quoted(given)):
            condition = f"tags.`cloc.stage` = 'pretraining' and tags.`{_MODEL_TAG}` = {place}"
            made = [item for item in self.reader.where(condition) if item.started <= (run.ended or item.started)]
            found = made or found
        own = [item for item in found if item.tags.get("input.objective") != "clip"]
        return next(iter((own or found)[-1:]), None)

    def _subject(
        self,
        label: str,
        weights: str,
        place: str,
        found: Mapping[str, bytes],
        *,
        version: Any = None,
        run: Recorded | None = None,
    ) -> Subject:
        lineage, training = _json(found, LINEAGE_FILE, label), _json(found, TRAINING_FILE, label)
        weights = weights or str(lineage.get("weights_sha256", ""))
        run = run or self._recorded(str(lineage.get("run", {}).get("id", "")))
        settings = yaml.safe_load(found.get(CONFIG_FILE, b"") or b"{}")
        if version is None and weights and self.reader is not None:
            version = self._version(weights)
        return Subject(label, weights, place, lineage, training, settings, version, run)

    def _recorded(self, reference: str) -> Recorded | None:
        """A run as its processes knew it: by its id, or by its key where the store was away when it began."""
        found = self.runs(f"tags.`{_KEY_TAG}` = {key}") if (key := quoted(reference.rpartition(":")[2])) else []
        return self.get(reference) or next(iter(found), None)

    def _version(self, weights: str) -> Any:
        """The newest registered version with these weights, of any name."""
        client = connect(self.store)
        with asked(self.store, "does not list its registered models"):
            found = client.search_model_versions(f"tags.`{WEIGHTS_TAG}` = '{weights}'")
            newest = max(found, key=lambda item: int(item.creation_timestamp), default=None)
            return client.get_model_version(newest.name, newest.version) if newest else None


def _json(found: Mapping[str, bytes], name: str, label: str) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(found.get(name, b"") or b"{}")
    except ValueError as error:
        raise ConfigError(f"{label}: its {name} cannot be read ({error})") from None
    return body
