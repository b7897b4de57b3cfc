"""A candidate that passed the gate in the model registry: its version, its alias, and what is to be read of it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from cloc import __version__
from cloc.config.schema import EvaluationConfig
from cloc.evaluation.description import DECISION_TAG, Story, describe, tags
from cloc.evaluation.promotion import ESTIMATES_FILE, METRICS_FILE, Decision, Measured, decide
from cloc.tracking import CHAMPION, Registry, Version

_ALREADY = "it is the champion already"
_TRIES = 5  # times that the champion may change under a registration


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model that passed the gate.

    Attributes:
        measured: its part in the evaluation.
        folder: where the model lies.
        weights: sha256 of its weights.
        files: the evaluation's `METRICS_FILE`, and `ESTIMATES_FILE` where it was kept.
        reasons: of the gate.
    """

    measured: Measured
    folder: str
    weights: str
    files: Mapping[str, bytes]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What came of a registration.

    Attributes:
        version: of the candidate.
        new: False where these weights were registered before.
        champion: whether it is the champion now.
        reason: why it is, or is not.
        command: what measures the champion on this evaluation set, where that is lacking.
    """

    version: Version
    new: bool
    champion: bool
    reason: str
    command: str = ""

    @property
    def alias(self) -> str:
        """Of the version."""
        return CHAMPION if self.champion else "challenger"

    @property
    def sentence(self) -> str:
        """For the log."""
        known = "" if self.new else " (the same weights were registered before: no new version)"
        return f"{self.version}{known} is {self.alias}: {self.reason}"


def file_version(registry: Registry, candidate: Candidate, config: EvaluationConfig) -> Outcome:
    """Registers a candidate and decides whether it is the champion. Weights that are registered already keep their
    version, which gets these figures and is decided on anew.

    Raises:
        ConfigError: the registry cannot be used, or the settings name a figure that there is not.
    """
    measured = candidate.measured
    present = registry.with_weights(candidate.weights)
    metadata = {"cloc": __version__, "weights_sha256": candidate.weights, "evaluation_set": measured.digest}
    version = present or registry.add(candidate.folder, weights=candidate.weights, metadata=metadata)
    registry.log_evaluation(version, candidate.files, digest=measured.digest)
    outcome = _settle(registry, version, candidate, config, new=present is None)
    story = Story(
        outcome.alias, outcome.reason, outcome.command, candidate.reasons, outcome.version.address, candidate.folder
    )
    registry.describe(
        version, description=describe(measured, story), tags=tags(measured, story), decision=outcome.sentence
    )
    return outcome


def _settle(
    registry: Registry, version: Version, candidate: Candidate, config: EvaluationConfig, *, new: bool
) -> Outcome:
    """Makes the version champion or challenger."""
    for _ in range(_TRIES):
        champion = registry.champion()
        if champion and champion.number == version.number:
            before = version.tags.get(DECISION_TAG, "").partition(": ")[2].removeprefix(f"{_ALREADY}; ")
            return Outcome(version, new, True, f"{_ALREADY}; {before}" if before else _ALREADY)
        decision, command = _against(registry, champion, candidate, config)
        if not decision.promoted:
            registry.challenge(version)
            return Outcome(version, new, False, decision.reason, command)
        if registry.promote(version, over=champion):
            return Outcome(version, new, True, decision.reason)
    registry.challenge(version)
    return Outcome(version, new, False, "the champion kept changing meanwhile; register again")


def _against(
    registry: Registry, champion: Version | None, candidate: Candidate, config: EvaluationConfig
) -> tuple[Decision, str]:
    """The decision, and what to run where the champion was not measured on this evaluation set."""
    measured = candidate.measured
    if champion is None:
        return Decision(True, "there was no champion"), ""
    other = Measured.of(candidate.files, weights=champion.weights)
    if other is None:
        names = (METRICS_FILE, ESTIMATES_FILE)
        files = registry.evaluation(champion, digest=measured.digest, names=names)
        other = Measured.of(files, weights=champion.weights) if METRICS_FILE in files else None
    if other is None:
        reason = (
            f"the champion (version {champion.number}) has no figures on this evaluation set ({measured.digest[:16]}); "
            f"add --model champion=models:/{champion.name}@{CHAMPION} to `cloc evaluate`, then register again"
        )
        return Decision(False, reason), _command(measured, champion)
    found = decide(measured, other, config)
    return Decision(found.promoted, f"against version {champion.number}: {found.reason}"), ""


def _command(measured: Measured, champion: Version) -> str:
    """The evaluation again, with the champion beside its models."""
    data = str(measured.metrics["splits"][measured.split]["data"]).removesuffix(f"/{measured.split}")
    rows = {name: str(model["folder"]) for name, model in measured.metrics["models"].items()}
    rows["champion"] = f"models:/{champion.name}@{CHAMPION}"
    models = [part for name, folder in rows.items() for part in ("--model", f"{name}={folder}")]
    return shlex.join(["cloc", "evaluate", "--data", data, *models, "--out", "evaluation-with-champion"])
