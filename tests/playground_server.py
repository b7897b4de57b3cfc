"""A playground on a free port, in a thread of the test's process.

with running(Settings({"CLOC": folder}, port=0)) as server:
    server.post("/api/classify", {...})
"""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from cloc.playground.index import Indexer
from cloc.playground.opening import opened
from cloc.playground.settings import Settings


@dataclass(frozen=True)
class Answer:
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    port: int
    indexer: Indexer | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Sends a request over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        """Sends JSON."""
        return self.request("POST", path, json.dumps(body), {"content-type": "application/json", **headers})

    def upload(self, body: bytes) -> str:
        """Sends a picture and returns its name."""
        answer = self.request("POST", "/api/images", body)
        assert answer.status == 200, answer.body
        return answer.json["image"]


@contextmanager
def running(settings: Settings, *, index: bool = True, grace: int = 60) -> Iterator[Server]:
    """Serves until the end of the block; with data, the index is whole at its beginning unless told otherwise.

    Args:
        grace: seconds that answers may take at the end.
    """
    with opened(settings) as made:
        config = uvicorn.Config(
            made.app,
            host="127.0.0.1",
            port=0,
            log_level="warning",
            lifespan="off",
            timeout_graceful_shutdown=grace,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                threading.Event().wait(0.01)
            if made.indexer and index:
                made.indexer.start()
                made.indexer.wait()
            (listening,) = server.servers[0].sockets
            yield Server(listening.getsockname()[1], made.indexer)
        finally:
            server.should_exit = True
            thread.join()
