"""Which packages may import which: only those below them."""

import ast
from pathlib import Path

import pytest

import mae_convert

ROOT = Path(mae_convert.__file__).parents[1]
# From bottom to top; a unit imports only from itself and from units before it.
UNITS = (
    "text", "errors", "files", "formats", "layouts", "families", "checkpoint", "sources",
    "convert", "runtime", "verify", "diagnose", "models", "visualize", "publish", "sweep",
    "reports", "cli", "testing", "__main__",
)  # fmt: skip
# Names that the package itself defines and does not import.
OF_THE_PACKAGE = {"__version__", "UNSUPPORTED", "is_supported"}


def imported(path):
    """Return the dotted names of the imports of a file, including those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def importers(package, of):
    """Return file → imports, for the files of a package that import one of several modules."""
    prefixes = tuple(f"{name}." for name in of)
    return {
        str(path.relative_to(ROOT)): names_imported
        for path in sorted((ROOT / package).rglob("*.py"))
        if (names_imported := {n for n in imported(path) if f"{n}.".startswith(prefixes)})
    }


def files_of(unit):
    folder = ROOT / "mae_convert" / unit
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def test_every_module_is_in_the_import_order():
    units = {path.stem for path in (ROOT / "mae_convert").iterdir()
             if path.suffix == ".py" or (path / "__init__.py").exists()}  # fmt: skip
    assert units - {"__init__"} == set(UNITS)


@pytest.mark.parametrize("unit", UNITS)
def test_module_imports_only_from_lower_levels(unit):
    below = set(UNITS[: UNITS.index(unit) + 1])
    wrong = {}
    for path in files_of(unit):
        used = {name.split(".")[1] for name in imported(path) if name.startswith("mae_convert.")}
        upward = used - below - OF_THE_PACKAGE
        wrong |= {str(path.relative_to(ROOT)): upward} if upward else {}
    assert wrong == {}


@pytest.mark.parametrize("unit", [u for u in UNITS if u != "cli"])
def test_library_module_does_not_import_the_command_line(unit):
    for path in files_of(unit):
        used = {name.split(".")[0] for name in imported(path)}
        assert not used & {"click", "rich"}, path


def test_reference_models_import_nothing_of_the_program():
    assert importers("reference_models", ["mae_convert"]) == {}
