"""Data sets on S3, against a real S3 server over HTTP (`rclone serve s3`)."""

import contextlib
import io
import shutil
import socket
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cloc.config import parse
from cloc.data import tables
from cloc.data.dataset import Dataset, write_manifest
from cloc.data.ingest.stage import Inputs, Outputs, run
from cloc.data.s3 import S3Storage
from cloc.data.schema import Manifest
from cloc.data.shards import Sample, ShardWriter
from cloc.data.storage import StorageError, Trouble, open_storage
from cloc.errors import DataError
from cloc.labeling.captioning import Inputs as CaptionInputs
from cloc.labeling.captioning import Outputs as CaptionOutputs
from cloc.labeling.captioning import run as caption
from cloc.labeling.grounding import Inputs as GroundInputs
from cloc.labeling.grounding import Outputs as GroundOutputs
from cloc.labeling.grounding import run as ground
from tests.s3_server import SECRET, Server, free_port, needs_server, serving_s3, use_endpoint

# A store that is asked as long as by default, though nobody will ever answer, meets the limit of time.
pytestmark = [needs_server, pytest.mark.timeout(110)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_s3(tmp_path_factory.mktemp("s3"), buckets=("bucket", "root-bucket")) as running:
        yield running


@pytest.fixture(autouse=True)
def environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, server.endpoint)


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


# --- objects


def test_objects_come_back_and_can_be_replaced(server: Server) -> None:
    storage = open_storage("s3://bucket/objects/")
    assert isinstance(storage, S3Storage)
    assert storage.url == "s3://bucket/objects"
    assert not storage.exists("a/b.bin")
    assert storage.list("a") == []
    for body in (b"", b"one", bytes(range(256)) * 40_000):
        storage.write_bytes("a/b.bin", body)
        assert storage.read_bytes("a/b.bin") == body
        assert (server.root / "bucket/objects/a/b.bin").read_bytes() == body
    assert storage.exists("a/b.bin")
    storage.write_bytes("a/c/d", b"x")
    storage.write_bytes("ab", b"x")
    assert storage.list("a") == ["a/b.bin", "a/c/d"]
    assert storage.list("") == ["a/b.bin", "a/c/d", "ab"]
    storage.delete("a/b.bin")
    storage.delete("a/b.bin")
    assert storage.list("a") == ["a/c/d"]


def test_root_of_a_bucket() -> None:
    storage = open_storage("s3://root-bucket")
    storage.write_bytes("x/y", b"1")
    assert (storage.url, storage.list(""), storage.read_bytes("x/y")) == ("s3://root-bucket", ["x/y"], b"1")


def test_large_files_go_in_parts_and_are_moved(server: Server, tmp_path: Path) -> None:
    source = tmp_path / "big.tar"
    body = np.random.default_rng(0).bytes(40 << 20)
    source.write_bytes(body)
    open_storage("s3://bucket/parts").write_file("images/big.tar", source)
    assert not source.exists()
    assert (server.root / "bucket/parts/images/big.tar").read_bytes() == body


