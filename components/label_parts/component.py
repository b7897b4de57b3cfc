"""The shares of the shards that labelling tasks take side by side."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def label_parts(parameters: str, data: dsl.Input[dsl.Dataset]) -> list:
    """Plans the shares: what each task is given, as JSON; none where one task labels everything.

    Args:
        parameters: What the task would be given that labels everything, with the number of parts (JSON).
        data: Collection or data set.
    """
    from cloc.pipeline.component import plan_parts

    return plan_parts(parameters, data=data)
