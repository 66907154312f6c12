"""Outputs are written completely or not at all, and never replace files of others."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mae_convert.errors import MaeConvertError, OutputError
from mae_convert.files import atomic
from mae_convert.files.atomic import Destination, check_target, staged
from mae_convert.formats import LazyTensor, open_container, write_directory, write_file
from mae_convert.formats import output_file as draft

KINDS = ("pth", "safetensors", "tf_h5", "keras_h5", "npz")
RECORD = {"conversion.json": {"outputs": {"extra.json": "sha256"}}, "config.json": {}}


def tensors(value: float) -> list[LazyTensor]:
    return [
        LazyTensor.from_array(f"m/{n}", np.full((100, 100), value, np.float32)) for n in range(5)
    ]


def failing(error: BaseException) -> list[LazyTensor]:
    def fail() -> np.ndarray:
        raise error

    good = tensors(2.0)
    return [*good[:3], LazyTensor("m/bad", (2,), np.dtype(np.float32), fail), *good[3:]]


def directory(path: Path, value: float, **options: bool) -> None:
    write_directory(path, "model.safetensors", "safetensors", tensors(value), RECORD, **options)


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def value_of(path: Path) -> float:
    values = {float(v) for t in open_container(path).tensors.values() for v in np.unique(t.load())}
    assert len(values) == 1
    return values.pop()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_leaves_the_old_file(tmp_path: Path, kind: str, error: BaseException) -> None:
    write_file(tmp_path / "x", kind, tensors(1.0))
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(type(error)):
        write_file(tmp_path / "x", kind, failing(error), overwrite=True)
    assert (tmp_path / "x").read_bytes() == before
    assert names_in(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()], ids=repr)
def test_an_exception_leaves_the_old_directory(tmp_path: Path, error: BaseException) -> None:
    directory(tmp_path / "d", 1.0)
    with pytest.raises(type(error)):
        write_directory(tmp_path / "d", "model.safetensors", "safetensors", failing(error), RECORD,
                        overwrite=True)  # fmt: skip
    assert value_of(tmp_path / "d") == 1.0
    assert names_in(tmp_path) == ["d"]


def test_an_existing_target_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    never = failing(AssertionError("a tensor was loaded"))
    for name in ("x", "link"):
        with pytest.raises(OutputError, match="already exists; choose another name or pass over"):
            write_file(tmp_path / name, "pth", never)
    with pytest.raises(OutputError, match="already exists"):
        write_directory(tmp_path / "d", "model.safetensors", "safetensors", never, RECORD)
    assert (tmp_path / "x").read_text() == "old"


def test_a_target_is_checked_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("old")
    (tmp_path / "d.csv").mkdir()
    check_target(tmp_path / "new.CSV", suffixes=(".csv",))
    check_target(tmp_path / "x.csv", overwrite=True)
    for name, overwrite, reason in (
        ("x.csv", False, "already exists; choose another name or pass overwrite=True"),
        ("d.csv", True, "is a directory and not a file; specify a file in it"),
        ("no/x.csv", True, "cannot be written: its directory does not exist; create it first"),
        (
            "x.csv/y.csv",
            True,
            "cannot be written: a part of its path is a file and not a directory; write elsewhere",
        ),
        ("x.png", True, "cannot be written: its name must end in .csv or .json; rename it"),
        ("x\0.csv", True, "contains a NUL character"),
    ):
        with pytest.raises(MaeConvertError, match=reason):
            check_target(tmp_path / name, overwrite=overwrite, suffixes=(".csv", ".json"))


def test_file_does_not_replace_a_directory_and_vice_versa(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    (tmp_path / "d").mkdir()
    with pytest.raises(OutputError, match="is a directory and not a file"):
        write_file(tmp_path / "d", "pth", tensors(1.0), overwrite=True)
    with pytest.raises(OutputError, match="is not a directory"):
        directory(tmp_path / "x", 1.0, overwrite=True)


def test_overwrite_replaces_an_existing_output(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        write_file(tmp_path / "x", "pth", tensors(value), overwrite=True)
        directory(tmp_path / "d", value, overwrite=True)
        assert value_of(tmp_path / "x") == value_of(tmp_path / "d") == value
    assert names_in(tmp_path) == ["d", "x"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_may_replace_the_one_it_is_read_from(tmp_path: Path, kind: str) -> None:
    write_file(tmp_path / "x", kind, tensors(1.0))
    opened = open_container(tmp_path / "x")
    write_file(tmp_path / "x", "safetensors", opened.tensors.values(), overwrite=True)
    assert value_of(tmp_path / "x") == 1.0
    arrays = [lazy.load() for lazy in opened.tensors.values()]  # of the file that has no name now
    assert all((array == 1.0).all() for array in arrays)


def test_symbolic_link_is_replaced_and_not_its_target(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("of a cache")
    (tmp_path / "x").symlink_to("blob")
    write_file(tmp_path / "x", "pth", tensors(1.0), overwrite=True)
    assert (tmp_path / "blob").read_text() == "of a cache"
    assert not (tmp_path / "x").is_symlink()


def make_foreign(path: Path) -> None:
    (path / "notes.txt").write_text("mine")


def make_nested(path: Path) -> None:
    (path / "README.md").mkdir()


def make_downloaded(path: Path) -> None:
    (path / "conversion.json").unlink()


def make_broken(path: Path) -> None:
    (path / "conversion.json").write_text("[")


@pytest.mark.parametrize("change", [make_foreign, make_nested, make_downloaded, make_broken])
def test_directory_not_written_by_us_is_not_replaced(tmp_path: Path, change) -> None:
    directory(tmp_path / "d", 1.0)
    change(tmp_path / "d")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="which mae-convert did not write"):
        directory(tmp_path / "d", 2.0, overwrite=True)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_files_named_in_the_record_may_be_replaced(tmp_path: Path) -> None:
    directory(tmp_path / "d", 1.0)
    (tmp_path / "d" / "extra.json").write_text("{}")
    directory(tmp_path / "d", 2.0, overwrite=True)
    assert names_in(tmp_path / "d") == [
        "config.json", "conversion.json", "model.safetensors"
    ]  # fmt: skip


def test_file_created_during_the_write_is_kept(tmp_path: Path) -> None:
    def appear() -> np.ndarray:
        (tmp_path / "x").write_text("of another program")
        return np.zeros(2)

    lazy = LazyTensor("a", (2,), np.dtype(np.float64), appear)
    with pytest.raises(OutputError, match="already exists"):
        write_file(tmp_path / "x", "pth", [lazy])
    assert (tmp_path / "x").read_text() == "of another program"
    assert names_in(tmp_path) == ["x"]


def test_file_added_to_the_old_directory_during_the_write_is_kept(tmp_path: Path) -> None:
    directory(tmp_path / "d", 1.0)

    def appear() -> np.ndarray:
        make_foreign(tmp_path / "d")
        return np.zeros(2)

    lazy = LazyTensor("a", (2,), np.dtype(np.float64), appear)
    with pytest.raises(OutputError, match=r"notes\.txt"):
        write_directory(tmp_path / "d", "model.safetensors", "safetensors", [lazy], RECORD,
                        overwrite=True)  # fmt: skip
    assert (tmp_path / "d" / "notes.txt").read_text() == "mine"


def test_writing_without_renameat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(atomic, "renameat2", unknown)
    write_file(tmp_path / "x", "pth", tensors(1.0))
    directory(tmp_path / "d", 1.0)
    write_file(tmp_path / "x", "pth", tensors(2.0), overwrite=True)
    with pytest.raises(OutputError, match="cannot be replaced in one step on this system"):
        directory(tmp_path / "d", 2.0, overwrite=True)
    assert (value_of(tmp_path / "x"), value_of(tmp_path / "d")) == (2.0, 1.0)
    assert names_in(tmp_path) == ["d", "x"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        for kind in KINDS:
            write_file(tmp_path / kind, kind, tensors(1.0))
            assert (tmp_path / kind).stat().st_mode & 0o777 == 0o666 & ~umask
        directory(tmp_path / "d", 1.0)
        assert (tmp_path / "d").stat().st_mode & 0o777 == 0o777 & ~umask
    finally:
        os.umask(old)


def test_missing_parent_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="its directory does not exist; create it first"):
        write_file(tmp_path / "none" / "x", "pth", tensors(1.0))
    with pytest.raises(OutputError, match="its directory does not exist; create it first"):
        directory(tmp_path / "none" / "d", 1.0)


def test_parent_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a part of its path is a file and not a directory"):
        write_file(tmp_path / "file" / "x", "pth", tensors(1.0))


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "quota"), (errno.EACCES, "permission")],
)
def test_operating_system_error_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    for kind in KINDS:
        with pytest.raises(OutputError, match=f"x cannot be written: .*{message}"):
            write_file(tmp_path / "x", kind, tensors(1.0))
    assert not any(tmp_path.iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    """Limit files to 64 KB: a write fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("kind", KINDS)
