"""Boxes for the phrases of the captions."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def grounding(
    parameters: str,
    data: dsl.Input[dsl.Dataset],
    captions: dsl.Input[dsl.Dataset],
    teachers: dsl.Input[dsl.Model],
    regions: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    """Finds boxes for the phrases of the captions; what stands already is skipped.

    Args:
        parameters: The stage's settings and its code's hash (JSON).
        data: Collection or data set.
        captions: Captions tables.
        teachers: Labelling models of the project's own, used where no detector is named.
        regions: Regions tables, a Parquet file a shard.
        report: Folder with the statistics as JSON and the page.
        page: Statistics, quality, and labelled images, to look at.
        metrics: Regions an image, words a region, coverage, quality, speed, counts.
    """
    from cloc.pipeline.component import run_component

    run_component(
        "grounding",
        parameters,
        inputs={"data": data, "captions": captions, "teachers": teachers},
        outputs={"regions": regions, "report": report},
        metrics=metrics,
        page=page,
        tables="regions",
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def grounding_part(
    parameters: str,
    data: dsl.Input[dsl.Dataset],
    captions: dsl.Input[dsl.Dataset],
    teachers: dsl.Input[dsl.Model],
    regions: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Finds boxes in a share of the shards, into the place that all tasks share; what stands already is skipped.

    Args:
        parameters: The stage's settings, its code's hash, the place and the share (JSON).
        data: Collection or data set.
        captions: Captions tables.
        teachers: Labelling models of the project's own, used where no detector is named.
        regions: A small file that says where the tables lie and what was done.
        metrics: Regions an image, words a region, coverage, speed, counts, of the share.
    """
    from cloc.pipeline.component import run_component

    run_component(
        "grounding",
        parameters,
        inputs={"data": data, "captions": captions, "teachers": teachers},
        outputs={"regions": regions},
        metrics=metrics,
        tables="regions",
    )
