"""The gate between labelling and training."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validation(
    parameters: str,
    data: dsl.Input[dsl.Dataset],
    captions: dsl.Input[dsl.Dataset],
    regions: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    data_docs: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    """Checks images, captions and regions; a failing check fails the task and stops the pipeline.

    Args:
        parameters: The stage's settings and its code's hash (JSON).
        data: Collection or data set.
        captions: Captions tables.
        regions: Regions tables.
        report: Folder with the results as JSON, the page, and Great Expectations' Data Docs.
        page: The report, to look at.
        data_docs: Great Expectations' Data Docs, to look at.
        metrics: Checks passed, coverage, counts.
    """
    from cloc.pipeline.component import run_component

    run_component(
        "validation",
        parameters,
        inputs={"data": data, "captions": captions, "regions": regions},
        outputs={"report": report},
        metrics=metrics,
        page=page,
        more_pages={"data_docs.html": data_docs},
    )
