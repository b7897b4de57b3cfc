"""What KFP's local runner prints, made readable: the tasks' own lines live, without the executor's noise.

`Console` stands in for stdout while the pipeline runs. It keeps each task's output in a log file, too, and says every
few seconds that a silent task still runs.
"""

import io
import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_KFP_LINE = re.compile(r"^\d\d:\d\d:\d\d\.\d{3} - ([A-Z]+) - (.*)$")
_EXECUTOR_LINE = re.compile(r"^\[KFP Executor [^]]*\]: (.*)$")
_STARTED = re.compile(r"^Executing task '(.+)'$")
_ENDED = re.compile(r"^Task '(.+)' finished with status '?(\w+)'?$")
_CACHED = re.compile(r"^Task (.+) cache hit ")
_RETRIED = re.compile(r"^Task (.+) failed \(attempt (\d+/\d+)\)")
_INDENT = "    "  # what KFP puts before a task's lines
_SILENCE = 15.0


@dataclass
class _Running:
    """The task that runs."""

    name: str
    title: str
    log: TextIO
    started: float = field(default_factory=time.monotonic)


class Console(io.TextIOBase):
    """A stream that sorts lines by who printed them."""

    def __init__(self, out: TextIO, *, titles: Mapping[str, str], logs: Path, silence: float = _SILENCE) -> None:
        """Args:
        out: where readable lines go.
        titles: what people read for each task, in the order of the pipeline.
        logs: folder of the tasks' logs.
        silence: seconds without a line after which one says what is running.
        """
        self._out, self._titles, self._logs, self._silence = out, titles, logs, silence
        self._lock = threading.RLock()
        self._rest = ""
        self._running: _Running | None = None
        self._hidden = False  # within a block of the executor that is of no use to people
        self._seen: dict[str, None] = {}
        self._spoke = time.monotonic()
        self._closing = threading.Event()
        self._watch = threading.Thread(target=self._say_alive, daemon=True)
        self.failed = ""
        self.last_words = ""  # of the task that failed
        self._last_line = ""
        logs.mkdir(parents=True, exist_ok=True)
        self._watch.start()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._take(_ANSI.sub("", line).rstrip())
        return len(text)

    def flush(self) -> None:
        self._out.flush()

    def finish(self) -> None:
        """Ends the watch and closes what is open."""
        self._closing.set()
        self._watch.join()
        with self._lock:
            if self._rest:
                self.write("\n")
            self._close_log()

    def log_path(self, task: str) -> Path:
        """The log of a task."""
        return self._logs / f"{task}.log"

    def message(self, text: str, *, level: int) -> None:
        """A line that KFP logs rather than prints."""
        with self._lock:
            if found := _CACHED.match(text):
                self._say(f"{self._header(found[1])}: nothing changed, taken from the cache")
            elif found := _RETRIED.match(text):
                self._say(f"{self._header(found[1])}: failed at attempt {found[2]}, trying again")
            elif found := _STARTED.match(text):
                self._start(found[1])
            elif found := _ENDED.match(text):
                self._end(success=found[2] == "SUCCESS")
            elif text.endswith("outputs:"):
                self._hidden = True
            elif level >= logging.WARNING:
                self._say(text)

    def _take(self, line: str) -> None:
        if not line:
            return
        if found := _KFP_LINE.match(line):
            self.message(found[2], level=getattr(logging, found[1], logging.INFO))
        elif self._running:
            self._take_task(line.removeprefix(_INDENT))
        elif set(line) == {"-"}:
            self._hidden = False
        elif not self._hidden and line != "Streamed logs:":
            self._say(line)

    def _take_task(self, line: str) -> None:
        assert self._running
        self._running.log.write(f"{line}\n")
        self._running.log.flush()
        if found := _EXECUTOR_LINE.match(line):
            self._hidden = found[1].startswith("Got executor_input:")
        elif self._hidden:
            self._hidden = line != "}"
        elif line.strip():
            self._last_line = line.strip()
            self._say(f"{_INDENT}{line}")

    def _header(self, task: str) -> str:
        self._seen[task] = None
        return f"[{len(self._seen)}/{len(self._titles)}] {self._titles.get(task, task)}"

    def _start(self, task: str) -> None:
        self._close_log()
        log = self.log_path(task).open("w")
        self._running, self._hidden = _Running(task, self._titles.get(task, task), log), False
        self._say(self._header(task))

    def _end(self, *, success: bool) -> None:
        task = self._running
        if task is None:
            return
        if not success:
            self.failed, self.last_words = task.name, self._last_line
        self._close_log()
        how = "done" if success else "FAILED"
        self._say(f"{_INDENT}{how} after {time.monotonic() - task.started:.0f} s")

    def _close_log(self) -> None:
        if self._running:
            self._running.log.close()
            self._running = None

    def _say(self, line: str) -> None:
        self._out.write(f"{line}\n")
        self._out.flush()
        self._spoke = time.monotonic()

    def _say_alive(self) -> None:
        while not self._closing.wait(min(1.0, self._silence / 4)):
            with self._lock:
                if self._running and time.monotonic() - self._spoke > self._silence:
                    seconds = time.monotonic() - self._running.started
                    self._say(f"{_INDENT}... {self._running.title} is running ({seconds:.0f} s)")


class KfpMessages(logging.Handler):
    """Hands the console what KFP logs outside a task."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.message(_ANSI.sub("", record.getMessage()), level=record.levelno)
