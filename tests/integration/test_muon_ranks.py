"""Muon shared out among ranks: the weights of one rank to the bit, and each matrix's momentum on one rank alone."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

RANKS = 3
CASES = {"many": 5, "few": 2}  # matrices: more than ranks, and fewer


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Tensor]]:
    """What each rank wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    script = str(Path(__file__).with_name("muon_ranks.py"))
    done = subprocess.run([*launcher, script, str(folder)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [load_file(folder / f"{rank}.safetensors") for rank in range(RANKS)]


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["spread", "taken"])
def test_weights_are_those_of_one_rank_to_the_bit(found: list[dict[str, Tensor]], case: str, way: str) -> None:
    alone = part(found[0], f"{case}/alone/weights/")
    assert len(alone) == 2 * (CASES[case] + (case == "many"))  # with biases, and a layer too thin for Muon
    for tensors in found:
        weights = part(tensors, f"{case}/{way}/weights/")
        assert weights.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.equal(weights[name], value), name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["spread", "taken"])
def test_a_matrix_has_its_momentum_on_one_rank(found: list[dict[str, Tensor]], case: str, way: str) -> None:
    alone = part(found[0], f"{case}/alone/state/")
    states = [part(tensors, f"{case}/{way}/state/") for tensors in found]
    ranks = Counter(name for state in states for name in state)
    momenta = {name for name in alone if name.endswith(".momentum_buffer")}
    assert len(momenta) == CASES[case]
    assert ranks == {name: 1 if name in momenta else RANKS for name in alone}
    for state in states:
        for name, value in state.items():
            assert torch.equal(value, alone[name]), name


def test_every_rank_has_a_part(found: list[dict[str, Tensor]]) -> None:
    for tensors in found:
        assert any(name.endswith(".momentum_buffer") for name in part(tensors, "many/spread/state/"))
