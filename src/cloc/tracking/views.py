"""What an experiment shows without being set up: saved views (the menu "Views" of its runs), its description, and the
metric that its charts begin with.

MLflow's pages keep a saved view in a tag of the experiment, `mlflow.sharedViewState.<id>`: an envelope of a name, times
and the state of the page (filter, order, columns). What somebody saves there under another id stays.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cloc.tracking.names import eval_name
from cloc.tracking.records import OWN_EXPERIMENT

_VIEW_TAG, _MADE = "mlflow.sharedViewState.", 1_767_225_600_000  # milliseconds since 1970: a view says when it was made
_CHARTED = "mlflow.experiment.primaryMetric."


@dataclass(frozen=True)
class View:
    """A saved view.

    Attributes:
        key: id in its tag and address.
        name: in the menu.
        kind: of the runs, their tag `cloc.kind`.
        more: further conditions of the filter.
        columns: ("metrics" | "params" | "tags" | "attributes", name).
        order: metric to order by, descending; "" for the time.
    """

    key: str
    name: str
    kind: str
    columns: Sequence[tuple[str, str]]
    more: str = ""
    order: str = ""

    @property
    def filter(self) -> str:
        """In MLflow's language."""
        return f"tags.`cloc.kind` = '{self.kind}'{self.more}"

    def to_json(self) -> str:
        """Value of the tag."""
        state = {
            "searchFilter": self.filter,
            "orderByKey": f"metrics.`{self.order}`" if self.order else "attributes.start_time",
            "orderByAsc": False,
            "selectedColumns": [f"{kind}.`{name}`" for kind, name in self.columns],
            "runsHiddenMode": "FIRST_20_RUNS",
            "hideEmptyCharts": True,
        }
        return json.dumps({"name": self.name, "createdAt": _MADE, "updatedAt": _MADE, "state": json.dumps(state)})


def views(data_set: str) -> tuple[View, ...]:
    """The views; figures are those on a data set."""
    headline = [
        eval_name("region", data_set, "mAcc"),
        eval_name("region_retrieval", data_set, "r2t_R@1"),
        eval_name("retrieval", data_set, "i2t_R@1"),
        eval_name("retrieval", data_set, "t2i_R@1"),
        eval_name("grounding", data_set, "acc@0.5"),
    ]
    figures = [("metrics", name) for name in headline]
    trained = [("params", name) for name in ("train.steps", "train.batch_size", "train.learning_rate")]
    speeds = [("metrics", name) for name in ("speed/images_per_second", "speed/wall_seconds")]
    answers = [
        ("metrics", eval_name(f"mllm_{task}", data_set, figure))
        for task, figure in (("refer", "accuracy"), ("ground", "acc@0.5"), ("describe", "word_f1"))
    ]
    return (
        View(
            "cloc-models", "Models side by side", "model",
            [*figures, ("params", "objective"), ("params", "steps")], order=headline[0],
        ),
        View(
            "cloc-pipelines", "Pipelines, with their headline", "pipeline",
            [*figures, ("tags", "cloc.started_by"), ("attributes", "Source"), ("attributes", "Version")],
        ),
        View(
            "cloc-trainings", "Trainings", "stage",
            [("metrics", "loss/total"), ("metrics", "loss/image"), *speeds, *trained, ("attributes", "Dataset")],
            more=" AND tags.`cloc.stage` = 'pretraining'",
        ),
        View(
            "cloc-adapters", "MLLM adapters", "stage",
            [*answers, ("metrics", "loss/answers"), ("params", "adapter.region_sampler")],
            more=" AND tags.`cloc.stage` = 'adapter_tuning'", order=answers[0][1],
        ),
    )  # fmt: skip


def experiment_tags(data_set: str) -> dict[str, str]:
    """Tags for an experiment that lacks them: what people changed there stays.

    Args:
        data_set: that figures are shown of.
    """
    shown = views(data_set)
    return {
        "mlflow.experimentKind": "custom_model_development",  # else its pages begin with traces of language models
        f"{_CHARTED}name": eval_name("region", data_set, "mAcc"),
        f"{_CHARTED}greaterIsBetter": "True",
        "mlflow.note.content": _note(shown),
        **{f"{_VIEW_TAG}{view.key}": view.to_json() for view in shown},
    }


def _note(shown: Sequence[View]) -> str:
    page = f"#/experiments/{OWN_EXPERIMENT}/runs?workflowType=machine_learning&viewStateShareKey="
    rows = [f"| [{view.name}]({page}{view.key}) | ``{view.filter}`` |" for view in shown]
    return "\n".join(
        [
            "A pipeline's run holds its stages, and the evaluation holds a run for each model that was measured. "
            "Figures are named `eval/<protocol>/<data set>/<figure>`, so that runs stand in one column and one chart.",
            "",
            "| view (also in the menu Views) | filter |",
            "|---|---|",
            *rows,
            "",
            "Select runs and press Compare to see them side by side, or `cloc runs compare RUN RUN` in a terminal.",
        ]
    )
