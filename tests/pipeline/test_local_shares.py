"""The DAG by the local runner where labelling is cut into shares: retries, and shares that stand already."""

import json
import re
from pathlib import Path

import pytest

from tests.pipeline.local_run import cloc_run

pytestmark = pytest.mark.timeout(1800)  # some thirty processes in turn, on a machine that does other work, too

FAULT = """
import importlib.abc, importlib.machinery, os, pathlib, sys

COUNT = pathlib.Path({count!r})

class Loader(importlib.abc.Loader):
    def __init__(self, plain):
        self._plain = plain

    def exec_module(self, module):
        self._plain.exec_module(module)
        plain = module.run

        def run(config, *, inputs, outputs):
            COUNT.write_text(COUNT.read_text() + "x" if COUNT.exists() else "x")
            if len(COUNT.read_text()) <= 2:
                print("killed", flush=True)
                os._exit(137)
            return plain(config, inputs=inputs, outputs=outputs)

        module.run = run

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "cloc.labeling.captioning":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader = Loader(spec.loader)
        return spec

sys.meta_path.insert(0, Finder())
"""
SHARES = {
    "data__scenes__train_images": "60",
    "data__images_per_shard": "20",
    "pipeline__label_parts": "3",
    "pipeline__baselines": "false",
    "pipeline__adapters": "false",
}


def test_shares_of_the_labelling_retries_and_what_is_left_out(tmp_path: Path) -> None:
    """A task that is killed twice succeeds at the third attempt; a share whose tables stand has nothing to do."""
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults/sitecustomize.py").write_text(FAULT.format(count=str(tmp_path / "count")))
    shares = {**SHARES, "pipeline__labels_at": "labels"}  # where the run is started
    first = cloc_run(tmp_path, "--retries", "2", faults=tmp_path / "faults", **shares)
    assert first.code == 0, first.text[-3000:]
    assert (tmp_path / "count").read_text() == "x" * (2 + 3 + 1)  # two that were killed, three shares, the last task
    assert len(re.findall(r"Captioning, a part: failed at attempt", first.text)) == 2
    assert first.text.count("20 of 20 images captioned (0 stood already") == 3
    assert "60 of 60 images captioned (60 stood already" in first.text
    assert first.text.count("skipped: the run was started without a plain CLIP") == 2
    assert first.text.count("skipped: the run was started without") >= 5
    assert "refers, word for word" not in first.text
    assert (tmp_path / "out/model/model.safetensors").is_file()
    assert not (tmp_path / "out/clip_adapter").exists()
    tables = sorted((tmp_path / "labels").rglob("captions/*.parquet"))
    assert len(tables) == 3
    told = json.loads((tmp_path / "out/summary.json").read_text())
    assert told["captions"] == str(tables[0].parents[1]), "wherever a later run is started"
    for table in tables[1:]:
        table.unlink()
    # Labelled anew, and no further than to the gate after it.
    again = cloc_run(tmp_path, "--no-cache", **{**shares, "validation__min_images": "1000"})
    assert again.code == 4, again.text[-3000:]
    assert again.text.count("20 of 20 images captioned (20 stood already") == 1
    assert again.text.count("20 of 20 images captioned (0 stood already") == 2
