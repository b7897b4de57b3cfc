"""Checkpoints on 1, 2 and 4 ranks: saved by any, loaded by any; what goes wrong on one rank is told to all."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cloc.training.distributed import Rank
from tests.integration import checkpoint_ranks


@dataclass(frozen=True)
class Ran:
    """Where the ranks worked and what they said on stderr."""

    chain: Path
    trouble: Path
    said: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One rank saves step 1; two go on and save 2, four 3, one 4. Each checks what it loads."""
    folder, one = tmp_path_factory.mktemp("ranks"), Rank(0, 1, torch.device("cpu"))
    for name in ("chain", "trouble"):
        (folder / name).mkdir()
    checkpoint_ranks.go_on(folder / "chain", one)
    command = [sys.executable, str(Path(checkpoint_ranks.__file__)), str(folder)]
    started = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE, text=True) for number in range(4)]
    said = [process.communicate(timeout=240)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, "\n".join(said)[-3000:]
    checkpoint_ranks.go_on(folder / "chain", one)
    return Ran(folder / "chain", folder / "trouble", "".join(said))


def test_a_checkpoint_of_any_number_of_ranks_is_loaded_by_any_other(ran: Ran) -> None:
    """Plain tensors, some that one rank alone holds, DTensors sharded and replicated; every tensor is written once."""
    sizes = [
        sorted(path.stat().st_size for path in ran.chain.glob(f"checkpoints/step-{step:08d}/*.safetensors"))
        for step in (1, 2, 3, 4)
    ]
    assert [len(found) for found in sizes] == [1, 2, 4, 1]
    for found in sizes[1:3]:
        headers_and_random_states = 7000 * (len(found) - 1)
        assert sum(found) < sum(sizes[0]) + headers_and_random_states
        assert found[-1] < 2 * found[0]
    assert "disabled, unavailable" not in ran.said  # torch's remark on one rank
    assert "Traceback" not in ran.said


def test_all_ranks_are_told_what_happened_on_one(ran: Ran) -> None:
    told, other = (json.loads((ran.trouble / f"told-{rank}.json").read_text()) for rank in (0, 1))
    assert told == other
    assert "checkpoint of step 3 could not be written: disk full: " in told["full"]
    assert told["full"].endswith("File too large; the last good checkpoint, step 2, stays; free some space")
    assert told["left"] == "step-00000001 step-00000002"
    assert told["architecture"] == (
        f"{ran.trouble}/checkpoints/step-00000003 is of another architecture or optimiser: it has alone.1 (30, 11), "
        "which this run has not; it lacks plain.more (2,); its plain.odd is (3, 5, 7), this run's (3, 5, 8); restore "
        "the settings it was trained with, or train into another output"
    )
    assert ran.said.count("warning: checkpoint of step 3 could not be written") == 1
    assert ran.said.count("has another checksum than when it was written; the checkpoint before it is tried") == 1
