"""How a pipeline ended, for MLflow: the task that runs last whatever happened."""

from collections.abc import Sequence

from cloc.errors import ConfigError
from cloc.pipeline.parameters import resolve
from cloc.tracking import end_pipeline


def record_outcome(*, state: str, task: str, error: str, others: Sequence[str]) -> None:
    """Tells MLflow, and the log. MLflow that does not answer changes nothing about the run.

    Args:
        state: of the pipeline, as Kubeflow says.
        task: that it was told for.
        error: what went wrong; "" where nothing did.
        others: settings of the run, `section.key=value`.
    """
    print(f"the pipeline ended as {state}" + (f": {error}" if error else ""), flush=True)
    try:
        run_id = end_pipeline(resolve({}, list(others)).tracking, state=state, reason=error and f"{task}: {error}")
    except ConfigError as problem:
        print(f"not recorded: {problem}", flush=True)
        return
    if run_id is None:
        print("there is no MLflow run to record it in", flush=True)
    else:
        print(f"recorded in the MLflow run {run_id}" if run_id else "not recorded: MLflow does not answer", flush=True)
