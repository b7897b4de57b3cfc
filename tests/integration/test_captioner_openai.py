"""Captioning by an OpenAI-compatible endpoint: a local server that misbehaves in every way, and what comes of it."""

import base64
import io
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from cloc.config import Config
from cloc.data.dataset import Dataset, LabeledSample
from cloc.data.shards import Sample
from cloc.errors import ClocError, ConfigError
from cloc.labeling import captioning, endpoint, endpoint_state
from cloc.labeling.captioner_openai import OpenAICaptioner, read_answer
from cloc.labeling.captioners import QUESTION
from cloc.labeling.endpoint import Refused, TryAgain
from cloc.labeling.worker import Item

KEY = "sk-secret-of-the-tests"


def completion(text, **choice) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop", **choice}]}).encode()


@dataclass
class Answer:
    """What the server does with a request.

    Attributes:
        body: what it sends.
        length: Content-Length that it claims; the body's own when None.
        hang: seconds before it sends anything, or until the server is told to let go.
        drip: seconds between single bytes.
        silent: closes the connection without a word.
    """

    body: bytes = b""
    status: int = 200
    headers: dict = field(default_factory=dict)
    length: int | None = None
    hang: float = 0.0
    drip: float = 0.0
    silent: bool = False


@dataclass
class Seen:
    """A request: which image (its prompt ends in the key), which attempt at it, when, and what it held."""

    image: str
    attempt: int
    start: float
    request: dict
    headers: dict
    end: float = 0.0


