"""The run of a pipeline, which its stages' runs belong to."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cloc.config.schema import TrackingConfig
from cloc.tracking.identity import SHARED_KEY_TAG, Identity
from cloc.tracking.parents import as_identity, parent_of_here
from cloc.tracking.provenance import KEY, common_tags
from cloc.tracking.runs import STAGE_URI, Run, begin, outbox_variable, recorded
from cloc.tracking.store import experiment_name, exported
from cloc.tracking.titles import NAME_VARIABLE

_STATUS = {"SUCCEEDED": "FINISHED", "SKIPPED": "FINISHED", "CANCELED": "KILLED"}


@contextmanager
def pipeline_run(config: TrackingConfig, *, name: str, settings: Mapping[str, Any]) -> Iterator[Run]:
    """The parent run of a pipeline; stages started inside (in subprocesses, too) become its children.

    Args:
        config: section `tracking`.
        name: of the run; MLFLOW_RUN_NAME goes before it.
        settings: of all stages.
    """
    tags = {**common_tags(), "cloc.kind": "pipeline"}
    identity = Identity(
        experiment_name(config), key_tag=SHARED_KEY_TAG, name=os.environ.get(NAME_VARIABLE) or name, tags=tags
    )
    run = begin(config, identity)
    run.log_settings(settings)
    known = {"MLFLOW_RUN_ID": run.run_id} if run.run_id else {"MLFLOW_RUN_ID": None, KEY: identity.key}
    started = time.monotonic()
    known |= {NAME_VARIABLE: identity.name, STAGE_URI: run.uri, **outbox_variable()}
    with recorded(run, says_why=True), exported(known):
        try:
            yield run
        finally:
            run.log_metrics({"speed/wall_seconds": time.monotonic() - started})


def begin_pipeline(config: TrackingConfig, *, settings: Mapping[str, Any], name: str = "") -> None:
    """The run of a pipeline whose tasks know each other by `CLOC_RUN_KEY` is made where it is missing, with all
    settings.

    Args:
        config: section `tracking`.
        settings: of all stages.
        name: that the pipeline's runner gave it; MLFLOW_RUN_NAME goes before it.
    """
    parent = parent_of_here()
    if not os.environ.get(KEY) or parent is None:
        return
    identity = as_identity(parent, experiment=experiment_name(config))
    if name and not os.environ.get(NAME_VARIABLE):
        identity = replace(identity, name=name)
    run = begin(config, identity, attached=True)
    run.log_settings(settings)
    run.let_go()


def end_pipeline(config: TrackingConfig, *, state: str, reason: str) -> str | None:
    """Records how a pipeline ended, in its run.

    Args:
        config: section `tracking`.
        state: SUCCEEDED, FAILED, CANCELED or SKIPPED, as Kubeflow says.
        reason: why it failed; "" where it did not.

    Returns:
        The run's id; "" where MLflow is away, None where the pipeline has no run.
    """
    parent = parent_of_here()
    if parent is None:
        return None
    run = begin(config, as_identity(parent, experiment=experiment_name(config)), attached=True)
    run.set_tag("cloc.outcome", state)
    if reason:
        run.fail(reason)
    run.end(_STATUS.get(state, "FAILED"))
    return run.run_id


@contextmanager
def run_above(config: TrackingConfig) -> Iterator[Run | None]:
    """The run of the pipeline that a stage's run was filed under, to record in it; None where there is none."""
    parent = parent_of_here()
    if parent is None:
        yield None
        return
    run = begin(
        config, replace(as_identity(parent, experiment=experiment_name(config)), made_here=False), attached=True
    )
    try:
        yield run
    finally:
        run.let_go()


@contextmanager
def ending_as_its_stage(config: TrackingConfig) -> Iterator[None]:
    """`dvc repro` tells nobody when it ends: its run ends with each stage, as that stage did."""
    parent = parent_of_here()
    if parent is None or not parent.ended:
        yield
        return
    status = "FINISHED"
    try:
        yield
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        with run_above(config) as run:
            assert run is not None
            run.put_end(status)
