"""What lies in the output of a training job, whatever it trains, and the file in it that tells ranks what to do."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, cast

from cloc.data.fetching import fetch
from cloc.data.storage import open_storage

JOB_FILE = "job.json"
SUMMARY_FILE = "training.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer"


class JobFile:
    """A job as one JSON file in its output, a folder or on S3. Subclasses are dataclasses of JSON values.

    Attributes:
        output: folder or s3:// prefix of all that the job writes.
    """

    output: str

    @classmethod
    def load(cls, output: str) -> Self:
        """Reads the job of an output. Raises DataError when there is none."""
        return cls(**json.loads(open_storage(output).read_bytes(JOB_FILE)))

    def save(self) -> None:
        """Writes the job into its output."""
        body = json.dumps(dataclasses.asdict(cast(Any, self)), indent=1) + "\n"
        open_storage(self.output).write_bytes(JOB_FILE, body.encode())

    @contextmanager
    def source(self, name: str, given: str = "") -> Iterator[str]:
        """A folder or hub id: the given one; else what lies in the output by that name, brought to a folder that goes
        with the context.

        Raises:
            DataError: the output has none.
        """
        if given:
            yield given
            return
        with TemporaryDirectory(prefix=f"cloc-{name}-") as folder:
            fetch(self.output, name, Path(folder))
            yield folder
