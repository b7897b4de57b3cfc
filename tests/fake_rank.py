"""A rank without torch: does what its argument says for its number, JSON {"0": [["say", "text"], ["exit", 5]], ...}.

say TEXT, warn TEXT    a line on stdout, on stderr
kill N                 a signal to itself
sleep S                seconds
mark FILE              writes an empty file
wait FILE ...          until they are there
save S FILE            waits for SIGTERM, takes S seconds, writes FILE and leaves with 75
exit N                 leaves
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any


class Told:
    """Whether SIGTERM came."""

    yes = False

    @classmethod
    def take(cls, number: int, frame: FrameType | None) -> None:
        cls.yes = True


def act(action: str, *arguments: Any) -> None:
    if action == "say":
        print(arguments[0], flush=True)
    elif action == "warn":
        print(arguments[0], file=sys.stderr, flush=True)
    elif action == "kill":
        os.kill(os.getpid(), arguments[0])
        time.sleep(10)
    elif action == "sleep":
        time.sleep(arguments[0])
    elif action == "mark":
        Path(arguments[0]).touch()
    elif action == "wait":
        while not all(Path(file).exists() for file in arguments):
            time.sleep(0.02)
    elif action == "save":
        while not Told.yes:
            time.sleep(0.02)
        time.sleep(arguments[0])
        Path(arguments[1]).touch()
        sys.exit(75)
    elif action == "exit":
        sys.exit(arguments[0])
    else:
        raise ValueError(f"unknown action {action!r}")


def main() -> None:
    signal.signal(signal.SIGTERM, Told.take)
    for step in json.loads(sys.argv[1]).get(os.environ["RANK"], []):
        act(*step)


if __name__ == "__main__":
    main()
