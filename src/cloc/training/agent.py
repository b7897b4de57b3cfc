"""What runs on every machine of a training job: starts its ranks, passes on what they say, and ends as they did.

    python -m cloc.training.agent --output s3://bucket/runs/cloc-0123 --module cloc.training.trainer --nodes 2 \\
        --processes 8 --rank0 VC_TRAINER_0_HOSTS

The ranks find each other through torchelastic (a free port on one machine; c10d at the first one's host on several).
Nothing is started again here: that is the launcher's, or the scheduler's. SIGTERM and SIGINT are passed on to the
ranks, which save and leave. Exit codes: 0; 75 where ranks saved because they were told to; that of a rank's `ClocError`
(2 to 5, its reason is the last line); else 1.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.tail_log import TailLog
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from cloc.errors import TrainingError
from cloc.training.preemption import PREEMPTED, follow_parent
from cloc.training.ranks import ERROR, Ended, Errors, Printer, RankStream, verdict

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Where a rank failed, what the others wait for will not come: they are given this long.
_COLLATERAL_SECONDS = 10
_MONITOR_SECONDS = 0.2


@dataclass(frozen=True)
class Part:
    """This machine's part of a job.

    Attributes:
        output: folder or s3:// prefix that holds the job.
        module: what a rank runs, with `output` for its argument.
        nodes, node: number of machines, and which one this is, from 0.
        processes: ranks a machine.
        host, port: where the machines find each other; the first one listens there.
        run_id: the same on all machines of one start of the job, and no other's.
        grace: seconds that ranks have to save when they are told to stop.
        timeout: seconds that machines wait for each other at the start.
    """

    output: str
    module: str
    nodes: int = 1
    node: int = 0
    processes: int = 1
    host: str = "localhost"
    port: int = 0
    run_id: str = "cloc"
    grace: int = 300
    timeout: int = 900


class _Agent(LocalElasticAgent):
    """torchelastic's agent; but its ranks have time to save, and it hears how each of them ended.

    torchelastic gives ranks 30 seconds between SIGTERM and SIGKILL whenever one of them has left, and forgets their
    exit codes when it is told to stop itself. Its parts used here are those of the torch that the project pins.
    """

    def __init__(self, spec: WorkerSpec, *, part: Part, logs: str) -> None:
        super().__init__(
            spec,
            DefaultLogsSpecs(log_dir=logs, redirects=Std.ALL),
            shutdown_timeout=part.grace,
            exit_barrier_timeout=60,
        )
        self.part, self.told, self.errors = part, False, Errors()
        self._alone: set[int] | None = None  # local ranks that ended by themselves, once one of them has
        self._tails: list[TailLog] = []
        self._streams: list[RankStream] = []

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        pids = super()._start_workers(worker_group)
        context = self._context()
        context.close = self._closing(context.close)  # type: ignore[method-assign]  # see the class
        self._listen(worker_group, context)
        take_signals(self.tell)  # start() above has taken them
        return pids

    def _context(self) -> SubprocessContext:
        assert isinstance(self._pcontext, SubprocessContext)
        return self._pcontext

    def _closing(self, plain: Callable[..., None]) -> Callable[..., None]:
        """The context's `close`, with a time that suits what happened."""

        def close(death_sig: signal.Signals | None = None, timeout: int | None = None) -> None:
            codes = {local: handler.proc.poll() for local, handler in self._context().subprocess_handlers.items()}
            if self._alone is None:
                self._alone = {local for local, code in codes.items() if code is not None}
            saving = self.told or PREEMPTED in codes.values()
            plain(signal.SIGTERM, self.part.grace if saving else _COLLATERAL_SECONDS)
            self.finish_output()

        return close

    def _listen(self, group: WorkerGroup, context: SubprocessContext) -> None:
        printer = Printer(self.errors)
        for worker in group.workers:
            prefix = f"[rank {worker.global_rank}] " if worker.world_size > 1 else ""
            for is_error, files in ((False, context.stdouts), (True, context.stderrs)):
                stream = RankStream(printer, prefix=prefix, is_error=is_error)
                # An empty header: lines get theirs when they are whole.
                tail = TailLog("rank", {0: files[worker.local_rank]}, stream, log_line_prefixes={0: ""})  # type: ignore[arg-type]  # a write() is all it needs
                self._streams.append(stream)
                self._tails.append(tail.start())

    def finish_output(self) -> None:
        """Passes on what is left of what the ranks said."""
        for tail in self._tails:
            tail.stop()
        for stream in self._streams:
            stream.finish()
        self._tails, self._streams = [], []

    def tell(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: tells the ranks to save and leave."""
        if self._pcontext is None:  # still looking for the other machines
            raise SignalException(f"told to stop by signal {number}", signal.Signals(number))
        first, self.told = not self.told, True
        self._signal_ranks(signal.SIGTERM)
        if first:
            timer = threading.Timer(self.part.grace, self._signal_ranks, (signal.SIGKILL,))
            timer.daemon = True
            timer.start()

    def _signal_ranks(self, number: signal.Signals) -> None:
        for handler in self._context().subprocess_handlers.values():
            if handler.proc.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    handler.proc.send_signal(number)

    def ended(self) -> list[Ended]:
        """How the ranks ended, once they have."""
        if self._pcontext is None:
            return []
        handlers = self._context().subprocess_handlers
        return [
            Ended(
                worker.global_rank,
                handlers[worker.local_rank].proc.returncode or 0,
                by_agent=worker.local_rank not in (self._alone or ()),
            )
            for worker in self._worker_group.workers
        ]


def take_signals(handler: Callable[[int, FrameType | None], Any]) -> None:
    """Has a handler called at the signals that end a job."""
    for number in _SIGNALS:
        signal.signal(number, handler)


def run(part: Part) -> int:
    """Runs the ranks of this machine to their end; returns the exit code. Prints the last line where there is one.

    Raises:
        TrainingError: the machines did not find each other.
    """
    with _log_folder() as logs:
        agent = _Agent(_spec(part), part=part, logs=logs)
        take_signals(agent.tell)
        try:
            agent.run()
        except SignalException:
            agent.told = True
        except RendezvousError as error:
            if not agent.ended():
                raise _not_met(part, error) from None
            agent.errors.add(f"rank lost: the first machine, {part.host}, is gone; its last lines say why")
        agent.finish_output()
    ended, host = agent.ended(), socket.gethostname()
    if not ended:  # told to stop before there was a rank
        return PREEMPTED
    found = verdict(ended, errors=agent.errors, host=host, told=agent.told, grace=part.grace)
    _say(agent.errors.lines, last=found.line)
    return found.code


def _not_met(part: Part, error: RendezvousError) -> TrainingError:
    return TrainingError(
        f"machine {part.node} of {part.nodes} did not find the others at {part.host}:{part.port} within {part.timeout} "
        f"seconds ({type(error).__name__}): see whether all of them started, and can reach that port of the first one"
    )


def _say(reasons: Sequence[str], *, last: str) -> None:
    """Every reason once, the one that counts at the end."""
    for reason in [*(item for item in reasons if item != last), *([last] if last else [])]:
        print(f"{ERROR}{reason}", file=sys.stderr, flush=True)


def _spec(part: Part) -> WorkerSpec:
    several = part.nodes > 1
    wait = {"timeout": part.timeout, "join_timeout": part.timeout, "read_timeout": part.timeout}
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=f"{part.host}:{part.port}" if several else "localhost:0",
        run_id=part.run_id,
        min_nodes=part.nodes,
        max_nodes=part.nodes,
        # The name of a single machine need not resolve.
        local_addr=None if several else "localhost",
        **(wait | {"is_host": str(part.node == 0)} if several else {}),
    )
    return WorkerSpec(
        role="trainer",
        local_world_size=part.processes,
        entrypoint=sys.executable,
        args=("-m", part.module, part.output),
        rdzv_handler=_rendezvous(parameters, part),
        max_restarts=0,
        monitor_interval=_MONITOR_SECONDS,
        local_addr=None if several else "localhost",
    )


def _rendezvous(parameters: RendezvousParameters, part: Part) -> Any:
    if part.nodes > 1 and part.node == 0:
        check_port(part.port)
    try:
        return get_rendezvous_handler(parameters)
    except RendezvousError as error:
        raise _not_met(part, error) from None


def check_port(port: int) -> None:
    """Raises TrainingError when something listens at the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise TrainingError(
                f"port {port} of {socket.gethostname()} cannot be listened at ({error.strerror}), where the machines "
                "would find each other; end what holds it, or set train.port to a free one"
            ) from None


@contextmanager
def _log_folder() -> Iterator[str]:
    """Where the ranks write: the launcher's folder, or one that goes with the agent."""
    given = os.environ.get("PET_LOG_DIR")  # TorchX sets it on this machine
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="cloc-ranks-") as folder:
        yield folder


