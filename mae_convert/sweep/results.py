"""The results file: SQLite, with a row for each job, written when the job ends.

Other programs can read it while a sweep is running: ``SELECT * FROM jobs``. Mappings are stored as
JSON.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from mae_convert.errors import CheckpointError, Option, OutputError
from mae_convert.files.atomic import check_target
from mae_convert.files.byte_ranges import refuse_nul
from mae_convert.files.strict_json import in_unicode, plain
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.result import COLUMNS, DONE, ERROR, FAILED, MAPPINGS, Row

FORMAT = 2
TYPES = {"int": "INTEGER", "float": "REAL", "bool": "INTEGER", "str": "TEXT"}
PYTHON_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (float, int),
    "bool": int,
}
BOOLEANS = [name for name, kind in COLUMNS.items() if kind.startswith("bool")]


def _columns() -> str:
    kinds = ((name, kind.removesuffix(" | None")) for name, kind in COLUMNS.items())
    return ", ".join(f"{name} {TYPES.get(kind, 'TEXT')}" for name, kind in kinds)


TABLES = {
    "jobs": f"({_columns()}, PRIMARY KEY (key)) STRICT",
    "begun": "(key TEXT PRIMARY KEY, target TEXT) STRICT",
}


class Results:
    """The results file of a sweep: rows of ended jobs, and the targets of jobs that were started.

    Only one sweep at a time can open the file.
    """

    def __init__(self, path: Path) -> None:
        """Open a results file, or create it.

        Raises:
            OutputError: another sweep uses the file, the file cannot be written, or its suffix is
                ".parquet".
            CheckpointError: the file is not a results file.
        """
        from filelock import FileLock, Timeout

        refuse_nul(path)
        if path.suffix == ".parquet":
            raise OutputError(
                f"{path} has the suffix of a Parquet file, but results are stored in SQLite files",
                hint=("for a Parquet table of all results, pass ", Option("report", str(path))),
                path=path,
            )
        check_target(path, overwrite=True)
        self.path = path
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"{path} is in use by another sweep",
                hint=("wait until it has ended, or specify another file with ", Option("results")),
                path=path,
            ) from None
        except OSError as error:
            raise OutputError(
                path,
                f" cannot be written: {error.strerror}",
                hint="check the path, its permissions and the space on the disk",
            ) from error
        try:
            self._file = _opened(path)
        except sqlite3.Error as error:
            self._lock.release()
            raise _not_a_results_file(path, error) from error

    def __enter__(self) -> "Results":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def begin(self, jobs: Iterable[Job]) -> None:
        """Record that jobs are started; later runs of this sweep may replace the jobs' targets.

        Raises:
            OutputError: the file cannot be written.
        """
        with self._writing():
            self._file.executemany(
                "INSERT OR IGNORE INTO begun VALUES (?, ?)",
                [(j.key, j.identity()["target"]) for j in jobs],
            )

    def begun(self) -> set[str]:
        """Return the targets of all jobs that any run has started; credentials in URLs are removed.

        Raises:
            CheckpointError: the file is corrupt.
        """
        with self._reading():
            return {target for (target,) in self._file.execute("SELECT target FROM begun")}

    def write(self, row: Row) -> None:
        """Write the row of an ended job, replacing an earlier row of the job.

        Raises:
            OutputError: the file cannot be written.
        """
        values = [_stored(value) for value in row.to_dict().values()]
        placeholders = ", ".join("?" * len(values))
        with self._writing():
            self._file.execute(f"INSERT OR REPLACE INTO jobs VALUES ({placeholders})", values)

    def rows(self) -> dict[str, Row]:
        """Return a dictionary from the key of each job to the job's row.

        Raises:
            CheckpointError: the file is corrupt.
        """
        with self._reading():
            return _rows(self._file)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise _not_a_results_file(self.path, error) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Commit all SQL statements of the block, or none of them."""
        try:
            with self._file:
                yield
        except sqlite3.Error as error:
            raise OutputError(
                self.path,
                f" cannot be written: {error}",
                hint=("specify another file with ", Option("results")),
            ) from error


def _not_a_results_file(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is corrupt, or is not a results file of this version ({error})",
        hint=("move it away, or specify another file with ", Option("results")),
        path=path,
    )


def read_results(path: Path) -> list[Row]:
    """Return the rows of a results file, in the order in which the jobs ended.

    Raises:
        CheckpointError: the file is not a results file, or it is corrupt.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as file:
            _check_tables(file)
            return list(_rows(file).values())
    except (sqlite3.Error, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _not_a_results_file(path, error) from error


def _opened(path: Path) -> sqlite3.Connection:
    """Open a results file; create it if it does not exist.

    Raises:
        sqlite3.Error: the file is not a results file, or cannot be opened.
    """
    file = sqlite3.connect(path)
    try:
        if _is_empty(file):
            with file:
                for name, body in TABLES.items():
                    file.execute(f"CREATE TABLE {name} {body}")
                file.execute(f"PRAGMA user_version = {FORMAT}")
        _check_tables(file)
    except BaseException:
        file.close()
        raise
    return file


def _is_empty(file: sqlite3.Connection) -> bool:
    return not file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


def _check_tables(file: sqlite3.Connection) -> None:
    """Raise an error if a file does not contain exactly the tables of this version.

    In a file with other tables, a view or a generated column could replace a table or column of
    this version; it could return values of any type, or run without end.

    Raises:
        sqlite3.DatabaseError: the format or the tables differ.
    """
    stored = file.execute("PRAGMA user_version").fetchone()[0]
    if stored != FORMAT:
        raise sqlite3.DatabaseError(f"its format is {stored}, but this version reads {FORMAT}")
    definitions = file.execute(
        "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_autoindex_%' ORDER BY name"
    ).fetchall()
    if definitions != [(f"CREATE TABLE {name} {body}",) for name, body in sorted(TABLES.items())]:
        raise sqlite3.DatabaseError("its tables differ from the tables of this version")


def _rows(file: sqlite3.Connection) -> dict[str, Row]:
    names = ", ".join(COLUMNS)
    stored = file.execute(f"SELECT {names} FROM jobs ORDER BY rowid").fetchall()
    rows = (Row(**_loaded(dict(zip(COLUMNS, values, strict=True)))) for values in stored)
    return {row.key: row for row in rows}


def _stored(value: Any) -> Any:
    if isinstance(value, Mapping):
        return json.dumps(plain(value), sort_keys=True)
    return in_unicode(value)


def _loaded(values: dict[str, Any]) -> dict[str, Any]:
    """Convert the stored values of a row to the types of `Row`.

    Raises:
        TypeError: a stored value has the wrong type.
        ValueError: a value is invalid.
    """
    for name, value in values.items():
        kind = COLUMNS[name]
        if value is None and kind.endswith("| None"):
            continue
        if not isinstance(value, PYTHON_TYPES.get(kind.removesuffix(" | None"), str)):
            raise TypeError(f"the field {name} of a job has the wrong type {type(value).__name__}")
    for name in MAPPINGS:
        values[name] = json.loads(values[name])
        if not isinstance(values[name], dict):
            raise TypeError(f"the field {name} of a job is not a mapping")
    for name in BOOLEANS:
        values[name] = None if values[name] is None else bool(values[name])
    # Non-finite numbers are stored as text.
    values["own_error"] = {str(dtype): float(x) for dtype, x in values["own_error"].items()}
    if values["outcome"] not in (DONE, FAILED, ERROR):
        raise ValueError("this version of mae-convert does not know the outcome of a job")
    return values
