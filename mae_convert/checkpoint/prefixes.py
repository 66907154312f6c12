"""Prefixes that wrappers and larger models add to tensor names and that can be removed.

These prefixes may occur in only some of the names. If a complete model is among other tensors, any
prefix can be removed: see ``extraction``.

``module.`` comes from DistributedDataParallel, ``_orig_mod.`` from torch.compile,
``_fsdp_wrapped_module.`` from FSDP, ``model.`` and ``backbone.`` from attributes of training
programs. ``recognition`` determines whether names without a prefix fit a layout. Some layouts use
such prefixes in their own names, so unchanged names are tried first.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Name components of wrapper modules around any part of a model; removed wherever they occur in a
name."""

LEADING = ("module.", "model.", "backbone.", "encoder.", "vit.")
"""Prefixes that are removed from each name that begins with them."""

FOREIGN = ("module.", "model.", *ANYWHERE)
"""Prefixes that no layout uses: names with one of them cannot match any layout."""

MOST_REMOVED = 4
MOST_WAYS = 32
"""Maximum number of combinations of prefixes: more than any model needs, few enough to try."""


@dataclass(frozen=True)
class Stripped:
    """Names without their prefixes."""

    removed: tuple[str, ...]
    """The prefixes, in the order of their removal."""

    stored: Mapping[str, str]
    """Name → stored name."""

    @property
    def foreign(self) -> bool:
        """Whether only prefixes that no layout uses were removed."""
        return bool(self.removed) and set(self.removed) <= set(FOREIGN)

    @property
    def common(self) -> str | None:
        """The prefix that restores the stored names, if a single common prefix does."""
        prefixes = {stored_name.removesuffix(name) for name, stored_name in self.stored.items()}
        uniform = len(prefixes) == 1 and all(k.endswith(n) for n, k in self.stored.items())
        return prefixes.pop() if uniform else None

    def in_words(self) -> str | None:
        """Return the removed prefixes as text, or None."""
        return self.common or ", ".join(self.removed) or None


def as_stored(names: Iterable[str]) -> Stripped:
    """Return unchanged names."""
    return Stripped((), {name: name for name in names})


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Return name → stored name, without the components of wrapper modules."""
    stored: dict[str, str] = {}
    for name in names:
        short = name
        for wrapper in ANYWHERE:
            short = without(wrapper, short)
        if not short or short in stored:  # the name would be empty, or the same as another
            return {name: name for name in names}
        stored[short] = name
    return stored


def strippings(names: Iterable[str]) -> Iterator[list[Stripped]]:
    """Yield all ways to remove one prefix, then all ways to remove two, and so on.

    Removals that make two names equal or leave an empty name are skipped.
    """
    ways = [as_stored(names)]
    seen = {frozenset(ways[0].stored)}
    for _ in range(MOST_REMOVED):
        longer = [way for shorter in ways for way in _without_one_more(shorter)]
        ways = []
        for way in longer:
            if frozenset(way.stored) not in seen:
                seen.add(frozenset(way.stored))
                ways.append(way)
        if not ways or len(seen) > MOST_WAYS:
            return
        yield ways


def _without_one_more(way: Stripped) -> Iterator[Stripped]:
    for prefix in (*ANYWHERE, *LEADING):
        stored = {without(prefix, name): stored_name for name, stored_name in way.stored.items()}
        if len(stored) == len(way.stored) and "" not in stored and stored.keys() != way.stored:
            yield Stripped((*way.removed, prefix), stored)


def without(prefix: str, name: str) -> str:
    """Return a name without one of the prefixes, if it has one."""
    if prefix not in ANYWHERE:
        return name.removeprefix(prefix)
    part = prefix.removesuffix(".")
    return ".".join(piece for piece in name.split(".") if piece != part)


def is_readable(prefix: str) -> bool:
    """Return whether names with this prefix can be read: its components end in a dot."""
    *pieces, last = prefix.split(".")
    return bool(pieces) and not last and all(piece and "/" not in piece for piece in pieces)
