"""What goes wrong with a store: it is away for a while, it refuses what it is given, or it can never be used.

Away            nothing is there, nothing answers in time, or the answer is that of a server in trouble: later again
Refused         MLflow understood and says no: the same again would be refused again
neither         a web page, a login, a folder that cannot be written: somebody must correct an address or a setting
"""

import re
from collections.abc import Iterator

from cloc.errors import ConfigError

HINT = "set tracking.uri or MLFLOW_TRACKING_URI"
_AWAY_CODES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "IO_ERROR"}
_REFUSED_CODES = {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS"}
_REFUSED_CODES |= {"RESOURCE_DOES_NOT_EXIST", "MALFORMED_REQUEST"}
_LOGIN_CODES = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}
# How databases say that a login or a file is wrong, and not that they are away.
_WRONG = re.compile(r"authentication failed|does not exist|unable to open|readonly|read-only|password|not a database")
_PAGE = re.compile(r"Response body: '\s*<", re.IGNORECASE)
_NO_API = ("ENDPOINT_NOT_FOUND", "not in a valid JSON format")
_REASONS = {
    r"refused": "connection refused",
    r"timed? ?out": "no answer in time",
    r"resolve|name or service|translate host|getaddrinfo": "no host of that name",
    r"(?:failed with error code|too many) ([45]\d\d)": "it answers {0}",
    r"aborted|disconnected|reset by peer|broken pipe|closed the connection": "the connection was lost",
}
_PACKAGES = {"psycopg2": "pip install -e '.[postgres]'", "psycopg": "write postgresql+psycopg2://... for it"}


class Away(Exception):  # noqa: N818 (a state, not a fault)
    """The store does not answer, or is in trouble; what it was told is to be told again later."""


class Refused(Exception):  # noqa: N818 (a verdict)
    """The store refuses a record and would refuse it again."""


def shown(uri: str) -> str:
    """An address without its password, to print and to file."""
    return re.sub(
        r"(//[^/@:]*):[^/]*@|([?&]password=)[^&]*", lambda found: f"{found[1]}@" if found[1] else found[2], uri
    )


def first_line(error: BaseException) -> str:
    """What an exception says, in a line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def is_away(error: BaseException) -> bool:
    """Whether it may be other in a while."""
    import requests  # type: ignore[import-untyped]  # its stubs are no dependency of ours
    from sqlalchemy.exc import OperationalError

    if isinstance(error, Away):
        return True
    chain = list(_chain(error))
    if any(isinstance(item, requests.exceptions.SSLError) for item in chain) or _WRONG.search(str(error)):
        return False
    if any(isinstance(item, requests.RequestException | OperationalError | TimeoutError) for item in chain):
        return True
    if any(type(item).__module__.partition(".")[0] in ("botocore", "boto3") for item in chain):
        return True  # the store of artifacts
    return getattr(error, "error_code", "") in _AWAY_CODES and not _is_page(error)


def judged(error: Exception) -> Exception:
    """What an exception means for a record: Away or Refused, or itself where it is a defect.

    A store that was used before and now asks for a login or answers a page (its proxy's) is away.
    """
    from mlflow.exceptions import MlflowException

    if isinstance(error, Away | Refused):
        return error
    if getattr(error, "error_code", "") in _REFUSED_CODES or isinstance(error, FileNotFoundError):
        return Refused(first_line(error))
    if is_away(error) or isinstance(error, MlflowException | OSError):
        return Away(reason(error))
    return error


def reason(error: BaseException) -> str:
    """Why a store does not answer, in some words."""
    text = str(error)
    for pattern, words in _REASONS.items():
        if found := re.search(pattern, text, re.IGNORECASE):
            return words.format(*found.groups())
    return first_line(error)


def unusable(uri: str, error: Exception) -> ConfigError:
    """One line on a store that can never be used as it is."""
    text, code = str(error), getattr(error, "error_code", "")
    what = f"MLflow at {shown(uri)}"
    if isinstance(error, ModuleNotFoundError):
        package = str(error.name)
        return ConfigError(f"{what} needs the package {package}: {_PACKAGES.get(package, f'pip install {package}')}")
    if code in _LOGIN_CODES or re.search(r"error code 40[13]", text):
        return ConfigError(
            f"{what} refuses this login ({_answer(text)}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
            "or let the server allow the host's name (--allowed-hosts)"
        )
    if _is_page(error):
        page = "a web page, not MLflow's API" if _PAGE.search(text) else "something that is not MLflow's API"
        return ConfigError(f"{what} answers {page}; {HINT}")
    if code == "RESOURCE_DOES_NOT_EXIST":
        return ConfigError(f"{what}: {first_line(error)}; MLFLOW_RUN_ID names a run that it must have")
    if "unsupported URI" in text or "file store" in text or "filesystem tracking" in text:
        return ConfigError(f"{what}: write sqlite:///FILE, http(s)://SERVER or postgresql+psycopg2://...; {HINT}")
    return ConfigError(f"{what} cannot be used ({first_line(error)}); {HINT}")


def _answer(text: str) -> str:
    found = re.search(r"error code (40[13])", text)
    return found[1] if found else text.splitlines()[0][:200]


def _is_page(error: BaseException) -> bool:
    text = str(error)
    in_trouble = re.search(r"error code 5\d\d", text)
    return not in_trouble and any(
        mark in (getattr(error, "error_code", ""), *([mark] if mark in text else [])) for mark in _NO_API
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
