"""The contrastive losses split over ranks equal those of one process: value, counts and every gradient."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from cloc.model.losses import contrastive

ROWS, WIDTH = 24, 6
SCRIPT = Path(__file__).with_name("loss_ranks.py")


def case(
    *, valid: list[bool] | None, threshold: float, tile: int, bias: float | None = None, frozen: int = -1
) -> dict[str, Tensor]:
    """All ranks' rows of a case, with texts that several ranks share."""
    torch.manual_seed(tile)
    a, b = (F.normalize(torch.randn(ROWS, WIDTH, dtype=torch.float64), dim=-1) for _ in range(2))
    b[::5] = b[0].clone()
    fields = {
        "a": a,
        "b": b,
        "valid": torch.tensor([True] * ROWS if valid is None else valid).to(torch.uint8),
        "scale": torch.tensor(9.0, dtype=torch.float64),
        "threshold": torch.tensor(threshold, dtype=torch.float64),
        "tile": torch.tensor(tile),
        "frozen": torch.tensor(frozen),
    }
    return fields | ({} if bias is None else {"bias": torch.tensor(bias, dtype=torch.float64)})


# Of 4 ranks with 6 rows each: the second has no region, the others 6, 1 and 4.
UNEVEN = [True] * 6 + [False] * 6 + [False, False, True, False, False, False] + [True, False, True, True, False, True]
CASES = {
    "images": case(valid=None, threshold=1.0, tile=64),
    "images_tiled": case(valid=None, threshold=1.0, tile=5),
    "images_sigmoid": case(valid=None, threshold=1.0, tile=64, bias=-2.0),
    "regions": case(valid=UNEVEN, threshold=0.9, tile=64),
    "regions_tiled": case(valid=UNEVEN, threshold=0.5, tile=4),
    "regions_sigmoid": case(valid=UNEVEN, threshold=0.9, tile=3, bias=-2.0),
    "no_region": case(valid=[False] * ROWS, threshold=0.9, tile=4),
    "one_region": case(valid=[number == 13 for number in range(ROWS)], threshold=0.9, tile=4),
    "one_rank_frozen": case(valid=UNEVEN, threshold=0.9, tile=4, frozen=1),
}


@pytest.fixture(scope="module", params=[1, 2, 4], ids="{} ranks".format)
def folder(request, tmp_path_factory) -> Path:
    """What 1, 2 and 4 ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    save_file(
        {f"{name}.{key}": value for name, fields in CASES.items() for key, value in fields.items()}, folder / "in"
    )
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}", str(SCRIPT)]
    subprocess.run([sys.executable, *command, str(folder / "in"), str(folder)], check=True, timeout=120)
    assert len(list(folder.glob("*.safetensors"))) == request.param
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Tensor]]:
    return [load_file(path) for path in sorted(folder.glob("*.safetensors"))]


@pytest.mark.parametrize("name", CASES)
def test_ranks_equal_one_process(name: str, ranks: list[dict[str, Tensor]]) -> None:
    fields = CASES[name]
    leaves = {key: fields[key].clone().requires_grad_() for key in ("a", "b", "scale", "bias") if key in fields}
    whole = contrastive(
        leaves["a"],
        leaves["b"],
        scale=leaves["scale"],
        bias=leaves.get("bias"),
        kind="sigmoid" if "bias" in leaves else "infonce",
        valid_K=fields["valid"].bool(),
        similar_text_threshold=fields["threshold"].item(),
    )
    (whole.loss * 3).backward()
    for rank, found in enumerate(ranks):
        torch.testing.assert_close(found[f"{name}.loss"], whole.loss.detach().reshape(1))
        assert found[f"{name}.dropped_pairs"].item() == whole.dropped_pairs.item()
        assert found[f"{name}.valid_rows"].item() == fields["valid"].sum().item()
        for key in ("a", "b"):  # W times the part: DDP's mean over ranks makes it once
            if key == "b" and fields["frozen"].item() == rank:
                assert f"{name}.grad.b" not in found
            else:
                expected = leaves[key].grad.chunk(len(ranks))[rank]
                torch.testing.assert_close(found[f"{name}.grad.{key}"] / len(ranks), expected)
    for key in leaves.keys() & {"scale", "bias"}:
        mean = torch.stack([found[f"{name}.grad.{key}"] for found in ranks]).mean()
        torch.testing.assert_close(mean, leaves[key].grad)


def test_ranks_that_do_not_go_together_are_told_so(folder: Path) -> None:
    for path in folder.glob("*.txt"):
        rows, mask = path.read_text().split("\n")
        if len(list(folder.glob("*.txt"))) == 1:
            assert rows == mask == ""
            continue
        assert "rank 0: (2, 3) without valid_K; rank 1: (3, 3) without valid_K" in rows
        assert "rank 0: (2, 3) without valid_K; rank 1: (2, 3) with valid_K" in mask
        assert "give every rank equally many rows, and valid_K to all or none" in mask
