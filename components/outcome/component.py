"""How the pipeline ended, in MLflow: runs last, whatever happened."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def outcome(status: dsl.PipelineTaskFinalStatus, other_settings: list):
    """Records in MLflow how the pipeline ended, and why it failed.

    Args:
        status: What Kubeflow says of the other tasks.
        other_settings: The pipeline's parameter of that name: it may name the tracking server.
    """
    from cloc.pipeline.outcome import record_outcome

    record_outcome(
        state=status.state,
        task=status.pipeline_task_name,
        error=status.error_message or "",
        others=other_settings,
    )
