"""What a registered version holds: a folder in MLflow's format that answers tables, and the model's own folder in it.

MLmodel, requirements.txt, conda.yaml, python_env.yaml     MLflow's, with signature, example and metadata
served.py                                                  what loads it; nothing is pickled
artifacts/model                                            the model, for `CLOC.from_pretrained`
code/cloc                                                  this package as it was: its name on PyPI is not ours
"""

import base64
import io
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cloc
from cloc.errors import ConfigError

MODEL_PATH = "artifacts/model"
# What `served` imports, by distribution; each is pinned to what is installed, without the mark of a build (+cpu).
_DISTRIBUTIONS = (
    "mlflow", "numpy", "pandas", "pillow", "psutil", "pydantic", "pyyaml", "safetensors", "tokenizers", "torch",
    "transformers",
)  # fmt: skip


def pack(folder: str, *, to: Path, model: Any, metadata: Mapping[str, Any]) -> None:
    """Writes a version's files.

    Args:
        folder: the model's folder; its own folders (checkpoints, logs) are no part of the model and stay away.
        to: folder to make.
        model: MLflow's record of the model (`mlflow.models.Model`), which gets signature and example.
        metadata: JSON values to file with it.
    """
    import mlflow

    with tempfile.TemporaryDirectory() as scratch:
        own, code = Path(scratch) / "model", Path(scratch) / "cloc"
        own.mkdir()
        for item in sorted(Path(folder).iterdir()):
            if item.is_file():
                shutil.copyfile(item, own / item.name)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(Path(cloc.__file__).parent, code, ignore=ignored)
        model.metadata = dict(metadata)
        mlflow.pyfunc.save_model(
            path=to,
            mlflow_model=model,
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={"model": str(own)},
            code_paths=[str(code)],
            signature=signature(),
            input_example=example(),
            pip_requirements=_requirements(),
            model_config={"device": "cpu"},
        )


def _requirements() -> list[str]:
    try:
        return [f"{name}=={version(name).partition('+')[0]}" for name in _DISTRIBUTIONS]
    except PackageNotFoundError as error:
        raise ConfigError(f"registering needs {error.name}: pip install -e '.[torch]' in a checkout of cloc") from None


def signature() -> Any:
    """Columns of the table that is asked and of the one that is answered."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    row = Array(DataType.double)
    asked: list[Any] = [
        ColSpec(DataType.binary, "image"),
        ColSpec(Array(row), "boxes", required=False),
        ColSpec(Array(DataType.string), "texts", required=False),
    ]
    answered: list[Any] = [
        ColSpec(row, "image_embedding"),
        *(ColSpec(Array(row), name) for name in ("region_embeddings", "text_embeddings", "region_text_scores")),
        ColSpec(Array(row), "text_boxes", required=False),
    ]
    return ModelSignature(inputs=Schema(asked), outputs=Schema(answered))


def example() -> Any:
    """A table to ask with: a red square at the left of a grey picture, as base64, which JSON can hold."""
    import pandas as pd
    from PIL import Image

    picture = Image.new("RGB", (96, 64), "#808080")
    picture.paste("#c02020", (12, 16, 44, 48))
    body = io.BytesIO()
    picture.save(body, "PNG")
    row = {
        "image": base64.b64encode(body.getvalue()).decode(),
        "boxes": [[0.125, 0.25, 0.458, 0.75]],
        "texts": ["a red square", "a blue ball"],
    }
    return pd.DataFrame([row])
