"""What processes left in the outbox, delivered: by `cloc runs deliver`, and at the start of every stage."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cloc.config.schema import TrackingConfig
from cloc.tracking.journal import Journal, left_behind
from cloc.tracking.outbox import Outbox
from cloc.tracking.rows import now
from cloc.tracking.store import absolute, tracking_uri
from cloc.tracking.troubles import Away, first_line, shown

_UNFINISHED = "the process ended without a word"
_Test = Callable[[Journal], bool]


@dataclass(frozen=True)
class Delivered:
    """What was delivered of one run.

    Attributes:
        run: its name, or its id.
        uri: of its store, without a password.
        place: the folder that kept it, and keeps what is left.
        records, rows: how many were sent; rows of curves are counted by themselves.
        left: how many records are left.
        reason: why they are.
    """

    run: str
    uri: str
    place: str
    records: int
    rows: int
    left: int
    reason: str = ""

    def __str__(self) -> str:
        sent = f"{self.records:,} records of run {self.run}" + (f", {self.rows:,} rows among them" if self.rows else "")
        if not self.left:
            return f"MLflow at {self.uri} got {sent}"
        return f"MLflow at {self.uri} got {sent}; {self.left:,} are left in {self.place} ({self.reason})"


def deliver(config: TrackingConfig) -> list[Delivered]:
    """Delivers what processes left in this folder's outbox (or that of CLOC_OUTBOX), oldest first; what a process that
    goes on still holds is left to it.

    Args:
        config: section `tracking`; the password for a store is taken from its address.

    Returns:
        A run's, each; `left` is not 0 where its store was away or refused.
    """
    own = absolute(tracking_uri(config))
    return list(_each(lambda journal: True, own=own, seconds=float("inf")))


def deliver_older(uri: str, *, seconds: float = 10.0) -> list[Delivered]:
    """Delivers what older stages left for a store that answers, for about that many seconds."""
    own = absolute(uri)
    return [item for item in _each(lambda journal: journal.uri == shown(own), own=own, seconds=seconds) if item.records]


def take_over(uri: str, *, run_id: str, key: str, send: bool) -> list[Delivered]:
    """What the processes of a stage left of its run, when they have ended.

    Args:
        uri: of the store.
        run_id, key: that they knew the run by.
        send: whether it is delivered; if not, it is thrown away, since the stage has all of it.
    """
    own = absolute(uri)

    def theirs(journal: Journal) -> bool:
        identity = journal.identity
        same = identity.key == key or (bool(run_id) and identity.run_id == run_id)
        return journal.attached and journal.uri == shown(own) and same

    if send:
        return list(_each(theirs, own=own, seconds=10.0))
    return [_thrown_away(journal) for journal in _held(theirs)]


def _held(test: _Test) -> Iterator[Journal]:
    for journal in left_behind():
        if test(journal):
            yield journal
        else:
            journal.let_go()


def _each(test: _Test, *, own: str, seconds: float) -> Iterator[Delivered]:
    end, away = time.monotonic() + seconds, dict[str, str]()
    for journal in _held(test):
        reason = away.get(journal.uri, "") or ("" if time.monotonic() < end else "there was no time")
        done = _delivered(journal, uri=own if journal.uri == shown(own) else journal.uri, not_now=reason, end=end)
        if done.left and done.reason:
            away[journal.uri] = done.reason  # its other runs need not wait for it again
        yield done


def _delivered(journal: Journal, *, uri: str, not_now: str, end: float) -> Delivered:
    outbox = Outbox(journal.identity, uri, immediate=False, journal=journal)
    if not journal.finished:  # its process was killed
        outbox.put({"op": "tags", "values": {"cloc.failure": _UNFINISHED}})
        outbox.put({"op": "end", "status": "KILLED", "time": now()})
    before, rows = outbox.pending, outbox.rows[1]
    reason = not_now
    if not reason:
        try:
            outbox.send(until=end)
        except Away as error:
            reason = str(error)
        except Exception as error:  # of this store; the others are delivered
            reason = first_line(error)
    left = outbox.pending
    outbox.close(last_try=False)
    run = journal.identity.name or outbox.run_id or journal.identity.key
    return Delivered(
        run=run,
        uri=journal.uri,
        place=str(journal.folder),
        records=before - left,
        rows=rows - outbox.rows[1],
        left=left,
        reason=reason or "there was no time" if left else "",
    )


def _thrown_away(journal: Journal) -> Delivered:
    rows = sum(len(record.get("rows", ())) for record in journal.pending)
    left = len(journal.pending)
    journal.sent(left)
    journal.let_go()
    return Delivered(journal.identity.run_id, journal.uri, str(journal.folder), 0, rows, left)
