"""The file of results: SQLite, a row for each job, written when the job ends.

Other programs can read it while a sweep goes on: ``SELECT * FROM jobs``. What is a mapping is JSON.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from mae_convert.errors import CheckpointError, OutputError
from mae_convert.plain import plain
from mae_convert.sweep.job import Job
from mae_convert.sweep.row import COLUMNS, MAPPINGS, Row

FORMAT = 1
TYPES = {"int": "INTEGER", "float": "REAL", "bool": "INTEGER", "str": "TEXT"}
BOOLEANS = [name for name, kind in COLUMNS.items() if kind.startswith("bool")]


class Results:
    """The results of a sweep, and which jobs were begun; one sweep at a time has them open."""

    def __init__(self, path: Path) -> None:
        """Open a file of results, or make it.

        Raises:
            OutputError: another sweep has it open, or it cannot be written.
            CheckpointError: it is something else.
        """
        from filelock import FileLock, Timeout

        if path.suffix == ".parquet":
            raise OutputError(
                f"{path}: results are kept as SQLite, which grows row by row; for a Parquet table"
                f" of them all, pass --report {path}"
            )
        if not path.resolve().parent.is_dir():
            raise OutputError(f"there is no directory {path.parent} for the results {path.name}")
        self.path = path
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(
                f"{path} is in use by another sweep; wait for it, or name other --results"
            ) from None
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error
        try:
            self._open()
        except sqlite3.Error as error:
            self._lock.release()
            raise _no_results(path, error) from error

    def _open(self) -> None:
        self._file = sqlite3.connect(self.path)
        made_by = self._file.execute("PRAGMA user_version").fetchone()[0]
        tables = self._file.execute("SELECT name FROM sqlite_master").fetchall()
        if made_by != FORMAT and tables:
            raise sqlite3.DatabaseError(f"it has format {made_by}, and this version {FORMAT}")
        columns = ", ".join(f"{name} {_sql_type(kind)}" for name, kind in COLUMNS.items())
        with self._file:
            self._file.execute(
                f"CREATE TABLE IF NOT EXISTS jobs ({columns}, PRIMARY KEY (key)) STRICT"
            )
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS begun (key TEXT PRIMARY KEY, target TEXT) STRICT"
            )
            self._file.execute(f"PRAGMA user_version = {FORMAT}")

    def __enter__(self) -> "Results":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._file.close()
        self._lock.release()

    def begin(self, jobs: Iterable[Job]) -> None:
        """Note that jobs are going to be done: from now on their targets are this sweep's."""
        with self._writing():
            self._file.executemany(
                "INSERT OR IGNORE INTO begun VALUES (?, ?)",
                [(j.key, j.identity()["target"]) for j in jobs],
            )

    def begun(self) -> set[str]:
        """Return the targets of jobs that were begun, now or earlier, without credentials.

        Raises:
            CheckpointError: the file is damaged.
        """
        with self._reading():
            return {target for (target,) in self._file.execute("SELECT target FROM begun")}

    def write(self, row: Row) -> None:
        """Write the row of a job that has ended, in place of an earlier one.

        Raises:
            OutputError: it cannot be written.
        """
        values = [_stored(value) for value in row.to_dict().values()]
        marks = ", ".join("?" * len(values))
        with self._writing():
            self._file.execute(f"INSERT OR REPLACE INTO jobs VALUES ({marks})", values)

    def rows(self) -> dict[str, Row]:
        """Return all rows, by key of their job.

        Raises:
            CheckpointError: the file is damaged.
        """
        with self._reading():
            return _rows(self._file)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise _no_results(self.path, error) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Commit what is written within, or nothing of it."""
        try:
            with self._file:
                yield
        except sqlite3.Error as error:
            raise OutputError(f"{self.path} cannot be written: {error}") from error


def _no_results(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged, or is not a file of results of this version ({error}); move it away,"
        " or name another with --results"
    )


def read_results(path: Path) -> list[Row]:
    """Return the rows of a file of results, in the order in which their jobs ended."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as file:
        return list(_rows(file).values())


def _rows(file: sqlite3.Connection) -> dict[str, Row]:
    names = ", ".join(COLUMNS)
    found = file.execute(f"SELECT {names} FROM jobs ORDER BY rowid").fetchall()
    rows = (Row(**_loaded(dict(zip(COLUMNS, values, strict=True)))) for values in found)
    return {row.key: row for row in rows}


def _sql_type(kind: str) -> str:
    return TYPES.get(kind.removesuffix(" | None"), "TEXT")


def _stored(value: Any) -> Any:
    return json.dumps(plain(value), sort_keys=True) if isinstance(value, Mapping) else value


def _loaded(values: dict[str, Any]) -> dict[str, Any]:
    for name in MAPPINGS:
        values[name] = json.loads(values[name])
    for name in BOOLEANS:
        values[name] = None if values[name] is None else bool(values[name])
    return values