class Server:
    """Answers by `behave(seen)`; keeps a log of all requests."""

    def __init__(self) -> None:
        self.behave = lambda seen: Answer(completion(f"a caption of {seen.image}"))
        self.log: list[Seen] = []
        self.most = self.active = 0
        self.lock, self.released = threading.Lock(), threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, *_) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, *_) -> None:
                pass  # clients that give up are what is tested

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        image = request["messages"][0]["content"][1]["text"].rpartition(" ")[2]
        with self.lock:
            attempt = sum(seen.image == image for seen in self.log) + 1
            seen = Seen(image, attempt, time.monotonic(), request, dict(handler.headers))
            self.log.append(seen)
            self.active += 1
            self.most = max(self.most, self.active)
        try:
            self.send(handler, self.behave(seen))
        finally:
            with self.lock:
                self.active -= 1
            seen.end = time.monotonic()

    def send(self, handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        if answer.hang:
            self.released.wait(answer.hang)
        if answer.silent:
            handler.close_connection = True
            return
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        length = len(answer.body) if answer.length is None else answer.length
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        if answer.drip:
            for byte in answer.body:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(answer.drip)
        else:
            handler.wfile.write(answer.body)
        handler.close_connection = length != len(answer.body)

    @property
    def attempts(self) -> dict[str, int]:
        return dict(Counter(seen.image for seen in self.log))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(endpoint, "_LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(endpoint, "_LOOK", 0.05)
    server = Server()
    yield server
    server.released.set()
    server.http.shutdown()
    server.http.server_close()


def settings(url: str, **changes) -> Config:
    section = {
        "backend": "openai",
        "model": "vision",
        "batch_size": 4,
        "alt_text_prompt": "what is {alt_text}",
        "endpoint": {"base_url": url, "retries": 2, "concurrency": 4, "timeout": 5.0} | changes.pop("endpoint", {}),
        **changes,
    }
    return Config.model_validate({"captioning": section, "data": {"quarantine_limit": 0.5}})


def captioner(server, **changes) -> OpenAICaptioner:
    return OpenAICaptioner(settings(server.url, **changes).captioning)


def item(key: str, image: Image.Image | None = None, *, alt_text: str | None = None) -> Item:
    meta = {"alt_text": key if alt_text is None else alt_text}
    return Item(image or Image.new("RGB", (20, 10), "red"), LabeledSample(Sample(key, b"", meta=meta)))


def ask(backend: OpenAICaptioner, *keys: str) -> dict:
    said = backend.caption([backend.prepare(item(key)) for key in keys])
    return dict(zip(keys, said, strict=True))


# What is sent.


def test_a_request_holds_the_question_the_image_and_the_settings(server, monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    generation = {"max_new_tokens": 33, "temperature": 0.5, "top_p": 0.9, "seed": 7}
    backend = captioner(server, generation=generation, endpoint={"api_key_variable": "THE_KEY"})
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).resize((400, 300))
    (said,) = backend.caption([backend.prepare(item("a", picture))])
    assert (said.texts, said.refused) == (("a caption of a",), "")
    (seen,) = server.log
    assert seen.headers["Authorization"] == f"Bearer {KEY}"
    request = seen.request
    expected = {"model": "vision", "max_tokens": 33, "temperature": 0.5, "top_p": 0.9}
    assert {name: request[name] for name in expected} == expected
    assert 0 <= request["seed"] < 2**31
    image, text = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is a"}
    start, _, body = image["image_url"]["url"].partition(",")
    assert start == "data:image/jpeg;base64"
    sent = Image.open(io.BytesIO(base64.b64decode(body)))
    assert sent.size == (400, 300)
    assert np.abs(np.asarray(sent, dtype=int) - np.asarray(picture, dtype=int)).mean() < 8


def test_what_is_not_set_is_left_to_the_endpoint_and_no_key_is_sent(server):
    ask(captioner(server), "a")
    (seen,) = server.log
    assert set(seen.request) == {"model", "messages", "max_tokens", "seed"}
    assert "Authorization" not in seen.headers


def test_seeds_are_those_of_the_image_and_the_setting(server):
    first = [captioner(server).prepare(item(key)).body for key in "ab"]
    assert [captioner(server, batch_size=1).prepare(item(key)).body for key in "ab"] == first
    seeds = [json.loads(body)["seed"] for body in first]
    assert len({*seeds, json.loads(captioner(server, generation={"seed": 1}).prepare(item("a")).body)["seed"]}) == 3


@pytest.mark.parametrize(
    ("side", "size", "sent"), [(64, (200, 100), (64, 32)), (64, (1, 2000), (1, 64)), (0, (200, 100), (200, 100))]
)
def test_large_images_are_sent_smaller(server, side, size, sent):
    request = json.loads(
        captioner(server, endpoint={"image_side": side}).prepare(item("a", Image.new("RGB", size))).body
    )
    body = request["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == sent


def test_images_without_alt_text_are_asked_the_plain_question(server):
    backend = captioner(server)
    assert backend.prepare(item("a", alt_text=" \u200b ")).prompt.text == QUESTION
    said = backend.caption([backend.prepare(item("a", alt_text="")), backend.prepare(item("b"))])
    assert [one.prompt for one in said] == [QUESTION, "what is"]


# What goes wrong for a while.

PASSING = {
    "429": Answer(b"{}", status=429),
    "429 at once": Answer(b"", status=429, headers={"Retry-After": "0"}),
    "500": Answer(b"oh", status=500),
    "503": Answer(b"<html>busy</html>", status=503),
    "408": Answer(b"", status=408),
    "garbage": Answer(b"\xff\xfe not json"),
    "no completion": Answer(b'{"error": {"message": "in a 200"}}'),
    "no choices": Answer(b'{"choices": []}'),
    "a list": Answer(b"[1, 2]"),
    "deep": Answer(b"[" * 100_000),
    "nothing at all": Answer(b""),
    "half a body": Answer(completion("a dog")[:20], length=500),
    "truncated JSON": Answer(completion("a dog")[:-10]),
    "connection closed": Answer(silent=True),
    "no answer": Answer(hang=30.0),
    "an answer in drops": Answer(completion("a dog") * 9, drip=0.1),
    "empty": Answer(completion("")),
    "white space": Answer(completion(" \n")),
    "no content": Answer(completion(None)),
    "cut before a word": Answer(completion("", finish_reason="length")),
    "huge": Answer(b"x" * (5 << 20)),
}
REASONS = {
    "429": "endpoint: HTTP 429",
    "429 at once": "endpoint: HTTP 429",
    "500": "endpoint: HTTP 500",
    "503": "endpoint: HTTP 503",
    "408": "endpoint: HTTP 408",
    "half a body": "endpoint: connection lost, or half an answer",
    "connection closed": "endpoint: connection lost, or half an answer",
    "no answer": "endpoint: no answer in time",
    "an answer in drops": "endpoint: no answer in time",
    "empty": "endpoint: empty answer",
    "white space": "endpoint: empty answer",
    "no content": "endpoint: empty answer",
    "cut before a word": "endpoint: empty answer, at its longest (generation.max_new_tokens)",
    "huge": "endpoint: answer too large",
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_retried_and_what_stays_costs_only_that_image(server, name):
    """The first answer about "unlucky" is bad, every answer about "cursed" is."""

    def behave(seen):
        bad = seen.image == "cursed" or (seen.image == "unlucky" and seen.attempt == 1)
        return PASSING[name] if bad else Answer(completion(f"a caption of {seen.image}"))

    server.behave = behave
    waits = name in ("no answer", "an answer in drops")
    changes = {"timeout": 1.0, "retries": 1} if waits else {"timeout": 20.0, "retries": 2}
    said = ask(captioner(server, endpoint=changes), "fine", "unlucky", "cursed", "good")
    assert {key: one.texts for key, one in said.items()} == {
        key: () if key == "cursed" else (f"a caption of {key}",) for key in said
    }
    assert said["cursed"].refused == REASONS.get(name, "endpoint: its answer is no chat completion")
    assert server.attempts == {"fine": 1, "good": 1, "unlucky": 2, "cursed": changes["retries"] + 1}


def test_retry_after_is_waited_for_by_everyone(server):
    first = threading.Event()

    def behave(seen):
        if not first.is_set():
            first.set()
            return Answer(b"{}", status=429, headers={"Retry-After": "0.5"})
        return Answer(completion("a dog"))

    server.behave = behave
    backend = captioner(server, endpoint={"concurrency": 1})
    said = ask(backend, "a", "b", "c")
    assert all(one.texts == ("a dog",) for one in said.values())
    starts = sorted(seen.start for seen in server.log)
    assert len(starts) == 4
    assert starts[1] - starts[0] >= 0.45


def test_retry_after_may_be_a_date_and_nonsense_is_ignored():
    assert 8 < endpoint._retry_after(formatdate(time.time() + 10, usegmt=True)) <= 10
    assert endpoint._retry_after(formatdate(time.time() - 10, usegmt=True)) == 0
    assert endpoint._retry_after("7") == 7
    assert endpoint._retry_after("1e9") == endpoint._LONGEST_WAIT
    assert [endpoint._retry_after(value) for value in ("", "soon", "-3", "nan")] == [0, 0, 0, 0]


def test_pauses_double_up_to_a_limit_and_vary():
    for attempt, longest in enumerate((0.5, 1, 2, 4, 8, 16, 30, 30)):
        pauses = [endpoint._pause(attempt) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


# What an image alone is refused for.


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(b'{"error": {"message": "image too large"}}', status=400), "endpoint: HTTP 400: image too large"),
        (Answer(b'{"detail": "unprocessable"}', status=422), "endpoint: HTTP 422: unprocessable"),
        (Answer(b"<b>too\x00\nlarge</b>", status=413), "endpoint: HTTP 413: <b>too large</b>"),
        (Answer(completion("", finish_reason="content_filter")), "endpoint: the model or its filter refused the image"),
        (
            Answer(b'{"choices": [{"message": {"content": null, "refusal": "no"}}]}'),
            "endpoint: the model or its filter refused the image",
        ),
    ],
)
def test_a_refused_image_is_not_asked_again(server, answer, reason):
    server.behave = lambda seen: answer if seen.image == "bad" else Answer(completion("a dog"))
    said = ask(captioner(server), "good", "bad", "fine")
    assert said["bad"].refused == reason
    assert said["good"].texts == said["fine"].texts == ("a dog",)
    assert server.attempts["bad"] == 1


def test_a_whole_batch_of_refused_images_among_good_ones_stops_nothing(server):
    server.behave = lambda seen: Answer(status=400) if seen.image.startswith("bad") else Answer(completion("a dog"))
    backend = captioner(server)
    ask(backend, "good")
    for batch in range(10):
        said = ask(backend, *(f"bad{batch}-{number}" for number in range(4)))
        assert {one.refused for one in said.values()} == {"endpoint: HTTP 400"}


def test_a_message_is_cut_and_the_key_never_shown(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    body = json.dumps({"error": {"message": f"bad key {KEY}: " + "x" * 1000}}).encode()
    server.behave = lambda seen: Answer(body, status=400)
    (said,) = ask(captioner(server), "a").values()
    assert said.refused.startswith("endpoint: HTTP 400: bad key ***: xxx")
    assert len(said.refused) < 200
    server.behave = lambda seen: Answer(body, status=401)
    with pytest.raises(ConfigError) as error:
        ask(captioner(server), "a")
    assert KEY not in str(error.value)


# What stops the stage.


@pytest.mark.parametrize(
    ("answer", "kind", "line"),
    [
        (Answer(b'{"error": "who?"}', status=401), ConfigError, r"_variable: .* refuses the key \(HTTP 401: who\?\)"
         r"; the environment variable OPENAI_API_KEY is not set"),
        (Answer(status=403), ConfigError, r"api_key_variable: .* refuses the key \(HTTP 403\)"),
        (Answer(b'{"error": {"message": "none"}}', status=404), ConfigError, r"knows no model 'vision'.*none"),
        (Answer(status=405), ConfigError, "base_url: .* takes no requests"),
        (Answer(status=301, headers={"Location": "/"}), ConfigError, "base_url: .* takes no requests"),
        (Answer(b'{"error": {"code": "insufficient_quota"}}', status=429), ClocError, "wants to be paid"),
        (Answer(status=402), ClocError, "wants to be paid"),
    ],
)  # fmt: skip
def test_who_refuses_everyone_stops_the_stage_at_once(server, answer, kind, line):
    server.behave = lambda seen: Answer(completion("a dog")) if len(server.log) == 1 else answer
    backend = captioner(server)
    ask(backend, "good")
    with pytest.raises(kind, match=rf"^captioning\.endpoint.*{line}") as error:
        ask(backend, "a", "b")
    assert "\n" not in str(error.value)
    with pytest.raises(kind, match=line):
        ask(backend, "c")
    assert "c" not in server.attempts


def test_an_endpoint_that_is_not_there_stops_the_stage_at_once(server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(
        ConfigError, match=r"^captioning.endpoint.base_url: nothing answers at http://127.* \(.*refused"
    ):
        ask(captioner(server, endpoint={"retries": 1000}), "a", "b")


def test_a_name_that_nobody_knows_stops_the_stage_at_once(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    backend = OpenAICaptioner(settings("http://nowhere.invalid/v1", endpoint={"retries": 1000}).captioning)
    with pytest.raises(
        ConfigError, match=r"^captioning.endpoint.base_url: nothing answers at http://nowhere.invalid/v1/"
    ):
        ask(backend, "a")


def test_an_endpoint_that_never_says_a_word_stops_the_stage(server):
    server.behave = lambda seen: Answer(hang=30.0)
    with pytest.raises(ClocError, match=r"fails: .* 3 attempts each \(the last: endpoint: no answer in time\)"):
        ask(captioner(server, endpoint={"timeout": 0.2}), "a", "b", "c", "d")


@pytest.mark.parametrize("answer", [Answer(status=500), Answer(b"garbage"), Answer(silent=True), Answer(status=429)])
def test_an_endpoint_that_fails_everyone_from_the_start_stops_the_stage(server, answer):
    server.behave = lambda seen: answer
    with pytest.raises(ClocError, match=r"^captioning.endpoint: .* fails: .* in a row without a text"):
        ask(captioner(server), "a", "b", "c")
    assert all(count == 3 for count in server.attempts.values())


def test_an_endpoint_that_dies_on_the_way_stops_the_stage_before_many_images_are_lost(server):
    server.behave = lambda seen: Answer(status=500) if seen.image.startswith("late") else Answer(completion("a dog"))
    backend = captioner(server, batch_size=16)
    ask(backend, *(f"early{number}" for number in range(20)))
    with pytest.raises(ClocError, match=r"fails: 8 images in a row without a text, 3 attempts each .*HTTP 500"):
        ask(backend, *(f"late{number}" for number in range(16)))


def test_failures_between_successes_stop_nothing(server):
    server.behave = lambda seen: Answer(status=500) if seen.image.startswith("bad") else Answer(completion("a dog"))
    backend = captioner(server)
    ask(backend, "good")
    for batch in range(4):
        said = ask(backend, *(f"bad{batch}-{number}" for number in range(7)))
        assert {one.refused for one in said.values()} == {"endpoint: HTTP 500"}
        ask(backend, f"good{batch}")


def test_an_endpoint_that_refuses_all_the_first_images_stops_the_stage(server):
    server.behave = lambda seen: Answer(b'{"error": {"message": "no images, please"}}', status=400)
    backend = captioner(server, endpoint={"concurrency": 8})
    assert backend.in_flight * 4 == 16
    for batch in range(3):
        ask(backend, *(f"{batch}-{number}" for number in range(4)))
    with pytest.raises(ClocError, match=r"refused all of the first 16 images \(the last: .*no images, please\)"):
        ask(backend, *(f"last-{number}" for number in range(4)))


def test_a_stop_does_not_wait_for_answers_that_do_not_come(server):
    server.behave = lambda seen: Answer(hang=30.0) if seen.image != "a" else Answer(hang=0.1, status=401)
    backend = captioner(server, endpoint={"timeout": 60.0})
    start = time.monotonic()
    with pytest.raises(ConfigError, match="refuses the key"):
        ask(backend, "b", "a", "c")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("url", ["vllm:8000", "ftp://host/v1", "http://", "http://host:port/v1", "nonsense"])
def test_a_url_that_is_none_is_one_clear_line(url):
    with pytest.raises(ConfigError, match=r"^captioning.endpoint.base_url: no http or https URL"):
        OpenAICaptioner(settings(url).captioning)


def test_a_password_in_the_url_and_a_broken_key_are_refused_and_not_shown(server, monkeypatch):
    with pytest.raises(ConfigError, match=r"base_url: the URL of host has a user") as error:
        OpenAICaptioner(settings("http://me:hunter2@host/v1").captioning)
    assert "hunter2" not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two\nlines")
    with pytest.raises(ConfigError, match=r"OPENAI_API_KEY holds no key") as error:
        captioner(server)
    assert "two" not in str(error.value)
    with pytest.raises(ConfigError, match=r"^captioning.model is empty"):
        captioner(server, model="")


def test_proxies_are_those_of_the_environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    plain = endpoint._client("http://vllm:8000/v1", connections=1, timeout=1.0)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "localhost,.cluster.local")
    through = endpoint._client("http://vllm:8000/v1", connections=1, timeout=1.0)
    around = endpoint._client("http://vllm.cluster.local:8000/v1", connections=1, timeout=1.0)
    assert [client.proxy and client.proxy.url for client in (plain, through, around)] == [
        None,
        "http://proxy:3128",
        None,
    ]


# Concurrency and rate.


def test_requests_of_several_batches_fill_the_endpoint_and_never_more(server):
    """The server holds every answer until it has as many requests as may be under way: no clock is needed."""
    full = threading.Event()

    def behave(seen):
        if server.active == 6:
            full.set()
        assert full.wait(20)
        time.sleep(0.01)
        return Answer(completion("a dog"))

    server.behave = behave
    backend = captioner(server, endpoint={"concurrency": 6, "timeout": 30.0})
    assert backend.in_flight == 4
    batches = [[f"{batch}-{number}" for number in range(4)] for batch in range(backend.in_flight)]
    threads = [threading.Thread(target=ask, args=(backend, *keys)) for keys in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.log) == 16
    assert server.most == 6


def test_an_image_that_pauses_before_its_retry_keeps_no_other_waiting(server, monkeypatch):
    monkeypatch.setattr(endpoint, "_FIRST_PAUSE", 1.0)
    monkeypatch.setattr(endpoint, "_LONGEST_PAUSE", 1.0)
    server.behave = lambda seen: (
        Answer(status=500) if seen.image == "slow" and seen.attempt == 1 else Answer(completion("a dog"))
    )
    ask(captioner(server, endpoint={"concurrency": 1}), "slow", *(f"fast{number}" for number in range(3)))
    assert [seen.image for seen in sorted(server.log, key=lambda seen: seen.start)][-1] == "slow"


def test_the_rate_limit_holds_in_the_servers_own_log(server):
    backend = captioner(server, batch_size=12, endpoint={"requests_per_minute": 300, "concurrency": 12})
    said = ask(backend, *(str(number) for number in range(12)))
    assert all(one.texts for one in said.values())
    # A second's worth (5) may come at once; the other 7 come one in 0.2 s.
    starts = sorted(seen.start for seen in server.log)
    assert starts[-1] - starts[0] >= 0.7


def test_the_gate_lets_a_seconds_worth_through_then_the_rate():
    now = [100.0]
    gate = endpoint_state.Gate(300, clock=lambda: now[0])
    assert [round(gate.reserve(), 6) for _ in range(7)] == [0, 0, 0, 0, 0, 0.2, 0.4]
    now[0] += 10
    assert [round(gate.reserve(), 6) for _ in range(6)] == [0, 0, 0, 0, 0, 0.2]
    slow = endpoint_state.Gate(6, clock=lambda: now[0])
    assert [round(slow.reserve(), 6) for _ in range(3)] == [0, 10, 20]
    free = endpoint_state.Gate(0, clock=lambda: now[0])
    assert [free.reserve() for _ in range(100)] == [0.0] * 100
    free.pause(3)
    assert free.reserve() == 3


def test_processes_share_the_concurrency_and_the_rate(server):
    backend = captioner(server, processes=3, endpoint={"concurrency": 9, "requests_per_minute": 180})
    assert backend._endpoint._slots._value == 3
    assert backend._endpoint._gate._interval == pytest.approx(1.0)


# Answers.


def test_answers_in_parts_and_cut_ones_are_read():
    parts = [{"type": "text", "text": "a "}, {"type": "other"}, {"type": "text", "text": "dog"}]
    assert read_answer(completion(parts)) == "a dog"
    assert read_answer(completion("a dog on a", finish_reason="length")) == "a dog on a"
    assert read_answer(json.dumps({"choices": [{"message": {"content": "a dog"}}]}).encode()) == "a dog"


@pytest.mark.parametrize("content", [{"a": 1}, 7, ["a"], [{"type": "text"}], True])
def test_content_of_a_strange_type_is_tried_again(content):
    with pytest.raises(TryAgain):
        read_answer(completion(content))


def test_a_refusal_of_the_model_is_not_tried_again():
    with pytest.raises(Refused):
        read_answer(b'{"choices": [{"message": {"content": "", "refusal": "I cannot"}}]}')


# The stage.


def test_the_stage_captions_by_the_endpoint_and_quarantines_what_it_refuses(server, tmp_path, make_dataset):
    data = make_dataset(tmp_path / "data", 8)
    things = [sample.sample.meta["alt_text"].rpartition(" ")[2] for sample in Dataset.open(data).read_all()]
    bad = things[0]

    def behave(seen):
        if seen is server.log[0]:
            return Answer(status=500)
        if seen.image == bad:
            return Answer(completion("I'm sorry, I can't help with that."))
        return Answer(completion(f"a photograph of the {seen.image}"))

    server.behave = behave
    config = settings(server.url)
    config = config.model_copy(update={"data": config.data.model_copy(update={"quarantine_limit": 1.0})})
    result = captioning.run(
        config, inputs=captioning.Inputs(data=data), outputs=captioning.Outputs(captions=str(tmp_path / "out"))
    )
    assert len(server.log) == 9
    samples = list(Dataset.open(data, captions=tmp_path / "out").read_all())
    assert 0 < result.counts["quarantined"] == things.count(bad) < 8
    for sample in samples:
        alt_text = sample.sample.meta["alt_text"]
        thing = alt_text.rpartition(" ")[2]
        rows = [(row["text"], row["kind"], row["model"]) for row in sample.captions]
        expected = [(f"a photograph of the {thing}", "generated", "vision"), (alt_text, "alt_text", "")]
        assert rows == ([] if thing == bad else expected)
