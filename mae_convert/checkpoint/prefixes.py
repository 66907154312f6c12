"""Prefixes that wrappers and larger models put before a model's names, and that can be taken off.

These are the known ones, which may stand before some of the names only. Of a complete model among
other tensors, any prefix is taken off: see ``extraction``.

``module.`` comes from DistributedDataParallel, ``_orig_mod.`` from torch.compile,
``_fsdp_wrapped_module.`` from FSDP, ``model.`` and ``backbone.`` from what a training program calls
its part. Names only: whether they fit a layout once a prefix is off, ``recognition`` tells. Some
layouts have such prefixes in names of their own, so names are first tried as they are.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Of wrappers that may stand around any part of a model: taken off wherever they are in a name."""

LEADING = ("module.", "model.", "backbone.", "encoder.", "vit.")
"""Taken off the beginning of each name that begins so."""

FOREIGN = ("module.", "model.", *ANYWHERE)
"""Those that no layout has: where one is left on, no layout can fit."""

MOST_REMOVED = 4
MOST_WAYS = 32
"""More ways than any model's names have, and few enough to try them all."""


@dataclass(frozen=True)
class Stripped:
    """Names with prefixes off.

    Attributes:
        removed: the prefixes, in the order in which they were taken off.
        stored: name → the name as it is stored.
    """

    removed: tuple[str, ...]
    stored: Mapping[str, str]

    @property
    def foreign(self) -> bool:
        """Whether prefixes were removed that no layout has, and those only."""
        return bool(self.removed) and set(self.removed) <= set(FOREIGN)

    @property
    def common(self) -> str | None:
        """What to put before every name to have the stored names again, if that is all it takes."""
        found = {kept.removesuffix(name) for name, kept in self.stored.items()}
        uniform = len(found) == 1 and all(k.endswith(n) for n, k in self.stored.items())
        return found.pop() if uniform else None

    def said(self) -> str | None:
        """Return what was taken off as one text, or None."""
        return self.common or ", ".join(self.removed) or None


def as_stored(names: Iterable[str]) -> Stripped:
    """Return names with nothing taken off."""
    return Stripped((), {name: name for name in names})


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Return name → stored name, without the wrappers that may stand around any part of a model."""
    stored: dict[str, str] = {}
    for name in names:
        short = name
        for wrapper in ANYWHERE:
            short = without(wrapper, short)
        if not short or short in stored:  # two names would be one
            return {name: name for name in names}
        stored[short] = name
    return stored


def strippings(names: Iterable[str]) -> Iterator[list[Stripped]]:
    """Yield every way to take off one prefix, then every way to take off two, and so on.

    A way that makes two names the same, or leaves nothing of one, is none.
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
        stored = {without(prefix, name): kept for name, kept in way.stored.items()}
        if len(stored) == len(way.stored) and "" not in stored and stored.keys() != way.stored:
            yield Stripped((*way.removed, prefix), stored)


def without(prefix: str, name: str) -> str:
    """Return a name with one of the prefixes taken off, if it has it."""
    if prefix not in ANYWHERE:
        return name.removeprefix(prefix)
    part = prefix.removesuffix(".")
    return ".".join(piece for piece in name.split(".") if piece != part)


def is_readable(prefix: str) -> bool:
    """Tell whether names with this before them would be read again: names, each with a dot."""
    *pieces, last = prefix.split(".")
    return bool(pieces) and not last and all(piece and "/" not in piece for piece in pieces)
