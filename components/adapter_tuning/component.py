"""An MLLM adapter on an encoder."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def adapter_tuning(
    parameters: str,
    data: dsl.Input[dsl.Dataset],
    captions: dsl.Input[dsl.Dataset],
    regions: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    adapter: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    region_sampler: str = "",
):
    """Tunes a LLaVA-style model on referring and grounding, and measures it on test images.

    Args:
        parameters: The stage's settings and its code's hash (JSON).
        data: Collection with the training and the test splits.
        captions: Captions tables.
        regions: Regions tables, which the instructions are made from.
        encoder: Vision encoder: CLOC or CLIP.
        adapter: Folder of the tuned model.
        report: Folder of the report on its answers.
        page: What it answered about test pictures, to look at.
        metrics: Accuracies of referring and grounding, losses, counts.
        region_sampler: What embeds the boxes of questions (none, roi_align or prompter). Empty takes the setting.
    """
    from cloc.pipeline.component import run_component

    run_component(
        "adapter_tuning",
        parameters,
        inputs={
            "data": data,
            "captions": captions,
            "regions": regions,
            "encoder": encoder,
            "region_sampler": region_sampler,
        },
        outputs={"adapter": adapter, "report": report},
        page=page,
        metrics=metrics,
    )
