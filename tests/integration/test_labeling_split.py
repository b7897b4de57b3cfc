"""Labelling split over workers, as a user splits it: by the command line, and by replicas of TorchX."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cloc.config import dump, load_preset
from tests.labelers import tables_of

BIN = Path(sys.executable).parent


def _run(folder: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def _params(folder: Path) -> None:
    tree = yaml.safe_load(dump(load_preset("demo")))
    tree["captioning"]["backend"] = tree["grounding"]["backend"] = "annotations"
    tree["data"]["processes"] = 1
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.slow
def test_workers_of_the_command_line_and_replicas_of_torchx_label_alike(tmp_path, make_dataset):
    make_dataset(tmp_path / "data", 24, shard_size=4)
    _params(tmp_path)
    _run(tmp_path, "cloc", "caption", "--data", "data", "--out", "whole")
    assert "(in 2 of 6 shards)" in _run(
        tmp_path, "cloc", "caption", "--data", "data", "--out", "split", "--shards", "0:4", "--worker", "1/2"
    )
    assert sorted(tables_of(tmp_path / "split", "captions")) == ["00001.parquet", "00003.parquet"]
    command = ["cloc", "caption", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "split")]
    command += ["--params", str(tmp_path / "params.yaml"), "--worker", "${replica_id}/2"]
    _run(tmp_path, "torchx", "run", "-s", "local_cwd", "utils.sh", "--num_replicas", "2", "--", *command)
    last = _run(tmp_path, "cloc", "caption", "--data", "data", "--out", "split", "--report", "report")
    assert "24 of 24 images captioned (24 stood already" in last
    assert tables_of(tmp_path / "split", "captions") == tables_of(tmp_path / "whole", "captions")
    assert (tmp_path / "report/index.html").is_file()
