"""`cloc run` at toy size in a folder of its own, as a user starts it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.pipeline import toy

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a run of `cloc run` ended."""

    code: int
    text: str

    @property
    def lines(self) -> list[str]:
        """What was printed, by line."""
        return self.text.splitlines()


def command_of(folder: Path, *more: str, **changes: str) -> tuple[list[str], dict[str, str]]:
    """Its command line and environment; `changes` are settings, `train__steps="3"`."""
    settings = [part for item in toy.overrides(**changes) for part in ("-S", item)]
    command = [str(Path(sys.executable).with_name("cloc")), "run", "--preset", "demo", "--out", "out", *settings, *more]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    # As started without an activated environment: PATH lacks the interpreter.
    paths = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    environment |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    folder.mkdir(parents=True, exist_ok=True)
    return command, environment


def cloc_run(folder: Path, *more: str, faults: Path | None = None, **changes: str) -> Ended:
    """Runs it to its end; `faults` is a folder whose `sitecustomize` every process imports."""
    command, environment = command_of(folder, *more, **changes)
    if faults:
        environment["PYTHONPATH"] = f"{faults}{os.pathsep}{environment['PYTHONPATH']}"
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return Ended(done.returncode, done.stdout)
