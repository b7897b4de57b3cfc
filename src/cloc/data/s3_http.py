"""The HTTP client below the S3 SDK: one place where every request is tried again, and for how long.

A request fails for a while when its connection is refused, drops or falls silent, and when the server answers 429, 500,
502, 503 or 504. It is sent again with growing, jittered pauses until `patience_s` seconds have passed since it first
failed; then `OutOfPatience` says what happened last. Everything that S3 is asked for here may be asked twice.
"""

import logging
import os
import random
import re
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import BadStatusLine, RemoteDisconnected
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError, ProtocolError, SSLError

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_STRANGER_PATIENCE_S = 8.0  # with an endpoint that never answered: it is more likely a wrong address than a busy server
_GIVEN_UP_S = 10.0  # after giving up, what follows at once (aborting an upload) is tried once only
_LEAST_WAIT_S = 5.0
_NOTICE_S = 5.0
_PIECE = 64 << 10
_BUSY = {429, 500, 502, 503, 504}
_CODE = re.compile(rb"<Code>(\w+)</Code>")


class OutOfPatience(HTTPError):  # noqa: N818 (what urllib3 calls MaxRetryError)
    """A request that kept failing. `last` is the last failure: an exception, or a text like "503 SlowDown"."""

    def __init__(self, last: HTTPError | str, *, tries: int, seconds: float) -> None:
        times = "once" if tries == 1 else f"{tries} times in {seconds:.0f} s"
        super().__init__(f"{describe(last)}; tried {times}")
        self.last = last


