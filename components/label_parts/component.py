"""The shares of the shards that labelling tasks take side by side."""

from typing import List  # noqa: UP035 (KFP reads this form)

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def label_parts(parameters: str, data: dsl.Input[dsl.Dataset]) -> List[str]:  # noqa: UP006 (KFP reads this form)
    """Plans the shares: a range of shards each, "i/n"; none where one task labels everything.

    Args:
        parameters: How many are wanted, and the split that is labelled (JSON).
        data: Collection or data set.
    """
    from cloc.pipeline.component import plan_parts

    return plan_parts(parameters, data=data)
