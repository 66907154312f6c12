"""Model families, one package each; everything that is specific to a family is in its package.

`families` returns the families of this project and of other packages. Other packages register an
instance of `mae_convert.families.family.Family` with the entry point
``mae_convert.families``, and further layouts of a family with the entry point
``mae_convert.layouts``. Only installed packages have entry points: no checkpoint causes anything to
be imported.
"""

import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from mae_convert.errors import LayoutError
    from mae_convert.families.family import Family
    from mae_convert.families.official_models import OfficialFile
    from mae_convert.layouts.layout import Layout

FRAMEWORK_NAMES = {  # frameworks and libraries that have several layouts
    **dict.fromkeys(("pytorch", "torch"), "facebook, transformers, timm or torchvision (PyTorch)"),
    **dict.fromkeys(
        ("tf", "tensorflow"), "transformers-tf (TFViTMAE classes) or keras (Keras 3 models)"
    ),
    **dict.fromkeys(
        ("hf", "huggingface"), "transformers (PyTorch) or transformers-tf (TensorFlow)"
    ),
    "jax": "keras (Keras 3 models, which run on JAX)",
}


GROUPS = ("mae_convert.families", "mae_convert.layouts")
"""The groups of entry points in which packages register families and layouts."""


@cache
def families() -> Mapping[str, "Family"]:
    """Return all families by name, in the order in which they are tried for a checkpoint.

    Raises:
        MissingRequirementError: a registered family or layout cannot be imported, or the family of
            a registered layout is not installed.
    """
    from mae_convert.errors import MissingRequirementError
    from mae_convert.families.mae.family import MAE
    from mae_convert.families.mae_st.family import MAE_ST
    from mae_convert.families.prithvi.family import PRITHVI
    from mae_convert.families.videomae.family import VIDEOMAE

    ours: tuple[Family, ...] = (MAE, VIDEOMAE, MAE_ST, PRITHVI)
    others, layouts = _registered(*GROUPS) if _is_anything_registered() else ([], [])
    by_name = {family.name: family for family in (*ours, *others)}
    for layout in layouts:
        if layout.family not in by_name:
            raise MissingRequirementError(
                f"an installed package registers the layout {layout.name} for the family"
                f" {layout.family}, which is not installed",
                hint="install the package of that family",
            )
    return {
        name: family.with_layouts(layout for layout in layouts if layout.family == name)
        for name, family in by_name.items()
    }


def _is_anything_registered() -> bool:
    """Return whether an installed package may register a family.

    Usually no package does, and `importlib.metadata` need not be imported; its import takes as long
    as reading a small checkpoint.
    """
    sections = [f"[{group}]".encode() for group in GROUPS]
    for folder in map(Path, sys.path):
        if folder.is_file():  # a zip archive, which `importlib.metadata` can read
            return True
        for kind in ("dist-info", "egg-info"):
            for path in folder.glob(f"*.{kind}/entry_points.txt"):
                text = path.read_bytes()
                if any(section in text for section in sections):
                    return True
    return False


def _registered(*groups: str) -> list[list[Any]]:
    """Return, for each group, the objects that installed packages register as entry points.

    Raises:
        MissingRequirementError: a registered object cannot be imported.
    """
    from importlib.metadata import entry_points

    installed = entry_points()  # called once: it reads the metadata of all packages
    return [[_loaded(point) for point in installed.select(group=group)] for group in groups]


def _loaded(point: "EntryPoint") -> Any:
    from mae_convert.errors import MissingRequirementError

    try:
        return point.load()
    except Exception as error:
        package = point.dist.name if point.dist else point.value
        raise MissingRequirementError(
            f"the package {package} registers {point.name} for mae-convert and cannot be imported"
            f" ({type(error).__name__}: {error})",
            hint="update it or uninstall it",
        ) from error


def official_files() -> list["OfficialFile"]:
    """Return the official files, of all families, that are downloaded by name."""
    from mae_convert.families.official_models import OfficialFile

    every_family = families().values()
    return [file for f in every_family for file in f.official if isinstance(file, OfficialFile)]


def official_named(text: str) -> "OfficialFile | None":
    """Return the official file with this name, or None."""
    return next((official for official in official_files() if official.name == text), None)


def layout_names() -> list[str]:
    """Return the distinct names and synonyms of the layouts of all families."""
    every_family = families().values()
    return list(dict.fromkeys(n for f in every_family for n in (*f.layouts, *f.layout_synonyms)))


def layouts_named(name: str) -> list["Layout"]:
    """Return the layouts that are called `name` on the command line, at most one of each family.

    Raises:
        LayoutError: no family has a layout with this name.
    """
    every_family = families().values()
    names = [(family.layout_synonyms.get(name, name), family) for family in every_family]
    layouts = [family.layouts[name] for name, family in names if name in family.layouts]
    if not layouts:
        raise unknown_layout(name, dict.fromkeys(n for f in every_family for n in f.layouts))
    return layouts


def unknown_layout(name: str, layouts: Iterable[str]) -> "LayoutError":
    """Return the error for an unknown layout name, with similar names."""
    from mae_convert.errors import LayoutError
    from mae_convert.text import did_you_mean

    if alternatives := FRAMEWORK_NAMES.get(name.lower()):
        return LayoutError(f"{name!r} is not the name of a layout", hint=f"choose {alternatives}")
    near = did_you_mean(name, layouts) or f"the layouts are {', '.join(layouts)}"
    return LayoutError(f"unknown layout {name!r}", hint=near)


def native_frameworks(layout: str, family: str | None = None) -> list[str]:
    """Return the frameworks that can load the tensors of a layout without a mapping table.

    Frameworks that can load only one naming variant of the layout without a table are included.

    Args:
        layout: a layout's name.
        family: the name of the family; None for all families with a layout of this name.
    """
    possible = [one for one in families().values() if family in (None, one.name)]
    return list(
        dict.fromkeys(
            framework
            for one in possible
            for table, framework in one.native_loaders
            if layout in one.layouts and table in {t.name for t in one.layouts[layout].tables}
        )
    )


def family_of(layout: "Layout") -> "Family":
    """Return the family of a layout."""
    return families()[layout.family]
