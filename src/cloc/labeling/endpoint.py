"""Requests to a model behind an HTTP endpoint: concurrent, rate-limited, retried, and given up when nobody is there.

What goes wrong is of three kinds, and the difference is the point of this module:

- for a while (429, 5xx, a dropped connection, half an answer, none in time, one that says nothing): retried after a
  pause that doubles, with jitter, or as long as the answer's Retry-After says; in the end the image is refused;
- for this image (any other 4xx, a content filter): the image is refused at once;
- for everyone: `ConfigError` or `ClocError`, which stops the stage instead of refusing a million images. That is when
  the endpoint refuses the key, the model or the address; when nothing is there and never was; when images fail one
  after another without a text between; and when nothing has succeeded yet and all that was tried failed, or as many
  images were refused as can be under way at once (`endpoint_state.Health`).

The client is urllib3: it is here already (S3 needs it), one POST is all that is asked of it, and the retries must be
our own anyway, since they depend on what the answer says. Proxies are those of the environment (HTTPS_PROXY, NO_PROXY),
certificates those of SSL_CERT_FILE.
"""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError, ProxyError, SSLError
from urllib3.exceptions import TimeoutError as HTTPTimeout

from cloc.config.schema import EndpointConfig
from cloc.errors import ClocError, ConfigError
from cloc.labeling.endpoint_state import KEY, Gate, Health
from cloc.labeling.text import clean

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds before the first retry, and before any
_LONGEST_WAIT = 300.0  # seconds of a Retry-After that are waited at most
_MOST_BYTES = 4 << 20  # of an answer
_CHUNK = 1 << 16
_LOOK = 0.5  # seconds between looks whether the endpoint was given up
_MESSAGE = 160  # characters of what the endpoint says about an error
_TRANSIENT = frozenset({408, 409, 425, 429})
_OVERLOADED = frozenset({429, 503})


