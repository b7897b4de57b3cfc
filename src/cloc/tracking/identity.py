"""What a run is known by before it is made: enough to find or to make it at any later time, from any process."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cloc.tracking.troubles import Away

_KEY_TAG = "cloc.key"  # a run's own, made before the store was asked
SHARED_KEY_TAG = "cloc.run_key"
"""Tag of a pipeline's run that its stages find it by."""
_PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True)
class Parent:
    """The pipeline's run.

    Attributes:
        run_id: of a run that exists; empty for one that is found by its key, and made where it is missing.
        key: shared by the stages of a pipeline run.
        name, tags: for the case that it is made.
        ended: whether it is made as one that has ended: nobody will tell when it does.
        awaited: whether another process makes it, so that it is waited for where it is missing; found by its own key.
    """

    run_id: str = ""
    key: str = ""
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    ended: bool = False
    awaited: bool = False


@dataclass(frozen=True)
class Identity:
    """A run.

    Attributes:
        experiment: that it is filed under; a stage goes to its parent's.
        key, key_tag: value and name of the tag that it is found by.
        name, tags: for the case that it is made.
        started: milliseconds since 1970.
        parent: the pipeline's run.
        made_here: whether this process makes it; if not, it is waited for.
        run_id: of a run that exists.
    """

    experiment: str = ""
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    key_tag: str = _KEY_TAG
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    started: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    parent: Parent | None = None
    made_here: bool = True
    run_id: str = ""

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Identity":
        """From a file."""
        parent = Parent(**body["parent"]) if body["parent"] else None
        return cls(**{**body, "parent": parent})


def resolve(client: Any, identity: Identity, experiment: str, *, may_be_there: bool) -> str:
    """Id of a run, which is made where it is missing and `identity.made_here`; "" where it is missing and is not.

    Args:
        experiment: id of the experiment.
        may_be_there: whether it is looked for first; not needed for a key that nobody was told.
    """
    if identity.run_id:
        return identity.run_id
    found = _find(client, identity.key_tag, identity.key) if may_be_there else ""
    if found and identity.made_here and identity.tags:  # perhaps a stage made it, which knew its key alone
        named = {"mlflow.runName": identity.name} if identity.name else {}
        for name, value in {**named, **identity.tags}.items():
            client.set_tag(found, name, value)
    if found or not identity.made_here:
        return found
    tags = {**identity.tags, identity.key_tag: identity.key}
    if identity.parent:
        parent = parent_id(client, identity.parent, experiment)
        tags[_PARENT_TAG], experiment = parent, client.get_run(parent).info.experiment_id
    made = client.create_run(experiment, start_time=identity.started, run_name=identity.name or identity.key, tags=tags)
    return str(made.info.run_id)


def parent_id(client: Any, parent: Parent, experiment: str) -> str:
    """Id of the pipeline's run; it is made where it is missing."""
    if parent.run_id:
        return parent.run_id
    found = _find(client, _KEY_TAG if parent.awaited else SHARED_KEY_TAG, parent.key)
    if found:
        return found
    if parent.awaited:
        raise Away("it does not have the run above yet")
    tags = {**parent.tags, SHARED_KEY_TAG: parent.key}
    run_id = str(client.create_run(experiment, run_name=parent.name or parent.key, tags=tags).info.run_id)
    if parent.ended:
        client.set_terminated(run_id, "FINISHED")
    return run_id


def _find(client: Any, tag: str, key: str) -> str:
    """A run by its key. Tasks of a pipeline know the key, and not always the experiment."""
    everywhere, token = list[str](), None
    while True:
        page = client.search_experiments(page_token=token)
        everywhere += [item.experiment_id for item in page]
        token = page.token
        if not token:
            break
    found = client.search_runs(everywhere, filter_string=f"tags.`{tag}` = '{key}'", max_results=1)
    return str(found[0].info.run_id) if found else ""
