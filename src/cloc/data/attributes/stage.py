"""Stage `attributes`: hard negatives of one or several files become the table `attributes` of a data set.

Images are matched by file name. The tables are those of the files named, all at once; a run that was killed goes on at
the first shard without its table, and one with the same files writes nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cloc.config import Config
from cloc.data.attributes.files import read_questions
from cloc.data.attributes.shard import Answer, Task, two_keys
from cloc.data.dataset import Dataset
from cloc.data.digests import files_digest
from cloc.data.processes import in_order, processes_of
from cloc.errors import DataError
from cloc.stage import StageResult

STAGE = "attributes"
_NAMED = 3  # images that the data set lacks and that are named


@dataclass(frozen=True)
class Inputs:
    """What comes in.

    Attributes:
        files: FG-OVD's JSON or JSON lines, see `files`.
    """

    files: tuple[str, ...]


@dataclass(frozen=True)
class Outputs:
    """What comes out.

    Attributes:
        data: the data set (not a collection) beside whose images the tables are written.
    """

    data: str


def run(config: Config, *, inputs: Inputs, outputs: Outputs) -> StageResult:
    """Writes a table for every shard.

    Raises:
        DataError: a file is missing or broken, the data set has none of its images, or more of the questions about
            these than `data.quarantine_limit` allows cannot be used.
    """
    files = tuple(inputs.files)
    if not files:
        raise DataError("attributes: name at least one file with hard negatives")
    dataset, digest = Dataset.open(outputs.data), files_digest(files, what="attributes")
    asked = read_questions(files, digest)
    tasks = [Task(dataset.images.url, shard, files, digest) for shard in dataset.manifest.shards]
    processes = processes_of(config.data.processes)
    answers = list(in_order(Task.make, tasks, processes=processes, what=STAGE, setting="data.processes"))
    keys = _keys(answers)
    lacking = [name for name in asked.images if name not in keys]
    if not keys:
        raise DataError(
            f"attributes: none of the {len(lacking)} images that {', '.join(files)} ask about is in {outputs.data} "
            f"(first: {lacking[0]!r}); they are matched by file name"
        )
    if lacking:
        print(f"attributes: {len(lacking)} images are not in {outputs.data}: {_listed(lacking)}", flush=True)
    refused = _refused(answers, outputs.data, limit=config.data.quarantine_limit)
    rows = sum(answer.rows for answer in answers)
    counts = {
        "images": len(keys),
        "questions": rows,
        "refused": refused,
        "images_not_here": len(lacking),
        "shards": len(answers),
        "skipped_shards": sum(answer.skipped for answer in answers),
    }
    message = f"{rows} questions about {len(keys)} images of {outputs.data}; refused: {refused}"
    if lacking:
        message += f"; {len(lacking)} of the images asked about are not there"
    return StageResult(stage=STAGE, counts=counts, message=message)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more


def _keys(answers: Sequence[Answer]) -> dict[str, str]:
    """The key of each image that the data set has. Raises DataError when two of its images have one's name."""
    keys: dict[str, str] = {}
    for answer in answers:
        for name, key in answer.images.items():
            if keys.setdefault(name, key) != key:
                raise two_keys(name, keys[name], key)
    return keys


def _refused(answers: Sequence[Answer], data: str, *, limit: float) -> int:
    """How many questions cannot be used; tells why. Raises DataError when they are too many."""
    reasons: Counter[str] = Counter()
    for answer in answers:
        reasons.update(answer.refused)
    refused = reasons.total()
    if not refused:
        return 0
    told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    print(f"attributes: refused: {told}", flush=True)
    total = refused + sum(answer.rows for answer in answers)
    if refused / total > limit:
        example = next(answer.example for answer in answers if answer.example)
        raise DataError(
            f"attributes: {refused} of {total} questions ({refused / total:.1%}) about images of {data} cannot be "
            f"used, more than data.quarantine_limit {limit:.1%} allows; first: {example}"
        )
    return refused
