"""Access to the Hugging Face Hub: its client, retries, and the conversion of its errors.

The client is imported only here and where requests are made, so that commands that do not use the
Hub do not import it. Tokens are managed by the client (``hf auth login`` or ``HF_TOKEN``); there is
no option for a token, because other users of the machine can read command lines.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mae_convert import __version__
from mae_convert.errors import HubError, MaeConvertError, MissingRequirementError, Option, Text
from mae_convert.sources.limits import (
    LONGEST_WAIT,
    limit_session,
    limits_on_responses,
    requested_wait,
)
from mae_convert.text import for_terminal
from mae_convert.text.redaction import cause_without_secrets, without_secrets

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
LOGGER = logging.getLogger(__name__)

WAITS = (1, 2, 4, 8, 8)  # seconds before each further attempt, if the Hub does not specify them
WAITS_FOR_A_CONNECTION = (1, 2)
BUSY = (408, 429, 500, 502, 503, 504)
TIMEOUT = 120.0  # seconds without data; the client itself has no limit
# Packages that raise errors for a response with an unexpected structure.
CLIENT_MODULES = ("huggingface_hub", "httpx", "httpx2", "json")
OLDEST_CLIENT = 2  # the first version of huggingface_hub with RevisionResolutionError and URIs
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def address_in(variable: str) -> str | None:
    """Return the server URL that an environment variable contains, or None if it has no value.

    The URL is checked, because the client and its HTTP library raise errors of many types for an
    invalid URL.

    Raises:
        MaeConvertError: the value is not the URL of a server.
    """
    value = os.environ.get(variable)
    if not value:
        return None
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    printable = value.isascii() and value.isprintable() and " " not in value
    if not printable or parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        shown = for_terminal(without_secrets(value))
        raise MaeConvertError(
            f"{variable}={shown} is not the URL of a server, which begins with http:// or https://",
            hint="correct the variable, or unset it",
        )
    return value


def require_client() -> None:
    """Check that the installed version of huggingface_hub is not too old for access to the Hub.

    The check is not made at import, because transformers 4 requires an older version; with an
    older version, everything except access to the Hub works.

    Raises:
        MissingRequirementError: the installed version is too old.
    """
    installed = version("huggingface_hub")
    if int(installed.partition(".")[0]) < OLDEST_CLIENT:
        raise MissingRequirementError(
            f"huggingface_hub {installed} is installed here, and access to the Hub needs version"
            f" {OLDEST_CLIENT}",
            hint="pip install -U huggingface_hub; or, to keep transformers 4, download the"
            " repository with `hf download` and specify the local directory",
        )


def client() -> "HfApi":
    """Return the Hub's client, with a time limit for servers that do not respond.

    Without a terminal it shows no progress bars.

    Raises:
        MaeConvertError: HF_ENDPOINT is not a URL.
        MissingRequirementError: the installed version of huggingface_hub is too old.
    """
    address_in("HF_ENDPOINT")
    require_client()
    from huggingface_hub import HfApi, constants, get_session
    from huggingface_hub.utils import disable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not sys.stderr.isatty():
        disable_progress_bars()
    session = get_session()
    session.timeout = TIMEOUT
    limit_session(session)
    return HfApi(library_name="mae-convert", library_version=__version__)


def connection_errors() -> type[Exception]:
    """Return the base class of all errors that the client and its HTTP library raise."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the response that caused an error; None if there is no response."""
    return getattr(getattr(error, "response", None), "status_code", None)


def is_transient(error: BaseException) -> bool:
    """Return whether the request that failed with this error may succeed later."""
    from huggingface_hub.errors import OfflineModeIsEnabled, RevisionResolutionError

    if isinstance(error, RevisionResolutionError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled) or not isinstance(error, connection_errors()):
        return False
    status = status_of(error)
    return status is None or status in BUSY


