"""Boxes for the phrases of the captions."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def grounding(
    parameters: str,
    data: dsl.Input[dsl.Dataset],
    captions: dsl.Input[dsl.Dataset],
    regions: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Finds boxes for the phrases of the captions; what stands already is skipped.

    Args:
        parameters: The stage's settings and its code's hash (JSON).
        data: Collection or data set.
        captions: Captions tables.
        regions: Regions tables, a Parquet file a shard.
        metrics: Regions an image, words a region, coverage, counts.
    """
    from cloc.pipeline.component import run_component

    run_component(
        "grounding",
        parameters,
        inputs={"data": data, "captions": captions},
        outputs={"regions": regions},
        metrics=metrics,
    )
