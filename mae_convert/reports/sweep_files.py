"""Write the results of a sweep to files: an HTML page, JUnit XML for CI, or Parquet."""

import importlib.util
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_convert.errors import MissingRequirementError
from mae_convert.files.atomic import check_target, write_file
from mae_convert.files.strict_json import plain
from mae_convert.reports.junit import sweep_junit
from mae_convert.reports.sweep_html import page
from mae_convert.sweep.result import COLUMNS, MAPPINGS, Row


def check_names(paths: Sequence[Path]) -> None:
    """Raise an error for paths to which no report can be written, before any work is done.

    Raises:
        OutputError: the suffix is unknown, the directory is missing, or the path is a directory.
        MissingRequirementError: the package that writes the format is not installed.
    """
    for path in paths:
        check_target(path, overwrite=True, suffixes=WRITERS)
        if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
            raise MissingRequirementError(
                path,
                ": a Parquet file requires pyarrow",
                hint="pip install 'mae-convert[parquet]'",
            )


def write_reports(rows: Sequence[Row], paths: Sequence[Path], not_run: int = 0) -> None:
    """Write the reports; existing files are replaced.

    Args:
        rows: the rows of the jobs that were run.
        paths: the files to write.
        not_run: the number of jobs of the plan that were not run.
    """
    for path in paths:
        write_file(path, WRITERS[path.suffix.lower()](rows, not_run), overwrite=True)


def _page(rows: Sequence[Row], not_run: int) -> bytes:
    return page(rows, not_run).encode()


def _junit(rows: Sequence[Row], not_run: int) -> bytes:
    return sweep_junit(rows, not_run).encode()


def _table(rows: Sequence[Row], not_run: int) -> bytes:  # noqa: ARG001
    """Return a Parquet file with a row for each job that was run.

    The columns are as in the results file. `not_run` is not used, because jobs that were not run
    have no rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    schema = pa.schema(
        [(n, kinds.get(kind.removesuffix(" | None"), pa.string())) for n, kind in COLUMNS.items()]
    )
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([_cells(row) for row in rows], schema), data)
    return data.getvalue()


def _cells(row: Row) -> dict[str, Any]:
    return {
        name: json.dumps(plain(value), sort_keys=True) if name in MAPPINGS else value
        for name, value in row.to_dict().items()
    }


WRITERS: Mapping[str, Callable[[Sequence[Row], int], bytes]] = {
    ".html": _page,
    ".parquet": _table,
    ".xml": _junit,
}
