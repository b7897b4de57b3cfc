"""Runs the pipeline on this machine, by KFP's local runner: a subprocess a task, no container, no server.

    cloc run [--data data/photos] [--out runs/photos]

Everything that the run makes lies under `out`: `kfp` (tasks' results and their cache), `logs` (a file a task), and
links to the results (`model`, `report`, ...). A run that was stopped goes on where it stood when it is started again.
"""

import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import kfp.local
import psutil
from kfp.local import executor_input_utils
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec, PipelineTaskSpec

from cloc import tracking
from cloc.config import Config
from cloc.errors import ClocError
from cloc.pipeline.component import FAILURE_VARIABLE, PAGE_FILE
from cloc.pipeline.parameters import arguments, stage_parameters
from cloc.pipeline.summary import SUMMARY_FILE, print_summary
from cloc.stage import fingerprint
from cloc.tracking.store import exported
from pipelines.cloc_pipeline import NAME, cloc_pipeline
from pipelines.console import Console, KfpMessages

FAILURE_FILE = "failure.json"
_MODELS = {"CLOC": "model", "CLIP": "clip_equal_compute"}  # what the playground shows side by side


class PipelineFailed(ClocError):  # noqa: N818 (a verdict, as GateFailed)
    """A task failed; the message is its reason, the exit code its own."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_local(config: Config, *, data: str | None, out: str, cache: bool, retries: int = 0) -> dict[str, str]:
    """Runs the whole pipeline and prints what came of it.

    Args:
        config: all settings.
        data: collection to use; without it the demo's is rendered.
        out: folder for everything that the run makes.
        cache: whether results of equal tasks are reused.
        retries: how often a failed task is tried again; gates are not.

    Returns:
        Where each result lies, by its name.

    Raises:
        PipelineFailed: a task failed.
        ClocError: settings or data cannot be used; nothing was run.
    """
    started, folder = time.monotonic(), Path(out).absolute()
    place, labels_at = (_absolute(item) if item else "" for item in (data, config.pipeline.labels_at))
    config = config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"labels_at": labels_at})})
    # The first task does the same; here a mistake is told before anything is made.
    tasks = stage_parameters(config, data=place)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE_FILE).unlink(missing_ok=True)
    home = f"{NAME}-{fingerprint(tasks)}" if cache else f"{NAME}-{time.strftime('%Y%m%d-%H%M%S')}"
    spec = _for_here(cloc_pipeline.pipeline_spec, retries=retries)
    console = Console(sys.stdout, titles=_titles(spec, parts=config.pipeline.label_parts), logs=folder / "logs")
    name = f"{folder.name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with tracking.pipeline_run(config.tracking, name=name, settings=config.model_dump(mode="json")) as run:
        try:
            with _environment(folder), _quiet(console), _stable_home(home), _stop_children():
                kfp.local.init(
                    runner=kfp.local.SubprocessRunner(use_venv=False),
                    pipeline_root=str(folder / "kfp"),
                    raise_on_error=True,
                    enable_caching=cache,
                )
                _run(spec, {"data": place, **arguments(config)})
        except RuntimeError as error:
            raise _failure(folder, console, error) from None
        finally:
            console.finish()
    # The summary is made in every run: where it lies is known.
    body = json.loads((folder / "kfp" / home / "summary" / "results" / SUMMARY_FILE).read_text())
    _link(folder, body["places"])
    print_summary(body)
    split, seconds = config.data.test_splits[0], time.monotonic() - started
    _print_places(folder, body["places"], uri=run.uri, split=split, seconds=seconds)
    return dict(body["places"])


def _absolute(data: str) -> str:
    return data if "://" in data else str(Path(data).absolute())


def _for_here(spec: PipelineSpec, *, retries: int) -> PipelineSpec:
    """The pipeline for a person's machine: what failed is told at once, and goes on when started again; one task at a
    time, which may use all of the machine."""
    own = PipelineSpec()
    own.CopyFrom(spec)
    for task in _tasks(own):
        if retries and task.HasField("retry_policy"):
            task.retry_policy.CopyFrom(PipelineTaskSpec.RetryPolicy(max_retry_count=retries))
        else:
            task.ClearField("retry_policy")
        if task.WhichOneof("iterator"):
            task.iterator_policy.parallelism_limit = 1
    return own


def _tasks(spec: PipelineSpec) -> Iterator[PipelineTaskSpec]:
    """The tasks of the pipeline, and of what it holds (the part with an exit handler, loops)."""
    dags = [spec.root.dag, *(part.dag for part in spec.components.values() if part.HasField("dag"))]
    return (task for dag in dags for task in dag.tasks.values())


def _titles(spec: PipelineSpec, *, parts: int) -> dict[str, str]:
    """What people read for each task, by the name that the local runner gives it; loops run where there are parts."""
    found = {}
    for name, part in [("", spec.root), *spec.components.items()]:
        if name.startswith("comp-for-loop") and not parts:
            continue
        for task in part.dag.tasks.values():
            inner = task.component_ref.name
            if not spec.components[inner].HasField("dag"):
                found[inner.removeprefix("comp-")] = task.task_info.name
    return found


def _run(spec: PipelineSpec, given: Mapping[str, Any]) -> None:
    from kfp.local import pipeline_orchestrator

    pipeline_orchestrator.run_local_pipeline(pipeline_spec=spec, arguments=dict(given))


@contextlib.contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """What the tasks' processes need: this interpreter first on PATH, output without delay, where a failure goes.

    Progress bars of libraries are off: they are made for terminals, and stages say how far they are.
    """
    values = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        FAILURE_VARIABLE: str(folder / FAILURE_FILE),
    }
    with exported(values):
        yield


@contextlib.contextmanager
def _quiet(console: Console) -> Iterator[None]:
    """Sends what KFP prints, logs and warns through the console."""
    root = logging.getLogger()
    handler, level = KfpMessages(console), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(console), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*have no effect in the current local runner.*")
            yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@contextlib.contextmanager
def _stable_home(name: str) -> Iterator[None]:
    """Gives equal runs one folder where KFP would take one named by the time.

    So what a stopped run left (rendered shards, labelled shards, checkpoints) is found by the next one.
    """
    usual = executor_input_utils.get_local_pipeline_resource_name
    executor_input_utils.get_local_pipeline_resource_name = lambda pipeline_name: name
    try:
        yield
    finally:
        executor_input_utils.get_local_pipeline_resource_name = usual


@contextlib.contextmanager
def _stop_children() -> Iterator[None]:
    """SIGTERM ends the tasks, too, as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever started it handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _failure(folder: Path, console: Console, error: RuntimeError) -> PipelineFailed:
    """The failed task's own reason; where it left none, its last words and its log."""
    record = folder / FAILURE_FILE
    if record.is_file():
        told = json.loads(record.read_text())
        return PipelineFailed(told["message"], exit_code=told["exit_code"])
    if not console.failed:
        return PipelineFailed(f"the pipeline could not run: {error}", exit_code=1)
    words = console.last_words or "it said nothing"
    log = console.log_path(console.failed)
    return PipelineFailed(f"task {console.failed} broke off ({words}); its log: {log}", exit_code=1)


