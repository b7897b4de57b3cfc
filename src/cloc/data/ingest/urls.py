"""Reader: a list of URLs. The program img2dataset fetches them into tars, which are then taken as they are (`tars`).

    pipx install img2dataset
    cloc data ingest --urls laion.parquet --columns url=URL,caption=TEXT --out data/train

It is run as a program of its own, because what it pins does not go with what is installed here. A list is a Parquet
file, a folder of them, a CSV or TSV file with a header, or a text file with one URL a line. Names for `columns`:

    url, caption      found by their usual names when they are not named
    keep              further columns to keep in the JSON of each sample, as in keep=similarity+punsafe; those of GRIT
                      (noun_chunks, ref_exps) and the licence are always kept

The tars go beside the data set or where `--work` says; running again goes on with what is there.
"""

import csv
import json
import os
import shutil
import signal
import subprocess
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cloc.data.ingest.columns import parse_columns
from cloc.data.ingest.parts import Source
from cloc.data.ingest.tars import read_tars
from cloc.errors import DataError
from cloc.stage import fingerprint

PROGRAM = "img2dataset"
COLUMNS = ("url", "caption", "keep")
_USUAL: Mapping[str, tuple[str, ...]] = {
    "url": ("url", "URL", "image_url"),
    "caption": ("caption", "TEXT", "text", "alt_text"),
}
_KEPT = ("noun_chunks", "ref_exps", "licence", "license")
_FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".txt": "txt"}
_RECORD = "download.json"  # beside the folder of tars, where img2dataset takes every .json for its own
_TXT_BATCH = 100_000


@dataclass(frozen=True)
class UrlList:
    """A list of URLs as img2dataset takes it.

    Attributes:
        path: file, or folder of Parquet files.
        format: what img2dataset calls its format.
        url, caption: columns; "" for no captions.
        keep: further columns to keep.
    """

    path: Path
    format: str
    url: str
    caption: str = ""
    keep: tuple[str, ...] = ()


def read_urls(*, urls: str, columns: str = "", work: str, images_per_shard: int, processes: int) -> Source:
    """Fetches the images, or goes on fetching, and opens the tars.

    Args:
        urls: the list.
        columns: names of its columns, as in "url=URL,caption=TEXT".
        work: local folder for the tars.
        images_per_shard: URLs a tar.
        processes: of img2dataset.

    Raises:
        DataError: the list cannot be understood, img2dataset is not installed or fails, the folder has the images of
            another list, or no URL could be fetched.
    """
    named = parse_columns(columns, known=COLUMNS)
    if "://" in work:
        raise DataError(f"urls: {work} is no local folder; name one for the tars with --work")
    listed = open_list(urls, named)
    work_folder = Path(work)
    wanted = {"list": _version(listed.path), "command": command(listed, Path(), images_per_shard=images_per_shard)[1:]}
    made_from, tars = fingerprint(wanted), work_folder / "tars"
    if not _is_finished(work_folder, made_from=made_from):
        program = _program()
        tars.mkdir(parents=True, exist_ok=True)
        _write_record(work_folder, made_from=made_from, finished=False)
        listed = _as_parquet(listed, work_folder) if listed.format == "txt" else listed
        _fetch([program, *command(listed, tars, images_per_shard=images_per_shard, processes=processes)[1:]])
        _check_finished(tars)
        _write_record(work_folder, made_from=made_from, finished=True)
    fetched = _fetched(tars, urls)
    found = read_tars(str(tars)).tars
    return Source(
        kind="urls",
        tars=tuple(tar for tar in found if Path(tar.url).stem not in fetched.empty),
        details={"urls": Path(urls).name, "fetched": fetched.counts},
    )


# --- the list


def open_list(urls: str, named: Mapping[str, str]) -> UrlList:
    """Looks at a list. Raises DataError when it is missing, of an unknown kind, or lacks a column."""
    path = Path(urls)
    if "://" in urls or not path.exists():
        raise DataError(f"urls: there is no local file or folder {urls}")
    suffix = ".parquet" if path.is_dir() else path.suffix.lower()
    if suffix not in _FORMATS:
        raise DataError(
            f"urls: {urls}: expected a file of the kind {', '.join(_FORMATS)}, or a folder of Parquet files"
        )
    kept = tuple(filter(None, named.get("keep", "").split("+")))
    if suffix == ".txt":
        if named:
            raise DataError(f"urls: {urls}: a text file has no columns; name none")
        return UrlList(path=path.absolute(), format="txt", url="url")
    names = _header(path, suffix)
    for name in (*kept, *(named[role] for role in _USUAL if role in named)):
        if name not in names:
            raise DataError(f"urls: {urls} has no column {name!r} (it has: {', '.join(names)[:400]})")
    found = {role: named.get(role) or _usual(role, names, urls=urls) for role in _USUAL}
    if not found["url"]:
        raise DataError(f"urls: {urls} has no column of URLs (it has: {', '.join(names)[:400]}); columns url=...")
    further = dict.fromkeys((*(name for name in _KEPT if name in names), *kept))
    taken = tuple(name for name in further if name not in found.values())
    return UrlList(path.absolute(), _FORMATS[suffix], found["url"], found["caption"], taken)


def _usual(role: str, names: Sequence[str], *, urls: str) -> str:
    found = [name for name in _USUAL[role] if name in names]
    if len(found) > 1:
        raise DataError(f"urls: {urls}: {' or '.join(found)} can be the {role}; name one: columns {role}=...")
    return found[0] if found else ""