class TryAgain(Exception):  # noqa: N818 (an answer to act on, not an error that anybody sees)
    """The request failed, and the next one may not.

    Args:
        reason: why, as quarantine records it: one of few strings.
        pause: seconds that the endpoint asks to wait.
        silent: nothing came, for as long as was waited.
    """

    def __init__(self, reason: str, *, pause: float = 0.0, silent: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.pause, self.silent = reason, pause, silent


class Refused(Exception):  # noqa: N818 (an answer to act on, not an error that anybody sees)
    """The endpoint will not do this image, however often it is asked; the message is the reason."""


@dataclass(frozen=True)
class Reply:
    """A text, or why there is none."""

    text: str = ""
    refused: str = ""


class Endpoint:
    """One address that answers POSTs; `ask` may be called by many threads.

    Args:
        config: section `captioning.endpoint`.
        path: what is asked, below `base_url`.
        read: an answer's body -> its text; raises `TryAgain` for one that makes no sense, `Refused` for one that
            refuses.
        processes: processes that share concurrency and rate limit.
        at_once: images that may be under way at once in this process.
        model: name of the model, for messages.

    Raises:
        ConfigError: the URL or the key cannot be sent.
    """

    def __init__(
        self,
        config: EndpointConfig,
        *,
        path: str,
        read: Callable[[bytes], str],
        processes: int,
        at_once: int,
        model: str,
    ) -> None:
        self._config, self._read_text, self._model = config, read, model
        self._url = f"{_checked(config.base_url).rstrip('/')}/{path}"
        self._key = _key(config.api_key_variable)
        self._slots = threading.BoundedSemaphore(-(-config.concurrency // processes))
        self._gate = Gate(config.requests_per_minute / processes)
        self._health = Health(self._url, at_once=at_once)
        self._http = _client(self._url, connections=config.concurrency, timeout=config.timeout)

    def ask(self, bodies: Sequence[bytes]) -> list[Reply]:
        """The endpoint's texts for some images, in order, each after all its retries; asked for at the same time.

        Args:
            bodies: JSON.

        Raises:
            ClocError: the endpoint fails or refuses everyone; raised at once, whatever is still under way.
        """
        # Threads that nobody waits for: an answer that does not come holds up neither the error nor the program's end.
        # There is one an image, so that one that pauses before its retry keeps no other from being asked for.
        replies: list[Future[Reply]] = [Future() for _ in bodies]
        for body, reply in zip(bodies, replies, strict=True):
            threading.Thread(target=self._settle, args=(body, reply), daemon=True, name="endpoint").start()
        pending = set(replies)
        while pending:
            done, pending = wait(pending, timeout=_LOOK, return_when=FIRST_EXCEPTION)
            for reply in done:
                reply.result()
            self._health.check()
        return [reply.result() for reply in replies]

    def _settle(self, body: bytes, reply: Future[Reply]) -> None:
        try:
            reply.set_result(self._ask(body))
        except BaseException as error:
            reply.set_exception(error)  # raised where the reply is waited for

    def _ask(self, body: bytes) -> Reply:
        with self._health.under_way():
            for attempt in range(self._config.retries + 1):
                self._health.check()
                try:
                    text = self._attempt(body)
                except Refused as refusal:
                    self._health.refused(str(refusal))
                    return Reply(refused=str(refusal))
                except TryAgain as fault:
                    last, pause = fault, max(fault.pause, _pause(attempt))
                else:
                    self._health.succeeded()
                    return Reply(text=text)
                if attempt < self._config.retries:
                    self._health.stopped.wait(pause)
            self._health.failed(last.reason, attempts=self._config.retries + 1, silent=last.silent)
            return Reply(refused=last.reason)

    def _attempt(self, body: bytes) -> str:
        with self._slots:
            self._gate.wait(self._health.stopped)
            self._health.check()
            deadline = time.monotonic() + self._config.timeout
            try:
                response = self._http.request(
                    "POST",
                    self._url,
                    body=body,
                    headers=self._headers(),
                    retries=False,
                    redirect=False,
                    preload_content=False,
                )
                try:
                    payload = _read(response, deadline=deadline)
                except BaseException:
                    response.close()
                    raise
                response.release_conn()
            except (NewConnectionError, SSLError, ProxyError) as error:
                raise self._unreachable(error) from None
            except HTTPTimeout:
                raise TryAgain("endpoint: no answer in time", silent=True) from None
            except HTTPError:
                raise TryAgain("endpoint: connection lost, or half an answer") from None
        self._health.answered = True
        self._check(response.status, response.headers, payload)
        return self._read_text(payload)

    def _headers(self) -> dict[str, str]:
        authorization = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return {"Content-Type": "application/json", "Accept": "application/json", **authorization}

    def _unreachable(self, error: Exception) -> Exception:
        if self._health.answered:
            return TryAgain("endpoint: cannot be reached")
        return self._health.stop(
            ConfigError(
                f"{KEY}.base_url: nothing answers at {self._url} ({self._shown(str(error))}); start the server, or "
                "correct the URL"
            )
        )

    def _check(self, status: int, headers: Mapping[str, str], payload: bytes) -> None:
        """Raises what a status means; nothing for a success."""
        if 200 <= status < 300:
            return
        said = self._shown(_message(payload))
        saying = f"HTTP {status}{f': {said}' if said else ''}"
        if status in (401, 403):
            held = "holds a key" if self._key else "is not set"
            raise self._health.stop(
                ConfigError(
                    f"{KEY}.api_key_variable: {self._url} refuses the key ({saying}); the environment variable "
                    f"{self._config.api_key_variable} {held}: set it to a key that may use {self._model!r}"
                )
            )
        if status == 404:
            raise self._health.stop(
                ConfigError(
                    f"{KEY}: {self._url} knows no model {self._model!r}, or is not this API ({saying}); correct "
                    f"captioning.model or {KEY}.base_url"
                )
            )
        if status == 402 or (status == 429 and b"insufficient_quota" in payload):
            raise self._health.stop(
                ClocError(f"{KEY}: {self._url} wants to be paid first ({saying}); do, then run again to go on")
            )
        if status == 405 or 300 <= status < 400:
            raise self._health.stop(
                ConfigError(f"{KEY}.base_url: {self._url} takes no requests ({saying}); correct the URL")
            )
        if status in _TRANSIENT or status >= 500:
            pause = _retry_after(headers.get("Retry-After", ""))
            if status in _OVERLOADED:
                self._gate.pause(pause)
            raise TryAgain(f"endpoint: HTTP {status}", pause=pause)
        raise Refused(f"endpoint: {saying}")

    def _shown(self, text: str) -> str:
        """What an endpoint or the network says, on one line and without the key."""
        line = clean(text)
        if self._key:
            line = line.replace(self._key, "***")
        return line[:_MESSAGE]


def _checked(url: str) -> str:
    """A base URL that can be asked. The message of the ConfigError never shows what may be a password in it."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{KEY}.base_url: no http or https URL; write one as in http://vllm:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"{KEY}.base_url: the URL of {parts.hostname} has a user, a password, a query or a fragment; leave it out, "
            "and give a key in the environment variable that api_key_variable names"
        )
    return url


def _key(variable: str) -> str:
    """The key in the environment; "" for none."""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"{KEY}.api_key_variable: the environment variable {variable} holds no key; set it anew")
    return key


def _client(url: str, *, connections: int, timeout: float) -> urllib3.PoolManager:
    parts = urlsplit(url)
    settings: dict[str, Any] = {
        "maxsize": connections,
        "timeout": urllib3.Timeout(connect=min(timeout, 10.0), read=timeout),
        "ca_certs": os.environ.get("SSL_CERT_FILE") or certifi.where(),
    }
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.netloc):
        return urllib3.ProxyManager(proxy, **settings)
    return urllib3.PoolManager(**settings)


def _read(response: urllib3.BaseHTTPResponse, *, deadline: float) -> bytes:
    """The body, in time and of a sane size, though it may come in drops."""
    parts, size = [], 0
    while part := response.read1(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > _MOST_BYTES:
            raise TryAgain("endpoint: answer too large")
        if time.monotonic() > deadline:
            raise TryAgain("endpoint: no answer in time")
    return b"".join(parts)


def _message(payload: bytes) -> str:
    """What an error's body says: OpenAI's `error.message` where it is one, else its beginning."""
    text = payload[: 4 * _MESSAGE].decode("utf-8", errors="replace")
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError):
        return text
    error = body.get("error", body) if isinstance(body, dict) else body
    said = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return said if isinstance(said, str) else text


def _pause(attempt: int) -> float:
    """Seconds before the retry after this attempt (from 0); with jitter, so that requests do not come back together."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 (jitter of a pause, nothing that must not be guessed)


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for: a number, or a date; 0 for anything else."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        seconds = (until - datetime.now(UTC if until.tzinfo else None)).total_seconds()
    return min(max(seconds, 0.0), _LONGEST_WAIT) if seconds == seconds else 0.0
