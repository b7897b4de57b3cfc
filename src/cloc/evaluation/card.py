"""The model card: what a model is, how good, how it was trained. Markdown with the front matter of Hugging Face."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cloc import __version__
from cloc.evaluation.summary import FIGURES, figure, headline_markdown
from cloc.model.provenance import TRAINING_FILE
from cloc.pages import markdown_environment
from cloc.stage import CONFIG_FILE

CARD_FILE = "model_card.md"
_TASKS = {"retrieval": "image-text-retrieval", "grounding": "visual-grounding"}


def model_card(metrics: Mapping[str, Any], *, model: str, folder: str, source: str) -> str:
    """A model's card.

    Args:
        metrics: content of `metrics.json` of an evaluation.
        model: the model's row in it.
        folder: where the model lies.
        source: what `from_pretrained` takes.

    Returns:
        Markdown with a YAML front matter.
    """
    template = markdown_environment("cloc.evaluation").get_template("model_card.md.j2")
    return template.render(
        front=_front(metrics, model, folder),
        name=model,
        version=__version__,
        source=source,
        table=headline_markdown(metrics),
        protocols=", ".join(f"{name} {number}" for name, number in sorted(metrics["protocols"].items())),
        resamples=metrics["bootstrap"]["resamples"],
        facts=list(facts(Path(folder))),
        weights=metrics["models"][model]["weights_sha256"],
    )


def _front(metrics: Mapping[str, Any], model: str, folder: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # not needed by those who only read figures

    split = metrics["headline"]["split"]
    data = metrics["splits"][split]
    results = []
    for path, label in FIGURES.items():
        found = figure(metrics, split=split, model=model, path=path)
        if found:
            results.append(
                EvalResult(
                    task_type=_TASKS.get(path.partition("/")[0], "zero-shot-image-classification"),
                    dataset_type=split,
                    dataset_name=split,
                    dataset_revision=data["digest"],
                    metric_type=path,
                    metric_name=label,
                    metric_value=round(found.value, 4),
                )
            )
    base = _settings(Path(folder)).get("model", {}).get("init_from") or None
    made = ModelCardData(
        model_name=model,
        base_model=base,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "cloc", "region", "grounding"],
        eval_results=results or None,
    )
    return str(made.to_yaml())


def facts(folder: Path) -> Iterator[tuple[str, str]]:
    """What the folder tells of the training; a folder of others tells nothing."""
    path = folder / TRAINING_FILE
    trained = json.loads(path.read_text()) if path.is_file() else {}
    for label, key in (
        ("objective", "objective"),
        ("steps", "steps"),
        ("images seen", "samples"),
        ("batch size", "batch_size"),
        ("parameters", "parameters"),
        ("CPU-seconds", "cpu_seconds"),
    ):
        if key in trained:
            value = trained[key]
            yield label, f"{value:,.0f}" if isinstance(value, int | float) else str(value)
    settings = _settings(folder)
    if "train" in settings:
        train, loss = settings["train"], settings["loss"]
        yield "started from", settings["model"]["init_from"] or "nothing"
        yield "peak learning rate", f"{train['learning_rate']:g}, {train['warmup_steps']:,} steps of warm-up"
        yield "weight of the region loss", f"{loss['region_weight']:g}"
        yield "seed", str(train["seed"])


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    found: dict[str, Any] = yaml.safe_load(path.read_text()) if path.is_file() else {}
    return found
