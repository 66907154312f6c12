"""Remove credentials from messages: error messages of servers may repeat credentials.

The values of this process's own credentials are known: the values in environment variables and in
the file of AWS credentials, and the token that ``hf auth login`` has stored. Other credentials are
recognised by their position (in a URL, after the name of a header or parameter) or by the prefix of
Hub tokens.
"""

import logging
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mae_convert.text import for_terminal

HIDDEN = "<redacted>"
SHORTEST = 8  # characters; shorter values may be part of ordinary words
LONGEST_FILE = 1 << 16  # the number of characters read from a file of credentials
# Names of environment variables whose values are credentials: HF_TOKEN, AWS_SECRET_ACCESS_KEY,
# AZURE_STORAGE_ACCOUNT_KEY, FSSPEC_S3_SECRET and the like.
NAME_OF_SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|(ACCESS|ACCOUNT|API|SECRET|PRIVATE)_?KEY(_ID)?"
    r"|CONNECTION_STRING)$|^FSSPEC_\w+_KEY$",
    re.IGNORECASE,
)
# Values in JSON settings of fsspec, and in the file of AWS's command line.
STORED_SECRET = re.compile(
    r"""(?:key|secret|token|password)["']?\s*[:=]\s*["']?([^\s"',}]+)""", re.IGNORECASE
)
HEADERS = (
    r"(?:proxy-)?authorization|(?:set-)?cookie|x-amz-(?:security-token|signature|credential)"
    r"|(?:private|x-auth)-token"
)
PARAMETERS = (
    r"awsaccesskeyid|credential|sig(?:nature)?|(?<=[?&])policy|key-pair-id"
    r"|(?:access|secret|account|api|private)[_-]?(?:access[_-]?)?key(?:[_-]?id)?"
    r"|(?:access|auth|hf|id|refresh|session)?[_-]?token|secret|password|passwd|pwd"
)
VALUE = r"""[^\s"'&,;<>)\]}]+"""
# Regular expressions and their replacements. They are compiled when a message is printed:
# compiling them takes 2 % of the time of `--help`.
PATTERNS = (
    (
        rf"""(?i)(?<![\w-])({HEADERS})(["']?\s*[=:]\s*["']?(?:(?:bearer|basic|token)\s+)?){VALUE}""",
        rf"\1\2{HIDDEN}",
    ),
    # With a colon only if the name is in quotes, as in JSON, because a sentence may contain "the
    # token:".
    (
        rf"""(?i)(?<![\w.-])({PARAMETERS})(\s?=\s?["']?|["']\s*[:=]\s*["']?){VALUE}""",
        rf"\1\2{HIDDEN}",
    ),
    (r"(?i)\b(bearer\s+)[\w.~+/=-]{16,}", rf"\1{HIDDEN}"),
    (r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}(?!\w)", HIDDEN),
)
# name:password@ in a URL. A password may contain slashes; a port before a path is not a password.
USER_OF_ADDRESS = re.compile(r"(\w://)(?:[^\s/@:]*:(?!\d+/)[^\s@]+|[^\s/@]+)@")


def without_secrets(text: str) -> str:
    """Return a message of an error, a log or a traceback with its credentials replaced."""
    for value in sorted(_known(), key=len, reverse=True):
        text = text.replace(value, HIDDEN).replace(quote(value, safe=""), HIDDEN)
    for pattern, replacement in PATTERNS:
        text = re.sub(pattern, replacement, text)
    return without_credentials(text)


def without_credentials(address: str) -> str:
    """Return a URL, or a text with URLs, without user names and passwords."""
    return USER_OF_ADDRESS.sub(rf"\1{HIDDEN}@", address) if "@" in address else address


class RedactedError(Exception):
    """Replaces an error whose text contains credentials.

    The message consists of the type and the redacted text of the replaced error.
    """


def cause_without_secrets(error: BaseException) -> BaseException:
    """Return the error, or a `RedactedError` if its text or its causes contain credentials.

    The result can be set as the cause of another error.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if all(without_secrets(str(link)) == str(link) for link in chain):
        return error
    return RedactedError(without_secrets(f"{type(error).__name__}: {error}"))


def redact_logs() -> None:
    """Remove credentials and control characters from the log messages of this process.

    The Hub's client logs URLs, which may be signed, and server responses. Call this only in
    processes that mae-convert has started, so that the log of another program is not changed.
    """
    before = logging.getLogRecordFactory()
    if getattr(before, "is_redacting", False):
        return

    def redacted(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = before(*arguments, **named)
        try:
            message = record.getMessage()
        except Exception:  # logging reports wrong arguments of a log call
            return record
        lines = without_secrets(message).splitlines()
        record.msg, record.args = "\n".join(map(for_terminal, lines)), ()
        if record.exc_info and record.exc_info[1] is not None:
            text = traceback.format_exception(record.exc_info[1])
            record.exc_text = without_secrets("".join(text)).rstrip()
        return record

    redacted.is_redacting = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(redacted)


def _known() -> Iterator[str]:
    """Yield the credentials of this process that are long enough to be recognised."""
    values = [_stored_token()]
    for name, value in os.environ.items():
        if NAME_OF_SECRET.search(name):
            values.append(value)
        elif name.startswith("FSSPEC_"):
            values += STORED_SECRET.findall(value)
    aws = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials"
    values += STORED_SECRET.findall(_text_of(aws))
    yield from {value.strip() for value in values if len(value.strip()) >= SHORTEST}


def _stored_token() -> str:
    """Return the token that ``hf auth login`` has stored in a file; empty if there is none.

    The Hub's client is not imported for this purpose, because most errors do not involve the Hub.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
    return _text_of(os.environ.get("HF_TOKEN_PATH") or f"{home}/token")


def _text_of(path: str) -> str:
    """Return the beginning of a text file; empty if it cannot be read."""
    try:
        with Path(path).expanduser().open(encoding="utf-8", errors="replace") as stream:
            return stream.read(LONGEST_FILE)
    except (OSError, ValueError, RuntimeError):
        return ""
