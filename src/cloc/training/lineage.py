"""What a model was made of, as a file beside it, so that it can be told where the model is and nothing else.

    objective, compute_of   what was trained, and the model whose processor time it was given, if any
    weights_sha256          of the model
    run                     the MLflow run that recorded the training, with git commit and what else all runs say
    started_from            the model whose weights training began with (null: none); of a folder also their hash
    data                    the images: place, digest, counts, how they were made (`cloc.data.origin`)
    captions, regions       the labels: place, digest, counts, and who made them (null: there are none)

The settings lie beside it, too (config.yaml), and so does what training took (training.json).
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloc.config import Config
from cloc.data.dataset import Dataset
from cloc.data.origin import data_record, tables_record
from cloc.model.provenance import weights_digest
from cloc.stage import LINEAGE_FILE
from cloc.tracking import STAGE_RUN
from cloc.tracking.provenance import common_tags

SCHEMA_VERSION = 1
_PERSONAL = frozenset({"host", "mlflow.user"})  # a model travels: no names of people and machines


def write_lineage(folder: Path, config: Config, dataset: Dataset, *, objective: str, compute_of: str) -> Path:
    """Writes `LINEAGE_FILE` beside a trained model and returns its path.

    Args:
        folder: of the model.
        config: all settings.
        dataset: what was trained on.
        objective: "cloc" or "clip".
        compute_of: model whose processor time was matched; "" for none.
    """
    body = {
        "schema_version": SCHEMA_VERSION,
        "objective": objective,
        "compute_of": compute_of,
        "weights_sha256": weights_digest(folder),
        "run": _run(),
        "started_from": _start(config.model.init_from),
        "data": data_record(dataset),
        "captions": tables_record(dataset, "captions"),
        "regions": tables_record(dataset, "regions"),
    }
    path = folder / LINEAGE_FILE
    path.write_text(json.dumps(body, indent=1) + "\n")
    return path


def _run() -> dict[str, Any]:
    tags = {name: value for name, value in common_tags().items() if name not in _PERSONAL}
    return {"id": os.environ.get(STAGE_RUN, ""), "tags": tags}


def _start(init_from: str) -> Mapping[str, str] | None:
    if not init_from:
        return None
    return {"source": init_from, "weights_sha256": weights_digest(init_from) if Path(init_from).is_dir() else ""}
