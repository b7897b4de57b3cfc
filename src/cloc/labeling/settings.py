"""Which model labels, and which settings the labels depend on: as a hash, so that a rerun redoes what they changed, and
as what each table says of its maker, so that a model can be traced to the captioner and the detector."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cloc.config.schema import CaptioningConfig, Config, DataConfig, GroundingConfig
from cloc.errors import ConfigError
from cloc.stage import fingerprint

S = TypeVar("S", CaptioningConfig, GroundingConfig)

# These change how fast labels are made and not what they are.
_SPEED_ONLY = {"batch_size", "device", "device_map", "processes"}
_SPEED_OF_ENDPOINT = {"base_url", "api_key_variable", "concurrency", "requests_per_minute", "timeout", "retries"}


def needed_teachers(config: Config) -> list[str]:
    """The teachers of `teachers.fit` that some stage labels with: those in whose place no other model is named."""
    needed = {
        "captioner": config.captioning.backend == "transformers" and not config.captioning.model,
        "detector": config.grounding.backend == "transformers" and not config.grounding.model,
    }
    return [name for name in config.teachers.fit if needed[name]]


def with_teacher(section: S, teachers: str, *, name: str, key: str) -> S:
    """The section with its model: the one that it names, else the one that `cloc teachers fit` made.

    Args:
        section: the stage's settings.
        teachers: output folder of `cloc teachers fit`; "" for none.
        name: the model's folder in it.
        key: what the section is called.

    Raises:
        ConfigError: no model is named and there are no teachers.
    """
    if section.backend != "transformers" or section.model:
        return section
    folder = Path(teachers) / name
    if not teachers or not folder.is_dir():
        raise ConfigError(
            f"{key}.model is empty, which means the {name} that `cloc teachers fit` makes, but "
            f"{f'there is no {folder}' if teachers else '--teachers is not given'}; fit teachers, or name a model"
        )
    return section.model_copy(update={"model": str(folder)})


@dataclass(frozen=True)
class Recipe:
    """What labels are made with.

    Attributes:
        hash: of all that the labels depend on.
        made_by: the same to read, JSON: stage, backend, model, the hash of its files, what a teacher was fitted on,
            and the settings. No times and no places: equal labels have equal tables.
    """

    hash: str
    made_by: str


def recipe(section: CaptioningConfig | GroundingConfig, data: DataConfig, *, stage: str) -> Recipe:
    """Of a stage's section, the limits on images, and the model: the files of a folder, the id of a hub's.

    Where a folder lies does not count: the same teachers, or the same tagger, label alike in any place.
    """
    settings = section.model_dump(mode="json", exclude=_SPEED_ONLY | {"model", "nltk_data"})
    if "spacy_model" in settings:
        settings["spacy_model"] = Path(settings["spacy_model"]).name
    settings["endpoint"] = {
        name: value for name, value in settings.get("endpoint", {}).items() if name not in _SPEED_OF_ENDPOINT
    }
    model = "" if section.backend == "annotations" else section.model
    folder = Path(model)
    made_by: dict[str, Any] = {"stage": stage, "backend": section.backend, "model": model}
    content: Any = model
    if model and folder.is_dir():
        files = _files(folder)
        content = [folder.name, *files]
        made_by |= {"model": folder.name, "model_digest": fingerprint(files), "fitted_on": _fitted_on(folder)}
    limits = {"min_side": data.min_side, "max_pixels": data.max_pixels}
    made_by["settings"] = {**{name: value for name, value in settings.items() if name != "backend"}, **limits}
    return Recipe(
        hash=fingerprint(settings, data.min_side, data.max_pixels, content),
        made_by=json.dumps(made_by, sort_keys=True),
    )


def _fitted_on(folder: Path) -> dict[str, Any]:
    """What a teacher was fitted on, as `cloc teachers fit` recorded it beside the model; empty for any other model."""
    try:
        receipt = json.loads(folder.with_name(f"{folder.name}.json").read_text())
        return dict(receipt["fitted_on"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # a model of others, or of a release that did not record it


def _files(folder: Path) -> list[tuple[str, str]]:
    """(path, sha256) of each file of a folder: a model that was fitted again labels again."""
    found = []
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        with path.open("rb") as stream:
            found.append((path.relative_to(folder).as_posix(), hashlib.file_digest(stream, "sha256").hexdigest()))
    return found
