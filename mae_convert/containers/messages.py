"""Sentences that several readers say, and names as they may stand in them."""

from pathlib import Path

from mae_convert.errors import CheckpointError

LONGEST_SHOWN = 200
LONGEST_FILE_NAME = 255

GATHER = (
    "gather the tensors where the model is: on every process, state = torch.distributed.checkpoint."
    "state_dict.get_model_state_dict(model, options=torch.distributed.checkpoint.state_dict."
    "StateDictOptions(full_state_dict=True)), and on the first, "
    "torch.save({'model': state}, 'gathered.pth')"
)
"""What to do where the tensors of a model are kept in pieces that do not tell what they are."""


def damaged(path: Path, what: str) -> CheckpointError:
    """Return the error for a file whose bytes cannot be what its writer wrote."""
    return CheckpointError(f"{path} is truncated or damaged ({what}); copy or download it again")


def shown(name: object) -> str:
    """Return a name that a file states as it may stand in a message: short, and on one line."""
    text = str(name)[:LONGEST_SHOWN]
    return text if text.isprintable() else ascii(text)


def is_plain_name(name: object) -> bool:
    """Tell whether what a file states as another's name is one: of a file beside it, no path."""
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        return False
    return len(name.encode("utf-8", "surrogatepass")) <= LONGEST_FILE_NAME
