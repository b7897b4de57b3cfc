"""What `cloc data verify` costs: over `sha256sum` and `openssl` of the same files, and on a manifest of 200,000 shards.

    python benchmarks/verify.py hash --shards 16 --mib 64
    python benchmarks/verify.py sizes --shards 200000

`hash` writes shards of random bytes and takes the time of all ways in turn, the best of several rounds: with as many
processes of the commands (xargs -P) as threads here. Then that of a run with its record.
`sizes` makes a folder of as many empty shards, as large as the manifest says since they have holes, and takes time and
peak memory of a process that verifies their names and sizes, and what the manifest takes of these.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cloc.data.dataset import Dataset, write_manifest
from cloc.data.schema import Manifest, Shard
from cloc.data.storage import open_storage
from cloc.data.verify.check import Request, verify
from cloc.data.verify.record import Record

_ROUNDS = 3
_HOLE = 300 << 20  # bytes of a shard that takes none


def write_shards(folder: Path, *, shards: int, size: int) -> None:
    """Writes a data set whose shards are random bytes."""
    entries = []
    (folder / "images").mkdir()
    for number in range(shards):
        body = os.urandom(size)
        (folder / f"images/{number:06d}.tar").write_bytes(body)
        entries.append(_shard(number, size, hashlib.sha256(body).hexdigest()))
    write_manifest(open_storage(folder), Manifest(shards=tuple(entries)))


def _shard(number: int, size: int, sha256: str) -> Shard:
    return Shard(f"{number:06d}", f"images/{number:06d}.tar", 10_000, size, sha256)


def check(folder: Path, *, threads: int, record: Path | None = None, hashed: int | None = None) -> None:
    """Verifies; anything that differs is an error."""
    request = Request(data=str(folder), threads=threads, hashed=hashed, reads_tables=False)
    with Record(record, of=str(folder)) as kept:
        report = verify(request, record=kept)
    assert report.ok, report.differences[:3]


def by_command(command: str, folder: Path, *, threads: int) -> None:
    """Hashes the same files by a command that is given one."""
    pipe = f"find {folder}/images -name '*.tar' -print0 | xargs -0 -n 1 -P {threads} {command}"
    subprocess.run(["sh", "-c", pipe], stdout=subprocess.DEVNULL, check=True)


def _seconds(act: Callable[[], None]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def hash_speed(*, shards: int, mib: int, threads: int, where: str | None) -> None:
    """Prints the throughput of all ways, and that of a run with its record."""
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name) / "data"
        folder.mkdir()
        write_shards(folder, shards=shards, size=mib << 20)
        ways = {
            "sha256sum": lambda: by_command("sha256sum", folder, threads=threads),
            "openssl": lambda: by_command("openssl dgst -sha256", folder, threads=threads),
            "verify": lambda: check(folder, threads=threads),
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(_ROUNDS):
            for way, act in ways.items():
                best[way] = min(best[way], _seconds(act))
        for way, seconds in best.items():
            print(f"{way}: {shards * mib / seconds:,.0f} MiB/s with {threads} at a time")
        for way in ("sha256sum", "openssl"):
            print(f"verify takes {best['verify'] / best[way]:.2f} of the time of {way}")
        record = Path(name) / "record.jsonl"
        check(folder, threads=threads, record=record)
        print(f"with the record: {_seconds(lambda: check(folder, threads=threads, record=record)):.3f} s")


def sizes(*, shards: int, where: str | None) -> None:
    """Prints time and peak memory of verifying names and sizes."""
    with tempfile.TemporaryDirectory(dir=where) as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for number in range(shards):
            with (images / f"{number:06d}.tar").open("wb") as file:
                file.truncate(_HOLE)
        entries = (_shard(number, _HOLE, hashlib.sha256(b"%d" % number).hexdigest()) for number in range(shards))
        write_manifest(open_storage(folder), Manifest(shards=tuple(entries)))
        for what in ("nothing", "manifest", "verify"):
            subprocess.run([sys.executable, __file__, "one", what, folder], check=True)


def one(what: str, folder: Path) -> None:
    """One measurement of `sizes`, in a process of its own."""
    acts: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "manifest": lambda: Dataset.open(folder),
        "verify": lambda: check(folder, threads=1, hashed=0),
    }
    started, used = time.perf_counter(), time.process_time()
    acts[what]()
    seconds, used = time.perf_counter() - started, time.process_time() - used
    # Not ru_maxrss: a process begins with that of the one that started it.
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    print(f"{what}: {seconds:.1f} s by the clock, {used:.1f} CPU-s, peak {int(peak) >> 10} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("hash")
    verb.add_argument("--shards", type=int, default=16)
    verb.add_argument("--mib", type=int, default=64)
    verb.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    verb.add_argument("--where", help="folder for the shards [default: that of temporary files]")
    verb = verbs.add_parser("sizes")
    verb.add_argument("--shards", type=int, default=200_000)
    verb.add_argument("--where")
    verb = verbs.add_parser("one")
    verb.add_argument("what")
    verb.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.verb == "hash":
        hash_speed(shards=arguments.shards, mib=arguments.mib, threads=arguments.threads, where=arguments.where)
    elif arguments.verb == "sizes":
        sizes(shards=arguments.shards, where=arguments.where)
    else:
        one(arguments.what, arguments.folder)


if __name__ == "__main__":
    main()
