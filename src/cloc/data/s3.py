"""A data set on an S3 endpoint (MinIO, AWS, any other that speaks the API), through the `minio` SDK.

The environment says where, who and how long; nothing is read when this module is imported:

    AWS_ENDPOINT_URL, else S3_ENDPOINT_URL       http(s)://host[:port]; there is no default
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY     both, or neither (anonymous); AWS_SESSION_TOKEN if there is one
    AWS_REGION, else AWS_DEFAULT_REGION          "us-east-1" when unset, which is MinIO's
    SSL_CERT_FILE                                CA bundle, for an endpoint with a private certificate
    CLOC_S3_PATIENCE                             seconds that a failing request is tried again; 120 when unset
    CLOC_S3_TIMEOUT                              seconds that a connection may be silent; 30 when unset

`cloc storage check s3://bucket/prefix` tries whether an endpoint will do. An upload in parts that fails is aborted; the
parts of a process that was killed stay unseen on the server until a lifecycle rule of the bucket
(AbortIncompleteMultipartUpload) removes them.
"""

import base64
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import certifi
from minio import Minio
from minio.datatypes import Object
from minio.error import MinioException
from minio.helpers import check_bucket_name
from urllib3.exceptions import HTTPError

from cloc.data.s3_errors import EXCEPTIONS, Place, broke_off, code_of, explain, no_bucket, not_s3, replaced
from cloc.data.s3_http import OutOfPatience, Patience, PatientPool
from cloc.data.storage import Entry, Past, StorageError, Trouble, relative_path
from cloc.errors import DataError

PART_BYTES = 16 << 20
_MAX_PARTS = 10_000  # of the S3 API
_UPLOADS = 3
_READ_BUFFER = 1 << 20
_CHECKSUM, _CHECKSUM_TYPE = "x-amz-checksum-sha256", "x-amz-checksum-type"
_WITH_CHECKSUM = {"x-amz-checksum-mode": "ENABLED"}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/")


