"""The door: who is let in, how much a request may carry and how long it may take, and what every answer says.

A page of another site that a browser shows can send requests to this machine. Names that are not this server's are
refused (DNS rebinding), and so are requests that change something and come from another page; no CORS header is sent.
"""

import asyncio
import time
from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloc.playground import limits
from cloc.playground.meters import Meters

UPLOAD = "/api/images"
_READS = ("GET", "HEAD")
_UNANSWERED = 500  # what uvicorn answers where the application does not
_READ_ON = 10  # times the limit that a body which is too large is read on, so that its sender is told
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Middleware around the whole application.

    Args:
        app: the application.
        names: host names that are served, beside localhost and plain addresses, which no name server can turn.
        meters: counts requests.
    """

    def __init__(self, app: ASGIApp, *, names: Collection[str], meters: Meters) -> None:
        self._app, self._meters = app, meters
        self._names = {"localhost", *(name.lower() for name in names)}
        self._arriving = 0  # bytes of bodies whose requests are not answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), _UNANSWERED
        body = _Body(self, receive, limit=limits.IMAGE_BYTES if scope["path"] == UPLOAD else limits.BODY_BYTES)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        with self._meters.running.track_inprogress():
            try:
                if refusal is None:
                    await self._app(scope, body.receive, answer)
                else:
                    await refusal(scope, receive, answer)
            except asyncio.CancelledError:  # the server ends, and has waited for this answer as long as it does
                if status == _UNANSWERED:
                    await JSONResponse({"error": "the server ends"}, 503)(scope, receive, answer)
            finally:
                self._arriving -= body.bytes
                route = getattr(scope.get("route"), "path", "other")
                self._meters.requests.labels(scope["method"], route, str(status)).inc()
                self._meters.seconds.labels(route).observe(time.perf_counter() - started)

    def arrived(self, count: int) -> None:
        """Counts bytes of a body. Raises HTTPException when all bodies together are too large."""
        self._arriving += count
        if self._arriving > limits.UPLOADS_BYTES:
            raise HTTPException(503, "too many files arrive at once; try again", {"retry-after": "1"})

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_own(host):
            return _refused(f"the host {host[:100]!r} is not served here; --allow-host names others")
        origin = headers.get("origin")
        if scope["method"] not in _READS and origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return _refused("requests from pages of other sites are refused")
        return None

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True


class _Body:
    """A request's body as it arrives.

    Attributes:
        bytes: of it that the application was given.
    """

    def __init__(self, guard: Guard, receive: Receive, *, limit: int) -> None:
        self.bytes = self._seen = 0
        self._guard, self._receive, self._limit = guard, receive, limit
        self._deadline = asyncio.get_running_loop().time() + limits.BODY_SECONDS
        self._complete = False

    async def receive(self) -> Message:
        """The next message; of a body that is too large nothing is kept, but its sender shall see the answer."""
        while not self._complete:
            message = await self._next()
            size = len(message.get("body", b""))
            self._seen += size
            self._complete = not message.get("more_body", False)
            if self._seen <= self._limit:
                self.bytes += size
                self._guard.arrived(size)
                return message
            if self._complete or self._seen > _READ_ON * self._limit:
                mib = self._limit // limits.MIB
                shown = f"{mib} MiB" if mib else f"{self._limit // 1024} KiB"
                raise HTTPException(413, f"the body is too large; at most {shown}", {"connection": "close"})
        return await self._receive()

    async def _next(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {limits.BODY_SECONDS} seconds") from None


def _refused(reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, 403, {"connection": "close"})
