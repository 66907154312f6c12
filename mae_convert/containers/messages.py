"""Sentences that several readers say, and names as they may stand in them."""

from pathlib import Path

from mae_convert.errors import CheckpointError

LONGEST_SHOWN = 200


def damaged(path: Path, what: str) -> CheckpointError:
    """Return the error for a file whose bytes cannot be what its writer wrote."""
    return CheckpointError(f"{path} is truncated or damaged ({what}); copy or download it again")


def shown(name: object) -> str:
    """Return a name that a file states as it may stand in a message: short, and on one line."""
    text = str(name)[:LONGEST_SHOWN]
    return text if text.isprintable() else ascii(text)
