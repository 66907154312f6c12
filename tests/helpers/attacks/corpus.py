"""A corpus of malicious files: each is created by a function and must be refused or read safely."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paths import GOLDEN

ENCODER = GOLDEN / "encoder_tiny" / "checkpoint.pth"
MODEL = GOLDEN / "transformers_tf_pretrain_tiny_v4pt"
TF_MODEL = GOLDEN / "transformers_tf_pretrain_tiny"


@dataclass(frozen=True)
class Attack:
    """A malicious file.

    Attributes:
        container: the file format that it pretends to have.
        name: the attack.
        build: creates the file in a directory and returns the path to open.
        weights: the weights that must be read, by name; None if the file must be refused.
    """

    container: str
    name: str
    build: Callable[[Path], Path]
    weights: dict[str, list[float]] | None = None

    @property
    def is_heavy(self) -> bool:
        """Whether the file takes seconds to create, or to refuse while memory is measured."""
        return self.name in HEAVY

    def __str__(self) -> str:
        return f"{self.container}: {self.name}"


ATTACKS: list[Attack] = []
HEAVY = ("20,000 names of one dataset", "a pickle of 80 MB packed to 80 kB")


def attack(container: str, name: str) -> Callable[[Callable[[Path], Path]], Callable]:
    """Add the file that the decorated function creates to the corpus."""

    def add(build: Callable[[Path], Path]) -> Callable[[Path], Path]:
        ATTACKS.append(Attack(container, name, build))
        return build

    return add


def attacks(container: str, cases: dict[str, object], make: Callable[[Path, object], Path]) -> None:
    """Add the files that a function creates for each of several values, by name."""
    for name, case in cases.items():
        ATTACKS.append(Attack(container, name, lambda folder, case=case: make(folder, case)))


def benign(container: str, cases: dict[str, object], make: Callable[[Path, object], Path]) -> None:
    """Add files with skipped objects: their weights, `a` = [1, 2], must be read."""
    for name, case in cases.items():
        build = lambda folder, case=case: make(folder, case)  # noqa: E731
        ATTACKS.append(Attack(container, name, build, {"a": [1.0, 2.0]}))


def with_pickle(folder: Path, pickled: bytes, storage: bytes = bytes(8)) -> Path:
    """Write a zip checkpoint with this pickle and one storage, 0."""
    path = folder / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", storage)
        archive.writestr("x/version", b"3\n")
    return path


def with_config(folder: Path, change: dict[str, object] | str, name: str = "config.json") -> Path:
    """Write a valid model directory, but one JSON file has changed fields or another text."""
    path = folder / "model"
    shutil.copytree(MODEL, path, ignore=shutil.ignore_patterns("*.npz", "case.json"))
    given = path / name
    config = json.loads(given.read_text()) if given.exists() else {}
    given.write_text(change if isinstance(change, str) else json.dumps({**config, **change}))
    return path
