"""An ingest whose process is killed outright: nothing is left behind, and running it again completes it."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

SCRIPT = """
import sys
from cloc.config import parse
from cloc.data.ingest.stage import Inputs, Outputs, run
config = parse({"data": {"processes": int(sys.argv[3]), "images_per_shard": 2}}, source="test")
run(config, inputs=Inputs(images=sys.argv[1]), outputs=Outputs(data=sys.argv[2]))
"""


def command(images: Path, output: Path, processes: int) -> list[str]:
    return [sys.executable, "-c", SCRIPT, str(images), str(output), str(processes)]


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".tmp-"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def children(pid: int) -> list[Path]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{child}") for child in listed]


def runs(process: Path) -> bool:
    """Whether a process is there and not merely waiting for its exit status to be read."""
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_killed_ingest_is_completed_by_the_same_command(tmp_path: Path) -> None:
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    generator = np.random.default_rng(0)
    for index in range(60):
        picture = Image.fromarray(generator.integers(0, 255, (400, 600, 3), dtype=np.uint8))
        picture.save(images / f"p{index:03d}.jpg")
    with subprocess.Popen(command(images, output, 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(output.glob("stats/*.json")) and time.monotonic() < deadline:
            time.sleep(0.01)
        workers = children(process.pid)
        process.kill()
    done = len(list(output.glob("stats/*.json")))
    assert 0 < done < 30, "killed too late or too early to tell anything"
    assert not (output / "manifest.json").exists()
    deadline = time.monotonic() + 20
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert not [worker for worker in workers if runs(worker)], "workers outlived the ingest"
    subprocess.run(command(images, output, 1), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(command(images, tmp_path / "whole", 1), check=True, stdout=subprocess.DEVNULL)
    assert files(output) == files(tmp_path / "whole")