def _header(path: Path, suffix: str) -> list[str]:
    """The columns' names."""
    try:
        if suffix == ".parquet":
            files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
            if not files:
                raise DataError(f"urls: there are no Parquet files in {path}")
            return list(pq.read_schema(files[0]).names)
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return next(csv.reader(stream, delimiter="\t" if suffix == ".tsv" else ","), [])
    except UnicodeDecodeError:
        raise DataError(f"urls: {path} is not UTF-8; convert it") from None
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise DataError(f"urls: cannot read {path} ({' '.join(str(error).split())[:200]})") from None


def _version(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a list's files."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _as_parquet(listed: UrlList, folder: Path) -> UrlList:
    """A text file as Parquet: img2dataset reads it as CSV and would stumble over URLs with commas."""
    target = folder / "urls.parquet"
    schema = pa.schema([("url", pa.string())])
    with pq.ParquetWriter(target, schema) as writer:
        for lines in _batches(listed.path):
            writer.write_table(pa.table({"url": lines}, schema=schema))
    return UrlList(path=target.absolute(), format="parquet", url="url")


def _batches(path: Path) -> Iterator[list[str]]:
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for line in stream:
                lines += [line.strip()] if line.strip() else []
                if len(lines) == _TXT_BATCH:
                    yield lines
                    lines = []
    except UnicodeDecodeError:
        raise DataError(f"urls: {path} is not UTF-8; convert it") from None
    yield lines


# --- fetching


def command(listed: UrlList, tars: Path, *, images_per_shard: int, processes: int = 1) -> list[str]:
    """The command line: images as they are, in tars, going on with what is there.

    Texts are written as Python's, since the program would take `1e5` for a number and `a,b` for a list.
    """
    options: dict[str, Any] = {
        "url_list": str(listed.path),
        "input_format": listed.format,
        "url_col": listed.url,
        "output_folder": str(tars.absolute()),
        "output_format": "webdataset",
        "resize_mode": "no",
        "skip_reencode": True,
        "incremental_mode": "incremental",
        "number_sample_per_shard": images_per_shard,
        "processes_count": processes,
        "enable_wandb": False,
    }
    if listed.caption:
        options["caption_col"] = listed.caption
    if listed.keep:
        options["save_additional_columns"] = list(listed.keep)
    return [PROGRAM, *(f"--{name}={value!r}" for name, value in options.items())]


def _program() -> str:
    program = shutil.which(PROGRAM)
    if program is None:
        raise DataError(
            f"urls: {PROGRAM} is not installed; give it an environment of its own "
            f"(`pipx install {PROGRAM}` or `uv tool install {PROGRAM}`) and put its folder on PATH"
        )
    return program


def _fetch(arguments: Sequence[str]) -> None:
    """Runs the program to its end and shows what it says."""
    said: deque[str] = deque(maxlen=1)
    with _running(arguments) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                said.append(line.strip())
                print(f"{PROGRAM}: {line.rstrip()}", flush=True)
    if process.returncode:
        raise DataError(f"urls: {PROGRAM} failed with exit code {process.returncode} ({''.join(said)[:300]})")


@contextmanager
def _running(arguments: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """A program in a process group of its own, which ends with the block however that is left."""
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            yield process
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def _check_finished(tars: Path) -> None:
    """Each tar that is whole has its statistics beside it; the program gives up on one without failing."""
    for tar in sorted(tars.glob("*.tar")):
        if not tar.with_name(f"{tar.stem}_stats.json").exists():
            raise DataError(f"urls: {PROGRAM} left {tar.name} unfinished (see above); run the same command again")


@dataclass(frozen=True)
class _Fetched:
    """What became of the URLs.

    Attributes:
        counts: URLs, and what became of them.
        empty: tars (without suffix) that none of their URLs came into.
    """

    counts: Mapping[str, int]
    empty: frozenset[str]


def _fetched(tars: Path, urls: str) -> _Fetched:
    """Sums up the statistics that the program leaves, and shows them."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    empty = set()
    for path in sorted(tars.glob("*_stats.json")):
        stats = json.loads(path.read_bytes())
        counts.update({name: stats[name] for name in ("count", "successes", "failed_to_download", "failed_to_resize")})
        reasons.update(stats["status_dict"])
        if not stats["successes"]:
            empty.add(path.name.removesuffix("_stats.json"))
    del reasons["success"]
    told = "; ".join(f"{count} x {reason[:100]}" for reason, count in reasons.most_common(3))
    if not counts["successes"]:
        raise DataError(f"urls: none of the {counts['count']} URLs of {urls} could be fetched ({told})")
    print(f"urls: {counts['successes']} of {counts['count']} URLs fetched into {tars}", flush=True)
    if told:
        print(f"urls: not fetched: {told}", flush=True)
    return _Fetched(dict(counts), frozenset(empty))


# --- what a folder was made from


def _is_finished(folder: Path, *, made_from: str) -> bool:
    """Whether an earlier run fetched all. Raises DataError when the folder is not of the same list and settings."""
    path = folder / _RECORD
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(f"urls: {folder} has files of something else; name another folder with --work")
        return False
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("made_from") != made_from:
        raise DataError(
            f"urls: {folder} has the images of another list, or of other columns or images_per_shard; remove it, or "
            "name another folder with --work"
        )
    return record.get("finished") is True


def _write_record(folder: Path, *, made_from: str, finished: bool) -> None:
    temporary = folder / f".tmp-{_RECORD}"
    temporary.write_text(json.dumps({"made_from": made_from, "finished": finished}) + "\n")
    temporary.replace(folder / _RECORD)