def wait_after(error: BaseException, attempt: int, waited: float = 0.0) -> float | None:
    """Return the seconds to wait before the next attempt, or None to give up.

    Args:
        error: the error of the last attempt.
        attempt: the number of the last attempt; the first attempt has the number 0.
        waited: the total number of seconds waited so far, which is limited.
    """
    waits = WAITS_FOR_A_CONNECTION if _not_connected(error) else WAITS
    if attempt >= len(waits):
        return None
    refused = error if status_of(error) else error.__cause__
    headers = getattr(getattr(refused, "response", None), "headers", {})
    requested = requested_wait(headers)
    wait = float(waits[attempt]) if requested is None else requested
    return wait if waited + wait <= LONGEST_WAIT else None


def _not_connected(error: BaseException) -> bool:
    """Return whether the cause of an error is that no connection could be established."""
    chain = (error, error.__cause__)
    return any(type(link).__name__ in ("ConnectError", "ConnectTimeout") for link in chain)


def with_retries(call: Callable[[], T]) -> T:
    """Call a function and return its result; after a temporary error, wait and call it again."""
    attempt, waited = 0, 0.0
    while True:
        try:
            return call()
        except Exception as error:
            wait = wait_after(error, attempt, waited) if is_transient(error) else None
            if wait is None:
                raise
            report_wait(error, wait)
        time.sleep(wait)
        attempt, waited = attempt + 1, waited + wait


def report_wait(error: BaseException, seconds: float) -> None:
    """Log the error and the time until the next attempt."""
    LOGGER.warning("%s; trying again in %g s", _in_short(error), seconds)


@contextmanager
def hub_errors_explained(what: str, *, server: str = "the Hub") -> Iterator[None]:
    """Convert errors of the Hub's client to errors of mae-convert that state what to do.

    Args:
        what: the repository or file, as the user specified it.
        server: the name of the server.

    Raises:
        HubError: the Hub refused the request, or a file in the cache cannot be written.
        MissingRequirementError: the Hub cannot be reached or is not available, or the installed
            version of huggingface_hub is too old.
        MaeConvertError: HF_ENDPOINT is not a URL.
    """
    address_in("HF_ENDPOINT")
    require_client()
    from huggingface_hub.errors import EntryNotFoundError, RevisionResolutionError

    try:
        with limits_on_responses():
            yield
    except MaeConvertError:
        raise
    except (AttributeError, IndexError, TypeError, RecursionError) as error:
        if not _was_raised_by_client(error):
            raise
        raise unexpected_response(what, server) from cause_without_secrets(error)
    except (
        connection_errors(),
        EntryNotFoundError,
        RevisionResolutionError,
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
    ) as error:
        raise explained(error, what, server) from cause_without_secrets(error)


def explained(error: BaseException, what: str, server: str = "the Hub") -> MaeConvertError:
    """Convert an error of the Hub's client to an error of mae-convert that states what to do.

    Args:
        error: the error.
        what: the beginning of the message, which names what was requested.
        server: the server, as named in the message.
    """
    from huggingface_hub import errors

    wrapped = (RuntimeError, errors.RevisionResolutionError, errors.LocalEntryNotFoundError)
    if isinstance(error, wrapped) and error.__cause__ is not None:
        return explained(error.__cause__, what, server)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return HubError(f"{what}: no account is logged in to the Hub", hint=LOG_IN)
    if isinstance(error, errors.HfHubHTTPError):
        sentence: Text = _refused(error, what, server)
        kind = MissingRequirementError if status_of(error) in BUSY else HubError
    elif is_unreachable(error):
        kind = MissingRequirementError
        sentence = (
            f"{what}: {server} cannot be reached ({_in_short(error)}); "
            f"{_network_advice(error, server)}"
        )
    elif isinstance(error, OSError) and error.filename:
        kind = HubError
        sentence = (
            f"{what}: {error.filename} cannot be used ({error.strerror}); free some disk space, "
            "or set HF_HOME to another directory"
        )
    elif isinstance(error, JSONDecodeError | KeyError):
        return unexpected_response(what, server)
    else:
        kind, sentence = HubError, f"{what}: {_in_short(error)}"
    return kind(sentence)


