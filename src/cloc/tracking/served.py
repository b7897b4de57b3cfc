"""The registered model as MLflow loads it: this file is copied into every version, and runs when it is loaded.

    mlflow.pyfunc.load_model("models:/cloc@champion").predict(table)

See `cloc.model.answers` for the table and `packing` for what lies beside this file.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from cloc.model.answers import answer
from cloc.model.api import CLOC


class ServedCLOC(PythonModel):
    """CLOC over tables of images, boxes and texts."""

    def load_context(self, context: Any) -> None:
        """Loads the model that lies beside this file; `model_config={"device": "cuda"}` puts it there."""
        self._cloc = CLOC.from_pretrained(context.artifacts["model"], device=context.model_config["device"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """A table with the columns `image`, `boxes` and `texts` -> a table with the attributes of `answers.Answer`."""
        rows = model_input.to_dict("records")
        return pd.DataFrame([item.to_json() for item in answer(self._cloc, rows)], index=model_input.index)


set_model(ServedCLOC())