class Patience:
    """Pauses between tries, until they have taken too long together."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tries = 0
        self._start: float | None = None
        self._noticed = False

    def allow(self, seconds: float) -> None:
        """Changes how long it is in all."""
        self._seconds = seconds

    def left(self) -> float:
        """Seconds until it ends; all of them before the first failure."""
        return self._seconds - (time.monotonic() - self._start if self._start is not None else 0.0)

    def pause(self, failure: HTTPError | str, *, at_least: float = 0.0) -> None:
        """Sleeps before the next try. Raises OutOfPatience when there shall be none."""
        now = time.monotonic()
        self._start = self._start if self._start is not None else now
        self._tries += 1
        delay = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._tries - 1, 16))
        delay = max(delay * random.uniform(0.5, 1.0), at_least)  # noqa: S311 (jitter)
        if delay > self.left():
            raise OutOfPatience(failure, tries=self._tries, seconds=now - self._start)
        if now - self._start > _NOTICE_S and not self._noticed:
            self._noticed = True
            _log.warning("S3: %s; trying for another %.0f s", describe(failure), self.left())
        time.sleep(delay)


class PatientPool(urllib3.PoolManager):
    """A PoolManager that tries again, for the SDK to send its requests through.

    Attributes:
        patience_s: how long a failing request is tried again.
        silence_s: how long a socket may neither take nor give a byte.
        clock_difference_s: the server's clock minus this machine's at its last answer; None before.
    """

    def __init__(self, *, patience_s: float, silence_s: float, authority: str) -> None:
        super().__init__(maxsize=16, ca_certs=authority)
        self.patience_s, self.silence_s = patience_s, silence_s
        self.clock_difference_s: float | None = None
        self._given_up_at = -_GIVEN_UP_S
        self._process = os.getpid()

    def urlopen(  # type: ignore[override]  # urllib3's own PoolManager.urlopen has this signature
        self, method: str, url: str, redirect: bool = True, **options: Any
    ) -> Any:
        """Sends a request until it is answered; redirects are answers (a request signed for one host fits no other)."""
        if os.getpid() != self._process:
            self.clear()  # connections copied by a fork are the parent's: two that read one socket garble both
            self._process = os.getpid()
        options |= {"retries": False, "body": _pieces(options.get("body"))}
        patience = Patience(self._allowance())
        while True:
            wait = min(self.silence_s, max(_LEAST_WAIT_S, patience.left()))  # to connect, and for each piece to leave
            options["timeout"] = urllib3.Timeout(connect=wait, read=self.silence_s)
            at_least = 0.0
            try:
                response = super().urlopen(method, url, redirect=False, **options)
                self._note(response)
                patience.allow(self._allowance())
                failure: HTTPError | str = _busy(method, response)
                if not failure:
                    return response
                at_least = _retry_after(response.headers)
                response.close()
            except HTTPError as error:
                if not _passes(error):
                    raise
                failure = error
            try:
                patience.pause(failure, at_least=at_least)
            except OutOfPatience:
                self._given_up_at = time.monotonic()
                raise

    def _allowance(self) -> float:
        if time.monotonic() - self._given_up_at < _GIVEN_UP_S:
            return 0.0
        return self.patience_s if self.clock_difference_s is not None else min(self.patience_s, _STRANGER_PATIENCE_S)

    def _note(self, response: Any) -> None:
        if response.status not in _BUSY:
            self._given_up_at = -_GIVEN_UP_S
        try:
            server = parsedate_to_datetime(response.headers.get("Date", ""))
        except ValueError:  # no date, or none that can be read: the server answers all the same
            self.clock_difference_s = self.clock_difference_s or 0.0
            return
        server = server if server.tzinfo else server.replace(tzinfo=UTC)
        self.clock_difference_s = (server - datetime.now(UTC)).total_seconds()


def describe(failure: HTTPError | str) -> str:
    """A failure in one line, without the addresses of objects in memory."""
    parts = failure.args if isinstance(failure, ProtocolError) else (failure,)  # else it prints as a tuple
    text = " ".join(str(part) for part in parts)
    return re.sub(r"^\(?<[^>]*>[,:] ?|^HTTPS?Connection(Pool)?\([^)]*\): ", "", " ".join(text.split()))


def is_no_http(failure: HTTPError | str) -> bool:
    """Whether what answered does not speak HTTP."""
    cause = failure.args[-1] if isinstance(failure, ProtocolError) and failure.args else None
    return isinstance(cause, BadStatusLine) and not isinstance(cause, RemoteDisconnected)


def is_no_tls(failure: HTTPError | str) -> bool:
    """Whether what answered does not speak TLS."""
    return isinstance(failure, SSLError) and any(
        word in str(failure).lower().replace("_", " ") for word in ("wrong version number", "record layer failure")
    )


def _passes(error: HTTPError) -> bool:
    """Whether an error may pass by itself."""
    if isinstance(error, LocationValueError):
        return False
    if isinstance(error, SSLError):
        untrusted = any(isinstance(cause, ssl.SSLCertVerificationError | ssl.CertificateError) for cause in error.args)
        return not (untrusted or is_no_tls(error))
    return not is_no_http(error)


def _busy(method: str, response: Any) -> str:
    """ "503 SlowDown" when an answer says to come again; "" otherwise."""
    reads = response.status in _BUSY or response.status == 400 or method == "POST"
    body = response.data if reads and method != "HEAD" else b""
    code = found[1].decode() if (found := _CODE.search(body)) else ""
    if response.status in _BUSY:
        return f"{response.status} {code or response.reason or ''}".rstrip()
    # The body that the server waited for did not come in time.
    if response.status == 400 and code == "RequestTimeout":
        return f"400 {code}"
    # Completing an upload may fail after the status has been sent.
    if response.status == 200 and method == "POST" and b"<Error>" in body:
        return f"200, then {code}"
    return ""


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _pieces(body: Any) -> Any:
    """A body to be sent piece by piece: sent as one, all of it would have to leave within the time-out of a piece."""
    if not isinstance(body, bytes) or len(body) <= _PIECE:
        return body
    whole = memoryview(body)
    return [whole[start : start + _PIECE] for start in range(0, len(whole), _PIECE)]
