"""`dvc repro` where nothing has changed: what it costs, over DVC's own start.

    python benchmarks/dvc_noop.py --rounds 5

Makes a repository with this one's stages, source and settings, with data and results of the demo's number and size of
files put in place by hand, and a second one that is empty. Takes processor and wall time of `dvc repro` in the first
and of `dvc status` in the second, in turn.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
_FILES = ("dvc.yaml", "data.dvc", "params.yaml", ".dvcignore", ".gitignore")
_SHARDS, _SHARD_BYTES = 26, 4_900_000  # data of the demo: 106 files, 129 MB
_TABLES, _RESULTS = 16, 30  # files a labelling stage, and any other stage, leaves


def make_repository(folder: Path) -> None:
    """A repository in which every stage has run, as far as DVC can tell."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    for name in _FILES:
        shutil.copyfile(ROOT / name, folder / name)
    for number in range(_SHARDS):
        _write(folder / f"data/split{number % 6}/images/{number:05d}.tar", number, size=_SHARD_BYTES)
        for table in ("captions", "regions", "fingerprints"):
            _write(folder / f"data/split{number % 6}/{table}/{number:05d}.parquet", number, size=10_000)
    for path in _outputs():
        target = folder / path
        if target.suffix == ".json":
            _write(target, 0, size=1000)
        for number in range(0 if target.suffix else _TABLES if path in ("work/captions", "work/regions") else _RESULTS):
            _write(target / f"{number:05d}.bin", number, size=20_000)
    sources = [sys.executable, "-m", "cloc.pipeline.code", "--out", "work/code"]
    subprocess.run(sources, cwd=folder, env=_environment(folder), check=True)
    _write(folder / "work/validation/validation.json", 0, size=1000)
    _write(folder / "work/registration/receipt.json", 0, size=1000)
    _dvc(folder, "commit", "--force")


def _outputs() -> Iterator[str]:
    """Outputs of dvc.yaml's stages."""
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        for item in stage.get("do", stage)["outs"]:
            path = item if isinstance(item, str) else next(iter(item))
            for key in stage.get("foreach", [""]):
                yield path.replace("${key}", key)


def _write(path: Path, number: int, *, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"{path.name} {number} ".encode().ljust(size, b"."))


def _environment(folder: Path) -> Mapping[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "DVC_SITE_CACHE_DIR": str(folder.parent / "site"), "DVC_NO_ANALYTICS": "1"}


def _dvc(folder: Path, *arguments: str) -> str:
    command = ["dvc", *arguments]
    return subprocess.run(
        command, cwd=folder, env=_environment(folder), check=True, capture_output=True, text=True
    ).stdout


def _timed(folder: Path, *arguments: str, expect: str) -> tuple[float, float]:
    """Processor and wall seconds of a DVC command, which has to say what is expected."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    printed = _dvc(folder, *arguments)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert expect in printed, printed
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as place:
        full, empty = Path(place) / "full", Path(place) / "empty"
        for folder in (full, empty):
            folder.mkdir()
            subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
        make_repository(full)
        _dvc(empty, "init", "-q")
        found: dict[str, list[Any]] = {"empty": [], "full": []}
        for _ in range(rounds + 1):  # the first round fills caches
            found["empty"].append(_timed(empty, "status", expect="no data or pipelines tracked"))
            found["full"].append(_timed(full, "repro", expect="Data and pipelines are up to date."))
    print("| | CPU-s | over it | wall s |\n|---|---|---|---|")
    base = statistics.median(cpu for cpu, _ in found["empty"][1:])
    for name, label in (("empty", "`dvc status`, empty repository"), ("full", "`dvc repro`, nothing changed")):
        cpu, wall = (statistics.median(item[column] for item in found[name][1:]) for column in (0, 1))
        print(f"| {label} | {cpu:.2f} | {cpu / base:.2f} | {wall:.1f} |")


if __name__ == "__main__":
    main()