def _link(folder: Path, places: Mapping[str, str]) -> None:
    """Makes `<out>/model`, `<out>/report` and so on point at the results of this run."""
    for name, place in places.items():
        link = folder / name
        if link.is_symlink():
            link.unlink()
        if "://" not in place and not link.exists():
            link.symlink_to(os.path.relpath(place, folder))
    (folder / SUMMARY_FILE).write_text(json.dumps(places, indent=1) + "\n")


def _print_places(folder: Path, places: Mapping[str, str], *, uri: str, split: str, seconds: float) -> None:
    def shown(path: Path) -> str:
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)

    def place(name: str) -> str:
        here = folder / name
        page = here / PAGE_FILE
        return shown(page if page.is_file() else here) if here.exists() else places[name]

    print(f"\nFinished in {seconds / 60:.1f} minutes. Where things lie:")
    for name in places:
        print(f"  {name:<18} {place(name)}")
    print(f"  {'logs':<18} {shown(folder / 'logs')}")
    programs = Path(sys.executable).parent
    served = "" if uri.startswith(("http://", "https://")) else f"{shown(programs / 'mlflow')} ui --backend-store-uri "
    models = [f"--model {title}={shlex.quote(place(name))}" for title, name in _MODELS.items() if name in places]
    home = folder / "data" if (folder / "data").exists() else Path(places["data"])
    pictures = [f"--data {shlex.quote(shown(path))}" for path in (home / split, home) if path.is_dir()][:1]
    print("\nLook at it:")
    print(f"  report      {(folder / 'report' / PAGE_FILE).as_uri()}")
    print(f"  MLflow      {served}{uri}")
    print(f"  playground  {' '.join([shown(programs / 'cloc'), 'playground', *models, *pictures])}")
