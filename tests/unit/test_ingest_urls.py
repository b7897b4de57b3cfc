"""Ingest of a list of URLs: the command line, what a run leaves, and img2dataset itself where it is installed.

PATH=~/.local/bin:$PATH pytest tests/unit/test_ingest_urls.py      # after: pipx install img2dataset
"""

import ast
import http.server
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloc.data.dataset import Dataset
from cloc.data.ingest.urls import PROGRAM, UrlList, command, open_list
from cloc.errors import DataError
from cloc.stage import StageResult
from tests.unit.test_ingest import ingest as ingest_source
from tests.unit.test_ingest import jpeg, samples, settings

# What the tests put in the place of the program: it "fetches" URLs that are paths of files, in tars of two.
STAND_IN = """#!{python}
import ast, io, json, pathlib, sys, tarfile
import pyarrow.parquet as pq
options = dict(item[2:].split("=", 1) for item in sys.argv[1:])
options = {{name: ast.literal_eval(value) for name, value in options.items()}}
{extra}
folder, size = pathlib.Path(options["output_folder"]), options["number_sample_per_shard"]
rows = pq.read_table(options["url_list"]).to_pylist()
for shard, start in enumerate(range(0, len(rows), size)):
    stats = folder / f"{{shard:05d}}_stats.json"
    if stats.exists():
        continue
    good = 0
    with tarfile.open(folder / f"{{shard:05d}}.tar", "w") as tar:
        for index, row in enumerate(rows[start : start + size]):
            path, key = pathlib.Path(row[options["url_col"]]), f"{{shard:05d}}{{index}}"
            meta = {{"url": str(path), "key": key, "caption": row.get(options.get("caption_col"))}}
            if not path.exists():
                continue
            good += 1
            for suffix, body in (("jpg", path.read_bytes()), ("json", json.dumps(meta).encode())):
                info = tarfile.TarInfo(f"{{key}}.{{suffix}}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    count = len(rows[start : start + size])
    status = {{"success": good, "HTTP Error 404: Not Found": count - good}}
    stats.write_text(json.dumps({{"count": count, "successes": good, "failed_to_download": count - good,
        "failed_to_resize": 0, "status_dict": {{name: n for name, n in status.items() if n}}}}))
    print("shard", shard, "done")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of the name of img2dataset, first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return put_program(folder / PROGRAM)


def put_program(path: Path, extra: str = "") -> Path:
    path.write_text(STAND_IN.format(python=sys.executable, extra=extra))
    path.chmod(0o755)
    return path


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Five URLs, of which the last two lead nowhere."""
    for index in range(3):
        (tmp_path / f"p{index}.jpg").write_bytes(jpeg(index))
    rows = [{"URL": str(tmp_path / f"p{index}.jpg"), "TEXT": f"picture {index}"} for index in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    return tmp_path / "list.parquet"


def ingest(tmp_path: Path, urls: Path, columns: str = "", *, work: str = "", **data: Any) -> StageResult:
    config = settings(images_per_shard=2, **data)
    return ingest_source(tmp_path, config, source="urls", urls=str(urls), columns=columns, work=work)


# --- the command line


def test_command_line() -> None:
    listed = UrlList(Path("/data/a,b/1e5"), "parquet", "URL", "it's", keep=("noun_chunks", "1"))
    found = command(listed, Path("/data/out.downloads/tars"), images_per_shard=1000, processes=4)
    assert found == [
        "img2dataset",
        "--url_list='/data/a,b/1e5'",
        "--input_format='parquet'",
        "--url_col='URL'",
        "--output_folder='/data/out.downloads/tars'",
        "--output_format='webdataset'",
        "--resize_mode='no'",
        "--skip_reencode=True",
        "--incremental_mode='incremental'",
        "--number_sample_per_shard=1000",
        "--processes_count=4",
        "--enable_wandb=False",
        '--caption_col="it\'s"',
        "--save_additional_columns=['noun_chunks', '1']",
    ]
    values = [ast.literal_eval(item.partition("=")[2]) for item in found[1:]]
    assert values[0] == "/data/a,b/1e5", "the program reads values as Python's"


def test_columns_of_a_list(tmp_path: Path) -> None:
    table = pa.table({"url": ["x"], "TEXT": ["y"], "noun_chunks": [[[0.0]]], "license": ["z"], "similarity": [0.5]})
    pq.write_table(table, tmp_path / "l.parquet")
    found = open_list(str(tmp_path / "l.parquet"), {})
    assert (found.format, found.url, found.caption, found.keep) == (
        "parquet",
        "url",
        "TEXT",
        ("noun_chunks", "license"),
    )
    found = open_list(str(tmp_path / "l.parquet"), {"keep": "similarity", "caption": "license"})
    assert (found.caption, found.keep) == ("license", ("noun_chunks", "similarity"))
    (tmp_path / "l.tsv").write_text("image_url\tcaption\nx\ty\n")
    found = open_list(str(tmp_path / "l.tsv"), {})
    assert (found.format, found.url, found.caption, found.keep) == ("tsv", "image_url", "caption", ())
    (tmp_path / "folder").mkdir()
    pq.write_table(table, tmp_path / "folder/1.parquet")
    assert open_list(str(tmp_path / "folder"), {}).format == "parquet"


@pytest.mark.parametrize(
    ("name", "body", "columns", "message"),
    [
        ("none.csv", None, "", "there is no local file or folder"),
        ("l.xml", "x", "", r"expected a file of the kind \.parquet, \.csv, \.tsv, \.txt"),
        ("l.csv", "a,b\n1,2\n", "", r"has no column of URLs \(it has: a, b\)"),
        ("l.csv", "url,URL\n1,2\n", "", "url or URL can be the url; name one"),
        ("l.csv", "url,b\n1,2\n", "caption=c", r"has no column 'c' \(it has: url, b\)"),
        ("l.csv", "url,b\n1,2\n", "keep=b+c", "has no column 'c'"),
        ("l.csv", "url,b\n1,2\n", "image=b", "'image' means nothing here; there are: url, caption, keep"),
        ("l.csv", "", "", "has no column of URLs"),
        ("l.txt", "http://x\n", "url=x", "a text file has no columns"),
        ("l.parquet", "hello", "", r"cannot read .*l\.parquet"),
    ],
)
def test_bad_list_is_one_line(tmp_path: Path, name: str, body: str | None, columns: str, message: str) -> None:
    if body is not None:
        (tmp_path / name).write_text(body)
    with pytest.raises(DataError, match=message) as caught:
        ingest(tmp_path, tmp_path / name, columns)
    assert "\n" not in str(caught.value)


def test_without_the_program_it_says_how_to_get_it(
    tmp_path: Path, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DataError, match=r"img2dataset is not installed; .*\(`pipx install img2dataset` or `uv tool inst"
    ):
        ingest(tmp_path, listed)
    assert not (tmp_path / "out.downloads").exists()


# --- what a run leaves


def test_tars_become_the_data_set(
    tmp_path: Path, listed: Path, stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = ingest(tmp_path, listed)
    assert {key: item.captions[0]["text"] for key, item in samples(tmp_path).items()} == {
        "000000": "picture 0",
        "000001": "picture 1",
        "000010": "picture 2",
    }
    assert [item.sample.image for item in samples(tmp_path).values()] == [jpeg(index) for index in range(3)]
    assert (result.counts["shards"], result.counts["quarantined"]) == (2, 0), "a tar of nothing but errors is no shard"
    fetched = {"count": 5, "successes": 3, "failed_to_download": 2, "failed_to_resize": 0}
    assert Dataset.open(tmp_path / "out").manifest.made_by["fetched"] == fetched
    said = capsys.readouterr().out
    assert "img2dataset: shard 2 done" in said
    assert "urls: 3 of 5 URLs fetched into " in said
    assert "urls: not fetched: 2 x HTTP Error 404: Not Found" in said
    stand_in.unlink()
    assert ingest(tmp_path, listed).counts["skipped_shards"] == 2, "what was fetched needs no program"


def test_text_files_may_have_commas_and_empty_lines(tmp_path: Path, stand_in: Path) -> None:
    (tmp_path / "a,b.jpg").write_bytes(jpeg(1))
    (tmp_path / "l.txt").write_text(f"\n{tmp_path}/a,b.jpg  \n\n")
    assert ingest(tmp_path, tmp_path / "l.txt").counts["images"] == 1


def test_run_that_broke_off_goes_on(tmp_path: Path, listed: Path, stand_in: Path) -> None:
    put_program(stand_in, extra="size_ = options['number_sample_per_shard']; print('no more disk'); sys.exit(3)")
    with pytest.raises(DataError, match=r"img2dataset failed with exit code 3 \(no more disk\)"):
        ingest(tmp_path, listed)
    put_program(stand_in)
    assert ingest(tmp_path, listed).counts["images"] == 3


def test_tar_that_the_program_gave_up_is_not_taken(tmp_path: Path, listed: Path, stand_in: Path) -> None:
    put_program(stand_in, extra="(pathlib.Path(options['output_folder']) / '00007.tar').write_bytes(b'half'); ")
    with pytest.raises(DataError, match=r"img2dataset left 00007\.tar unfinished \(see above\); run the same command"):
        ingest(tmp_path, listed)
    assert not (tmp_path / "out/manifest.json").exists()


def test_program_ends_with_the_run(
    tmp_path: Path, listed: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = tmp_path / "alive"
    put_program(
        stand_in,
        extra=f"import time; print('go', flush=True); time.sleep(3); pathlib.Path({str(alive)!r}).touch(); sys.exit(0)",
    )

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ingest(tmp_path, listed)
    assert not alive.exists(), "it was waited for, not ended"


def test_no_url_at_all_is_one_line(tmp_path: Path, listed: Path, stand_in: Path) -> None:
    pq.write_table(pq.read_table(listed).slice(3), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"none of the 2 URLs of .* could be fetched \(2 x HTTP Error 404: Not Found\)"):
        ingest(tmp_path, tmp_path / "bad.parquet")


def test_folder_of_another_list_is_not_mixed(tmp_path: Path, listed: Path, stand_in: Path) -> None:
    with pytest.raises(DataError, match="s3://b/x is no local folder; name one for the tars with --work"):
        ingest(tmp_path, listed, work="s3://b/x")
    ingest(tmp_path, listed)
    with pytest.raises(DataError, match=r"out\.downloads has the images of another list, or of other columns"):
        ingest(tmp_path, listed, columns="caption=URL")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="mine has files of something else"):
        ingest(tmp_path, listed, work=f"{tmp_path}/mine")
    assert ingest(tmp_path, listed, work=f"{tmp_path}/other").counts["images"] == 3
    (tmp_path / "other/download.json").write_text("{")
    with pytest.raises(DataError, match="has the images of another list"):
        ingest(tmp_path, listed, work=f"{tmp_path}/other")


# --- the program itself


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on three pictures."""
    (tmp_path / "web").mkdir()
    for index in range(3):
        (tmp_path / f"web/p{index},{index}.jpg").write_bytes(jpeg(index))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not on PATH (pipx install {PROGRAM})")
@pytest.mark.parametrize("kind", ["parquet", "csv", "txt"])
def test_img2dataset_itself(tmp_path: Path, server: str, kind: str) -> None:
    urls = [f"{server}/p{index},{index}.jpg" for index in range(3)] + [f"{server}/gone.jpg"]
    path = tmp_path / f"a list, of URLs.{kind}"
    chunks = [[0, 7, 0.25, 0.25, 0.5, 0.5, 0.9]]
    if kind == "parquet":
        table = {"url": urls, "TEXT": [f"picture {index}" for index in range(4)], "noun_chunks": [chunks] * 4}
        pq.write_table(pa.table(table), path)
    elif kind == "csv":
        lines = [f'"{url}","picture {index}","{json.dumps(chunks)}"' for index, url in enumerate(urls)]
        path.write_text("\n".join(["url,TEXT,noun_chunks", *lines]) + "\n")
    else:
        path.write_text("\n".join(urls) + "\n")
    ingest(tmp_path, path)
    found = {item.sample.meta["source"]: item for item in samples(tmp_path).values()}
    assert sorted(found) == urls[:3]
    for index, url in enumerate(urls[:3]):
        assert found[url].sample.image == jpeg(index), "images come as they are"
        if kind != "txt":
            assert [row["text"] for row in found[url].captions] == [f"picture {index}"]
            assert [(row["text"], row["x1"]) for row in found[url].regions] == [("picture", 0.25)]
    assert Dataset.open(tmp_path / "out").manifest.made_by["fetched"]["failed_to_download"] == 1
