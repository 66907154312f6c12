"""Names of checkpoints: a path, an official file, or a Hub reference."""

import re
from dataclasses import dataclass
from pathlib import Path

from mae_convert.errors import MaeConvertError
from mae_convert.families import official_files, official_named
from mae_convert.families.official_models import SUFFIX, OfficialFile
from mae_convert.files.byte_ranges import refuse_nul
from mae_convert.formats.registry import FILE_SUFFIXES
from mae_convert.text import did_you_mean

PROTOCOL = "hf://"
OWNER_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PAGES = ("https://huggingface.co/", "https://hf.co/")  # of URLs that users copy from a browser


@dataclass(frozen=True)
class HubReference:
    """A reference to the Hugging Face Hub: ``hf://owner/name[@revision][/path]``."""

    repo_id: str
    """``owner/name``."""

    revision: str | None = None
    """A branch, tag, commit or ``refs/pr/N``; None for the default branch."""

    path: str = ""
    """A file or folder in the repository; empty for the whole repository."""

    def __str__(self) -> str:
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        revision = revision.replace("refs%2Fpr%2F", "refs/pr/")
        return f"{PROTOCOL}{self.repo_id}{revision}" + (f"/{self.path}" if self.path else "")


Source = Path | OfficialFile | HubReference


def parse_source(text: str) -> Source:
    """Return the source to which a user's text refers: a path, an official file, a Hub reference.

    A text that is an existing path is always a path. The Hub's client is imported only for a
    reference to the Hub.

    Raises:
        MaeConvertError: the text is a URL that does not refer to a model on the Hub, or an invalid
            Hub reference; or a path that does not exist and looks like the name of a repository or
            of an official checkpoint. Any other path that does not exist is returned.
        MissingRequirementError: the text refers to the Hub, and huggingface_hub is too old.
    """
    refuse_nul(text)
    if text.startswith((PROTOCOL, *PAGES)):
        return _parse_hub(text)
    path = Path(text)
    if path.exists():
        return path
    if official := official_named(text):
        return official
    if text.startswith(("https://", "http://")):
        raise MaeConvertError(
            f"{text} is a URL and not a file",
            hint=f"download it first, or specify a repository on the Hub as {PROTOCOL}owner/name",
        )
    if text.endswith(SUFFIX) and official_named(text.removesuffix(SUFFIX)):
        raise MaeConvertError(
            f"the file {text} does not exist",
            hint=(
                f"without {SUFFIX}, the name refers to the official "
                "checkpoint, which is then downloaded"
            ),
        )
    if not path.is_absolute() and (hint := _hint(text)):
        raise MaeConvertError(f"{text} does not exist", hint=hint)
    return path


def _hint(text: str) -> str:
    """Return a hint about what the user may have meant by a name that does not exist, or ""."""
    is_file_name = text.lower().endswith(FILE_SUFFIXES)
    if OWNER_AND_NAME.fullmatch(text) and not is_file_name and not Path(text).parent.is_dir():
        return f"to specify a repository on the Hub, write {PROTOCOL}{text}"
    return did_you_mean(text, (official.name for official in official_files()))


def _parse_hub(text: str) -> HubReference:
    from mae_convert.sources.client import address_in, require_client

    address_in("HF_ENDPOINT")  # with an invalid value, the client cannot be imported
    require_client()
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    if not text.isprintable():
        raise MaeConvertError(
            f"{text} contains a character that is not printable", hint="leave it out"
        )
    example = f"write it as {PROTOCOL}owner/name, {PROTOCOL}owner/name@revision/file"
    try:
        parsed = parse_hf_uri(text)
    except HfUriError as error:
        raise MaeConvertError(
            f"{text} is not a valid Hub reference ({error.msg})", hint=example
        ) from error
    if parsed.type != "model":
        raise MaeConvertError(f"{text} is a {parsed.type} and not a model", hint=example)
    return HubReference(parsed.id, parsed.revision, parsed.path_in_repo.strip("/"))
