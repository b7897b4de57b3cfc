"""The encoders side by side on the test splits."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluation(
    parameters: str,
    data: dsl.Input[dsl.Dataset],
    clip_equal_steps: dsl.Input[dsl.Model],
    clip_equal_compute: dsl.Input[dsl.Model],
    cloc: dsl.Input[dsl.Model],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
):
    """Compares the encoders by every protocol that the test splits have truth for.

    Args:
        parameters: The stage's settings and its code's hash (JSON).
        data: Collection with the test splits.
        clip_equal_steps: Plain CLIP trained for as many steps as CLOC.
        clip_equal_compute: Plain CLIP trained for as much processor time as CLOC.
        cloc: CLOC.
        report: Folder with metrics.json and the page.
        page: The report, to look at.
        metrics: Every figure by split and model.
        confusion: What the regions of the classes with most errors are taken for, by CLOC's best reader.
    """
    from cloc.pipeline.component import run_component

    run_component(
        "evaluation",
        parameters,
        inputs={
            "data": data,
            "models": {
                "CLIP (equal steps)": clip_equal_steps,
                "CLIP (equal compute)": clip_equal_compute,
                "CLOC": cloc,
            },
        },
        outputs={"report": report},
        metrics=metrics,
        page=page,
        confusion=confusion,
    )