def test_write_beyond_the_file_size_limit_leaves_no_file(tmp_path: Path, kind: str) -> None:
    with pytest.raises(OutputError, match="exceed the allowed file size"):
        write_file(tmp_path / "x", kind, tensors(1.0))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_data_changed_by_the_disk_is_detected(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = draft.read_file

    def damage_and_read(path: Path):
        data = path.read_bytes()
        ones = np.full(1000, 1.0, np.float32).tobytes()
        assert ones in data
        path.write_bytes(data.replace(ones, ones[:-1] + b"\x00", 1))
        return read(path)

    monkeypatch.setattr(draft, "read_file", damage_and_read)
    with pytest.raises(OutputError, match="does not contain the data written to it"):
        write_file(tmp_path / "x", kind, tensors(1.0))
    assert not any(tmp_path.iterdir())


KILLED = """
import sys, numpy as np
from mae_convert.formats import LazyTensor, write_directory, write_file
value, folder = 2.0, sys.argv[1]
print("ready", flush=True)
while True:
    tensors = [LazyTensor.from_array(f"m/{n}", np.full((200, 200), value, np.float32))
               for n in range(8)]
    write_file(folder + "/x.h5", "keras_h5", tensors, overwrite=True)
    write_directory(folder + "/d", "model.safetensors", "safetensors", tensors,
                    {"conversion.json": {"value": value}}, overwrite=True)
    value += 1
"""


def test_killed_run_leaves_the_old_or_the_new_output(tmp_path: Path) -> None:
    write_file(tmp_path / "x.h5", "keras_h5", tensors(1.0))
    directory(tmp_path / "d", 1.0)
    chance = random.Random(0)
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.3))
            child.kill()
        assert value_of(tmp_path / "x.h5") >= 1.0
        value = value_of(tmp_path / "d")
        record = json.loads((tmp_path / "d" / "conversion.json").read_text())
        assert record.get("value", 1.0) == value
        for left in set(names_in(tmp_path)) - {"x.h5", "d"}:
            assert re.fullmatch(r"\.mae-convert-[0-9a-f]{16}", left)  # and nothing else
            shutil.rmtree(tmp_path / left, ignore_errors=True)
            (tmp_path / left).unlink(missing_ok=True)


def test_signals_that_are_ignored_from_the_commit_on_stay_ignored(tmp_path: Path) -> None:
    """A committed file is reported as written, even if Ctrl-C is pressed immediately after."""
    before = signal.getsignal(signal.SIGALRM)
    outcome = []

    def on_commit() -> None:
        outcome.append((tmp_path / "x").read_text())
        signal.signal(signal.SIGALRM, signal.SIG_IGN)

    try:
        with staged(Destination(tmp_path / "x"), on_commit=on_commit) as (output,):
            output.path.write_text("new")
        assert signal.getsignal(signal.SIGALRM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGALRM, before)
    assert outcome == ["new"]
