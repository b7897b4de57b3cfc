"""An HTTP proxy in front of one server that misbehaves as told: for tests of what a client makes of it.

    with FaultyProxy(port) as proxy:
        proxy.faults.append(Fault("drop_answer", after=1000, times=2, method="GET"))
        ...  # talk to proxy.endpoint
        proxy.die()

Requests and answers pass through piece by piece; each of a client's connections has a thread.
"""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.client import HTTPConnection, HTTPResponse
from typing import Any, BinaryIO, Literal, Self

_PIECE = 16_384
_HOP = {"connection", "transfer-encoding", "keep-alive"}


@dataclass
class Fault:
    """One way to misbehave.

    Attributes:
        act: "drop_request" closes the connection when `after` bytes of the request's body have gone to the server,
            "drop_answer" when `after` bytes of the answer's body have come back; the stalls pause there for `seconds`
            and go on; "delay" waits before anything is done; "status" answers in the server's place with `status` and
            `code`; "skew" refuses as a server does whose clock is `seconds` ahead.
        times: how many requests it befalls; each use counts it down.
        method, target: which requests; "" takes any, `target` is a regular expression.
    """

    act: Literal["drop_request", "drop_answer", "stall_request", "stall_answer", "delay", "status", "skew"]
    after: int = 0
    times: int = 1
    seconds: float = 0.0
    method: str = ""
    target: str = ""
    status: int = 503
    code: str = "SlowDown"
    headers: Mapping[str, str] = field(default_factory=dict)

    def befalls(self, method: str, target: str) -> bool:
        """Whether it is this request's turn."""
        return self.times > 0 and self.method in ("", method) and re.search(self.target, target) is not None


class _Dropped(Exception):  # noqa: N818 (an event)
    """The connection to the client ends here."""


class FaultyProxy:
    """A proxy on a port of its own.

    Attributes:
        faults: the first that fits a request befalls it; can be changed at any time.
        requests: "METHOD /target" of every request seen.
        die_after: the proxy dies when it has seen so many requests; None: never.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._lock = threading.Lock()
        self._clients: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.die_after: int | None = None
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.revive()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def revive(self) -> None:
        """Listens (again), on the same port."""
        self.die_after = None
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def die(self) -> None:
        """Closes everything: from now on connections are refused."""
        listener, self._listener = self._listener, None
        if listener is not None:
            _end(listener)
        self.sever()

    def sever(self) -> None:
        """Closes the connections that are open."""
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            _end(client)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._clients.add(client)
        try:
            with contextlib.suppress(OSError, _Dropped), client.makefile("rb") as stream:
                while self._request(client, stream):
                    pass
        finally:
            with self._lock:
                self._clients.discard(client)
            _end(client)

    def _request(self, client: socket.socket, stream: BinaryIO) -> bool:
        first = stream.readline().decode("latin-1").split()
        if len(first) != 3:
            return False
        method, target = first[:2]
        headers: dict[str, str] = {}
        while line := stream.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.strip()] = value.strip()
        fault = self._choose(method, target)
        length = next((int(value) for name, value in headers.items() if name.lower() == "content-length"), 0)
        if fault and fault.act == "delay":
            time.sleep(fault.seconds)
        if fault and fault.act in ("status", "skew"):
            for _ in _pieces(stream, length):
                pass
            _refuse(client, method, fault)
            return True
        upstream = HTTPConnection("127.0.0.1", self._target_port, timeout=60)
        try:
            _send(upstream, method, target, headers, _pieces(stream, length), fault)
            _answer(client, method, upstream.getresponse(), fault)
        finally:
            upstream.close()
        return True

    def _choose(self, method: str, target: str) -> Fault | None:
        with self._lock:
            self.requests.append(f"{method} {target}")
            dies = self.die_after is not None and len(self.requests) > self.die_after
            fault = next((item for item in self.faults if item.befalls(method, target)), None)
            if fault is not None:
                fault.times -= 1
        if dies:
            self.die()
            raise _Dropped
        return fault


def _end(item: socket.socket) -> None:
    with contextlib.suppress(OSError):
        item.shutdown(socket.SHUT_RDWR)  # closing alone says nothing while another thread reads
    item.close()


def _pieces(stream: Any, length: int) -> Iterator[bytes]:
    while length and (piece := stream.read1(min(length, _PIECE))):
        length -= len(piece)
        yield piece
    if length:
        raise _Dropped


def _act(pieces: Iterator[bytes], fault: Fault | None, side: str) -> Iterator[bytes]:
    """The pieces of a body, with what the fault does to this side of the exchange."""
    passed, acts = 0, fault is not None and fault.act.endswith(side)
    for piece in pieces:
        if fault is not None and acts and passed + len(piece) > fault.after:
            yield piece[: fault.after - passed]
            _strike(fault)
            yield piece[fault.after - passed :]
            acts = False
        else:
            yield piece
        passed += len(piece)
    if fault is not None and acts:  # a body that is no longer than that
        _strike(fault)


def _strike(fault: Fault) -> None:
    if fault.act.startswith("drop"):
        raise _Dropped
    time.sleep(fault.seconds)


def _send(
    upstream: HTTPConnection,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: Iterator[bytes],
    fault: Fault | None,
) -> None:
    upstream.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        if name.lower() not in _HOP:
            upstream.putheader(name, value)
    upstream.endheaders()
    for piece in _act(body, fault, "request"):
        upstream.send(piece)


def _answer(client: socket.socket, method: str, response: HTTPResponse, fault: Fault | None) -> None:
    headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP}
    if response.chunked:
        whole = response.read()
        headers["Content-Length"], body = str(len(whole)), iter([whole])
    else:
        body = iter(lambda: response.read1(_PIECE), b"")
    if fault is not None and fault.act == "drop_answer" and fault.after == 0:
        raise _Dropped  # not even its head
    _head(client, response.status, response.reason, headers)
    if method == "HEAD":
        return
    passed = 0
    for piece in _act(body, fault, "answer"):
        client.sendall(piece)
        passed += len(piece)
    if passed != int(headers.get("Content-Length", passed)):
        raise _Dropped  # the server broke off: so must this connection


def _refuse(client: socket.socket, method: str, fault: Fault) -> None:
    skew = fault.act == "skew"
    status, code = (403, "RequestTimeTooSkewed") if skew else (fault.status, fault.code)
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
    body = body if code and method != "HEAD" else b""
    headers = {
        "Content-Type": "application/xml",
        "Content-Length": str(len(body)),
        "Date": format_datetime(datetime.now(UTC) + timedelta(seconds=fault.seconds if skew else 0), usegmt=True),
        **fault.headers,
    }
    _head(client, status, code or "Told", headers)
    client.sendall(body)


def _head(client: socket.socket, status: int, reason: str, headers: Mapping[str, str]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    client.sendall(f"HTTP/1.1 {status} {reason}\r\n{lines}\r\n".encode("latin-1"))
