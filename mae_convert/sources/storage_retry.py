"""Retry operations on remote storage after temporary failures only."""

import errno
import ssl
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

from mae_convert.errors import MaeConvertError
from mae_convert.text.redaction import cause_without_secrets

ATTEMPTS = 5
WAIT = 0.5  # seconds before the second attempt; doubled for each further one
T = TypeVar("T")

# Errors of the operating system that another attempt does not solve.
PERMANENT = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "EEXIST", "ENOTEMPTY", "ENOSPC"),
        *("EROFS", "EDQUOT", "EINVAL", "ENAMETOOLONG", "EFBIG", "EMSGSIZE", "ENOSYS", "EOPNOTSUPP"),
        *("ELOOP", "EXDEV", "EMFILE", "ENFILE"),
    )
    if hasattr(errno, name)
)
RETRIED_STATUS = frozenset((408, 409, 425, 429))
# The same errors, if a file system raises them without a number.
PERMANENT_TYPES = (
    *(FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError),
    ssl.SSLCertVerificationError,
)
# Names of classes that storage clients raise for broken connections, which are not subclasses of
# OSError. The clients are not imported for this.
BROKEN_CONNECTION = frozenset(
    (
        "HTTPClientError",  # botocore
        "IncompleteReadError",
        "ResponseStreamingError",
        "ResponseParserError",
        "ClientConnectionError",  # aiohttp
        "ClientPayloadError",
        "ServiceRequestError",  # azure
        "ServiceResponseError",
        "IncompleteRead",  # http.client
        "TransportError",  # httpx
        "ProtocolError",  # urllib3
        "SSHException",  # paramiko
    )
)
# Programming errors, which are neither retried nor converted to messages.
MISTAKES = (
    *(TypeError, AttributeError, NameError, LookupError, AssertionError, ArithmeticError),
    *(RecursionError, MemoryError, SyntaxError),
)


def is_transient(error: Exception) -> bool:
    """Return whether the operation that failed with this error may succeed when it is repeated."""
    if (status := http_status(error)) is not None:
        return status in RETRIED_STATUS or status >= 500
    if isinstance(error, OSError):
        return not (isinstance(error, PERMANENT_TYPES) or error.errno in PERMANENT)
    return not BROKEN_CONNECTION.isdisjoint(base.__name__ for base in type(error).__mro__)


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status of a storage client's error or of one of its causes, or None."""
    if error is None:
        return None
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        response = SimpleNamespace(
            status=response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        )
    for holder in (error, response):
        for name in ("status", "status_code", "code"):
            value = getattr(holder, name, None)
            if type(value) is int and 100 <= value < 600:
                return value
    return http_status(error.__cause__)


def with_retries(work: Callable[[], T], what: str) -> T:
    """Call a function and return its result; after a temporary failure, wait and call it again.

    Args:
        work: the function.
        what: the URL, for messages.

    Raises:
        MaeConvertError: the function fails in every attempt, or with a permanent error.
        Exception: the function raises a programming error, which is not converted.
    """
    for attempt in range(ATTEMPTS):
        try:
            return work()
        except (MaeConvertError, *MISTAKES):
            raise
        except Exception as error:
            if attempt < ATTEMPTS - 1 and is_transient(error):
                time.sleep(WAIT * 2**attempt)
                continue
            reason = f"{what}: {_reason(error)}"
            raise MaeConvertError(reason) from cause_without_secrets(error)
    raise AssertionError


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file, directory or bucket"
    return " ".join(str(error).split()) or type(error).__name__
