"""Labelling models of the project's own, where no others are named."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def teachers(
    parameters: str,
    data: dsl.Input[dsl.Dataset],
    teachers: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Fits a small captioner and a small detector on the labelled seed split, as far as they are needed.

    Args:
        parameters: The stage's settings and its code's hash (JSON).
        data: Collection with the labelled split.
        teachers: Folders of the captioner and of the detector, as `save_pretrained` writes them.
        metrics: Quality on images that were kept apart, processor time.
    """
    from cloc.pipeline.component import run_component

    run_component("teachers", parameters, inputs={"data": data}, outputs={"teachers": teachers}, metrics=metrics)
