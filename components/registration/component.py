"""The gate between evaluation and the model registry."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def registration(
    parameters: str,
    evaluation: dsl.Input[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    receipt: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Registers the model when it passes the gate; fails, and so stops the pipeline, when it does not.

    Args:
        parameters: The stage's settings and its code's hash (JSON).
        evaluation: The evaluation's report.
        model: The candidate.
        receipt: Folder with the verdict, its reasons and the model's figures.
        metrics: Whether the gate was passed.
    """
    from cloc.pipeline.component import run_component

    run_component(
        "registration",
        parameters,
        inputs={"evaluation": evaluation, "model": model},
        outputs={"receipt": receipt},
        metrics=metrics,
    )
