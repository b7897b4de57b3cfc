"""The playground over real HTTP: answers, batches, limits, the door, and the end of a process."""

import http.client
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cloc import CLOC
from cloc.evaluation.models import EvaluatedModel
from cloc.playground import limits
from cloc.playground.settings import Settings
from tests.conftest import write_dataset
from tests.evaluated_models import write_model, write_public
from tests.playground_server import Answer, Server, running

CLIENTS = 50
LABELS = ["a red box", "a blue key", "a green ball"]
BOX = [0.1, 0.1, 0.5, 0.9]


def photo(seed: int = 0, *, size: tuple[int, int] = (96, 64)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {"CLOC": write_model(folder / "cloc", "cloc"), "CLIP": write_public(folder / "clip")}


@pytest.fixture(scope="module")
def server(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("playground")
    data = write_dataset(folder / "data", 12)
    with running(Settings(models, data=data, cache=str(folder / "cache"))) as server:
        yield server


def _classify(server: Server, model: str, image: str, **more: Any) -> Answer:
    body = {"model": model, "image": image, "regions": [{"box": BOX}], "labels": LABELS, **more}
    return server.post("/api/classify", body)


# Answers


def test_answers_are_the_model_s_own(server: Server, models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(photo())
    cloc = CLOC.from_pretrained(models["CLOC"])
    encoded = cloc.encode(tmp_path / "photo.png")
    image = server.upload(photo())
    answer = _classify(server, "CLOC", image).json
    assert answer["reader"] == "prompter"
    (region,) = answer["regions"]
    assert region["box"] == pytest.approx(BOX)
    (expected,) = encoded.classify([BOX], LABELS)
    assert region["ranking"][0]["label"] == expected.text
    assert region["ranking"][0]["score"] == pytest.approx(expected.score, abs=1e-4)
    assert sum(item["score"] for item in region["ranking"]) == pytest.approx(1)
    asked = {"model": "CLOC", "image": image, "regions": [{"box": BOX}]}
    embeddings = server.post("/api/embed", asked).json["embeddings"]
    np.testing.assert_allclose(embeddings, encoded.embed([BOX]), atol=1e-4)
    found = server.post("/api/find", {"model": "CLOC", "image": image, "phrase": LABELS[0]}).json
    x1, y1, x2, y2 = encoded.find(LABELS[0])
    assert found["box"] == pytest.approx([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], abs=1e-4)
    assert found["low"] <= found["high"]
    assert all(0 <= side <= 1 for side in found["peak"])


@pytest.mark.parametrize("reader", ["crop", "roi_align", "masked", None])
def test_a_public_clip_reads_regions_by_every_reader(server: Server, reader: str | None) -> None:
    image = server.upload(photo(1))
    more = {"reader": reader} if reader else {}
    answer = _classify(server, "CLIP", image, regions=[{"box": BOX}, {"point": [0.9, 0.5]}], **more)
    assert answer.json["reader"] == (reader or "crop")
    boxed, pointed = (region["box"] for region in answer.json["regions"])
    assert boxed == pytest.approx(BOX)
    assert pointed[0] < 0.9 < pointed[2] == 1
    found = server.post("/api/find", {"model": "CLIP", "image": image, "phrase": "a red box", **more})
    assert found.json["box"] is None
    assert found.json["picture"].startswith("data:image/jpeg;base64,")


def test_samples_are_listed_taken_and_searched(server: Server) -> None:
    listed = server.get("/api/samples?first=10&count=5").json
    assert (listed["total"], [item["key"] for item in listed["samples"]]) == (12, ["000010", "000011"])
    assert Image.open(io.BytesIO(server.get("/api/samples/11/thumbnail").body)).format == "JPEG"
    taken = server.post("/api/samples/11").json
    assert (taken["width"], taken["height"]) == (56, 56)
    shown = server.get(f"/api/images/{taken['image']}")
    assert Image.open(io.BytesIO(shown.body)).size == (56, 56)
    for model in ("CLOC", "CLIP"):
        hits = server.post("/api/search", {"model": model, "text": "a red box", "count": 3}).json["results"]
        assert len({hit["sample"] for hit in hits}) == 3
        region = {"box": hits[0]["box"]}
        image = server.post(f"/api/samples/{hits[0]['sample']}").json["image"]
        alike = server.post("/api/search", {"model": model, "image": image, "region": region}).json["results"]
        assert alike[0]["sample"] == hits[0]["sample"]
        assert alike[0]["score"] == pytest.approx(1, abs=1e-3)
    state = server.get("/api/state").json
    assert [(item["name"], item["grounds"], item["searchable"]) for item in state["models"]] == [
        ("CLOC", True, True),
        ("CLIP", False, True),
    ]


# Many at once


def _ask(server: Server, number: int) -> list[Answer]:
    """One client: a picture of its own, both models, labels of its own."""
    image = server.upload(photo(number))
    labels = [*LABELS, f"a yellow apple {number}"]
    return [
        *(_classify(server, model, image, labels=labels) for model in ("CLOC", "CLIP")),
        server.post("/api/find", {"model": "CLOC", "image": image, "phrase": labels[-1]}),
    ]


def test_fifty_clients_at_once_get_what_each_gets_alone(models: dict[str, str]) -> None:
    start = threading.Barrier(CLIENTS)

    def client(server: Server, number: int) -> list[Answer]:
        start.wait(60)
        return _ask(server, number)

    with running(Settings(models, cache="none")) as server, ThreadPoolExecutor(CLIENTS) as clients:
        together = list(clients.map(lambda number: client(server, number), range(CLIENTS)))
        metrics = server.get("/metrics").body.decode()
    assert {answer.status for answers in together for answer in answers} == {200}
    for model in ("CLOC", "CLIP"):
        assert _batches(metrics, model, "images") < CLIENTS
        assert _batches(metrics, model, "texts") < 3 + CLIENTS
    with running(Settings(models, cache="none", batch=1)) as server:
        for number in range(0, CLIENTS, 7):
            for mine, alone in zip(together[number], _ask(server, number), strict=True):
                assert _numbers(mine.json) == pytest.approx(_numbers(alone.json), abs=1e-4)
        assert _batches(server.get("/metrics").body.decode(), "CLOC", "images") == len(range(0, CLIENTS, 7))


def _batches(metrics: str, model: str, kind: str) -> float:
    found = re.search(rf'cloc_batch_size_count\{{kind="{kind}",model="{model}"\}} (\S+)', metrics)
    assert found, metrics
    return float(found[1])


def _numbers(answer: Any) -> list[float]:
    if isinstance(answer, dict):
        return [value for key in sorted(answer) for value in _numbers(answer[key])]
    if isinstance(answer, list):
        return [value for item in answer for value in _numbers(item)]
    return [answer] if isinstance(answer, float) else []


def test_a_full_queue_refuses_and_what_was_taken_is_answered(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    computing, release, embed = threading.Event(), threading.Event(), EvaluatedModel.embed_texts

    def slow(*args: Any, **options: Any) -> Any:
        computing.set()
        release.wait(60)
        return embed(*args, **options)

    monkeypatch.setattr(limits, "TEXTS_QUEUE", 3)
    monkeypatch.setattr(EvaluatedModel, "embed_texts", slow)
    only = {"CLOC": models["CLOC"]}
    with running(Settings(only, cache="none")) as server, ThreadPoolExecutor(10) as clients:
        image = server.upload(photo())
        asked = {"model": "CLOC", "image": image, "regions": [{"box": BOX}]}
        assert server.post("/api/embed", asked).status == 200
        waiting = [clients.submit(_classify, server, "CLOC", image, labels=["a", "b"])]
        assert computing.wait(60)
        for number in range(9):
            waiting.append(clients.submit(_classify, server, "CLOC", image, labels=[f"a {number}", f"b {number}"]))
        answers = list[Answer]()
        for future in as_completed(waiting):
            answers.append(future.result())
            if len(answers) == 8:  # one is computed, one waits
                release.set()
        assert sorted(answer.status for answer in answers) == [200] * 2 + [503] * 8
        refused = answers[0]
        assert refused.headers["retry-after"] == "1"
        assert refused.json == {"error": "too many requests wait; try again"}
        assert _classify(server, "CLOC", image).status == 200


def test_what_takes_too_long_at_the_end_is_told_so(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    computing, release, embed = threading.Event(), threading.Event(), EvaluatedModel.embed_texts

    def slow(*args: Any, **options: Any) -> Any:
        computing.set()
        release.wait(60)
        return embed(*args, **options)

    def ask(server: Server, image: str) -> Answer:
        try:
            return _classify(server, "CLOC", image)
        finally:
            release.set()

    monkeypatch.setattr(EvaluatedModel, "embed_texts", slow)
    with ThreadPoolExecutor(1) as clients:
        with running(Settings({"CLOC": models["CLOC"]}, cache="none"), grace=1) as server:
            asked = clients.submit(ask, server, server.upload(photo()))
            assert computing.wait(60)
        answer = asked.result()
    assert (answer.status, answer.json) == (503, {"error": "the server ends"})


# Limits and the door


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/api/classify", {"model": "GPT"}, 404, "there is no model 'GPT'; there are CLOC, CLIP"),
        ("/api/classify", {"image": "0" * 32}, 404, "not or no longer in memory"),
        ("/api/classify", {"image": "../../etc/passwd"}, 422, "image: String should match pattern"),
        ("/api/classify", {"reader": "roialign"}, 422, "CLOC cannot read regions by 'roialign'; it can by crop"),
        ("/api/classify", {"regions": []}, 422, "regions: List should have at least 1 item"),
        ("/api/classify", {"regions": [{"box": BOX}] * 33}, 422, "at most 32 items"),
        ("/api/classify", {"regions": [{"box": [0.5, 0.1, 0.1, 0.9]}]}, 422, "degenerate box"),
        ("/api/classify", {"regions": [{"box": [0, 0, 1, 2]}]}, 422, "less than or equal to 1"),
        ("/api/classify", {"regions": [{"box": [0, 0, 1, float("nan")]}]}, 422, "finite number"),
        ("/api/classify", {"regions": [{"box": BOX, "point": [0.1, 0.1]}]}, 422, "give a box or a point"),
        ("/api/classify", {"regions": [{"area": BOX}]}, 422, "Extra inputs are not permitted"),
        ("/api/classify", {"labels": ["a"] * 101}, 422, "at most 100 items"),
        ("/api/classify", {"labels": ["a" * 301]}, 422, "at most 300 characters"),
        ("/api/classify", {"labels": [" "]}, 422, "at least 1 character"),
        ("/api/classify", {"labels": ["\ud800"]}, 422, "labels.0"),
        ("/api/find", {"phrase": ""}, 422, "phrase"),
        ("/api/search", {"text": "a", "count": 1000}, 422, "count: Input should be less than or equal to 60"),
        ("/api/search", {}, 422, "give a text, or an image and a region of it"),
        ("/api/samples/99", None, 404, "there is no sample 99; there are 12"),
        ("/api/samples/-1", None, 422, "greater than or equal to 0"),
        ("/api/samples/..%2f..%2fetc", None, 404, "Not Found"),
        ("/scripts/..%2fserver.py", None, 404, "Not Found"),
    ],
)
def test_what_cannot_be_asked_is_said(server: Server, path: str, body: Any, status: int, reason: str) -> None:
    known = {
        "/api/classify": {"regions": [{"box": BOX}], "labels": LABELS},
        "/api/find": {"phrase": "a"},
    }.get(path, {})
    image = {"image": server.upload(photo())} if known else {}
    answer = server.post(path, None if body is None else {"model": "CLOC", **image, **known, **body})
    assert (answer.status, reason in answer.json["error"]) == (status, True), answer.body
    assert "\n" not in answer.json["error"]


@pytest.mark.parametrize(
    ("body", "kind"), [(b"{bad", "application/json"), (b"[1]", "application/json"), (b"{}", "text/plain")]
)
def test_a_body_that_is_no_json_is_said(server: Server, body: bytes, kind: str) -> None:
    answer = server.request("POST", "/api/find", body, {"content-type": kind})
    assert answer.json == {"error": "the body is no JSON object sent as application/json"}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 422, "the file: empty file"),
        (b"GIF89a" + b"\0" * 50, 422, "the file: "),
        (photo()[:200], 422, "the file: cannot be decoded"),
        (b"\0" * (limits.IMAGE_BYTES + 1), 413, "at most 20 MiB"),
        (photo(size=(16, 16)) + b"<script>", 200, ""),
    ],
)
def test_files_are_checked_by_content(server: Server, body: bytes, status: int, reason: str) -> None:
    answer = server.request("POST", "/api/images", body)
    assert answer.status == status
    assert reason in answer.json.get("error", "")


