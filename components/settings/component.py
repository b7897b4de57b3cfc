"""The pipeline's first task: validates all settings and gives every stage its own."""

from typing import NamedTuple

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def settings(
    data: str,
    demo_images: int,
    captioner: str,
    captioning_model: str,
    region_finder: str,
    detection_model: str,
    detection_threshold: float,
    min_caption_coverage: float,
    min_region_coverage: float,
    start_from: str,
    training_steps: int,
    batch_size: int,
    learning_rate: float,
    region_weight: float,
    min_region_gain: float,
    max_image_loss: float,
    language_model: str,
    adapter_steps: int,
    model_name: str,
    train_baselines: bool,
    tune_adapters: bool,
    labels_at: str,
    labelling_parts: int,
    other_settings: list,
    run_name: str = "",
) -> NamedTuple(
    "Stages",
    [
        ("scenes", str),
        ("teachers", str),
        ("captioning", str),
        ("grounding", str),
        ("validation", str),
        ("pretraining", str),
        ("evaluation", str),
        ("registration", str),
        ("adapter_tuning", str),
        ("baseline", str),
    ],
):
    """Validates all settings and gives every stage its own, with the hash of its code and of given data.

    The arguments are the pipeline's parameters of the same names, and the name of its run; each output is what a
    stage's task is given, JSON.
    """
    from cloc.pipeline.component import resolve_parameters

    return resolve_parameters(
        {
            "demo_images": demo_images,
            "captioner": captioner,
            "captioning_model": captioning_model,
            "region_finder": region_finder,
            "detection_model": detection_model,
            "detection_threshold": detection_threshold,
            "min_caption_coverage": min_caption_coverage,
            "min_region_coverage": min_region_coverage,
            "start_from": start_from,
            "training_steps": training_steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "region_weight": region_weight,
            "min_region_gain": min_region_gain,
            "max_image_loss": max_image_loss,
            "language_model": language_model,
            "adapter_steps": adapter_steps,
            "model_name": model_name,
            "train_baselines": train_baselines,
            "tune_adapters": tune_adapters,
            "labels_at": labels_at,
            "labelling_parts": labelling_parts,
        },
        other_settings,
        data=data,
        run_name=run_name,
    )
