"""docs/tutorial.md, typed as it stands but for the download, the number of steps and the servers: photographs of
../shared/data lie where the page's downloads would, and what the page shows of file names is there at the end."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT, blocks, is_python

PAGE = (ROOT / "docs/tutorial.md").read_text()
PHOTOGRAPHS = ROOT.parent / "shared/data/coco_val2017_dev"
# What takes long, downloads or serves until it is stopped.
NOT_HERE = ("curl ", "cloc playground ", "mlflow ui ")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs as COCO's archives unpack."""
    if not PHOTOGRAPHS.is_dir():
        pytest.skip(f"{PHOTOGRAPHS} is absent")
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "coco/annotations").mkdir(parents=True)
    (folder / "coco/val2017").symlink_to(PHOTOGRAPHS / "images")
    for name in ("instances", "captions"):
        (folder / f"coco/annotations/{name}_val2017.json").symlink_to(PHOTOGRAPHS / f"{name}.json")
    return folder


def _run(script: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}"
    return done.stdout


def test_every_command_and_the_program(folder: Path) -> None:
    shown = [block for block in blocks(PAGE) if block.language in ("", "bash")]
    scripts = [block.text for block in shown if not is_python(block)]
    typed = [script for script in scripts if not any(name in script for name in NOT_HERE)]
    typed = [script for script in typed if re.match(r"(ls|cloc) ", script)]  # the others are output
    assert len(typed) >= 4
    for script in typed:  # four steps learn nothing, and pass no gate on what was learnt
        short = re.sub(r"train\.steps=\d+", "train.steps=4", script)
        _run(short.replace("min_region_gain=1", "min_region_gain=0"), folder)
    report = (folder / "runs/photos/report/index.html").read_text()
    assert "CLIP (equal compute)" in report
    (program,) = [block.text for block in blocks(PAGE) if is_python(block)]
    (folder / "program.py").write_text(program)
    assert re.search(r"person|surfboard|pizza", _run("python program.py", folder))
    told = _run("cloc lineage runs/photos/model && cloc runs", folder)
    assert "data/photos/train" in told
