"""Checkpoints on 1, 2 and 4 ranks: saved by any, loaded by any; what goes wrong on one rank is told to all."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from cloc.training.distributed import Rank
from tests.integration import checkpoint_ranks

SCRIPT = Path(__file__).with_name("checkpoint_ranks.py")


def on_ranks(ranks: int, scenario: str, folder: Path) -> str:
    """Runs a scenario on that many ranks and returns what they said on stderr."""
    command = [sys.executable, str(SCRIPT), scenario, str(folder)]
    started = [
        subprocess.Popen([*command, str(rank), str(ranks)], stderr=subprocess.PIPE, text=True) for rank in range(ranks)
    ]
    said = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(said)[-3000:]
    return "".join(said)


def files(folder: Path, step: int) -> dict[str, int]:
    return {path.name[:5]: path.stat().st_size for path in folder.glob(f"checkpoints/step-{step:08d}/*.safetensors")}


def test_a_checkpoint_of_any_number_of_ranks_is_loaded_by_any_other(tmp_path: Path) -> None:
    """1 -> 2 -> 4 -> 1: plain tensors, tensors that one rank alone holds, DTensors sharded and replicated."""
    one = Rank(0, 1, torch.device("cpu"))
    checkpoint_ranks.go_on(tmp_path, one)
    said = on_ranks(2, "go_on", tmp_path) + on_ranks(4, "go_on", tmp_path)
    assert "disabled, unavailable" not in said
    checkpoint_ranks.go_on(tmp_path, one)
    sizes = {step: files(tmp_path, step) for step in (1, 2, 3, 4)}
    assert [len(found) for found in sizes.values()] == [1, 2, 4, 1]
    # What several ranks hold is written once, in about equal parts; more ranks mean more headers and random states.
    for step, ranks in ((2, 2), (3, 4)):
        assert sum(sizes[step].values()) < sum(sizes[1].values()) + (ranks - 1) * 7000
        assert max(sizes[step].values()) < 2 * min(sizes[step].values())


def test_all_ranks_are_told_what_happened_on_one(tmp_path: Path) -> None:
    said = on_ranks(2, "trouble", tmp_path)
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert "checkpoint of step 3 could not be written: disk full: " in told[0]["full"]
    assert told[0]["full"].endswith("File too large; the last good checkpoint, step 2, stays; free some space")
    assert told[0]["left"] == "step-00000001 step-00000002"
    assert told[0]["architecture"] == (
        f"{tmp_path}/checkpoints/step-00000003 is of another architecture or optimiser: it has alone.1 (30, 11), which "
        "this run has not; it lacks plain.more (2,); its plain.odd is (3, 5, 7), this run's (3, 5, 8); restore the "
        "settings it was trained with, or train into another output"
    )
    assert said.count("warning: checkpoint of step 3 could not be written") == 1
    assert said.count("has another checksum than when it was written; the checkpoint before it is tried") == 1
    assert "Traceback" not in said
