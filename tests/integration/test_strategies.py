"""However the work is shared and divided, the training is that of one process with the whole batch."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cloc.training.distributed import Rank
from tests.integration import strategies
from tests.integration.strategies import CASES, Case


def of_two_ranks(out: Path, *arguments: str) -> dict[str, Tensor]:
    """What two ranks made of every case, as "<case>/<what>.<name>"."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, strategies.__file__, str(out), *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> dict[str, Tensor]:
    return of_two_ranks(tmp_path_factory.mktemp("strategies") / "out.safetensors")


def of_case(every: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in every.items() if key.startswith(f"{name}/")}


@functools.cache
def alone(case: Case) -> dict[str, Tensor]:
    return strategies.train(Rank(0, 1, torch.device("cpu")), case)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal up to the order of sums, in float64 but for what the model makes in float32 (softmax, sampled tokens).

    Weights that have no influence (biases of keys) have gradients of rounding alone, which AdamW enlarges: a hundredth
    of one of its steps is allowed.
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        moved = name.startswith(("weight.", "average."))
        allowed = 1e-4 if moved else 2e-6 * float(value.abs().max().clamp_min(1e-3))
        torch.testing.assert_close(found[name], value, rtol=0, atol=allowed, msg=lambda t, at=name: f"{at}: {t}")


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one_process_does(two_ranks: dict[str, Tensor], name: str) -> None:
    """Loss parts and norms of three steps, every gradient of the first, weights and their average at the end."""
    same(of_case(two_ranks, name), alone(CASES[name].plain))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_layers_train_as_others_do_under_every_strategy(tmp_path: Path) -> None:
    every = of_two_ranks(tmp_path / "out.safetensors", "compiled")
    for name, case in strategies.COMPILED.items():
        same(of_case(every, name), alone(case.plain))


def test_parts_train_as_the_whole_batch_does_in_one_process() -> None:
    case = CASES["ddp, parts, siglip"]
    same(alone(case), alone(case.plain))


def test_the_same_training_twice_is_bitwise_equal(two_ranks: dict[str, Tensor]) -> None:
    once, again = (of_case(two_ranks, f"fsdp2, parts, checkpointed{what}") for what in ("", ", again"))
    assert len(once) > 100
    for key, value in once.items():
        assert torch.equal(value, again[key]), key


def test_what_is_trained_moves_and_what_is_locked_does_not() -> None:
    """Else all cases would be equal because nothing happens."""
    for lock, tower in (("image", "vision_model."), ("text", "text_model."), ("none", "nothing")):
        case = Case(same=(("lock", lock),))
        before, after = strategies.make_task(case).model.state_dict(), alone(case)
        for name, value in before.items():
            projection = {"image": "visual_projection.weight", "text": "text_projection.weight"}.get(lock)
            stays = name.startswith(tower) or name == projection or name in ("logit_bias", "region_logit_bias")
            stays |= name == "prompter.point_type"
            assert torch.equal(after[f"weight.{name}"], value) == stays, (lock, name)
            assert torch.equal(after[f"average.{name}"], after[f"weight.{name}"]) == stays, (lock, name)