def unexpected_response(what: str, server: str = "the Hub") -> MissingRequirementError:
    """Return the error for a response that does not have the Hub's format.

    Args:
        what: the beginning of the message, which names what was requested.
        server: the server, as named in the message.
    """
    return MissingRequirementError(
        f"{what}: {server} sent an unexpected response",
        hint="check HF_ENDPOINT, and whether a proxy or a login page intercepts the connection",
    )


def _was_raised_by_client(error: BaseException) -> bool:
    """Return whether an error was raised in the code of the Hub's client or of its libraries.

    Such an error means that a response has an unexpected structure. An error that was raised in
    other code is a defect of mae-convert.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return str(name).partition(".")[0] in CLIENT_MODULES


def account_of(api: "HfApi") -> str:
    """Return the name of the account to which the client's token belongs.

    Raises:
        MissingRequirementError: the Hub's response does not contain a name.
    """
    response: Any = with_retries(api.whoami)
    name = response.get("name") if isinstance(response, dict) else None
    if not isinstance(name, str) or not name:
        raise unexpected_response("the account of the token")
    return name


def is_unreachable(error: BaseException) -> bool:
    """Return whether an error means that the Hub cannot be reached or is not available."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return status_of(error) in BUSY
    unreachable = (
        connection_errors(),
        errors.OfflineModeIsEnabled,
        errors.LocalEntryNotFoundError,
        errors.RevisionResolutionError,
        ConnectionError,
        TimeoutError,
    )
    return isinstance(error, unreachable)


def _network_advice(error: BaseException, server: str) -> str:
    """Return a phrase that states what the user can do if a server cannot be reached."""
    from huggingface_hub import constants, errors

    chain = (error, error.__cause__)
    if any(isinstance(link, errors.OfflineModeIsEnabled) for link in chain):
        return "unset HF_HUB_OFFLINE, or use only files that are in the cache"
    if server == "the Hub" and "HF_ENDPOINT" in os.environ:
        elsewhere = f" and HF_ENDPOINT ({constants.ENDPOINT})"
    else:
        elsewhere = ""
    return f"check the network{elsewhere}, and run the same command again"


def _refused(error: BaseException, what: str, server: str) -> Text:
    """Return the message for an error response of a server (with a status of 400 or more).

    Args:
        error: the exception of the client.
        what: the beginning of the message, which names what was requested.
        server: the name of the server in the message.
    """
    from huggingface_hub import errors

    message = _in_short(error)
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{what} is gated: accept its terms on its page on the Hub, then {LOG_IN}; the token "
            "must belong to the same account and allow access to the repository"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{what} does not exist on the Hub, or it is private: check the name, and {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{what}: there is no such branch, tag, commit or refs/pr/N"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{what}: there is no such file"
    status = status_of(error)
    if status == 401:
        return f"{what}: the Hub does not accept the token; {LOG_IN} to a valid token"
    if status == 403:
        return (
            f"{what}: the token is not allowed to do this ({message}); use a token with write"
            " access to this repository, or propose the change with ",
            Option("create_pr", True),
        )
    if status == 429:
        return (
            f"{what}: {server} limits the rate of requests ({message}); run the same command again "
            "later"
        )
    if status in BUSY:
        return (
            f"{what}: {server} has an internal error ({message}); run the same command again later"
        )
    return f"{what}: {server} refused: {message}"


def _in_short(error: BaseException) -> str:
    """Return an error's text in one line, without credentials and the query parts of URLs.

    Error messages of servers may repeat the request, including the token, and URLs may be signed.
    """
    from huggingface_hub import get_token

    message = str(getattr(error, "server_message", None) or error)
    if token := get_token():
        message = message.replace(token, "<token>")
    message = without_secrets(message)  # before the text is shortened
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    # Error messages about a model card are a list.
    text = " ".join(lines) if isinstance(error, ValueError) else "".join(lines[:1])
    words = (word.split("?")[0] if "://" in word else word for word in text.split())
    return for_terminal((" ".join(words)[:300] or type(error).__name__).rstrip("."))
