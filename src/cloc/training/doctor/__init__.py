"""What would fail, before hours are lost: `cloc doctor`, and its cheap part that `cloc pretrain` asks by itself.

for finding in examine(Subject(config, data="data", out="work/cloc")):
    print(finding.check.line)
"""

from typing import TYPE_CHECKING

from cloc.config import Config
from cloc.data.dataset import Dataset
from cloc.training.doctor import data, kubernetes, machine, services, settings, software
from cloc.training.doctor.registry import CHECKS, ROLES, Finding, Skip, Subject, Warn, check, examine, failure

if TYPE_CHECKING:
    from cloc.training.task import Objective

__all__ = ["CHECKS", "ROLES", "Finding", "Skip", "Subject", "Warn", "check", "examine", "failure", "preflight"]

# In the order in which they are asked, and told.
_ORDER = [part.__name__ for part in (software, settings, data, machine, services, kubernetes)]
CHECKS.sort(key=lambda entry: _ORDER.index(entry.act.__module__))


def preflight(config: Config, dataset: Dataset, *, objective: "Objective", out: str) -> None:
    """Asks, before a training is launched, what can be known at once and without any server.

    Args:
        config: all settings.
        dataset: that will be trained on.
        objective: "cloc" or "clip".
        out: folder of the model.

    Raises:
        ClocError: what would fail; of several things the first one, with the names of the others.
    """
    subject = Subject(config, objective=objective, out=out, opened=dataset)
    error = failure(list(examine(subject, cheap=True)), who="before the start")
    if error is not None:
        raise error
