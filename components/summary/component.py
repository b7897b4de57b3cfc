"""The run's results on one page, and where everything lies."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def summary(
    data: dsl.Input[dsl.Dataset],
    captions: dsl.Input[dsl.Dataset],
    regions: dsl.Input[dsl.Dataset],
    teachers: dsl.Input[dsl.Model],
    label_report: dsl.Input[dsl.Artifact],
    validation: dsl.Input[dsl.Artifact],
    clip_equal_steps: dsl.Input[dsl.Model],
    clip_equal_compute: dsl.Input[dsl.Model],
    cloc: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    receipt: dsl.Input[dsl.Artifact],
    clip_adapter: dsl.Input[dsl.Model],
    cloc_adapter: dsl.Input[dsl.Model],
    sampler_adapter: dsl.Input[dsl.Model],
    results: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    answers: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    """Shows the models and the adapters side by side.

    Args:
        data: The collection.
        captions: Captions tables.
        regions: Regions tables.
        teachers: Labelling models of the project's own.
        label_report: The grounding's report.
        validation: The validation's report.
        clip_equal_steps: Plain CLIP trained for as many steps as CLOC.
        clip_equal_compute: Plain CLIP trained for as much processor time as CLOC.
        cloc: CLOC.
        evaluation: The evaluation's report.
        receipt: The registration's receipt.
        clip_adapter: Adapter on CLIP (equal compute).
        cloc_adapter: Adapter on CLOC.
        sampler_adapter: Adapter on CLOC whose Prompter embeds the regions of questions.
        results: Folder with summary.json: figures, and where everything lies.
        page: The tables, to look at.
        answers: What the adapters answered, side by side, with pictures.
        metrics: The headline figures.
    """
    from cloc.pipeline.summary import write_summary

    write_summary(
        {
            "data": data,
            "captions": captions,
            "regions": regions,
            "teachers": teachers,
            "label_report": label_report,
            "validation": validation,
            "clip_equal_steps": clip_equal_steps,
            "clip_equal_compute": clip_equal_compute,
            "model": cloc,
            "report": evaluation,
            "receipt": receipt,
            "clip_adapter": clip_adapter,
            "adapter": cloc_adapter,
            "sampler_adapter": sampler_adapter,
        },
        evaluation=evaluation,
        adapters={
            "CLIP (equal compute)": clip_adapter,
            "CLOC": cloc_adapter,
            "CLOC, Prompter as sampler": sampler_adapter,
        },
        summary=results,
        page=page,
        answers=answers,
        metrics=metrics,
    )
