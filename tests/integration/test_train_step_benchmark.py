"""The benchmark of training steps, on the processor with a tiny model: the code that a GPU runs, table by table."""

import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Dozens of trainers start.
pytestmark = pytest.mark.slow
QUICK = ("--models", "tiny", "--images", "4", "--rounds", "1", "--warm", "1", "--files", "16", "--launches", "1")


@pytest.fixture
def tables(monkeypatch, capfd):
    """What the benchmark prints, as lists of cells a row, by title."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def run(*arguments: str) -> dict[str, list[list[str]]]:
        import train_step

        monkeypatch.setattr(sys, "argv", ["train_step.py", *arguments, *QUICK])
        train_step.main()
        found: dict[str, list[list[str]]] = {}
        for line in capfd.readouterr().out.splitlines():
            if line.startswith("## "):
                found[line[3:]] = rows = []
            elif line.startswith("| ") and not line.startswith("| model"):
                rows.append([cell.strip() for cell in line.strip("|").split("|")])
        return found

    return run


def test_every_step_is_measured_at_both_sizes_and_with_the_loader(tables) -> None:
    ((title, rows),) = tables("gpu", "--at", "3", "--limit", "3", "--libraries", "transformers").items()
    assert title.startswith("gpu")
    sizes = [int(row[1]) for row in rows]
    assert sizes == [3] * 10 + [2] * 10  # at the size that was asked for, and at nine tenths of the largest
    names = [row[2] for row in rows[:10]]
    assert names[::2] == ["CLIP of transformers, bare loop"] * 5
    assert [re.sub("our trainer, ", "", name) for name in names[1::2]] == [
        "CLIP",
        "CLOC (pool: prompt)",
        "CLOC (pool: all)",
        "CLIP, loader",
        "CLOC (pool: prompt), loader",
    ]
    for row in rows:
        assert float(row[3]) > 0
        assert float(row[4]) > 0
        assert float(row[5]) > 0


def test_two_processes_are_compared_with_one(tables) -> None:
    ((_, rows),) = tables("scaling").items()
    assert [(row[1], row[2]) for row in rows] == [
        ("4 (same global batch)", "1"),
        ("4 (same global batch)", "2"),
        ("4 (same batch a process)", "1"),
        ("8 (same batch a process)", "2"),
    ]
    assert rows[0][5:] == rows[2][5:] == ["1.00", "1.00"]
    for row in rows:
        assert all(float(cell) > 0 for cell in row[3:])
