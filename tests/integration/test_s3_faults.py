"""Data sets on an S3 server that misbehaves: each fault is survived with the same bytes, or told by name in time."""

import io
import multiprocessing
import pickle
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cloc.config import parse
from cloc.data.dataset import Dataset
from cloc.data.ingest.stage import Inputs, Outputs, run
from cloc.data.s3 import S3Storage
from cloc.data.storage import StorageError, Trouble, open_storage
from cloc.errors import DataError
from tests.faulty_proxy import Fault, FaultyProxy
from tests.s3_server import SECRET, Server, needs_server, serving_s3, use_endpoint

# A store that is asked for ever, or as long as by default, meets the limit of time.
pytestmark = [needs_server, pytest.mark.timeout(110)]

ALWAYS = 1_000_000
IN_A_SECOND = 6  # tries at most: pauses of at least 0.025, 0.05, ... 0.4 s; in the 5 s of the proxy's tests at least 7
MANY = 2500  # objects: three pages of a list
PART = 5 << 20  # the smallest of the S3 API


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("s3")
    many = root / "bucket/many/d"  # before the server starts, which then remembers its folders
    many.mkdir(parents=True)
    for number in range(MANY):
        (many / f"{number}").touch()
    with serving_s3(root) as running:
        yield running


@pytest.fixture
def proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy that the environment names; connections may be silent for 0.6 s, and trouble may last 5 s."""
    with FaultyProxy(server.port) as running:
        use_endpoint(monkeypatch, running.endpoint)
        monkeypatch.setenv("CLOC_S3_PATIENCE", "5")
        monkeypatch.setenv("CLOC_S3_TIMEOUT", "0.6")
        monkeypatch.setattr("cloc.data.s3_http._FIRST_PAUSE_S", 0.05)  # the same sooner
        yield running


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index in range(12):
        sink = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(sink, "JPEG")
        (folder / f"p{index:02d}.jpg").write_bytes(sink.getvalue())
        (folder / f"p{index:02d}.txt").write_text(f"picture {index}")
    return str(folder)


def ingest(photos: str, output: str) -> Any:
    config = parse({"data": {"processes": 1, "images_per_shard": 4}}, source="test")
    return run(config, inputs=Inputs(images=photos), outputs=Outputs(data=output))


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(photos: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed")
    ingest(photos, str(output))
    return contents(output)


def told(error: pytest.ExceptionInfo[DataError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "object at 0x" not in text
    assert SECRET not in text
    return text


def tries(error: pytest.ExceptionInfo[DataError]) -> int:
    """How often it was tried, by what is told."""
    match = re.search(r"tried (?:once|(\d+) times)", told(error))
    assert match, error.value
    return int(match[1] or 1)


PASSING = {
    "drops of requests": [Fault("drop_request", after=2000, times=3, method="PUT")],
    "drops before the answer": [Fault("drop_answer", times=4)],
    "drops within answers": [Fault("drop_answer", after=3000, times=3, method="GET")],
    "stalled requests": [Fault("stall_request", after=2000, times=2, method="PUT", seconds=1.5)],
    "stalled answers": [Fault("stall_answer", after=2000, times=2, method="GET", seconds=1.5)],
    "busy for a while": [Fault("status", times=4)],
    "slow down, come back in a second": [Fault("status", times=1, headers={"Retry-After": "1"}, status=429)],
    "gateway without a body": [Fault("status", times=3, status=502, code="")],
    "body came too late": [Fault("status", times=2, status=400, code="RequestTimeout", method="PUT")],
    "delays": [Fault("delay", times=5, seconds=0.15)],
    "all at once": [
        Fault("status", times=2, method="PUT"),
        Fault("drop_request", after=10, times=2, method="PUT"),
        Fault("drop_answer", times=2, target="manifest"),
        Fault("drop_answer", after=3000, times=2, target="tar", method="GET"),
    ],
}


@pytest.mark.parametrize("name", PASSING)
def test_ingest_and_reading_through_what_passes(
    name: str, photos: str, undisturbed: dict[str, bytes], server: Server, proxy: FaultyProxy
) -> None:
    place = f"passing/{name.replace(' ', '-').replace(',', '')}"
    proxy.faults = [Fault(**vars(fault)) for fault in PASSING[name]]
    ingest(photos, f"s3://bucket/{place}")
    left = sum(fault.times for fault in proxy.faults if fault.method != "GET")
    assert left == 0, "the fault must have befallen the ingest"
    assert contents(server.root / "bucket" / place) == undisturbed
    proxy.faults = [Fault(**vars(fault)) for fault in PASSING[name]]
    data = Dataset.open(f"s3://bucket/{place}")
    samples = [item.sample.image for item in data.read_all()]
    assert samples == [path.read_bytes() for path in sorted(Path(photos).glob("*.jpg"))]
    if any(fault.method != "PUT" for fault in proxy.faults):
        assert any(item.times < PASSING[name][index].times for index, item in enumerate(proxy.faults))


@pytest.mark.parametrize("requests", [3, 7, 12])
def test_ingest_to_a_server_that_dies_for_good(
    requests: int,
    photos: str,
    undisturbed: dict[str, bytes],
    server: Server,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLOC_S3_PATIENCE", "1")
    url = f"s3://bucket/dies/{requests}"
    proxy.die_after = requests
    with pytest.raises(StorageError) as caught:
        ingest(photos, url)
    assert tries(caught) <= IN_A_SECOND
    text = told(caught)
    assert text.startswith(f"{url}/")
    assert proxy.endpoint in text
    assert caught.value.trouble is Trouble.UNREACHABLE
    assert "check AWS_ENDPOINT_URL and that the server runs" in text
    found = contents(server.root / "bucket/dies" / str(requests)) if requests > 3 else {}
    assert all(undisturbed[name] == body for name, body in found.items()), "an object is whole or not there"
    assert "manifest.json" not in found
    proxy.revive()
    ingest(photos, url)
    assert contents(server.root / "bucket/dies" / str(requests)) == undisturbed


def test_a_server_that_falls_silent_for_good(
    server: Server, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOC_S3_PATIENCE", "1")
    storage = open_storage("s3://bucket/silent")
    storage.write_bytes("a", b"x" * 100)
    for act, name in (
        (lambda: storage.write_bytes("b", b"y" * 100), "b"),
        (lambda: storage.read_bytes("a"), "a"),
        (lambda: storage.list(""), ""),
    ):
        proxy.faults = [Fault("delay", times=ALWAYS, seconds=9)]
        with pytest.raises(
            StorageError, match=rf"^s3://bucket/silent/?{name}: http.* drops .* or falls silent"
        ) as caught:
            act()
        assert tries(caught) <= IN_A_SECOND
        assert "CLOC_S3_PATIENCE" in told(caught)
        proxy.faults = []
        storage.exists("a")  # it is well again: patience is back
    late = server.root / "bucket/silent/b"
    assert not late.exists() or late.read_bytes() == b"y" * 100, "what came in the end is whole"


def test_a_server_that_stays_busy(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOC_S3_PATIENCE", "1")
    proxy.faults = [Fault("status", times=ALWAYS)]
    storage = open_storage("s3://bucket/busy")
    for act in (
        lambda: storage.write_bytes("a", b"x"),
        lambda: storage.read_bytes("a"),
        lambda: storage.exists("a"),
        lambda: storage.delete("a"),
        lambda: storage.list(""),
    ):
        with pytest.raises(StorageError, match=r"keeps failing \(503 SlowDown; tried") as caught:
            act()
        assert caught.value.trouble is Trouble.FAILING
        assert tries(caught) <= IN_A_SECOND


def test_a_busy_server_is_no_stranger(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloc.data.s3_http._STRANGER_PATIENCE_S", 0.1)
    proxy.faults = [Fault("status", times=4)]
    open_storage("s3://bucket/busy").write_bytes("first", b"x")  # the first request of this process to it
    proxy.die()
    monkeypatch.setenv("CLOC_S3_PATIENCE", "3600")  # connections of its own, which never got an answer: given up soon
    with pytest.raises(StorageError, match="cannot reach"):
        open_storage("s3://bucket/busy").write_bytes("a", b"x")


def test_no_patience_is_one_try(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOC_S3_PATIENCE", "0")
    proxy.faults = [Fault("status", times=1)]
    with pytest.raises(StorageError, match="503 SlowDown; tried once"):
        open_storage("s3://bucket/busy").write_bytes("a", b"x")
    assert len(proxy.requests) == 1


def test_an_absurd_retry_after_is_not_waited_for(proxy: FaultyProxy) -> None:
    proxy.faults = [Fault("status", headers={"Retry-After": "86400"})]
    with pytest.raises(StorageError, match=r"keeps failing .*tried once"):
        open_storage("s3://bucket/busy").write_bytes("a", b"x")


# --- large objects in parts


@pytest.fixture(scope="module")
def large() -> bytes:
    return np.random.default_rng(1).bytes(3 * PART + 12_345)


PART_FAULTS = {
    "a part dropped": [Fault("drop_request", after=1 << 20, times=2, method="PUT", target="partNumber")],
    "a part stalled": [Fault("stall_request", after=1 << 20, times=1, method="PUT", target="partNumber", seconds=1.5)],
    "busy with parts": [Fault("status", times=4, method="PUT", target="partNumber")],
    "the start dropped": [Fault("drop_answer", times=1, method="POST", target="uploads")],
    "completed, the answer lost": [Fault("drop_answer", times=1, method="POST", target="uploadId")],
    "busy with completing": [Fault("status", times=2, method="POST", target="uploadId")],
    "fails within a good status": [
        Fault("status", times=1, method="POST", target="uploadId", status=200, code="InternalError")
    ],
}


@pytest.mark.parametrize("name", PART_FAULTS)
@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_parts_through_what_passes(
    name: str, kind: str, large: bytes, server: Server, proxy: FaultyProxy, tmp_path: Path
) -> None:
    path = f"{name} {kind}.bin".replace(" ", "-").replace(",", "")
    storage = S3Storage("s3://bucket/parts", part_bytes=PART)
    proxy.faults = [Fault(**vars(fault)) for fault in PART_FAULTS[name]]
    if kind == "bytes":
        storage.write_bytes(path, large)
    else:
        (tmp_path / "large").write_bytes(large)
        storage.write_file(path, tmp_path / "large")
        assert not (tmp_path / "large").exists()
    assert all(fault.times == 0 for fault in proxy.faults)
    assert (server.root / "bucket/parts" / path).read_bytes() == large


def test_an_upload_that_fails_is_aborted(
    large: bytes, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOC_S3_PATIENCE", "1")
    storage = S3Storage("s3://bucket/aborted", part_bytes=PART)
    storage.write_bytes("large", b"old")
    (tmp_path / "large").write_bytes(large)
    proxy.faults = [Fault("status", times=ALWAYS, method="PUT", target="partNumber=2")]
    message = r"s3://bucket/aborted/large: .*keeps failing \(503 SlowDown"
    with pytest.raises(StorageError, match=message) as caught:
        storage.write_file("large", tmp_path / "large")
    assert tries(caught) <= IN_A_SECOND
    assert (tmp_path / "large").read_bytes() == large, "a file that could not be stored stays"
    assert storage.read_bytes("large") == b"old", "what was there stays"
    created = [item for item in proxy.requests if item.startswith("POST") and "uploads" in item]
    aborted = [item for item in proxy.requests if item.startswith("DELETE") and "uploadId" in item]
    assert (len(created), len(aborted)) == (1, 1)
    assert unfinished(storage) == []


def unfinished(storage: S3Storage) -> list[Any]:
    return list(storage._client._list_multipart_uploads("bucket", prefix="aborted").uploads)


def test_an_upload_to_a_server_that_dies(
    large: bytes, server: Server, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOC_S3_PATIENCE", "1")
    storage = S3Storage("s3://bucket/dead", part_bytes=PART)
    storage.write_bytes("small", b"x")
    (tmp_path / "large").write_bytes(large)
    proxy.die_after = len(proxy.requests) + 3  # in the middle of the parts
    with pytest.raises(StorageError, match=r"^s3://bucket/dead/large: cannot reach http") as caught:
        storage.write_file("large", tmp_path / "large")
    assert tries(caught) <= IN_A_SECOND
    assert not (server.root / "bucket/dead/large").exists()
    proxy.revive()
    storage.write_file("large", tmp_path / "large")
    assert (server.root / "bucket/dead/large").read_bytes() == large


# --- reading large objects


@pytest.fixture(scope="module")
def big(server: Server) -> bytes:
    body = np.random.default_rng(2).bytes(8 << 20)
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_endpoint(monkeypatch, server.endpoint)
        open_storage("s3://bucket/big").write_bytes("object", body)
    return body


def test_reading_goes_on_where_it_broke(big: bytes, proxy: FaultyProxy) -> None:
    storage = open_storage("s3://bucket/big")
    for read, expected in (
        (lambda: storage.read_bytes("object"), big),
        (lambda: storage.open("object").read(), big),
        (lambda: storage.read_range("object", offset=1_000_000, size=6_000_000), big[1_000_000:7_000_000]),
        (lambda: storage.read_tail("object", 5_000_000), big[-5_000_000:]),
    ):
        before = len(proxy.requests)
        proxy.faults = [
            Fault("drop_answer", after=2 << 20, times=2),
            Fault("stall_answer", after=100_000, times=1, seconds=1.5),
        ]
        assert read() == expected
        assert len(proxy.requests) - before == 4, "each time the rest was asked for"


def test_reading_from_a_server_that_dies(big: bytes, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOC_S3_PATIENCE", "1")
    with open_storage("s3://bucket/big").open("object") as stream:
        assert stream.read(1 << 20) == big[: 1 << 20]
        proxy.die()
        with pytest.raises(StorageError, match=r"^s3://bucket/big/object: cannot reach http://127") as caught:
            stream.read()
    told(caught)


def test_reading_that_brings_nothing_more_fails(
    big: bytes, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOC_S3_PATIENCE", "1")
    with open_storage("s3://bucket/big").open("object") as stream:
        assert stream.read(1) == big[:1]
        # Each answer is good, and its body never comes.
        proxy.faults = [Fault("stall_answer", times=ALWAYS, seconds=3)]
        proxy.sever()
        message = r"^s3://bucket/big/object: reading from http\S+ broke off at byte \d+ \(.*tried \d+ times"
        with pytest.raises(StorageError, match=message) as caught:
            stream.read()
    assert tries(caught) <= IN_A_SECOND


def test_an_object_replaced_while_it_is_read(server: Server, big: bytes, proxy: FaultyProxy) -> None:
    storage = open_storage("s3://bucket/replaced")
    storage.write_bytes("object", big)
    proxy.faults = [Fault("drop_answer", after=4 << 20, method="GET")]
    with storage.open("object") as stream:
        assert stream.read(1 << 20) == big[: 1 << 20]
        storage.write_bytes("object", bytes(len(big)))
        with pytest.raises(StorageError, match="replaced while it was read") as caught:
            stream.read()
    told(caught)


def test_an_object_of_64_mib_is_never_whole_in_memory(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOC_S3_TIMEOUT", "5")  # tracing is slow
    open_storage("s3://bucket/wide").write_bytes("object", bytes(64 << 20))
    proxy.faults = [Fault("drop_answer", after=20 << 20, times=2)]
    tracemalloc.start()
    try:
        with open_storage("s3://bucket/wide").open("object") as stream:
            total = 0
            while piece := stream.read(10_240):
                total += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 64 << 20
    assert peak < 4 << 20, f"{peak} bytes were held at once"


# --- other answers


@pytest.mark.parametrize(
    ("fault", "trouble", "message"),
    [
        (Fault("status", status=400, code="AuthorizationHeaderMalformed"), Trouble.REGION, "not in region 'us-east-1'"),
        (
            Fault("status", status=301, code="PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"}),
            Trouble.REGION,
            "set AWS_REGION to eu-west-1",
        ),
        (Fault("status", status=400, code="ExpiredToken"), Trouble.DENIED, "renew AWS_SESSION_TOKEN"),
        (Fault("status", status=403, code="AccessDenied"), Trouble.DENIED, "check AWS_ACCESS_KEY_ID"),
        (Fault("status", status=400, code="EntityTooLarge"), Trouble.FULL, "has no room for it .EntityTooLarge."),
        (Fault("status", status=507, code="XMinioStorageFull"), Trouble.FULL, "free some space"),
        (Fault("status", status=507, code=""), Trouble.FULL, "free some space"),
        (Fault("status", status=418, code="Teapot"), Trouble.OTHER, "answered Teapot as told"),
    ],
)
def test_answers_that_will_not_change(fault: Fault, trouble: Trouble, message: str, proxy: FaultyProxy) -> None:
    fault.times = 1
    proxy.faults = [fault]
    with pytest.raises(StorageError, match=message) as caught:
        open_storage("s3://bucket/other").write_bytes("a", b"x")
    assert caught.value.trouble is trouble
    assert told(caught).startswith("s3://bucket/other/a: ")
    assert len(proxy.requests) == 1, "it is no use to try again"


def test_a_redirect_is_not_followed(proxy: FaultyProxy, server: Server) -> None:
    headers = {"Location": f"{server.endpoint}/bucket/other/a"}
    proxy.faults = [Fault("status", status=307, code="TemporaryRedirect", headers=headers)]
    with pytest.raises(StorageError, match="not in region"):
        open_storage("s3://bucket/other").write_bytes("a", b"x")


# --- lists


def test_a_list_comes_in_pages(proxy: FaultyProxy) -> None:
    storage = open_storage("s3://bucket/many")
    found = storage.walk("")
    assert next(found) == "d/0"
    assert len(proxy.requests) == 1, "the first page is enough for the first name"
    proxy.faults = [Fault("drop_answer", times=2), Fault("status", times=2)]
    names = ["d/0", *found]
    assert names == sorted(f"d/{number}" for number in range(MANY))
    assert len(proxy.requests) == 3 + 4


# --- processes


def test_storages_go_to_other_processes(proxy: FaultyProxy, big: bytes) -> None:
    storage = S3Storage("s3://bucket/big", part_bytes=PART)
    storage.exists("object")  # a connection is open that a fork copies
    copy = pickle.loads(pickle.dumps(storage))
    assert (copy.url, copy._part_bytes) == ("s3://bucket/big", PART)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        tasks = [pool.apply_async(_piece_of, (storage, number)) for number in range(40)]
        assert [task.get(timeout=20) for task in tasks] == [
            big[number * 1000 : number * 1000 + 500] for number in range(40)
        ]


def _piece_of(storage: S3Storage, number: int) -> bytes:
    return storage.read_range("object", offset=number * 1000, size=500)


def test_errors_come_whole_out_of_other_processes() -> None:
    copy = pickle.loads(pickle.dumps(StorageError("what", Trouble.FULL)))
    assert (str(copy), copy.trouble) == ("what", Trouble.FULL)


# --- clocks


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_clock_skew_is_told(seconds: int, proxy: FaultyProxy) -> None:
    proxy.faults = [Fault("skew", times=ALWAYS, seconds=seconds)]
    storage = open_storage("s3://bucket/clock")
    side = "behind" if seconds > 0 else "ahead of"
    acts: tuple[Callable[[], Any], ...] = (
        lambda: storage.write_bytes("a", b"x"),
        lambda: storage.read_bytes("a"),
        lambda: storage.exists("a"),  # a HEAD: the answer has no body that says so
    )
    for act in acts:
        with pytest.raises(StorageError, match=rf"clock is 3\d\d\d s {side} that of http.*set the clock") as caught:
            act()
        assert caught.value.trouble is Trouble.CLOCK
        assert len(told(caught)) < 250
