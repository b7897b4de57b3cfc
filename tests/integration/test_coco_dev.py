"""The script that makes a collection of COCO's photographs, on a few of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from cloc.data.dataset import Dataset

ROOT = Path(__file__).parents[2]
COCO = ROOT.parent / "shared/data/coco_val2017_dev"


def coco_dev(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks/coco_dev.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=500, check=False)


def test_without_the_photographs_it_says_so(tmp_path: Path) -> None:
    done = coco_dev("data", "--coco", str(tmp_path / "none"), "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"skipped: {tmp_path}/none lacks images, instances.json" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_few_photographs_become_a_collection_with_hard_negatives(tmp_path: Path) -> None:
    if not COCO.exists():
        pytest.skip(f"{COCO} is absent")
    few = tmp_path / "coco"
    few.mkdir()
    for name in ("images", "instances.json", "captions.json", "annotations.jsonl"):
        (few / name).symlink_to(COCO / name)
    names = (COCO / "mini32.txt").read_text().split()
    (few / "train.txt").write_text("\n".join(names[:8]))
    (few / "val.txt").write_text("\n".join(names[8:]))
    done = coco_dev("data", "--coco", str(few), "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    train, val = (Dataset.open(tmp_path / "out" / split) for split in ("train", "val"))
    assert (train.manifest.images, val.manifest.images) == (8, 24)
    assert [len(item.captions) for item in train.read_all()] == [5] * 8
    assert len(train.manifest.classes) == len(val.manifest.classes) == 80
    asked = [row for shard in val.manifest.shards for rows in val.rows("attributes", shard).values() for row in rows]
    assert {row["level"] for row in asked} >= {"1_attributes", "2_attributes"}
    assert not train.rows("attributes", train.manifest.shards[0])
