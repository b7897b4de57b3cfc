"""The DAG: from images to a registered encoder and a tuned MLLM adapter.

    settings -> ingest -> teachers -> captioning -> grounding -> validation (gate)
      -> pretraining: CLOC; plain CLIP at equal steps; plain CLIP at equal compute
      -> evaluation -> registration (gate) -> adapter tuning on CLIP, on CLOC, and with CLOC's Prompter -> summary
    outcome, whatever happened

Captioning and grounding may each come after tasks that label shares of the shards side by side, into a place that all
of them reach: then they find everything done, and report. What a run leaves out (baselines, adapters) is skipped by its
tasks, which say so.
One definition: `pipelines.local` runs it on this machine, `pipelines.compile` and `pipelines.submit` bring it to a
Kubeflow server.
"""

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineChannel

from cloc.pipeline.parameters import defaults
from components.adapter_tuning.component import adapter_tuning
from components.captioning.component import captioning, captioning_part
from components.evaluation.component import evaluation
from components.grounding.component import grounding, grounding_part
from components.ingest.component import ingest
from components.label_parts.component import label_parts
from components.outcome.component import outcome
from components.pretraining.component import pretraining
from components.registration.component import registration
from components.settings.component import settings
from components.summary.component import summary
from components.teachers.component import teachers
from components.validation.component import validation
from pipelines.resources import Wishes, on_cluster

NAME = "cloc"
DEMO = defaults()  # params.yaml's
PARALLEL = 16  # labelling tasks at a time


