"""Families of models, one package each: what is special to a family is here and nowhere else.

The families of this project and those of other packages are told by `families`; other packages
register an instance of `mae_convert.families.family.Family` by the entry point
``mae_convert.families``, and further layouts of a family by ``mae_convert.layouts``. Only installed
packages have entry points: no checkpoint causes anything to be imported.
"""

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mae_convert.families.family import Family
    from mae_convert.layouts.layout import Layout


@cache
def families() -> Mapping[str, "Family"]:
    """Return all families by name, in the order in which they are tried."""
    from mae_convert.families.mae.family import MAE

    return {family.name: family for family in (MAE,)}


def layout_names() -> list[str]:
    """Return the names of the layouts of all families, and their synonyms, each once."""
    known = families().values()
    return list(dict.fromkeys(n for f in known for n in (*f.layouts, *f.layout_synonyms)))


def layouts_named(name: str) -> list["Layout"]:
    """Return the layouts of all families that have a name on the command line.

    Raises:
        LayoutError: no family has a layout of that name.
    """
    from mae_convert.errors import LayoutError

    known = families().values()
    names = [(family.layout_synonyms.get(name, name), family) for family in known]
    found = [family.layouts[name] for name, family in names if name in family.layouts]
    if not found:
        choices = dict.fromkeys(name for family in known for name in family.layouts)
        raise LayoutError(f"unknown layout {name!r}; the layouts are {', '.join(choices)}")
    return found


def family_of(layout: "Layout") -> "Family":
    """Return the family that a layout is of."""
    return families()[layout.family]
