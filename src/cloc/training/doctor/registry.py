"""The checks of `cloc doctor`: small functions under a name, each for the roles that it concerns.

    @check("batch", "train", cheap=True)
    def batch(subject: Subject) -> str: ...

A check returns what it found, raises `Warn` for what may go wrong, `Skip` for what cannot be asked here, and a
`ClocError` for what will fail. It imports torch and what needs it by itself: images of other roles do not hold them.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from cloc.config import Config
from cloc.data.checks import Check, Outcome
from cloc.data.dataset import Dataset, resolve_split
from cloc.errors import ClocError, ConfigError

if TYPE_CHECKING:
    from cloc.training.task import Objective

ROLES = ("train", "label", "validate", "evaluate", "mllm", "export", "scenes", "ingest", "pipeline", "dvc")
"""Extras of pyproject.toml: what a component's image is made for."""

DATA_ROLES = ("train", "label", "validate", "evaluate", "mllm")
"""Those that read a data set."""

MODEL_ROLES = ("train", "label", "evaluate", "mllm", "export")
"""Those that run a model."""


class Skip(Exception):  # noqa: N818 (no fault)
    """A check that makes no sense here; the message says why."""


class Warn(Exception):  # noqa: N818 (no fault yet)
    """What may go wrong, or waste time."""


@dataclass
class Subject:
    """What is looked at.

    Attributes:
        config: all settings.
        role: one of `ROLES`.
        objective: "cloc" or "clip".
        data, captions, regions, out: paths of the stage; empty where none was given.
        opened: the data set once the check of it has opened it.
        cluster: likewise (`doctor.kubernetes.Cluster`).
        clocks: seconds that a server's clock is ahead of this machine's, by the server's URL: noted by who asked it.
    """

    config: Config
    role: str = "train"
    objective: "Objective" = "cloc"
    data: str = ""
    captions: str = ""
    regions: str = ""
    out: str = ""
    opened: Dataset | None = None
    cluster: Any = None
    clocks: dict[str, float] = field(default_factory=dict)

    def open(self) -> Dataset:
        """Opens the data set. Raises Skip where no --data was given, and DataError where there is none."""
        if not self.data:
            raise Skip("no --data was given")
        split = self.config.data.test_splits[0] if self.role == "evaluate" else self.config.data.train_split
        found = resolve_split(self.data, split)
        self.opened = Dataset.open(found, captions=self.captions or None, regions=self.regions or None)
        return self.opened

    @property
    def dataset(self) -> Dataset:
        """The open data set. Raises Skip where there is none, of which its own check tells."""
        if self.opened is None:
            raise Skip("the data set does not open" if self.data else "no --data was given")
        return self.opened

    @property
    def ranks(self) -> int:
        """Processes of the training."""
        return self.config.train.nodes * self.config.train.processes

    @property
    def local(self) -> bool:
        """Whether training runs on this machine."""
        return self.config.train.scheduler == "local_cwd"

    def need_local(self) -> None:
        """Raises Skip where the ranks will be on other machines."""
        if self.role == "train" and not self.local:
            raise Skip(f"the ranks run elsewhere (train.scheduler: {self.config.train.scheduler})")

    @cached_property
    def urls(self) -> list[str]:
        """The s3:// prefixes that it works on."""
        storage = self.config.train.storage if self.role == "train" else ""
        found = [url for url in (self.data, self.captions, self.regions, self.out, storage) if url.startswith("s3://")]
        return list(dict.fromkeys(found))


Act = Callable[[Subject], str]
A = TypeVar("A", bound=Act)


@dataclass(frozen=True)
class Entry:
    """A check as registered.

    Attributes:
        name: of its line.
        roles: that it concerns.
        cheap: whether `preflight` asks it, too.
        act: does it.
    """

    name: str
    roles: tuple[str, ...]
    cheap: bool
    act: Act


CHECKS: list[Entry] = []


def check(name: str, *roles: str, cheap: bool = False) -> Callable[[A], A]:
    """Registers a check; without roles it is for all."""

    def register(act: A) -> A:
        CHECKS.append(Entry(name, roles or ROLES, cheap, act))
        return act

    return register


@dataclass(frozen=True)
class Finding:
    """A check's end, and what it raised where it failed."""

    check: Check
    error: ClocError | None = None


def examine(subject: Subject, *, skip: Collection[str] = (), cheap: bool = False) -> Iterator[Finding]:
    """Runs the checks of a role, one after another.

    Args:
        subject: what is looked at.
        skip: names of checks to leave out.
        cheap: only those that take next to no time and ask no server.

    Raises:
        ConfigError: there is no such role, or no check of a name to skip.
    """
    if subject.role not in ROLES:
        raise ConfigError(f"--role {subject.role!r} is unknown; there are: {', '.join(ROLES)}")
    if unknown := sorted(set(skip) - {entry.name for entry in CHECKS}):
        raise ConfigError(f"--skip {unknown[0]!r} is no check; there are: {', '.join(each.name for each in CHECKS)}")
    for entry in CHECKS:
        if subject.role in entry.roles and entry.name not in skip and (entry.cheap or not cheap):
            yield run_check(entry, subject)


def run_check(entry: Entry, subject: Any) -> Finding:
    """Asks one check about a subject, and times it."""
    began, error = time.monotonic(), None
    try:
        outcome, detail = Outcome.PASSED, entry.act(subject)
    except Skip as reason:
        outcome, detail = Outcome.SKIPPED, str(reason)
    except Warn as reason:
        outcome, detail = Outcome.WARNED, str(reason)
    except ClocError as found:
        outcome, detail, error = Outcome.FAILED, str(found), found
    return Finding(Check(entry.name, outcome, seconds=time.monotonic() - began, detail=detail), error)


def failure(findings: Collection[Finding], *, who: str = "doctor") -> ClocError | None:
    """One error for all that failed, of the first one's kind; None when nothing did."""
    failed = [(finding.check, finding.error) for finding in findings if finding.error]
    if not failed:
        return None
    first, error = failed[0]
    names = ", ".join(each.name for each, _ in failed)
    if len(failed) == 1:
        return type(error)(f"{who}: 1 check failed: {first.name}: {first.detail}")
    return type(error)(f"{who}: {len(failed)} checks failed: {names}; the first one: {first.detail}")
