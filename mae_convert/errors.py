"""The exceptions of mae-convert: each is one sentence that says what is wrong and what to do."""

from mae_convert.redaction import without_secrets
from mae_convert.text import for_terminal

LONGEST = 1200


def one_line(sentence: str) -> str:
    """Return a message that may hold other people's text: printable, not long, no credentials."""
    plain = for_terminal(without_secrets(sentence))
    if len(plain) > LONGEST:
        return f"{plain[: LONGEST // 2]} [...] {plain[-LONGEST // 2 :]}"
    return plain


class MaeConvertError(Exception):
    """The input or the call was wrong; the command line prints it and exits with status 2.

    What a file or a server says may stand in the sentence, but it cannot flood or command a
    terminal there, and credentials of the user are not repeated.
    """

    exit_status = 2

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


class CheckpointError(MaeConvertError):
    """A file or directory is not a checkpoint that can be read."""


class LayoutError(MaeConvertError):
    """Tensors do not fit the layout that they were read as or are to be written in."""


class ConfigurationError(MaeConvertError):
    """A field of the model configuration is missing, impossible or contradicted."""


class PictureError(MaeConvertError, ValueError):
    """What was given as a picture is none, or cannot be prepared as it is asked for."""


class OutputError(MaeConvertError):
    """The output exists already, cannot be written, or did not read back as written."""


class HubError(MaeConvertError):
    """The Hugging Face Hub refused what was asked, or gave something else than it promised."""


class MissingRequirementError(MaeConvertError):
    """A framework, package or network that is needed is not there; exit status 3."""

    exit_status = 3
