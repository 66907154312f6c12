"""Which packages may import which: verification does not depend on its diagnosis."""

import ast
from pathlib import Path

import pytest

import mae_convert

ROOT = Path(mae_convert.__file__).parents[1]
# The command line, the sweep and pytest's helper diagnose what failed; nothing else does.
DIAGNOSES = ("mae_convert/commands/", "mae_convert/sweep/", "mae_convert/testing.py")
# Packages above verification, which a diagnosis knows nothing of.
ABOVE = ("commands", "show", "sweep", "publish", "models", "look", "in_memory", "hub", "testing")


def imported(path):
    """Return the dotted names of all modules that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def importers(package, of):
    """Return the files of a package that import any of several modules, with what they import."""
    prefixes = tuple(f"{name}." for name in of)
    return {
        str(path.relative_to(ROOT)): found
        for path in sorted((ROOT / package).rglob("*.py"))
        if (found := {n for n in imported(path) if f"{n}.".startswith(prefixes)})
    }


def test_only_those_who_tell_of_a_verdict_diagnose_it():
    found = importers("mae_convert", ["mae_convert.diagnose"])
    own = {path for path in found if path.startswith("mae_convert/diagnose/")}
    assert own, "the rule looks at the wrong files"
    assert not [path for path in found if path not in own and not path.startswith(DIAGNOSES)]


@pytest.mark.parametrize("package", ["mae_convert/diagnose", "mae_convert/verify"])
def test_verification_and_diagnosis_import_nothing_above_them(package):
    assert importers(package, [f"mae_convert.{name}" for name in ABOVE]) == {}
    assert importers(package, ["click", "rich"]) == {}


def test_reference_models_import_nothing_of_the_program():
    assert importers("reference_models", ["mae_convert"]) == {}
