"""Sentences that several readers say, and names as they may stand in them."""

from pathlib import Path

from mae_convert.errors import CheckpointError, MaeConvertError

LONGEST_SHOWN = 200
LONGEST_FILE_NAME = 255

GATHER = (
    "gather the tensors where the model is: on every process, state = torch.distributed.checkpoint."
    "state_dict.get_model_state_dict(model, options=torch.distributed.checkpoint.state_dict."
    "StateDictOptions(full_state_dict=True)), and on the first, "
    "torch.save({'model': state}, 'gathered.pth')"
)
"""What to do where the tensors of a model are kept in pieces that do not tell what they are."""

SHARDED = (
    "torch._utils._rebuild_wrapper_subclass",
    "torch.distributed.tensor.",
    "torch.distributed._tensor.",
    "torch.distributed._shard.",
)
"""How the names of types begin by which such pieces are pickled."""


def damaged(path: Path, what: str) -> CheckpointError:
    """Return the error for a file whose bytes cannot be what its writer wrote."""
    return CheckpointError(
        path, f" is truncated or damaged ({what})", hint="copy or download it again"
    )


def shown(name: object) -> str:
    """Return a name that a file states as it may stand in a message: short, and on one line."""
    text = str(name)[:LONGEST_SHOWN]
    return text if text.isprintable() else ascii(text)


def would_run_code(path: Path, dotted: str) -> CheckpointError:
    """Return the error for a file that can only be read by making what a name stands for."""
    if dotted.startswith(SHARDED):
        return CheckpointError(
            path,
            " holds tensors that are spread over processes or wrapped (its pickle names"
            f" {shown(dotted)})",
            hint=GATHER,
        )
    return CheckpointError(
        path,
        f" is not opened: its pickle names {shown(dotted)}, and to load that would run code",
        hint="write the weights alone, with torch.save({'model': model.state_dict()}, ...), where"
        " the file comes from",
    )


def refuse_nul(name: object) -> None:
    """Refuse a name that the system could not even look for.

    Raises:
        MaeConvertError: it holds a NUL character.
    """
    if "\0" in str(name):
        raise MaeConvertError(
            f"{name} holds a NUL character, which no name can", hint="leave it out"
        )


def is_plain_name(name: object) -> bool:
    """Tell whether what a file states as another's name is one: of a file beside it, no path."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= LONGEST_FILE_NAME