def test_reading_is_streamed() -> None:
    open_storage("s3://bucket/stream").write_bytes("big", bytes(64 << 20))
    tracemalloc.start()
    with open_storage("s3://bucket/stream").open("big") as stream:
        total = 0
        while piece := stream.read(10_240):
            total += len(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 64 << 20
    assert peak < 8 << 20, f"{peak} bytes were held at once"


# --- data sets


def test_data_set_written_and_read_back() -> None:
    url = "s3://bucket/data/train"
    storage, writer = open_storage(url), ShardWriter()
    samples = [
        Sample(key=f"k{index}", image=bytes([index]) * 5000, meta={"alt_text": str(index)}) for index in range(9)
    ]
    for sample in samples:
        writer.add(sample)
    shard = writer.write(storage, "00000")
    caption = {"key": "k3", "text": "three", "kind": "human", "model": ""}
    tables.write_table(storage, "captions", "00000", [caption], input_hash="i", config_hash="c")
    with pytest.raises(DataError, match=r"s3://bucket/data/train: no data set here"):
        Dataset.open(url)
    write_manifest(storage, Manifest(shards=(shard,)))
    found = list(Dataset.open(url).read_all())
    assert [item.sample for item in found] == samples
    assert list(found[3].captions) == [caption]
    assert tables.is_current(storage, "captions", "00000", input_hash="i", config_hash="c")
    assert not tables.is_current(storage, "captions", "00000", input_hash="i", config_hash="d")
    Dataset.open(url).check(shard)


def test_truncated_shard_on_s3_is_named(server: Server) -> None:
    storage, writer = open_storage("s3://bucket/cut"), ShardWriter()
    for index in range(5):
        writer.add(Sample(key=f"k{index}", image=bytes(5000)))
    write_manifest(storage, Manifest(shards=(writer.write(storage, "00000"),)))
    storage.write_bytes("images/00000.tar", storage.read_bytes("images/00000.tar")[:9000])
    with pytest.raises(DataError, match=r"^s3://bucket/cut/images/00000\.tar: .*truncated"):
        list(Dataset.open("s3://bucket/cut").read_all())


def test_ingest_to_s3_equals_ingest_to_a_folder(server: Server, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(6):
        sink = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(sink, "JPEG")
        (tmp_path / f"images/p{index}.jpg").write_bytes(sink.getvalue())
        (tmp_path / f"images/p{index}.txt").write_text(f"picture {index}")
    (tmp_path / "images/bad.jpg").write_text("no image")
    config = parse({"data": {"processes": 1, "images_per_shard": 3, "quarantine_limit": 0.5}}, source="test")
    inputs = Inputs(images=str(tmp_path / "images"))
    for output in ("s3://bucket/ingest/train", str(tmp_path / "train")):
        result = run(config, inputs=inputs, outputs=Outputs(data=output))
        assert (result.counts["images"], result.counts["quarantined"]) == (6, 1)
    folder, remote = tmp_path / "train", server.root / "bucket/ingest/train"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == open_storage("s3://bucket/ingest/train").list("")
    assert all((folder / name).read_bytes() == (remote / name).read_bytes() for name in names)
    again = run(config, inputs=inputs, outputs=Outputs(data="s3://bucket/ingest/train"))
    assert again.counts["skipped_shards"] == 3
    captions = [item.captions[0]["text"] for item in Dataset.open("s3://bucket/ingest/train").read_all()]
    assert captions == [f"picture {index}" for index in range(6)]


# --- what goes wrong


def test_labels_on_s3_equal_labels_in_a_folder(
    server: Server, tmp_path: Path, make_dataset: Callable[..., str]
) -> None:
    make_dataset(tmp_path / "data", 24, broken=[5], shard_size=8)
    bucket = open_storage("s3://bucket/label/data")
    for path in (tmp_path / "data").rglob("*.*"):
        bucket.write_bytes(path.relative_to(tmp_path / "data").as_posix(), path.read_bytes())
    settings = {
        "captioning": {"backend": "annotations"},
        "grounding": {"backend": "annotations"},
        "data": {"quarantine_limit": 0.1},
    }
    for processes in (1, 2):
        config = parse({**settings, "data": {**settings["data"], "processes": processes}}, source="test")
        for root in (f"s3://bucket/label/{processes}", str(tmp_path / str(processes))):
            data = "s3://bucket/label/data" if root.startswith("s3") else str(tmp_path / "data")
            caption(config, inputs=CaptionInputs(data=data), outputs=CaptionOutputs(captions=f"{root}/captions"))
            ground(
                config,
                inputs=GroundInputs(data=data, captions=f"{root}/captions"),
                outputs=GroundOutputs(regions=f"{root}/regions"),
            )
        found = {
            path.relative_to(tmp_path / str(processes)): path.read_bytes()
            for path in sorted((tmp_path / str(processes)).rglob("*.parquet"))
        }
        assert len(found) == 12  # captions and regions of three shards, and the quarantine of both stages
        for path, body in found.items():
            assert (server.root / f"bucket/label/{processes}" / path).read_bytes() == body
    again = caption(
        config,
        inputs=CaptionInputs(data="s3://bucket/label/data"),
        outputs=CaptionOutputs(captions="s3://bucket/label/2/captions"),
    )
    assert again.counts["skipped"] == again.counts["images"] == 24


def test_the_end_of_an_object_is_read_alone(server: Server) -> None:
    storage = open_storage("s3://bucket/tail")
    storage.write_bytes("a", bytes(range(200)))
    assert storage.read_tail("a", 3) == bytes([197, 198, 199])
    assert storage.read_tail("a", 1000) == bytes(range(200))
    with pytest.raises(DataError, match="there is no b"):
        storage.read_tail("b", 3)


def test_no_such_object_and_no_such_bucket(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://bucket/x: there is no a/b") as caught:
        open_storage("s3://bucket/x").open("a/b")
    one_line(caught)
    missing = open_storage("s3://no-such-bucket/x")
    (tmp_path / "file").write_bytes(b"x")
    for act in (
        lambda: missing.open("a"),
        lambda: missing.exists("a"),
        lambda: missing.list(""),
        lambda: missing.write_bytes("a", b"x"),
        lambda: missing.write_file("a", tmp_path / "file"),
        lambda: Dataset.open("s3://no-such-bucket/x"),
    ):
        with pytest.raises(DataError, match="there is no bucket 'no-such-bucket' at http") as caught:
            act()
        one_line(caught)
    assert (tmp_path / "file").exists(), "a file that could not be stored stays"


@pytest.mark.parametrize(("name", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong"), ("AWS_ACCESS_KEY_ID", "nobody")])
def test_wrong_credentials_are_denied(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    storage = open_storage("s3://bucket/x")
    for act in (lambda: storage.read_bytes("a"), lambda: storage.exists("a"), lambda: storage.write_bytes("a", b"x")):
        with pytest.raises(DataError, match=r"access denied by http.*check AWS_ACCESS_KEY_ID") as caught:
            act()
        one_line(caught)


def test_unreachable_endpoint_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(
        DataError, match=r"s3://bucket/x/manifest\.json: cannot reach http.*check AWS_ENDPOINT_URL"
    ) as caught:
        Dataset.open("s3://bucket/x")
    assert "object at 0x" not in one_line(caught)


def test_endpoint_that_is_no_s3_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi") as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(DataError, match="does not answer like S3") as caught:
            open_storage("s3://bucket/x").read_bytes("a")
        one_line(caught)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer like S3 .*SSH-2.0"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi", "does not answer like S3"),
        (b"HTTP/1.1 403 No\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nno", "does not answer like S3 "),
    ],
)
def test_other_servers_are_not_taken_for_s3(monkeypatch: pytest.MonkeyPatch, answer: bytes, message: str) -> None:
    with serving(answer) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        storage = open_storage("s3://bucket/x")
        for act in (lambda: storage.read_bytes("a"), lambda: storage.list("")):
            with pytest.raises(StorageError, match=message) as caught:
                act()
            assert caught.value.trouble is Trouble.NOT_S3
            one_line(caught)


def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid:9000")
    monkeypatch.setenv("CLOC_S3_PATIENCE", "1")
    with pytest.raises(StorageError, match=r"cannot reach http://no-such-host.invalid:9000 .*resolve") as caught:
        open_storage("s3://bucket/x").exists("a")
    assert caught.value.trouble is Trouble.UNREACHABLE
    one_line(caught)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with a certificate of its own, and that certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key, root = folder / "cert.pem", folder / "key.pem", folder / "root"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    root.mkdir()
    with serving_s3(root, options=("--cert", str(certificate), "--key", str(key))) as running:
        yield running, certificate


def test_certificates(tls: tuple[Server, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    server, certificate = tls
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{server.port}")
    # An untrusted certificate stays untrusted: if it were tried again, there would be no end to it.
    monkeypatch.setenv("CLOC_S3_PATIENCE", "3600")
    monkeypatch.setattr("cloc.data.s3_http._STRANGER_PATIENCE_S", 3600)
    with pytest.raises(StorageError, match=r"certificate of https://\S+ is not trusted .*SSL_CERT_FILE") as caught:
        open_storage("s3://bucket/x").write_bytes("a", b"x")
    assert caught.value.trouble is Trouble.CERTIFICATE
    one_line(caught)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    storage = S3Storage("s3://bucket/x", part_bytes=5 << 20)
    body = bytes(range(256)) * 50_000  # in parts
    storage.write_bytes("a", body)
    assert storage.read_bytes("a") == body
    assert storage.read_range("a", offset=300, size=7) == body[300:307]


def test_http_and_https_mixed_up(tls: tuple[Server, Path], server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{server.port}")
    with pytest.raises(StorageError, match="does not speak TLS; write http:// in AWS_ENDPOINT_URL") as caught:
        open_storage("s3://bucket/x").exists("a")
    one_line(caught)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{tls[0].port}")
    with pytest.raises(StorageError, match=r"does not answer like S3 .*HTTPS server") as caught:
        open_storage("s3://bucket/x").read_bytes("a")
    one_line(caught)


def test_ranges_and_sizes() -> None:
    storage, body = open_storage("s3://bucket/range"), bytes(range(250))
    storage.write_bytes("a", body)
    storage.write_bytes("empty", b"")
    for offset, size in ((0, 0), (0, 1), (7, 100), (240, 100), (249, 1), (250, 1), (1000, 10)):
        assert storage.read_range("a", offset=offset, size=size) == body[offset : offset + size]
    for size in (0, 1, 250, 251):
        assert storage.read_tail("a", size) == (body[-size:] if size else b"")
    assert storage.read_tail("empty", 10) == storage.read_range("empty", offset=0, size=10) == b""
    assert (storage.size("a"), storage.size("empty")) == (250, 0)
    for act in (lambda: storage.read_range("b", offset=1, size=1), lambda: storage.size("b")):
        with pytest.raises(StorageError, match="there is no b") as caught:
            act()
        assert caught.value.trouble is Trouble.NO_OBJECT


@pytest.mark.parametrize(
    ("changes", "url", "message"),
    [
        ({"AWS_ENDPOINT_URL": ""}, "s3://bucket/x", "no S3 endpoint is configured; set AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "minio:9000"}, "s3://bucket/x", r"expected http\(s\)://host"),
        ({"AWS_ENDPOINT_URL": "http://h/path"}, "s3://bucket/x", r"expected http\(s\)://host"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "s3://bucket/x", "incomplete: AWS_SECRET_ACCESS_KEY is not set"),
        ({"AWS_ACCESS_KEY_ID": ""}, "s3://bucket/x", "incomplete: AWS_ACCESS_KEY_ID is not set"),
        ({"SSL_CERT_FILE": "/no/such/ca.pem"}, "s3://bucket/x", "SSL_CERT_FILE: there is no file /no/such/ca.pem"),
        ({}, "s3:///x", "the bucket is missing"),
        ({}, "s3://ab/x", "the bucket's name 'ab' is too short; such names have 3 to 63"),
        ({}, f"s3://{'a' * 64}/x", "is too long; such names have 3 to 63"),
        ({}, "s3://a_b c/x", "is wrong .*such names have 3 to 63"),
        ({}, "s3://127.0.0.1/x", "is wrong .*such names have 3 to 63"),
        ({"CLOC_S3_PATIENCE": "long"}, "s3://bucket/x", "CLOC_S3_PATIENCE: expected seconds from 0 on, got 'long'"),
        ({"CLOC_S3_TIMEOUT": "0"}, "s3://bucket/x", "CLOC_S3_TIMEOUT: expected seconds from 0.1 on, got '0'"),
        ({}, "s3://bucket/../x", "points outside"),
    ],
)
def test_incomplete_settings(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], url: str, message: str) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=message) as caught:
        open_storage(url)
    one_line(caught)


def test_the_other_endpoint_variable(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("S3_ENDPOINT_URL", server.endpoint)
    storage = open_storage("s3://bucket/variable")
    storage.write_bytes("a", b"x")
    assert storage.read_bytes("a") == b"x"


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x"])
def test_paths_out_of_the_prefix_are_refused(path: str) -> None:
    with pytest.raises(DataError, match="points outside s3://bucket/x"):
        open_storage("s3://bucket/x").write_bytes(path, b"x")


@contextlib.contextmanager
def serving(answer: bytes) -> Iterator[str]:
    """A server that answers everything alike."""
    listener = socket.create_server(("127.0.0.1", 0))

    def loop() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    client.recv(65_536)
                    client.sendall(answer)

    threading.Thread(target=loop, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
