"""Limits on the responses that the Hub's client accepts from servers.

There are limits on the size, the duration and the number of responses, and on the wait that a
server may request (``Retry-After``).

The client reads a response of the Hub's API completely before it parses it, and waits as long as
the server requests. The limits apply to calls of mae-convert within `limits_on_responses`, and not
to other calls in the same process, which use the same session of the client.
"""

import itertools
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from mae_convert.errors import MissingRequirementError

LONGEST_WAIT = 300  # seconds; if a server requests a longer wait, an error is raised
LONGEST_RESPONSE = 64 << 20  # bytes; a listing of 100,000 files has about 30 MB
LONGEST_TIME = 120.0  # seconds that a response of the API may take
MOST_RESPONSES = 5000  # to all API requests in one context; a listing has several pages
REDIRECT = 300  # HTTP status; from this status on, the client reads responses completely
API = re.compile(r"/api/(?!resolve-cache/)|/info/lfs/objects/batch$")
RATE_LIMIT = re.compile(r"(?:^|;)\s*t=([0-9]{1,9})\b")

_RESPONSES: ContextVar[Iterator[int] | None] = ContextVar("number of responses", default=None)


@contextmanager
def limits_on_responses() -> Iterator[None]:
    """Context in which the limits apply to calls of the Hub's client."""
    token = _RESPONSES.set(itertools.count(1))
    try:
        yield
    finally:
        _RESPONSES.reset(token)


def limit_session(session: Any) -> None:
    """Add `check_response` to a session of the client, as a hook for each response."""
    hooks = session.event_hooks
    if check_response not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], check_response]}


def check_response(response: Any) -> None:
    """Check a response whose body has not been read yet; read the body if limits apply to it.

    Raises:
        MissingRequirementError: the server requests a wait that is too long, or the response or
            the number of responses exceeds a limit.
    """
    if (numbers := _RESPONSES.get()) is None:
        return
    where = f"{response.request.method} {response.request.url.path}"
    wait = requested_wait(response.headers)
    if response.status_code >= REDIRECT and wait is not None and wait > LONGEST_WAIT:
        raise MissingRequirementError(
            f"the server asks to wait {wait:.0f} s ({where}, status {response.status_code})",
            hint="run the same command again later",
        )
    is_api = API.search(response.request.url.path)
    if is_api and next(numbers) > MOST_RESPONSES:
        raise MissingRequirementError(
            (
                f"the server has sent {MOST_RESPONSES} responses and still announces further pages "
                f"({where})"
            ),
            hint="check HF_ENDPOINT, and whether a proxy intercepts the connection",
        )
    if is_api or response.status_code >= REDIRECT:
        _read(response, where)


def _read(response: Any, where: str) -> None:
    """Read the body of a response completely and store it in the response.

    Args:
        response: the response.
        where: the method and path of the request, for the message.

    Raises:
        MissingRequirementError: the body exceeds a limit.
    """
    end, size, pieces = time.monotonic() + LONGEST_TIME, 0, []
    for piece in response.iter_bytes():
        size += len(piece)
        if size > LONGEST_RESPONSE or time.monotonic() > end:
            raise MissingRequirementError(
                f"the server's response does not end ({where}: {size} bytes received; the limits "
                f"are {LONGEST_RESPONSE} bytes and {LONGEST_TIME:.0f} s)",
                hint="check HF_ENDPOINT, and whether a proxy intercepts the connection",
            )
        pieces.append(piece)
    response._content = b"".join(pieces)  # as the response's own `read` stores it


def requested_wait(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server requests the client to wait; None without a request."""
    if (limit := RATE_LIMIT.search(headers.get("RateLimit", ""))) is not None:
        return max(float(limit[1]), seconds_of(headers.get("Retry-After", "")) or 0.0)
    return seconds_of(headers.get("Retry-After", ""))


def seconds_of(retry_after: str) -> float | None:
    """Return the seconds in the value of a Retry-After header; None if it is invalid.

    Args:
        retry_after: a number of seconds, or an HTTP date (RFC 9110); for a date in the past, the
            result is 0.
    """
    text = retry_after.strip()
    if re.fullmatch(r"[0-9]{1,15}", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    if date.tzinfo is None:  # written as -0000; every HTTP date is in UTC
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