def parse(arguments: Sequence[str]) -> tuple[Part, bool]:
    """The part that the command line names, and whether to stop with the process that started this one."""
    parser = argparse.ArgumentParser(prog="python -m cloc.training.agent", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", required=True, help="folder or s3:// prefix that holds the job")
    parser.add_argument("--module", required=True, help="what a rank runs, with the output for its argument")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--node", type=int, default=0, help="which one this is, from 0")
    parser.add_argument("--processes", type=int, default=1, help="ranks a machine")
    parser.add_argument("--rank0", default="", help="environment variable that holds the first machine's host")
    parser.add_argument("--port", type=int, default=29500, help="where the first machine listens")
    parser.add_argument("--run-id", default="cloc", help="name of this start of the job")
    parser.add_argument("--grace", type=int, default=300, help="seconds that ranks have to save")
    parser.add_argument("--timeout", type=int, default=900, help="seconds that machines wait for each other")
    parser.add_argument("--follow", action="store_true", help="stop when the process that started this one is gone")
    given = parser.parse_args(arguments)
    host = os.environ.get(given.rank0, "") if given.rank0 else "localhost"
    if given.nodes > 1 and not host:
        raise TrainingError(f"the variable {given.rank0!r}, which names the first machine's host, is not set")
    part = Part(
        output=given.output,
        module=given.module,
        nodes=given.nodes,
        node=given.node,
        processes=given.processes,
        host=host.split(",")[0] or "localhost",
        port=given.port,
        run_id=given.run_id,
        grace=given.grace,
        timeout=given.timeout,
    )
    return part, given.follow


def main() -> None:
    """Entry point."""
    logging.disable(logging.ERROR)  # what torchelastic has to say is said better by the last line
    try:
        part, follow = parse(sys.argv[1:])
        if follow:
            follow_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
        code = run(part)
    except TrainingError as error:
        print(f"{ERROR}{error}", file=sys.stderr, flush=True)
        code = error.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the rendezvous may wait for machines that are gone.
    os._exit(code)


if __name__ == "__main__":
    main()
