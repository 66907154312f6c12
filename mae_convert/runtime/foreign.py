"""Specifications of external code that runs checkpoints: code of the user or of a model's authors.

The code is imported and run in a child process, and only if the user specified it as the framework
of a side or with the option ``against``. This module does not run it: the layout that the code
requires is read from its source text.
"""

import ast
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_convert.errors import MaeConvertError, Option
from mae_convert.runtime.children import cannot_run, environment_of_child

FOREIGN = "foreign"  # the value of ``framework`` if external code runs the model
ORIGINAL = "original"
LAYOUT = "LAYOUT"  # the variable of external code that names the layout of its state dict
FORMS = "PATH.py:FACTORY, MODULE:FACTORY, or original=DIRECTORY with a clone of the authors' code"
SECONDS = 60


@dataclass(frozen=True)
class ForeignCode:
    """External code that creates and runs a model.

    Attributes:
        kind: "file", "module", or "original" for a clone of the authors' code.
        path: the file, the module's dotted name, or the directory.
        factory: the function or class that creates the model; "" for the authors' code.
        layout: the layout of the state dict that the code loads; None for the checkpoint's layout.
    """

    kind: str
    path: str
    factory: str = ""
    layout: str | None = None

    @property
    def label(self) -> str:
        """The name of the code in reports, without directories."""
        if self.kind == ORIGINAL:
            return ORIGINAL
        name = Path(self.path).name if self.kind == "file" else self.path
        return f"{name}:{self.factory}"

    def plain(self) -> dict[str, Any]:
        """Return a dictionary of the fields that a child process needs, for JSON."""
        return {"kind": self.kind, "path": self.path, "factory": self.factory}


def names_code(text: str) -> bool:
    """Return whether a text specifies external code (see `FORMS`), which need not exist."""
    name, equals, _ = text.partition("=")
    return ":" in text or bool(equals and name == ORIGINAL)


def with_absolute_path(text: str, folder: Path) -> str:
    """Return the text that specifies external code, with its path resolved against `folder`.

    Args:
        text: the text, in one of the `FORMS`, such as ``file.py:function``.
        folder: the directory to which a relative path in the text is relative.
    """
    name, equals, rest = text.partition("=")
    if equals and name == ORIGINAL:
        target, equals, python = rest.partition("=")
        return f"{ORIGINAL}={(folder / target).resolve()}{equals}{python}"
    target, colon, factory = text.partition(".py:")
    return f"{(folder / target).resolve()}{colon}{factory}" if colon else text


def parse_foreign(
    text: str, python: str | None = None, option: str = "against"
) -> ForeignCode | None:
    """Return the external code that a text specifies, or None if it has none of the `FORMS`.

    Args:
        text: the text; external code is specified in one of the `FORMS`, such as
            ``file.py:function``.
        python: the Python interpreter whose environment has the module; None for the interpreter
            that runs this code.
        option: the name of the option that has this value, for messages.

    Raises:
        MaeConvertError: the file, directory or module does not exist, is not Python code, or
            assigns an invalid value to ``LAYOUT``, the layout of the model's state dict.
    """
    name, equals, target = text.partition("=")
    if equals and name == ORIGINAL:
        if not target or not Path(target).is_dir():
            raise MaeConvertError(
                *(Option(option, text), " is not a directory"),
                hint="clone the authors' repository and specify its directory",
            )
        return ForeignCode(ORIGINAL, str(Path(target).resolve()))
    target, colon, factory = text.rpartition(":")
    if not colon or not target or not factory.isidentifier():
        return None
    if target.endswith(".py"):
        if not Path(target).is_file():
            raise MaeConvertError(
                *(Option(option, text), f": {target} is not a file"), hint="check the path"
            )
        path = Path(target).resolve()
        return ForeignCode("file", str(path), factory, layout_in(path))
    if not all(part.isidentifier() for part in target.split(".")):
        return None
    return ForeignCode("module", target, factory, layout_in(_file_of_module(target, python)))


def layout_in(path: Path) -> str | None:
    """Return the value of ``LAYOUT`` in a file of Python code, without running the code.

    The result is None if ``LAYOUT`` is None or is not assigned.

    Raises:
        MaeConvertError: the file is not Python code, or the value is neither a string nor None.
    """
    try:
        tree = ast.parse(path.read_bytes(), path.name)
    except (SyntaxError, ValueError, OSError) as error:
        raise MaeConvertError(
            path, f" is not Python code: {error}", hint=f"specify {FORMS}"
        ) from error
    layouts = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(name, ast.Name) and name.id == LAYOUT for name in node.targets)
    ]
    if not layouts:
        return None
    if not isinstance(layouts[-1], ast.Constant) or not isinstance(layouts[-1].value, str | None):
        raise MaeConvertError(
            path, f": {LAYOUT} is not the name of a layout", hint=f'write {LAYOUT} = "facebook"'
        )
    return layouts[-1].value


FIND = (
    "import importlib.util, sys; spec = importlib.util.find_spec(sys.argv[1]); "
    "print(spec.origin if spec else '')"
)


def _file_of_module(name: str, python: str | None) -> Path:
    """Return the file of a module.

    To find the file, a child process imports the module's parent packages.

    Args:
        name: the dotted name of the module.
        python: the Python interpreter of the child process; None for the current interpreter.

    Raises:
        MaeConvertError: the interpreter cannot be run, or it cannot find the module.
    """
    import sys

    command: Sequence[str] = [python or sys.executable, "-c", FIND, name]
    try:
        process = subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            env=environment_of_child(), timeout=SECONDS,
        )  # fmt: skip
    except OSError as error:
        raise cannot_run(python, error) from error
    except subprocess.TimeoutExpired as error:
        raise MaeConvertError(
            f"importing the packages that contain {name} took more than {SECONDS} seconds",
            hint="specify its file as PATH.py:FACTORY",
        ) from error
    lines = process.stdout.strip().splitlines()
    if process.returncode or not lines or not Path(lines[-1]).is_file():
        raise MaeConvertError(
            f"there is no Python module {name} that can be imported",
            hint="install it, add its directory to PYTHONPATH, or specify PATH.py:FACTORY",
        )
    return Path(lines[-1])
