"""Where the data come from: the collection that is named, or the demo's scenes, rendered."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(parameters: str, data: dsl.Output[dsl.Dataset], metrics: dsl.Output[dsl.Metrics]):
    """Points at the collection that was given, or renders the demo's.

    Args:
        parameters: The stage's settings, its code's hash, and the collection with its hash when one was given (JSON).
        data: The collection: a data set a split, or a pointer to where it lies.
        metrics: Counts.
    """
    from cloc.pipeline.component import bring_data

    bring_data(parameters, data=data, metrics=metrics)
