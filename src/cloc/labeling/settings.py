"""Which model labels, and which settings the labels depend on, as a hash: a rerun redoes what they changed."""

import hashlib
from pathlib import Path
from typing import TypeVar

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


def config_hash(section: CaptioningConfig | GroundingConfig, data: DataConfig) -> str:
    """Hash of a stage's section, the limits on images, and the model: the files of a folder, the id of a hub's.

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
    content = [folder.name, *_files(folder)] if model and folder.is_dir() else model
    return fingerprint(settings, data.min_side, data.max_pixels, content)


def _files(folder: Path) -> list[tuple[str, str]]:
    """(path, sha256) of each file of a folder: a model that was fitted again labels again."""
    found = []
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        with path.open("rb") as stream:
            found.append((path.relative_to(folder).as_posix(), hashlib.file_digest(stream, "sha256").hexdigest()))
    return found
