"""What goes wrong on S3, as one line that says what, where, and what to do. Secrets never stand in it."""

import re
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import ParseError

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError, SSLError

from cloc.data.s3_http import OutOfPatience, describe, is_no_http, is_no_tls
from cloc.data.storage import StorageError, Trouble
from cloc.errors import DataError

CLOCK_LIMIT_S = 15 * 60  # S3 refuses requests that are older, or from further in the future
_SUSPECT_CLOCK_S = 5 * 60  # some servers refuse sooner
_STATUS, _CODE = re.compile(r"Response code: (\d+)"), re.compile(r"<Code>(\w+)</Code>")
_REGION = re.compile(rb"<Region>([\w-]+)</Region>")

# What the SDK, the client and the XML parser raise.
EXCEPTIONS = (MinioException, HTTPError, ParseError, ValueError, UnicodeDecodeError)

_MEANINGS: dict[str, Trouble] = {
    **dict.fromkeys(("NoSuchKey", "NoSuchObject"), Trouble.NO_OBJECT),
    "NoSuchBucket": Trouble.NO_BUCKET,
    "InvalidRange": Trouble.OUTSIDE,
    **dict.fromkeys(
        (
            *("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled", "AccountProblem"),
            *("InvalidToken", "ExpiredToken", "TokenRefreshRequired", "InvalidSecurity", "UnauthorizedAccess"),
        ),
        Trouble.DENIED,
    ),
    "RequestTimeTooSkewed": Trouble.CLOCK,
    **dict.fromkeys(
        (
            *("AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "Redirect"),
            *("IllegalLocationConstraintException", "InvalidRegion"),
        ),
        Trouble.REGION,
    ),
    **dict.fromkeys(
        (
            *("EntityTooLarge", "XMinioStorageFull", "StorageFull", "InsufficientStorage", "InsufficientCapacity"),
            *("QuotaExceeded", "XMinioAdminBucketQuotaExceeded"),
        ),
        Trouble.FULL,
    ),
}
_STATUS_CODES = {
    "507": "InsufficientStorage",
    "413": "EntityTooLarge",
    "416": "InvalidRange",
    "412": "PreconditionFailed",
}


@dataclass(frozen=True)
class Place:
    """Where something went wrong.

    Attributes:
        url: `s3://bucket/prefix`.
        path: of the object below it.
        bucket, endpoint, region: as used.
        clock_difference_s: the server's clock minus this machine's, as far as known.
    """

    url: str
    path: str
    bucket: str
    endpoint: str
    region: str
    clock_difference_s: float | None

    def __str__(self) -> str:
        return f"{self.url}/{self.path}".rstrip("/")


def code_of(error: BaseException) -> str:
    """S3's code in an error of the SDK, "" where there is none."""
    if isinstance(error, S3Error):
        return error.code or ""
    if isinstance(error, InvalidResponseError):
        # The SDK takes only application/xml for an answer of S3; some servers send their errors as text/xml.
        found, status = _CODE.search(str(error)), _STATUS.search(str(error))
        return found[1] if found else _STATUS_CODES.get(status[1], "") if status else ""
    if isinstance(error, ServerError):
        return _STATUS_CODES.get(str(error.status_code), "")
    return ""


def explain(error: BaseException, *, place: Place) -> DataError:
    """The error for users that one of `EXCEPTIONS` amounts to."""
    if isinstance(error, DataError):
        return error
    code = code_of(error)
    if code:
        response = error.response if isinstance(error, S3Error) else None
        return _answer(code, getattr(error, "message", None) or "", place, response=response)
    if isinstance(error, ServerError):
        return StorageError(f"{place}: {place.endpoint} failed ({_line(error)})", Trouble.FAILING)
    if isinstance(error, InvalidResponseError):
        return not_s3(place, _line(error)[:200])
    if isinstance(error, HTTPError):
        return _no_answer(error, place)
    if isinstance(error, ParseError | UnicodeDecodeError):
        return not_s3(place, _line(error))
    return StorageError(f"{place}: {_line(error)}")


def no_bucket(place: Place) -> StorageError:
    """There is no such bucket."""
    return StorageError(
        f"{place.url}: there is no bucket {place.bucket!r} at {place.endpoint}; create it or correct the URL",
        Trouble.NO_BUCKET,
    )


def broke_off(place: Place, *, offset: int, error: BaseException) -> StorageError:
    """Reading an object stopped somewhere and could not be taken up again."""
    return StorageError(
        f"{place}: reading from {place.endpoint} broke off at byte {offset} ({_line(error)}); {_LATER}",
        Trouble.FAILING,
    )


def replaced(place: Place) -> StorageError:
    """Another version of the object is there than the one whose first bytes were read."""
    return StorageError(
        f"{place}: the object was replaced while it was read; run the same again when nothing writes it"
    )


_LATER = "run the same again when the server is well, or set CLOC_S3_PATIENCE to more seconds"


def _answer(code: str, message: str, place: Place, *, response: Any = None) -> StorageError:
    trouble = _MEANINGS.get(code, Trouble.OTHER)
    hint = response.headers.get("x-amz-bucket-region", "") if response is not None else ""
    if code == "BadRequest" and hint:
        trouble = Trouble.REGION
    if trouble is Trouble.DENIED and abs(place.clock_difference_s or 0.0) > _SUSPECT_CLOCK_S:
        trouble = Trouble.CLOCK  # the answer to a HEAD has no code of its own
    if trouble is Trouble.NO_BUCKET:
        return no_bucket(place)
    if trouble is Trouble.NO_OBJECT:
        return StorageError(f"{place.url}: there is no {place.path} at {place.endpoint}", trouble)
    if trouble is Trouble.REGION and not hint:
        found = _REGION.search(response.data or b"") if response is not None else None
        hint = found[1].decode() if found else ""
    text = {
        Trouble.DENIED: f"access denied by {place.endpoint} ({code}); {_denied_remedy(code)}",
        Trouble.CLOCK: f"{_clock(place)} ({code}); set the clock (NTP)",
        Trouble.REGION: f"{place.bucket!r} is not in region {place.region!r} of {place.endpoint} ({code}); "
        f"set AWS_REGION to {hint or 'its region'} and AWS_ENDPOINT_URL to that region's endpoint",
        Trouble.FULL: f"{place.endpoint} has no room for it ({code}); free some space or raise the bucket's quota",
    }.get(trouble)
    if code == "PreconditionFailed":
        return replaced(place)
    return StorageError(f"{place}: {text or f'{place.endpoint} answered {code} {message}'.rstrip()}", trouble)


def _denied_remedy(code: str) -> str:
    if "Token" in code:
        return "renew AWS_SESSION_TOKEN with its keys"
    return "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"


def _clock(place: Place) -> str:
    seconds = place.clock_difference_s or 0.0
    if abs(seconds) < 1:
        return f"this machine's clock differs too much from that of {place.endpoint}"
    side = "behind" if seconds > 0 else "ahead of"
    return f"this machine's clock is {abs(seconds):.0f} s {side} that of {place.endpoint}"


def not_s3(place: Place, what: str) -> StorageError:
    """Something else than an S3 server answers there."""
    return StorageError(
        f"{place}: {place.endpoint} does not answer like S3 ({what}); check AWS_ENDPOINT_URL", Trouble.NOT_S3
    )


def _no_answer(error: HTTPError, place: Place) -> StorageError:
    last = error.last if isinstance(error, OutOfPatience) else error
    if is_no_http(last):
        return not_s3(place, describe(last))
    if is_no_tls(last):
        return StorageError(
            f"{place}: {place.endpoint} does not speak TLS; write http:// in AWS_ENDPOINT_URL", Trouble.NOT_S3
        )
    if isinstance(last, SSLError) and "verif" in str(last).lower():
        return StorageError(
            f"{place}: the certificate of {place.endpoint} is not trusted ({describe(last)}); "
            "name its CA bundle in SSL_CERT_FILE",
            Trouble.CERTIFICATE,
        )
    if isinstance(last, str):
        return StorageError(f"{place}: {place.endpoint} keeps failing ({describe(error)}); {_LATER}", Trouble.FAILING)
    if isinstance(last, NewConnectionError | NameResolutionError):
        return StorageError(
            f"{place}: cannot reach {place.endpoint} ({describe(error)}); "
            "check AWS_ENDPOINT_URL and that the server runs",
            Trouble.UNREACHABLE,
        )
    return StorageError(
        f"{place}: {place.endpoint} drops connections or falls silent ({describe(error)}); {_LATER}", Trouble.FAILING
    )


def _line(error: BaseException) -> str:
    return describe(str(error))
