"""The model registry: versions of one name, what is recorded of each, and the aliases `champion` and `challenger`.

A version is a model in MLflow's format (see `packing`). Its figures lie with it, `evaluation/<set>/`, once for every
evaluation set that it was measured on. Which version is the champion is decided elsewhere; here it is only written.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloc.config.schema import TrackingConfig
from cloc.tracking.packing import pack
from cloc.tracking.registered import download
from cloc.tracking.rows import metric_name
from cloc.tracking.store import STORE_VARIABLE, asked, exported, open_store

CHAMPION, CHALLENGER = "champion", "challenger"
WEIGHTS_TAG = "cloc.weights_sha256"
_EVALUATION, _REPLACED_TAG = "evaluation", "cloc.replaced_by"
_TAG_LIMIT, _DESCRIPTION_LIMIT = 5000, 5000
# A paragraph is one line: MLflow's pages break lines where the text does.
_ABOUT = (
    "CLIP encoders that understand regions. `champion` is the version that beat the one before it on the same "
    "evaluation set, `challenger` the last one that passed the gate and did not replace it; each version says why.\n\n"
    '`CLOC.from_pretrained("models:/{name}@champion")` loads the model; '
    '`mlflow.pyfunc.load_model("models:/{name}@champion").predict(table)` answers tables with the columns `image`, '
    "`boxes` and `texts`."
)


@dataclass(frozen=True)
class Version:
    """A registered version.

    Attributes:
        name, number: of the model and of the version.
        weights: sha256 of its weights; empty for one that was registered otherwise.
        model_id: of its files in MLflow; empty for one that was registered otherwise.
        tags: what is recorded of it.
    """

    name: str
    number: str
    weights: str
    model_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """For `from_pretrained` and MLflow."""
        return f"models:/{self.name}/{self.number}"

    def __str__(self) -> str:
        return f"{self.name} version {self.number}"


class Registry:
    """The versions of `tracking.model_name` in a store.

    Args:
        config: section `tracking`.
        run_id: the run that versions come from; empty for none.

    Raises:
        ConfigError: from every method: the store does not answer, or refuses.
    """

    def __init__(self, config: TrackingConfig, *, run_id: str = "") -> None:
        self._client, self.uri, self._experiment = open_store(config)
        self.name, self._run_id = config.model_name, run_id

    def champion(self) -> Version | None:
        """The version that bears the alias `champion`, if any."""
        with self._asked(f"does not tell the champion of {self.name}"):
            number = self._aliases().get(CHAMPION)
            return _version(self._client.get_model_version(self.name, number)) if number else None

    def with_weights(self, weights: str) -> Version | None:
        """The newest version with these weights (sha256), if any."""
        with self._asked(f"does not list the versions of {self.name}"):
            found = self._client.search_model_versions(f"name = '{self.name}' and tags.`{WEIGHTS_TAG}` = '{weights}'")
        versions = sorted((_version(item) for item in found), key=lambda item: int(item.number))
        return versions[-1] if versions else None

    def add(self, folder: str, *, weights: str, metadata: Mapping[str, Any]) -> Version:
        """Files a model's folder as a new version."""
        from mlflow.models import Model

        with self._asked(f"does not take a version of {self.name}"), tempfile.TemporaryDirectory() as scratch:
            experiment = self._client.get_run(self._run_id).info.experiment_id if self._run_id else self._experiment
            filed = self._client.create_logged_model(
                experiment, name=metric_name(self.name), source_run_id=self._run_id or None
            )
            same = {"model_id": filed.model_id, "model_uuid": filed.model_id, "run_id": self._run_id or None}
            packed = Path(scratch) / "version"
            pack(folder, to=packed, model=Model(artifact_path=filed.artifact_location, **same), metadata=metadata)
            self._client.log_model_artifacts(filed.model_id, str(packed))
            self._client.finalize_logged_model(filed.model_id, "READY")
            if not self._client.search_registered_models(f"name = '{self.name}'"):
                self._client.create_registered_model(self.name, description=_ABOUT.format(name=self.name))
            made = self._client.create_model_version(
                self.name, f"models:/{filed.model_id}", self._run_id or None,
                tags={WEIGHTS_TAG: weights}, model_id=filed.model_id,
            )  # fmt: skip
        return _version(made)

    def challenge(self, version: Version) -> None:
        """Makes a version the challenger."""
        with self._asked(f"does not set the challenger of {self.name}"):
            self._client.set_registered_model_alias(self.name, CHALLENGER, version.number)

    def promote(self, version: Version, *, over: Version | None) -> bool:
        """Makes a version the champion, unless the champion is another by now than the one that it was judged against.

        It is looked up again just before; MLflow has no way to do both at once, so that of two registrations within
        the same few milliseconds the later one stands.

        Args:
            version: the new champion.
            over: the champion that it beat; None where there was none.

        Returns:
            Whether it is the champion now.
        """
        with self._asked(f"does not set the champion of {self.name}"):
            aliases = self._aliases()
            if aliases.get(CHAMPION, "") != (over.number if over else ""):
                return False
            self._client.set_registered_model_alias(self.name, CHAMPION, version.number)
            if aliases.get(CHALLENGER) == version.number:
                self._client.delete_registered_model_alias(self.name, CHALLENGER)
            if over:
                replaced = f"version {version.number}"
                self._client.set_model_version_tag(self.name, over.number, _REPLACED_TAG, replaced)
            if _REPLACED_TAG in version.tags:
                self._client.delete_model_version_tag(self.name, version.number, _REPLACED_TAG)
        return True

    def describe(self, version: Version, *, description: str, tags: Mapping[str, str], decision: str) -> None:
        """Records what is to be read of a version; and in the run that registers it, what was decided."""
        with self._asked(f"does not take what is said of {version}"):
            self._client.update_model_version(self.name, version.number, description[:_DESCRIPTION_LIMIT])
            for name, value in tags.items():
                self._client.set_model_version_tag(self.name, version.number, metric_name(name), value[:_TAG_LIMIT])
            if self._run_id:
                self._client.set_tag(self._run_id, "cloc.registered", decision[:_TAG_LIMIT])

    def log_evaluation(self, version: Version, files: Mapping[str, bytes], *, digest: str) -> None:
        """Files a version's figures on an evaluation set, instead of those that it had there."""
        with self._asked(f"does not take the figures of {version}"), tempfile.TemporaryDirectory() as scratch:
            for name, body in files.items():
                (Path(scratch) / name).write_bytes(body)
            self._client.log_model_artifacts(version.model_id, scratch, f"{_EVALUATION}/{digest}")

    def evaluation(self, version: Version, *, digest: str, names: Sequence[str]) -> dict[str, bytes]:
        """A version's figures on an evaluation set: the files of these names that there are."""
        if not version.model_id:
            return {}
        with self._asked(f"does not give the figures of {version}"):
            listed = self._client.list_logged_model_artifacts(version.model_id, f"{_EVALUATION}/{digest}")
            there = {Path(item.path).name for item in listed} & set(names)
            if not there:
                return {}
            place = self._client.get_logged_model(version.model_id).artifact_location
            folder = Path(download(f"{place}/{_EVALUATION}/{digest}", uri=self.uri))
            return {name: (folder / name).read_bytes() for name in sorted(there)}

    def _aliases(self) -> dict[str, str]:
        """Version numbers by alias."""
        models = self._client.search_registered_models(f"name = '{self.name}'")
        return {alias: str(number) for model in models for alias, number in model.aliases.items()}

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        # Parts of MLflow's client ask the store that the environment names, whatever they were given.
        quiet = {STORE_VARIABLE: self.uri, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
        with exported(quiet), asked(self.uri, what):
            yield


def _version(found: Any) -> Version:
    tags, source = dict(found.tags or {}), str(found.source or "")
    # The database keeps a version's model id in its source alone.
    model_id = source.removeprefix("models:/") if source.startswith("models:/") else ""
    return Version(found.name, str(found.version), tags.get(WEIGHTS_TAG, ""), model_id, tags)
