"""A caption for every image of the training split."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def captioning(
    parameters: str,
    data: dsl.Input[dsl.Dataset],
    captions: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Captions every image of the training split; what stands already is skipped.

    Args:
        parameters: The stage's settings and its code's hash (JSON).
        data: Collection or data set.
        captions: Captions tables, a Parquet file a shard.
        metrics: Captions an image, words a caption, coverage, counts.
    """
    from cloc.pipeline.component import run_component

    run_component("captioning", parameters, inputs={"data": data}, outputs={"captions": captions}, metrics=metrics)
