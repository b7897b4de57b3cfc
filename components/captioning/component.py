"""A caption for every image of the training split."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def captioning(
    parameters: str,
    data: dsl.Input[dsl.Dataset],
    teachers: dsl.Input[dsl.Model],
    captions: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    """Captions every image of the training split; what stands already is skipped.

    Args:
        parameters: The stage's settings and its code's hash (JSON).
        data: Collection or data set.
        teachers: Labelling models of the project's own, used where no captioner is named.
        captions: Captions tables, a Parquet file a shard.
        report: Folder with the statistics as JSON and the page.
        page: Statistics and captioned images, to look at.
        metrics: Captions an image, words a caption, coverage, speed, counts.
    """
    from cloc.pipeline.component import run_component

    run_component(
        "captioning",
        parameters,
        inputs={"data": data, "teachers": teachers},
        outputs={"captions": captions, "report": report},
        metrics=metrics,
        page=page,
        tables="captions",
    )


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def captioning_part(
    parameters: str,
    data: dsl.Input[dsl.Dataset],
    teachers: dsl.Input[dsl.Model],
    captions: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Captions a share of the shards into the place that all tasks share; what stands already is skipped.

    Args:
        parameters: The stage's settings, its code's hash, the place and the share (JSON).
        data: Collection or data set.
        teachers: Labelling models of the project's own, used where no captioner is named.
        captions: A small file that says where the tables lie and what was done.
        metrics: Captions an image, words a caption, coverage, speed, counts, of the share.
    """
    from cloc.pipeline.component import run_component

    run_component(
        "captioning",
        parameters,
        inputs={"data": data, "teachers": teachers},
        outputs={"captions": captions},
        metrics=metrics,
        tables="captions",
    )
