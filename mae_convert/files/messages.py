"""Messages that several readers use, and names formatted for messages."""

from pathlib import Path

from mae_convert.errors import CheckpointError, MaeConvertError

LONGEST_SHOWN = 200
LONGEST_FILE_NAME = 255

GATHER = (
    "gather the tensors in the training program: on every process, state = "
    "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=torch.distributed.checkpoint.state_dict.StateDictOptions(full_state_dict=True)), and "
    "on the first process, torch.save({'model': state}, 'gathered.pth')"
)
"""Hint for checkpoints that store tensors in flat shards without their names and shapes."""

SHARDED = (
    "torch._utils._rebuild_wrapper_subclass",
    "torch.distributed.tensor.",
    "torch.distributed._tensor.",
    "torch.distributed._shard.",
)
"""Prefixes of the names of the types as which such shards are pickled."""


def damaged(path: Path, what: str) -> CheckpointError:
    """Return the error for a corrupt file."""
    return CheckpointError(
        path, f" is truncated or corrupt ({what})", hint="copy or download it again"
    )


def shown(name: object) -> str:
    """Return a name that was read from a file, for a message: short, and on one line."""
    text = str(name)[:LONGEST_SHOWN]
    return text if text.isprintable() else ascii(text)


def would_run_code(path: Path, dotted: str) -> CheckpointError:
    """Return the error for a file that can only be read by running code."""
    if dotted.startswith(SHARDED):
        return CheckpointError(
            path,
            " contains tensors that are distributed over processes or wrapped (its pickle refers "
            f"to {shown(dotted)})",
            hint=GATHER,
        )
    return CheckpointError(
        path,
        f" is not opened: its pickle refers to {shown(dotted)}, and loading that would run code",
        hint=(
            "write only the weights, with torch.save({'model': model.state_dict()}, ...), in the "
            "program that wrote the file"
        ),
    )


def refuse_nul(name: object) -> None:
    """Refuse a name that the system cannot look up.

    Raises:
        MaeConvertError: it contains a NUL character.
    """
    if "\0" in str(name):
        raise MaeConvertError(
            f"{name} contains a NUL character, which is not allowed in names", hint="leave it out"
        )


def is_plain_name(name: object) -> bool:
    """Return whether a name from a file is the name of a file beside it, without a path."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= LONGEST_FILE_NAME
