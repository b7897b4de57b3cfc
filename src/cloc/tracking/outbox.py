"""The way of a run's records to its store: at once while it answers, kept and sent later while it does not."""

import math
import sys
import threading
import time
from collections.abc import Sequence

from cloc.tracking.identity import Identity
from cloc.tracking.journal import Journal
from cloc.tracking.records import Record, Teller, together
from cloc.tracking.store import absolute
from cloc.tracking.troubles import Away, Refused, shown

_INTERVAL, _MOST_INTERVALS = 5.0, 16
_LAST_PAUSES, _LAST_SECONDS = (0.0, 1.0, 2.0), 5.0  # before each of the last tries; the time in which they begin


class Outbox:
    """Takes the records of one run, in order, and sends them.

    A store that is away costs a line on stderr, once; from then on records are kept, and a thread tries again every few
    seconds. Whatever happens to this process, what was not acknowledged is in the journal.

    Args:
        identity: of the run.
        uri: of its store.
        attached: whether records come from a process that neither begins nor ends the run.
        immediate: whether a record is sent before `put` returns; if not, `send` is for the owner to call.
        journal: of a process that left it behind.

    Attributes:
        trouble: whether the store was away at any time.
        away: whether it was when it was last asked.
    """

    def __init__(
        self,
        identity: Identity,
        uri: str,
        *,
        attached: bool = False,
        immediate: bool = True,
        journal: Journal | None = None,
    ) -> None:
        self.uri, self.trouble, self.away = uri, False, False
        self._teller = Teller(identity, uri, fresh=not attached and journal is None)
        self._identity, self._attached, self._immediate = identity, attached, immediate
        self._pending, self._said = list[Record](journal.pending if journal else ()), set[str]()
        self._journal, self._broken = journal, ""
        self._lock, self._sending, self._over = threading.RLock(), threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._rows = 0

    @property
    def run_id(self) -> str:
        """The run's; "" as long as the store did not tell it."""
        return self._teller.run_id

    @property
    def rows(self) -> tuple[int, int]:
        """How many rows of curves were taken, and how many of them are not sent."""
        with self._lock:
            return self._rows, sum(len(record.get("rows", ())) for record in self._pending)

    @property
    def place(self) -> str:
        """Where records are kept."""
        return str(self._journal.folder) if self._journal else ""

    @property
    def pending(self) -> int:
        """Records that are not sent."""
        return len(self._pending)

    def put(self, record: Record) -> None:
        """Takes a record, which must not change any more; never fails for what the store does."""
        with self._lock:
            self._rows += len(record.get("rows", ()))
            self._keep(record)
        if self._immediate and not self._thread:
            self._try()

    def send(self, *, until: float = math.inf) -> None:
        """Sends what is kept, in order.

        Args:
            until: when to stop, by the monotonic clock; what is left then is sent next time.

        Raises:
            Away: not all of it could be sent.
        """
        with self._sending:
            self._teller.open()
            while time.monotonic() < until and (group := self._group()):
                self._tell(group)
                self._done(len(group))
            if self.away:
                self._say("takes records again")
            self.away = False

    def went_away(self, error: Exception) -> None:
        """Tells it once, and begins to try again in the background."""
        with self._lock:
            if not self.away:
                kept = f"kept in memory alone ({self._broken})" if self._broken else "kept"
                self._say(f"takes no records ({error}); they are {kept} and sent when it does")
            self.trouble = self.away = True
            self._own_files()
            if self._immediate and self._thread is None and not self._over.is_set():
                self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow-outbox")
                self._thread.start()

    def close(self, *, last_try: bool = True) -> None:
        """Sends what is left where the store answers, and leaves the rest on disk."""
        self._over.set()
        if self._thread:
            self._thread.join(_INTERVAL * 4)
        end = time.monotonic() + _LAST_SECONDS
        for pause in _LAST_PAUSES if last_try else ():
            if self._pending and time.monotonic() < end:
                time.sleep(pause)
                self._try()
        with self._lock:
            if self._journal:
                self._journal.let_go()

    def _keep(self, record: Record) -> None:
        try:
            if self._journal is None and not self._broken:
                self._journal = Journal.begin(shown(absolute(self.uri)), self._identity, attached=self._attached)
            if self._journal:
                record = self._journal.own(record) if self.away else record
                self._journal.add(record)
        except OSError as error:
            self._broken = str(error)
        self._pending.append(record)

    def _own_files(self) -> None:
        if self._journal:
            try:
                owned = [self._journal.own(record) for record in self._pending]
                self._journal.rewrite(owned)
                self._pending = owned
            except OSError as error:
                self._broken = str(error)

    def _group(self) -> Sequence[Record]:
        with self._lock:
            group = together(self._pending)
            if not group and self._thread is threading.current_thread():
                self._thread = None  # from here on `put` sends
            return group

    def _done(self, count: int) -> None:
        with self._lock:
            del self._pending[:count]
            if self._journal and not self._broken:
                self._journal.sent(count)

    def _tell(self, group: Sequence[Record]) -> None:
        try:
            self._teller.tell(group)
        except Refused as error:
            if len(group) > 1:
                for record in group:
                    self._tell([record])
                return
            text = f"refuses {group[0]['op']} of this run ({error}); they are left out"
            if text not in self._said:
                self._say(text)
            self._said.add(text)

    def _try(self) -> None:
        try:
            self.send()
        except Away as error:
            self.went_away(error)

    def _work(self) -> None:
        failures = 1
        while not self._over.wait(_INTERVAL * min(2 ** (failures - 1), _MOST_INTERVALS)):
            try:
                self.send()
            except Away:
                failures += 1
                continue
            return

    def _say(self, text: str) -> None:
        print(f"MLflow at {shown(self.uri)} {text}", file=sys.stderr, flush=True)
