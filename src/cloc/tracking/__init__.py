"""MLflow: one run per pipeline run, the stages as its children. The only part that imports mlflow.

Where the pipeline's run comes from, in this order:
    MLFLOW_RUN_ID   a run that exists (the pipeline's own, or one that a KFP server made)
    CLOC_RUN_KEY    any key shared by the stages of a pipeline run (the KFP run id): found by tag, made when missing
    dvc repro       the stages of one invocation share a run, too
    else            the stage is its own pipeline

The store may be slow, away at the start or die meanwhile: a stage goes on, and what it records is delivered later, each
step once (`records`, `outbox`, `journal`, `delivery`). An address that can never be used is an error before any work.
"""

from cloc.tracking.datasets import DataSet, data_sets
from cloc.tracking.delivery import Delivered, deliver
from cloc.tracking.family import log_family
from cloc.tracking.names import eval_name
from cloc.tracking.pipelines import begin_pipeline, end_pipeline, ending_as_its_stage, pipeline_run
from cloc.tracking.provenance import REVISION, git
from cloc.tracking.reading import Reader
from cloc.tracking.recorded import Recorded
from cloc.tracking.registered import local_model
from cloc.tracking.registry import CHALLENGER, CHAMPION, Registry, Version
from cloc.tracking.rows import BY_SAMPLES, Row, row_batches
from cloc.tracking.runs import STAGE_RUN, STAGE_URI, Run, attach, stage_run
from cloc.tracking.store import DEFAULT_STORE, tracking_uri
from cloc.tracking.titles import stage_title
from cloc.tracking.troubles import shown

__all__ = [
    "BY_SAMPLES",
    "CHALLENGER",
    "CHAMPION",
    "DEFAULT_STORE",
    "REVISION",
    "STAGE_RUN",
    "STAGE_URI",
    "DataSet",
    "Delivered",
    "Reader",
    "Recorded",
    "Registry",
    "Row",
    "Run",
    "Version",
    "attach",
    "begin_pipeline",
    "data_sets",
    "deliver",
    "end_pipeline",
    "ending_as_its_stage",
    "eval_name",
    "git",
    "local_model",
    "log_family",
    "pipeline_run",
    "row_batches",
    "shown",
    "stage_run",
    "stage_title",
    "tracking_uri",
]