class S3Storage:
    """Objects below `s3://bucket/prefix`. A put is atomic on S3, so an object appears whole or not at all.

    What may pass (a busy server, a connection that drops or falls silent) is tried again for `CLOC_S3_PATIENCE`
    seconds, reads from the byte where they broke off. Everything else is a StorageError that names the object, the
    endpoint and the remedy. It can be pickled and used after a fork; the keys come from the environment each time.
    """

    def __init__(self, url: str, *, part_bytes: int = PART_BYTES) -> None:
        """Connects to nothing yet.

        Args:
            url: `s3://bucket/prefix`.
            part_bytes: what is larger than this goes up in parts of this size, 5 MiB or more.

        Raises:
            DataError: the URL or the environment is incomplete or wrong.
        """
        self._given, self._part_bytes = url, part_bytes
        self._bucket, self._prefix = _split(url)
        self._access = _Access.from_environment(url)
        self._pool, self._client = _connect(self._access)
        self._bucket_seen = False

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(S3Storage, part_bytes=self._part_bytes), (self._given,)

    @property
    def url(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return self._access.endpoint

    @property
    def clock_difference_s(self) -> float | None:
        """Seconds that the server's clock was ahead of this machine's at its last answer; None before the first."""
        return self._pool.clock_difference_s

    def _name(self, path: str) -> str:
        relative = relative_path(path, root=self.url).as_posix()
        return f"{self._prefix}/{relative}".strip("/") if relative != "." else self._prefix

    def open(self, path: str) -> BinaryIO:
        """A stream over an object: at most 1 MiB of it is in memory. It goes on where a connection broke."""
        return io.BufferedReader(_ObjectStream(self, path), _READ_BUFFER)

    def read_bytes(self, path: str) -> bytes:
        with _ObjectStream(self, path) as stream:
            return stream.readall()

    def read_range(self, path: str, *, offset: int, size: int) -> bytes:
        if not size:
            return b""
        try:
            with _ObjectStream(self, path, part=f"bytes={offset}-{offset + size - 1}") as stream:
                return stream.readall()[stream.before(offset) :][:size]
        except StorageError as error:
            if error.trouble is Trouble.OUTSIDE:
                return b""
            raise

    def read_tail(self, path: str, size: int) -> bytes:
        if not size:
            return b""
        try:
            with _ObjectStream(self, path, part=f"bytes=-{size}") as stream:
                return stream.readall()[-size:]
        except StorageError as error:
            if error.trouble is Trouble.OUTSIDE:  # an empty object, and for some servers every smaller one
                return self.read_bytes(path)
            raise

    def size(self, path: str) -> int:
        with self._errors(path):
            return self._client.stat_object(self._bucket, self._name(path)).size or 0

    def version(self, path: str) -> str:
        with self._errors(path):
            return _version(self._client.stat_object(self._bucket, self._name(path)))

    def stored_sha256(self, path: str) -> str:
        with self._errors(path):
            found = self._client.stat_object(self._bucket, self._name(path), extra_headers=dict(_WITH_CHECKSUM))
        headers = found.metadata or {}
        encoded = headers.get(_CHECKSUM) or ""
        # Of an upload in parts it is the hash of the parts' hashes, "...-7", which says nothing of the whole.
        if "-" in encoded or headers.get(_CHECKSUM_TYPE, "FULL_OBJECT") != "FULL_OBJECT":
            return ""
        return base64.b64decode(encoded).hex()

    def past(self, path: str) -> Iterator[Past]:
        name = self._name(path)
        with self._errors(path):
            if not self._client.get_bucket_versioning(self._bucket).status:  # it never was on
                return
            for item in self._client.list_objects(self._bucket, prefix=name, recursive=True, include_version=True):
                past = item.is_latest != "true" and not item.is_delete_marker
                if item.object_name == name and past and item.version_id and item.last_modified:
                    yield Past(item.version_id, item.size or 0, item.last_modified.isoformat(timespec="seconds"))

    def open_past(self, path: str, version_id: str) -> BinaryIO:
        return io.BufferedReader(_ObjectStream(self, path, version_id=version_id), _READ_BUFFER)

    def write_bytes(self, path: str, body: bytes) -> None:
        self._put(path, lambda: io.BytesIO(body), len(body))

    def write_file(self, path: str, source: Path) -> None:
        self._put(path, lambda: source.open("rb"), source.stat().st_size)
        source.unlink()

    def _put(self, path: str, opened: Callable[[], BinaryIO], size: int) -> None:
        """Puts what `opened()` reads; in several requests at once where it is larger than a part."""
        part_bytes = max(self._part_bytes, -(-size // _MAX_PARTS))
        with self._errors(path):
            for upload in range(1, _UPLOADS + 1):
                try:
                    with opened() as body:
                        self._client.put_object(self._bucket, self._name(path), body, size, part_size=part_bytes)
                    return
                except MinioException as error:
                    # The answer to "complete" was lost and the server had done it, or it forgot the upload.
                    if code_of(error) != "NoSuchUpload" or upload == _UPLOADS:
                        raise

    def delete(self, path: str) -> None:
        with self._errors(path):
            self._client.remove_object(self._bucket, self._name(path))

    def exists(self, path: str) -> bool:
        with self._errors(path):
            try:
                self._client.stat_object(self._bucket, self._name(path))
            except MinioException as error:
                if code_of(error) not in ("NoSuchKey", "NoSuchObject"):
                    raise
                # A HEAD answers 404 alike for a missing object and for a missing bucket.
                self._check_bucket()
                return False
        return True

    def walk(self, prefix: str) -> Iterator[str]:
        for entry in self.scan(prefix):
            yield entry.path

    def scan(self, prefix: str) -> Iterator[Entry]:
        folder = self._name(prefix)
        start = f"{folder}/" if folder else ""
        skip = len(f"{self._prefix}/") if self._prefix else 0
        with self._errors(prefix):
            for item in self._client.list_objects(self._bucket, prefix=start, recursive=True):
                if not item.is_dir:
                    yield Entry(str(item.object_name)[skip:], item.size or 0, _version(item))

    def list(self, prefix: str) -> list[str]:
        return sorted(self.walk(prefix))

    def _check_bucket(self) -> None:
        if not self._bucket_seen and not self._client.bucket_exists(self._bucket):
            raise no_bucket(self._place(""))
        self._bucket_seen = True

    def _place(self, path: str) -> Place:
        return Place(
            url=self.url,
            path=path,
            bucket=self._bucket,
            endpoint=self._access.endpoint,
            region=self._access.region,
            clock_difference_s=self._pool.clock_difference_s,
        )

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Turns what the SDK and its HTTP client raise into errors that name the object."""
        try:
            yield
        except EXCEPTIONS as error:
            raise explain(error, place=self._place(path)) from None


class _ObjectStream(io.RawIOBase):
    """An object's bytes as they arrive, of all of it or of a Range; after a failure it asks for the rest."""

    def __init__(self, storage: S3Storage, path: str, *, part: str = "", version_id: str = "") -> None:
        self._storage, self._path, self._name = storage, path, storage._name(path)
        self._part, self._version, self._version_id = part, "", version_id or None
        self._response = self._request()
        self._version = self._response.headers.get("ETag", "")
        if not self._version:  # as from a web server that answers everything with the same page
            self.close()
            raise not_s3(storage._place(path), "it gives an object without ETag")
        found = _CONTENT_RANGE.match(self._response.headers.get("Content-Range", ""))
        # The header says it, not the status: some servers answer a range with 200.
        self._offset, self._end = (int(found[1]), found[2]) if found else (0, "")
        self._start = self._offset

    def before(self, offset: int) -> int:
        """How many bytes come before byte `offset` of the object: a server may answer a range with all of it."""
        return offset - self._start

    def _request(self) -> Any:
        storage = self._storage
        headers = {name: text for name, text in (("Range", self._part), ("If-Match", self._version)) if text}
        with storage._errors(self._path):
            return storage._client.get_object(
                storage._bucket, self._name, request_headers=dict(headers), version_id=self._version_id
            )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        patience = Patience(self._storage._pool.patience_s)
        while True:
            try:
                # read1: what has arrived counts, also when the connection breaks before the buffer is full.
                body: bytes = self._response.read1(len(buffer), decode_content=False)
            except HTTPError as error:
                self._response.close()
                self._resume(patience, error)
                continue
            buffer[: len(body)] = body
            self._offset += len(body)
            return len(body)

    def _resume(self, patience: Patience, error: HTTPError) -> None:
        place = self._storage._place(self._path)
        try:
            patience.pause(error)
        except OutOfPatience as end:
            raise broke_off(place, offset=self._offset, error=end) from None
        self._part = f"bytes={self._offset}-{self._end}"
        self._response = self._request()
        if self._response.headers.get("ETag", "") != self._version:
            raise replaced(place)  # not every server heeds If-Match
        if self._offset and not self._response.headers.get("Content-Range", "").startswith(f"bytes {self._offset}-"):
            raise StorageError(
                f"{place}: reading broke off at byte {self._offset}, and {place.endpoint} cannot go on from there: "
                "it answers a Range with the whole object; use a server or proxy that has ranged reads"
            )

    def close(self) -> None:
        if not self.closed and hasattr(self, "_response"):
            self._response.close()
            self._response.release_conn()
        super().close()


def _version(found: Object) -> str:
    return f"{found.size} {found.etag}"


@dataclass(frozen=True)
class _Access:
    """Where, who and how long, from the environment."""

    endpoint: str
    region: str
    patience_s: float
    silence_s: float
    authority: str
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, url: str) -> "_Access":
        environment = os.environ
        access, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
        if bool(access) != bool(secret):
            missing = "AWS_SECRET_ACCESS_KEY" if access else "AWS_ACCESS_KEY_ID"
            raise DataError(
                f"S3 credentials are incomplete: {missing} is not set; set both, or neither for anonymous access"
            )
        authority = environment.get("SSL_CERT_FILE")
        if authority and not Path(authority).is_file():
            raise DataError(f"SSL_CERT_FILE: there is no file {authority}; name a CA bundle or unset it")
        return cls(
            endpoint=_endpoint(url),
            region=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1",
            patience_s=_seconds(environment, "CLOC_S3_PATIENCE", default=120.0, least=0.0),
            silence_s=_seconds(environment, "CLOC_S3_TIMEOUT", default=30.0, least=0.1),
            authority=authority or certifi.where(),
            access_key=access or None,
            secret_key=secret or None,
            session_token=environment.get("AWS_SESSION_TOKEN") or None,
        )


@functools.cache
def _connect(access: _Access) -> tuple[PatientPool, Minio]:
    """The connections to an endpoint, which all storages of this process share."""
    parts = urlsplit(access.endpoint)
    pool = PatientPool(patience_s=access.patience_s, silence_s=access.silence_s, authority=access.authority)
    try:
        client = Minio(
            parts.netloc,
            access_key=access.access_key,
            secret_key=access.secret_key,
            session_token=access.session_token,
            secure=parts.scheme == "https",
            region=access.region,
            http_client=pool,
        )
    except ValueError as error:
        raise DataError(f"AWS_ENDPOINT_URL, AWS_REGION: {access.endpoint}, {access.region}: {error}") from None
    return pool, client


def _split(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise DataError(f"{url}: the bucket is missing; write s3://bucket/prefix")
    try:
        check_bucket_name(bucket)
    except ValueError as error:
        reason = "is too short" if len(bucket) < 3 else "is too long" if len(bucket) > 63 else f"is wrong ({error})"
        raise DataError(
            f"{url}: the bucket's name {bucket!r} {reason}; such names have 3 to 63 lower-case letters, digits, "
            "'-' and '.'"
        ) from None
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


def _seconds(environment: Mapping[str, str], name: str, *, default: float, least: float) -> float:
    text = environment.get(name, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = -1.0
    if not least <= seconds < float("inf"):
        raise DataError(f"{name}: expected seconds from {least:g} on, got {text!r}")
    return seconds
