"""Prefixes that wrapper modules and larger models add to tensor names, and their removal.

These prefixes may occur in only some of the names of a file. The module ``extraction`` removes any
other prefix that all names of a model have.

``module.`` comes from DistributedDataParallel, ``_orig_mod.`` from torch.compile,
``_fsdp_wrapped_module.`` from FSDP, ``model.`` and ``backbone.`` from attributes of training
programs. The module ``recognition`` determines whether the names fit a layout after prefixes are
removed. Some layouts use such prefixes in their own names, so unchanged names are tried first.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Name components of wrapper modules around any part of a model; removed wherever they occur in a
name."""

LEADING = ("module.", "model.", "backbone.", "encoder.", "vit.")
"""Prefixes that can be removed from the names that begin with them."""

FOREIGN = ("module.", "model.", *ANYWHERE)
"""Prefixes that no layout uses; a name with such a prefix cannot match any layout."""

MOST_REMOVED = 4
"""Maximum number of prefixes that are removed, one after the other."""

MOST_COMBINATIONS = 32
"""Maximum number of combinations of prefixes that are tried."""


@dataclass(frozen=True)
class Stripped:
    """Tensor names from which prefixes were removed."""

    removed: tuple[str, ...]
    """The removed prefixes, in the order of their removal."""

    stored: Mapping[str, str]
    """The name in the file of each tensor, by the name without prefixes."""

    @property
    def foreign(self) -> bool:
        """Whether prefixes were removed, and no layout uses any of them."""
        return bool(self.removed) and set(self.removed) <= set(FOREIGN)

    @property
    def common(self) -> str | None:
        """The removed prefix if it is the same for every name, else None."""
        prefixes = {stored_name.removesuffix(name) for name, stored_name in self.stored.items()}
        uniform = len(prefixes) == 1 and all(k.endswith(n) for n, k in self.stored.items())
        return prefixes.pop() if uniform else None

    def in_words(self) -> str | None:
        """Return the removed prefixes as text, or None if no prefix was removed."""
        return self.common or ", ".join(self.removed) or None


def as_stored(names: Iterable[str]) -> Stripped:
    """Return the names with no prefix removed."""
    return Stripped((), {name: name for name in names})


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Remove the components that wrapper modules add to names (see `ANYWHERE`).

    If a shortened name would be empty or not unique, all names remain unchanged.

    Returns:
        The stored names, by shortened name.
    """
    stored: dict[str, str] = {}
    for name in names:
        short = name
        for wrapper in ANYWHERE:
            short = without(wrapper, short)
        if not short or short in stored:  # the name would be empty or not unique
            return {name: name for name in names}
        stored[short] = name
    return stored


def prefix_removals(names: Iterable[str]) -> Iterator[list[Stripped]]:
    """Yield lists of results: first of removing one prefix from the names, then two, and so on.

    Each list contains a result for every prefix (or combination of prefixes) that can be removed.
    Results with an empty name or two equal names, and repeated results, are skipped. The iteration
    ends when no prefix can be removed, after `MOST_REMOVED` prefixes, or when there are more than
    `MOST_COMBINATIONS` results.
    """
    removals = [as_stored(names)]
    seen = {frozenset(removals[0].stored)}
    for _ in range(MOST_REMOVED):
        longer = [removal for shorter in removals for removal in _remove_one_more(shorter)]
        removals = []
        for removal in longer:
            if frozenset(removal.stored) not in seen:
                seen.add(frozenset(removal.stored))
                removals.append(removal)
        if not removals or len(seen) > MOST_COMBINATIONS:
            return
        yield removals


def _remove_one_more(removal: Stripped) -> Iterator[Stripped]:
    for prefix in (*ANYWHERE, *LEADING):
        stored = {without(prefix, name): key for name, key in removal.stored.items()}
        is_bijective = len(stored) == len(removal.stored) and "" not in stored
        if is_bijective and stored.keys() != removal.stored:
            yield Stripped((*removal.removed, prefix), stored)


def without(prefix: str, name: str) -> str:
    """Return a name without a prefix.

    A prefix in `ANYWHERE` is removed wherever it occurs in the name, any other prefix only from the
    beginning of the name.
    """
    if prefix not in ANYWHERE:
        return name.removeprefix(prefix)
    part = prefix.removesuffix(".")
    return ".".join(piece for piece in name.split(".") if piece != part)


def is_readable(prefix: str) -> bool:
    """Return whether a prefix consists of non-empty components, each followed by a dot.

    Only such a prefix is recognised when a file is read.
    """
    *pieces, last = prefix.split(".")
    return bool(pieces) and not last and all(piece and "/" not in piece for piece in pieces)