def test_too_many_pixels_are_refused_by_the_header(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IMAGE_PIXELS", 96 * 64 - 1)
    answer = server.request("POST", "/api/images", photo(3))
    assert answer.json == {"error": "the file: too many pixels (96x64, at most 6143)"}


@pytest.mark.parametrize(("path", "size"), [("/api/images", limits.IMAGE_BYTES), ("/api/find", limits.BODY_BYTES)])
def test_a_body_that_does_not_say_its_size_is_counted(server: Server, path: str, size: int) -> None:
    piece = b"\0" * 65536

    def pieces() -> Iterator[bytes]:
        for _ in range(size // len(piece) + 1):
            yield piece

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", path, body=pieces(), headers={"content-type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_that_does_not_arrive_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(b"POST /api/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")


def test_all_bodies_together_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "UPLOADS_BYTES", 1000)
    answer = server.request("POST", "/api/images", b"\0" * 1001)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert server.request("POST", "/api/images", b"\0" * 999).status == 422  # what was counted is given back


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:1"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "192.168.0.7:7860"}, 200),  # no name that a name server could turn
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://localhost:7860", "host": "localhost:7860"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:8000", "host": "localhost:7860"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_only_this_server_s_own_pages_ask(server: Server, headers: dict[str, str], status: int) -> None:
    answer = server.request("POST", "/api/samples/0", headers=headers)
    assert answer.status == status
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_name_that_is_allowed_is_served(models: dict[str, str]) -> None:
    settings = Settings({"CLOC": models["CLOC"]}, cache="none", allowed_hosts=("gpu-box.local",))
    with running(settings) as server:
        assert server.get("/health", host="GPU-box.local:7860").status == 200
        assert server.get("/health", host="gpu-box.evil").status == 403


# A service


def test_health_metrics_and_schema(server: Server) -> None:
    assert server.get("/health").json == {"status": "ok", "models": ["CLOC", "CLIP"], "version": "0.1.0"}
    server.get("/no/such/page")
    metrics = server.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = metrics.body.decode()
    assert 'cloc_requests_total{method="GET",route="/health",status="200"}' in text
    assert 'cloc_requests_total{method="GET",route="other",status="404"}' in text
    assert 'cloc_index_images{model="CLIP"} 12.0' in text
    assert "process_resident_memory_bytes" in text
    schema = server.get("/openapi.json").json
    assert schema["openapi"].startswith("3.")
    assert "#/components/schemas/ClassifyRequest" in str(schema["paths"]["/api/classify"])


@pytest.mark.parametrize("path", ["/", "/docs", "/page.css", "/scripts/page.js", "/health"])
def test_pages_need_no_other_host(server: Server, path: str) -> None:
    answer = server.get(path)
    assert answer.status == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(rb"(src|href)=[\"']?(https?:)?//|@import|url\(", answer.body)


def test_without_data_there_is_nothing_to_search(models: dict[str, str]) -> None:
    with running(Settings({"CLOC": models["CLOC"]}, cache="none")) as server:
        assert server.get("/api/state").json["data"] is None
        assert server.get("/api/samples").json == {"error": "this playground was started without --data"}


def test_an_index_that_is_not_whole_is_said(models: dict[str, str], make_dataset: Callable[..., str], tmp_path: Path):
    settings = Settings({"CLOC": models["CLOC"]}, data=make_dataset(tmp_path / "data", 4), cache="none")
    with running(settings, index=False) as server:
        answer = server.post("/api/search", {"model": "CLOC", "text": "a"})
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert answer.json == {"error": "the index of CLOC is not there: 0 of 4 images are indexed"}


# The end


@pytest.mark.parametrize(
    ("number", "code", "host", "warning"),
    [
        (signal.SIGTERM, 0, "127.0.0.1", ""),
        (signal.SIGINT, 130, "0.0.0.0", "warning: bound to 0.0.0.0: everybody who reaches this machine can use"),
    ],
)
def test_a_signal_ends_it_after_what_is_being_answered(
    number: signal.Signals, code: int, host: str, warning: str, models: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "from cloc.cli import main; main()", "playground", "--port", "0", "--host", host]
    body = photo()
    process = subprocess.Popen(
        [*command, "--model", f"CLOC={models['CLOC']}", "--data", write_dataset(tmp_path / "data", 4)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CLOC_CACHE": str(tmp_path / "cache")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    try:
        assert process.stdout is not None
        assert not warning or process.stdout.readline().startswith(warning)
        found = re.search(rf"http://{host}:(\d+) \(CLOC\); Ctrl-C ends it", process.stdout.readline())
        assert found, process.stderr and process.stderr.read()
        server = Server(int(found[1]), None)
        assert server.get("/health").status == 200
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            head = f"POST /api/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body[:20])
            assert "regions of 4 images indexed" in process.stdout.readline()
            while "cloc_requests_running 2.0" not in server.get("/metrics").body.decode():
                threading.Event().wait(0.05)  # until the file has begun to arrive
            process.send_signal(number)
            assert _closes(server)
            client.sendall(body[20:])
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert (out, errors.strip()) == ("", "interrupted" if code == 130 else "")


def _closes(server: Server) -> bool:
    """Whether the server stops to take new requests."""
    for _ in range(600):
        try:
            server.get("/health")
        except OSError:
            return True
        threading.Event().wait(0.1)
    return False
