"""The runs around a stage's: below it one for each model that it measured, above it the pipeline's with the headline.

Models stand as rows of their own, with their figures under the same names: MLflow's pages set them side by side.
"""

from cloc.config.schema import TrackingConfig
from cloc.stage import ModelResult, StageResult
from cloc.tracking.identity import Identity
from cloc.tracking.names import EVAL, data_set_of
from cloc.tracking.pipelines import run_above
from cloc.tracking.provenance import common_tags
from cloc.tracking.runs import Run, begin
from cloc.tracking.store import experiment_name
from cloc.tracking.titles import model_title
from cloc.tracking.views import experiment_tags

# What a row is found by is a tag, too; all the rest that is known of it are parameters.
_TAGS = ("weights_sha256", "trained_by", "objective")


def log_family(config: TrackingConfig, run: Run, result: StageResult) -> None:
    """Records what a stage says of several models, and what the pipeline's run shows of it.

    Args:
        config: section `tracking`.
        run: the stage's, which has its result already.
        result: of the stage.
    """
    for name, model in result.models.items():
        _log_model(config, run, name, model)
    if not result.headline:
        return
    measured = [name for name in result.headline if name.startswith(EVAL)]
    with run_above(config) as above:
        if above is not None:
            above.log_metrics({name: result.metrics[name] for name in result.headline})
            above.set_tag(f"cloc.{result.stage}", result.message)
            if measured:
                above.set_tag("mlflow.note.content", "\n\n".join([result.message, *run.pages]))
    if measured:
        run.dress(experiment_tags(data_set_of(measured[0])))


def _log_model(config: TrackingConfig, stage: Run, name: str, model: ModelResult) -> None:
    about = {key: str(value) for key, value in model.about.items()}
    tags = {**common_tags(), "cloc.kind": "model", "cloc.model": name}
    tags |= {f"cloc.{key}": about[key] for key in _TAGS if about.get(key)}
    title = model_title(name, pipeline=stage.pipeline)
    own = begin(config, Identity(experiment_name(config), name=title, tags=tags, parent=stage.as_parent()))
    own.log_parameters(about)
    own.log_data_sets(stage.data_sets)
    own.log_metrics(model.metrics)
    own.end("FINISHED")
