"""An encoder from labelled data: CLOC, or plain CLIP by the same code."""

from typing import Optional

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretraining(
    parameters: str,
    objective: str,
    data: dsl.Input[dsl.Dataset],
    captions: dsl.Input[dsl.Dataset],
    regions: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    match_compute_of: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045 (KFP reads this form)
    step_cost_of: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045 (KFP reads this form)
):
    """Trains an encoder; goes on from its last checkpoint when tried again.

    Args:
        parameters: The stage's settings and its code's hash (JSON).
        objective: cloc (image and region losses) or clip (image loss alone).
        data: Collection or data set.
        captions: Captions tables.
        regions: Regions tables.
        model: Folder that loads as a CLIPModel, with tokenizer and training.json.
        metrics: Losses at the end, processor time, counts.
        match_compute_of: Model whose processor time this training shall spend; without it: the settings' steps.
        step_cost_of: Model of the same objective that tells what a step costs.
    """
    from cloc.pipeline.component import run_component

    run_component(
        "pretraining",
        parameters,
        inputs={
            "data": data,
            "captions": captions,
            "regions": regions,
            "objective": objective,
            "match_compute_of": match_compute_of,
            "step_cost_of": step_cost_of,
        },
        outputs={"model": model},
        metrics=metrics,
    )