@dsl.pipeline(name=NAME, display_name="CLOC: a CLIP encoder that understands regions")
def cloc_pipeline(
    data: str = "",
    demo_images: int = DEMO["demo_images"],
    captioner: str = DEMO["captioner"],
    captioning_model: str = DEMO["captioning_model"],
    region_finder: str = DEMO["region_finder"],
    detection_model: str = DEMO["detection_model"],
    detection_threshold: float = DEMO["detection_threshold"],
    min_caption_coverage: float = DEMO["min_caption_coverage"],
    min_region_coverage: float = DEMO["min_region_coverage"],
    start_from: str = DEMO["start_from"],
    training_steps: int = DEMO["training_steps"],
    batch_size: int = DEMO["batch_size"],
    learning_rate: float = DEMO["learning_rate"],
    region_weight: float = DEMO["region_weight"],
    min_region_gain: float = DEMO["min_region_gain"],
    max_image_loss: float = DEMO["max_image_loss"],
    language_model: str = DEMO["language_model"],
    adapter_steps: int = DEMO["adapter_steps"],
    model_name: str = DEMO["model_name"],
    train_baselines: bool = DEMO["train_baselines"],
    tune_adapters: bool = DEMO["tune_adapters"],
    labels_at: str = DEMO["labels_at"],
    labelling_parts: int = DEMO["labelling_parts"],
    other_settings: list = [],  # noqa: B006 (KFP reads the default when the pipeline is compiled)
    gpus: int = 0,
    gpu_type: str = "nvidia.com/gpu",
    node_selector: dict = {},  # noqa: B006 (KFP reads the default when the pipeline is compiled)
    tolerations: list = [],  # noqa: B006 (KFP reads the default when the pipeline is compiled)
) -> None:
    """Trains a CLIP-compatible encoder that understands regions, compares it with plain CLIP, and registers it.

    Args:
        data: Collection of images to use: folder or s3:// prefix with a data set a split. Empty renders the demo's.
        demo_images: Training pictures to render when no data are given.
        captioner: Where captions come from: annotations (the data's own), transformers (a model), openai (an endpoint).
        captioning_model: Hub id or folder of the captioning model. Empty fits a small one on the data's seed split.
        region_finder: Where boxes come from: annotations (the data's own) or transformers (a detector).
        detection_model: Hub id or folder of the open-vocabulary detector. Empty fits a small one on the seed split.
        detection_threshold: Boxes that the detector is less sure of are dropped (0 to 1).
        min_caption_coverage: Gate on the labels: least share of images with a caption.
        min_region_coverage: Gate on the labels: least share of images with a region.
        start_from: Hub id or folder of a CLIP checkpoint to start from. Empty trains from scratch.
        training_steps: Optimiser steps of CLOC and of the CLIP that it is compared with at equal steps.
        batch_size: Images a step, over all processes.
        learning_rate: Peak learning rate.
        region_weight: Weight of the region losses against the image loss.
        min_region_gain: Gate on the model: CLOC's region accuracy over the best plain CLIP's must be at least this.
        max_image_loss: Gate on the model: image-text R@1 may be this much below plain CLIP's.
        language_model: Hub id or folder of the language model of the adapter. Empty makes a small one.
        adapter_steps: Optimiser steps of the adapter.
        model_name: Name in the model registry.
        train_baselines: Train plain CLIP to compare with. Without it the model is registered ungated.
        tune_adapters: Tune MLLM adapters on the encoders.
        labels_at: Folder or s3:// prefix that keeps captions and boxes for later runs, which label new shards alone.
        labelling_parts: Tasks that label side by side into labels_at; 0 labels in one task.
        other_settings: Any other setting, as a list of "section.key=value"; `cloc config explain` lists them.
        gpus: GPUs of each task that can use them; 0 runs on processors.
        gpu_type: Kubernetes resource name of the GPUs.
        node_selector: Labels of the nodes that tasks run on, as {"label": "value"}.
        tolerations: Taints that tasks put up with, as in a pod: [{"key": ..., "operator": "Exists"}].
    """
    wishes = Wishes(gpus=gpus, gpu_type=gpu_type, node_selector=node_selector, tolerations=tolerations)

    def set_up(task: dsl.PipelineTask, name: str, title: str) -> dsl.PipelineTask:
        return on_cluster(task.set_display_name(title), name, wishes)

    ended = set_up(outcome(other_settings=other_settings), "outcome", "Outcome")
    ended.set_caching_options(False)
    with dsl.ExitHandler(ended, name="CLOC"):
        stages = settings(
            data=data,
            demo_images=demo_images,
            captioner=captioner,
            captioning_model=captioning_model,
            region_finder=region_finder,
            detection_model=detection_model,
            detection_threshold=detection_threshold,
            min_caption_coverage=min_caption_coverage,
            min_region_coverage=min_region_coverage,
            start_from=start_from,
            training_steps=training_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            region_weight=region_weight,
            min_region_gain=min_region_gain,
            max_image_loss=max_image_loss,
            language_model=language_model,
            adapter_steps=adapter_steps,
            model_name=model_name,
            train_baselines=train_baselines,
            tune_adapters=tune_adapters,
            labels_at=labels_at,
            labelling_parts=labelling_parts,
            other_settings=other_settings,
            run_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        )
        # It looks at the code and at the data behind the given path, which no cache key shows: it always runs.
        stages.set_caching_options(False)
        given = set_up(stages, "settings", "Settings").outputs

        images = set_up(ingest(parameters=given["scenes"]), "ingest", "Data").outputs["data"]
        fitted = set_up(teachers(parameters=given["teachers"], data=images), "teachers", "Teachers").outputs["teachers"]
        sources = {"data": images, "teachers": fitted}

        def shares(stage: str, title: str) -> PipelineChannel:
            # Items hold all that a part is given: KFP's local runner takes no other task's output into a loop.
            return set_up(label_parts(parameters=given[stage], data=images), "label_parts", title).output

        parts = shares("captioning", "Shares of the captioning")
        with dsl.ParallelFor(parts, name="Captioning, in parts", parallelism=PARALLEL) as share:
            captioned = set_up(captioning_part(parameters=share, **sources), "captioning", "Captioning, a part")
        captions = set_up(
            captioning(parameters=given["captioning"], **sources).after(captioned), "captioning", "Captioning"
        ).outputs["captions"]
        sources["captions"] = captions
        parts = shares("grounding", "Shares of the grounding")
        with dsl.ParallelFor(parts, name="Grounding, in parts", parallelism=PARALLEL) as share:
            found = set_up(grounding_part(parameters=share, **sources), "grounding", "Grounding, a part")
        grounded = set_up(grounding(parameters=given["grounding"], **sources).after(found), "grounding", "Grounding")
        regions = grounded.outputs["regions"]
        labels = {"data": images, "captions": captions, "regions": regions}
        checked = set_up(validation(parameters=given["validation"], **labels), "validation", "Validation (gate)")

        def train(task: str, objective: str, title: str, **matched: PipelineChannel) -> PipelineChannel:
            made = pretraining(parameters=given[task], objective=objective, **labels, **matched).after(checked)
            return set_up(made, "pretraining", title).outputs["model"]

        cloc = train("pretraining", "cloc", "Pre-training: CLOC")
        equal_steps = train("baseline", "clip", "Pre-training: CLIP, equal steps")
        equal_compute = train(
            "baseline",
            "clip",
            "Pre-training: CLIP, equal compute",
            match_compute_of=cloc,
            step_cost_of=equal_steps,
        )
        models = {"clip_equal_steps": equal_steps, "clip_equal_compute": equal_compute, "cloc": cloc}
        compared = set_up(
            evaluation(parameters=given["evaluation"], data=images, **models), "evaluation", "Evaluation"
        ).outputs["report"]
        registered = set_up(
            registration(parameters=given["registration"], evaluation=compared, model=cloc),
            "registration",
            "Registration (gate)",
        )

        def tune(encoder: PipelineChannel, title: str, **options: str) -> PipelineChannel:
            task = adapter_tuning(parameters=given["adapter_tuning"], encoder=encoder, **labels, **options)
            return set_up(task.after(registered), "adapter_tuning", title).outputs["adapter"]

        clip_adapter = tune(equal_compute, "MLLM adapter on CLIP")
        cloc_adapter = tune(cloc, "MLLM adapter on CLOC")
        sampler_adapter = tune(cloc, "MLLM adapter on CLOC, Prompter as sampler", region_sampler="prompter")
        results = summary(
            **labels,
            **models,
            teachers=fitted,
            label_report=grounded.outputs["report"],
            validation=checked.outputs["report"],
            evaluation=compared,
            receipt=registered.outputs["receipt"],
            clip_adapter=clip_adapter,
            cloc_adapter=cloc_adapter,
            sampler_adapter=sampler_adapter,
        )
        # Nothing can be returned out of an exit handler: whoever runs the pipeline finds what this task writes.
        set_up(results, "summary", "Summary").set_caching_options(False)
