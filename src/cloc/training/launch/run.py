"""Running a training job: scheduled, followed, cancelled when this process is told to stop, tried again when lost."""

import shutil
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client
from torchx import specs
from torchx.runner import Runner
from torchx.schedulers.kubernetes_scheduler import KubernetesScheduler
from torchx.schedulers.kubernetes_scheduler import create_scheduler as kubernetes_scheduler
from torchx.schedulers.slurm_scheduler import create_scheduler as slurm_scheduler

from cloc.config.schema import TrainConfig
from cloc.errors import TrainingError
from cloc.training.cluster import cluster_configuration
from cloc.training.launch import slurm, volcano
from cloc.training.launch.app import grace_seconds
from cloc.training.launch.local import PatientLocalScheduler
from cloc.training.launch.logs import Follower
from cloc.training.launch.wait import UNREACHABLE, Orders, Wait, reason_of
from cloc.training.preemption import PREEMPTED, Stopped
from cloc.training.ranks import FAILURES
from cloc.training.watch.progress import Screen

_FULL = 1 << 16  # bytes: a disk with less to spare takes no more lines

_SESSION = "cloc"


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        code: 0; that of a `ClocError`; 75 where the ranks saved and left; else 1.
        reason: one line; empty where all is well.
    """

    code: int
    reason: str = ""


def run_app(app: specs.AppDef, config: TrainConfig, *, log_dir: Path, api: client.ApiClient | None = None) -> None:
    """Runs a training job to its end, passing on what all its replicas say.

    On this machine a job that was preempted, lost a process or crashed is started again `train.max_retries` times;
    elsewhere the scheduler does that.

    Args:
        app: as `training_app` makes it.
        config: section `train`.
        log_dir: where TorchX keeps what replicas on this machine say.
        api: client of a Kubernetes cluster; None for the one of the environment.

    Raises:
        ClocError: a replica failed, whatever state the scheduler reports; of the class that the rank's error had.
        Stopped: this process got SIGTERM; the ranks had time to save.
        KeyboardInterrupt: the same at Ctrl-C.
    """
    orders = Orders()
    attempts = config.max_retries + 1 if config.scheduler == "local_cwd" else 1
    with orders.listening():
        for attempt in range(1, attempts + 1):
            if attempt > 1:
                print(f"attempt {attempt} of {attempts}", flush=True)
            outcome = _Attempt(app, config, orders=orders, log_dir=log_dir, api=api).run()
            if outcome.code == 0 or orders.asked is not None or outcome.code in FAILURES:
                break
            if attempt < attempts:
                print(f"attempt {attempt} of {attempts} failed: {outcome.reason}", flush=True)
    if outcome.code == 0:
        return
    _raise(outcome, orders)


def _raise(outcome: Outcome, orders: Orders) -> None:
    if orders.asked == signal.SIGINT:
        raise KeyboardInterrupt
    if orders.asked is not None:
        saved = "its ranks saved" if outcome.code == PREEMPTED else outcome.reason
        raise Stopped(f"told to stop by {orders.asked.name}: {saved}; run the same command again to go on")
    if outcome.code == PREEMPTED:
        raise Stopped(outcome.reason)
    raise FAILURES.get(outcome.code, TrainingError)(outcome.reason)


class _Attempt:
    """One start of a job."""

    def __init__(
        self, app: specs.AppDef, config: TrainConfig, *, orders: Orders, log_dir: Path, api: client.ApiClient | None
    ) -> None:
        self.app, self.config, self.orders, self.log_dir, self.api = app, config, orders, log_dir, api
        self.scheduler: Any = None  # TorchX's, which is untyped
        self.grace = grace_seconds(config)

    def run(self) -> Outcome:
        """Runs it to its end."""
        with Runner(_SESSION, {self.config.scheduler: self._make_scheduler}) as runner, Screen() as screen:
            info = request(runner, self.app, self.config, log_dir=self.log_dir)
            handle = self._schedule(runner, info)
            print(f"training job {handle}", flush=True)
            follower = Follower(runner, handle, self.app, scheduler=self.config.scheduler, screen=screen)
            try:
                status = Wait(
                    runner,
                    handle,
                    scheduler=self.config.scheduler,
                    orders=self.orders,
                    grace=self.grace,
                    saves=lambda: self.config.scheduler == "kubernetes" and self._pods(handle).running > 0,
                ).end()
            finally:
                follower.finish()
        return self._outcome(status, follower.errors.best, handle)

    def _make_scheduler(self, session_name: str, **options: Any) -> Any:
        if self.config.scheduler == "local_cwd":
            self.scheduler = PatientLocalScheduler(session_name, grace=self.grace, hurry=lambda: self.orders.hurry)
            self.orders.listen()  # TorchX's constructor took the signals
        elif self.config.scheduler == "kubernetes":
            self.scheduler = kubernetes_scheduler(
                session_name, client=self.api or client.ApiClient(cluster_configuration())
            )
        else:
            self.scheduler = slurm_scheduler(session_name)
        return self.scheduler

    def _schedule(self, runner: Runner, info: specs.AppDryRunInfo) -> str:
        try:
            handle: str = runner.schedule(info)
        except UNREACHABLE as error:
            raise TrainingError(
                f"{self.config.scheduler} did not take the job ({reason_of(error)}); --dry-run shows it"
            ) from None
        return handle

    def _outcome(self, status: specs.AppStatus | None, said: str, handle: str) -> Outcome:
        """The verdict: of the replicas, not of the application's state alone."""
        state = status.state if status else specs.AppState.UNKNOWN
        if self.config.scheduler == "local_cwd":
            return self._local_outcome(state, said)
        failed = [
            f"replica {replica.id} {replica.state.name.lower()}"
            for role in (status.roles if status else [])
            for replica in role.replicas
            if replica.state in (specs.ReplicaState.FAILED, specs.ReplicaState.CANCELLED)
        ]
        ends = self._pods(handle).ends if self.config.scheduler == "kubernetes" else []
        failed += [str(end) for end in ends if end.failed]
        if state == specs.AppState.SUCCEEDED and not failed:
            return Outcome(0)
        codes = [end.code for end in ends if end.failed]
        code = next((code for code in codes if code in FAILURES), None)
        if code is None:
            code = PREEMPTED if codes and all(code in (0, PREEMPTED) for code in codes) else 1
        found = f"; {'; '.join(failed[:4])}" if failed else ""
        return Outcome(code or 1, said or f"the job {handle} ended as {state.name}{found}")

    def _local_outcome(self, state: specs.AppState, said: str) -> Outcome:
        code = self.scheduler.exit_code
        if code == 0:
            return Outcome(0)
        if code == PREEMPTED or (code == -signal.SIGTERM and self.orders.asked is not None):
            return Outcome(PREEMPTED, "the training job was preempted and saved: run the same command again to go on")
        if code is not None and code < 0:
            said = f"the agent was killed by signal {-code}: run the same command again, it goes on from its last "
            said += "checkpoint"
            code = 1
        if shutil.disk_usage(self.log_dir).free < _FULL and "No space left" not in said:
            # Then the logs lack what the ranks said last, too.
            said = (
                f"the disk is full ({self.log_dir}): free some space and run the same command again, it goes on from "
            )
            said += "the last whole checkpoint"
        return Outcome(
            code or 1, said or f"the training job ended as {state.name} ({code}); its log lies in {self.log_dir}"
        )

    def _pods(self, handle: str) -> volcano.Pods:
        assert isinstance(self.scheduler, KubernetesScheduler)
        namespace, name = handle.rpartition("/")[2].split(":")
        core = client.CoreV1Api(self.scheduler._client)
        try:
            return volcano.pods_of(core, namespace=namespace, job=name)
        except UNREACHABLE as error:
            raise TrainingError(
                f"the job {handle} is over, but its pods cannot be seen ({reason_of(error)}), so that nobody knows "
                "whether they succeeded; allow this account to list pods"
            ) from None


def request(runner: Runner, app: specs.AppDef, config: TrainConfig, *, log_dir: Path) -> specs.AppDryRunInfo:
    """What would be handed to the scheduler, complete. Raises ConfigError for settings that cannot be read."""
    options: dict[str, Callable[[], dict[str, Any]]] = {
        "local_cwd": lambda: {"log_dir": str(log_dir)},
        "kubernetes": lambda: volcano.options(config),
        "slurm": lambda: slurm.options(config),
    }
    with warnings.catch_warnings():
        # TorchX's remarks on Volcano's retries (the policies are this project's) and on a machine without Slurm.
        warnings.simplefilter("ignore")
        info = runner.dryrun(app, config.scheduler, options[config.scheduler]())
    if config.scheduler == "kubernetes":
        volcano.complete(info.request, config, app)
    elif config.scheduler == "slurm":
        info.request = slurm.complete(info.request, config)
    return info
