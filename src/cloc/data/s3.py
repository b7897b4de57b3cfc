"""A data set on an S3 endpoint (MinIO, AWS, any other that speaks the API), through the `minio` SDK.

The environment says where and who; nothing is read when this module is imported:

    AWS_ENDPOINT_URL, else S3_ENDPOINT_URL       http(s)://host[:port]; there is no default
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY     both, or neither (anonymous); AWS_SESSION_TOKEN if there is one
    AWS_REGION, else AWS_DEFAULT_REGION          "us-east-1" when unset, which is MinIO's
    SSL_CERT_FILE                                CA bundle, for an endpoint with a private certificate
"""

import io
import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from cloc.data.storage import relative_path
from cloc.errors import DataError

_MIN_PART, _MAX_PART = 5 << 20, 5 << 30  # of the S3 API, bytes
_FILE_PART = 16 << 20
_READ_BUFFER = 1 << 20
_READ_ATTEMPTS = 5
_RETRIES = 6
_CODE = re.compile(r"<Code>(\w+)</Code>")

_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled", "InvalidToken"}


class S3Storage:
    """Objects below `s3://bucket/prefix`. A put is atomic on S3, so an object appears whole or not at all.

    Transient failures (5xx, dropped connections) are retried with back-off and jitter. Every other one is a
    DataError that names the object, the endpoint and the remedy; secrets never stand in it.
    """

    def __init__(self, url: str) -> None:
        """Connects to nothing yet. Raises DataError when the URL or the environment is incomplete."""
        self._bucket, self._prefix = _split(url)
        self._endpoint = _endpoint(url)
        self._client = _client(self._endpoint)
        self._bucket_seen = False

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def _name(self, path: str) -> str:
        relative = relative_path(path, root=self.url).as_posix()
        return f"{self._prefix}/{relative}".strip("/") if relative != "." else self._prefix

    def open(self, path: str) -> BinaryIO:
        """A stream over an object: at most 1 MiB of it is in memory. A dropped connection resumes where it broke."""
        raw = _ObjectStream(self, path, self._name(path))
        return io.BufferedReader(raw, _READ_BUFFER)

    def read_bytes(self, path: str) -> bytes:
        with self.open(path) as stream:
            return stream.read()

    def read_tail(self, path: str, size: int) -> bytes:
        with self._errors(path):
            total = self._client.stat_object(self._bucket, self._name(path)).size or 0
        with _ObjectStream(self, path, self._name(path), offset=max(0, total - size)) as stream:
            return stream.readall()

    def write_bytes(self, path: str, body: bytes) -> None:
        # One part as large as the body makes it a single put.
        part = min(max(len(body), _MIN_PART), _MAX_PART)
        with self._errors(path):
            self._client.put_object(self._bucket, self._name(path), io.BytesIO(body), len(body), part_size=part)

    def write_file(self, path: str, source: Path) -> None:
        with self._errors(path):
            self._client.fput_object(self._bucket, self._name(path), str(source), part_size=_FILE_PART)
        source.unlink()

    def delete(self, path: str) -> None:
        with self._errors(path):
            self._client.remove_object(self._bucket, self._name(path))

    def exists(self, path: str) -> bool:
        with self._errors(path):
            try:
                self._client.stat_object(self._bucket, self._name(path))
            except S3Error as error:
                if error.code not in ("NoSuchKey", "NoSuchObject"):
                    raise
                # A HEAD answers 404 alike for a missing object and for a missing bucket.
                self._check_bucket()
                return False
        return True

    def list(self, prefix: str) -> list[str]:
        folder = self._name(prefix)
        start = f"{folder}/" if folder else ""
        skip = len(f"{self._prefix}/") if self._prefix else 0
        with self._errors(prefix):
            found = self._client.list_objects(self._bucket, prefix=start, recursive=True)
            return sorted(str(item.object_name)[skip:] for item in found if not item.is_dir)

    def _check_bucket(self) -> None:
        if not self._bucket_seen and not self._client.bucket_exists(self._bucket):
            raise DataError(self._no_bucket())
        self._bucket_seen = True

    def _no_bucket(self) -> str:
        return f"{self.url}: there is no bucket {self._bucket!r} at {self._endpoint}; create it or correct the URL"

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Turns what the SDK and urllib3 raise into DataErrors that name the object."""
        try:
            yield
        except S3Error as error:
            raise DataError(self._explain(path, error.code or "", error.message or "")) from None
        except InvalidResponseError as error:
            # The SDK takes only application/xml for an answer of S3; some servers send their errors as text/xml.
            code = _CODE.search(str(error))
            if code is None:
                raise DataError(
                    f"{self.url}/{path}: {self._endpoint} does not answer like S3 ({_line(error)[:200]})"
                ) from None
            raise DataError(self._explain(path, code[1], "")) from None
        except ServerError as error:
            raise DataError(f"{self.url}/{path}: {self._endpoint} failed ({_line(error)})") from None
        except urllib3.exceptions.HTTPError as error:
            raise DataError(f"{self.url}/{path}: {_unreachable(self._endpoint, error)}") from None
        except (ValueError, MinioException) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.url}/{path}: {_line(error)}") from None

    def _explain(self, path: str, code: str, message: str) -> str:
        if code == "NoSuchBucket":
            return self._no_bucket()
        if code in ("NoSuchKey", "NoSuchObject"):
            return f"{self.url}: there is no {path}"
        if code in _DENIED:
            return (
                f"{self.url}/{path}: access denied by {self._endpoint} ({code}); "
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
            )
        if code == "RequestTimeTooSkewed":
            return f"{self.url}/{path}: this machine's clock differs too much from that of {self._endpoint}; set it"
        return f"{self.url}/{path}: {self._endpoint} answered {code} {message}".rstrip()


class _ObjectStream(io.RawIOBase):
    """An object's bytes as they arrive; after a dropped connection it asks for the rest of the same version."""

    def __init__(self, storage: S3Storage, path: str, name: str, *, offset: int = 0) -> None:
        self._storage, self._path, self._name = storage, path, name
        self._offset, self._version = offset, ""
        self._response = self._request()
        self._version = self._response.headers.get("ETag", "")

    def _request(self) -> Any:
        storage = self._storage
        same: Mapping[str, str] = {"If-Match": self._version} if self._version else {}
        with storage._errors(self._path):
            return storage._client.get_object(
                storage._bucket, self._name, offset=self._offset, request_headers=dict(same)
            )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        for attempt in range(1, _READ_ATTEMPTS + 1):
            try:
                # read1: what has arrived counts, also when the connection breaks before the buffer is full.
                body: bytes = self._response.read1(len(buffer))
            except urllib3.exceptions.HTTPError as error:
                self._release()
                if attempt == _READ_ATTEMPTS:
                    where = f"{self._storage.url}/{self._path}"
                    raise DataError(f"{where}: reading broke off at byte {self._offset} ({_line(error)})") from None
                time.sleep(0.1 * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
                self._response = self._request()
                continue
            buffer[: len(body)] = body
            self._offset += len(body)
            return len(body)
        raise AssertionError("unreachable")

    def _release(self) -> None:
        self._response.close()
        self._response.release_conn()

    def close(self) -> None:
        if not self.closed and hasattr(self, "_response"):
            self._release()
        super().close()


def _split(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise DataError(f"{url}: the bucket is missing; write s3://bucket/prefix")
    prefix = relative_path(prefix.strip("/"), root=url).as_posix() if prefix.strip("/") else ""
    return bucket, prefix


def _endpoint(url: str) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("S3_ENDPOINT_URL") or ""
    if not endpoint:
        raise DataError(f"{url}: no S3 endpoint is configured; set AWS_ENDPOINT_URL, e.g. http://minio:9000")
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or "@" in parts.netloc:
        raise DataError(
            f"AWS_ENDPOINT_URL: expected http(s)://host[:port], got {parts.scheme}://{parts.hostname or ''}"
        )
    return f"{parts.scheme}://{parts.netloc}"


def _client(endpoint: str) -> Minio:
    access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if bool(access) != bool(secret):
        missing = "AWS_SECRET_ACCESS_KEY" if access else "AWS_ACCESS_KEY_ID"
        raise DataError(
            f"S3 credentials are incomplete: {missing} is not set; set both, or neither for anonymous access"
        )
    authority = os.environ.get("SSL_CERT_FILE")
    if authority and not Path(authority).is_file():
        raise DataError(f"SSL_CERT_FILE: there is no file {authority}; name a CA bundle or unset it")
    parts = urlsplit(endpoint)
    try:
        return Minio(
            parts.netloc,
            access_key=access or None,
            secret_key=secret or None,
            session_token=os.environ.get("AWS_SESSION_TOKEN") or None,
            secure=parts.scheme == "https",
            region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
            http_client=_http(authority or certifi.where()),
        )
    except ValueError as error:
        raise DataError(f"AWS_ENDPOINT_URL: {endpoint}: {_line(error)}") from None


def _http(authority: str) -> urllib3.PoolManager:
    # Few attempts to connect, so that a wrong endpoint is told in seconds; more for a server that is busy.
    retries = urllib3.Retry(
        total=_RETRIES,
        connect=min(_RETRIES, 3),
        backoff_factor=0.25,
        backoff_jitter=0.25,
        status_forcelist=(500, 502, 503, 504),
    )
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=10, read=60), maxsize=10, ca_certs=authority, retries=retries
    )


def _unreachable(endpoint: str, error: urllib3.exceptions.HTTPError) -> str:
    cause = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason else error
    if isinstance(cause, urllib3.exceptions.SSLError):
        return f"the certificate of {endpoint} is not trusted; name its CA bundle in SSL_CERT_FILE"
    if isinstance(cause, urllib3.exceptions.ResponseError):
        return f"{endpoint} keeps failing ({_line(cause)}); try again later"
    return f"cannot reach {endpoint} ({_line(cause)}); check AWS_ENDPOINT_URL and that the server runs"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
