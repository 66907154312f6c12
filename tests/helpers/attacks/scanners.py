"""Compare pickle scanners and this package on the same files, and print the table.

    cd tests && python -m attacks.scanners --python /tmp/scanners/bin/python

The interpreter has picklescan, fickling and modelscan installed (`pip install picklescan fickling
modelscan h5py typing_extensions`); `--python picklescan=PATH` specifies another one for one
scanner. Nothing in the files is run: the scanners only read them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from attacks import ATTACKS, Attack, advisories, skipped_objects
from attacks.run import outcome, warm_up

PROGRAMS = {
    "picklescan": """
from picklescan.scanner import scan_file_path
def flags(path):
    found = scan_file_path(path)
    return found.infected_files > 0, found.scan_err or not found.scanned_files
""",
    "fickling": """
import zipfile
from fickling.analysis import Severity
from fickling.loader import scan_file, scan_zip_archive
def flags(path):
    results = scan_zip_archive(path) if zipfile.is_zipfile(path) else [scan_file(path)]
    results = list(results.values()) if isinstance(results, dict) else results
    return any(not result.is_safe for result in results), not results
""",
    "modelscan": """
from modelscan.modelscan import ModelScan
def flags(path):
    scanner = ModelScan()
    found = scanner.scan(path)
    read = found["summary"]["scanned"]["total_scanned"]
    return found["summary"]["total_issues"] > 0, bool(found["errors"]) or not read
""",
}
LOOP = """
import contextlib, importlib.metadata, io, json, logging, sys, warnings
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
results = {}
for path in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            flagged, failed = flags(path)
            results[path] = "flagged" if flagged else "not read" if failed else "passed"
        except Exception as error:
            results[path] = "not read"
print(json.dumps([importlib.metadata.version(NAME), results]))
"""
OURS = "mae-convert"


def grouped() -> Iterator[tuple[str, Attack]]:
    """Yield the files that every scanner reads, each with the row of the table that counts it."""
    globals_ = {f"{which}: {name}" for which, name in advisories.GLOBALS.items()}
    beside = {f"beside the weights: {name}" for name in skipped_objects.BESIDE}
    for attack in ATTACKS:
        if attack.name == "beside the weights: nothing":
            yield "a checkpoint of tensors and plain data", attack
    for attack in ATTACKS:
        if attack.name in globals_:
            yield "published names of functions", attack
        elif attack.name.startswith(("parsing: ", "archive: ", "CVE-")):
            yield attack.name.removeprefix("parsing: ").removeprefix("archive: "), attack
        elif attack.name in beside:
            yield "harmless objects beside the weights", attack


def scanned(name: str, python: str, paths: list[str]) -> tuple[str, Mapping[str, str]]:
    """Return the version of a scanner and its result for each file.

    A result is "flagged", "passed", or "not read" if the scanner fails or finds nothing that
    it can read.
    """
    program = f"NAME = {name!r}\n{PROGRAMS[name]}{LOOP}"
    process = subprocess.run(
        [python, "-I", "-c", program],
        input=json.dumps(paths),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise SystemExit(f"{name} cannot be run by {python}: {process.stderr.strip()[-300:]}")
    version, results = json.loads(process.stdout.splitlines()[-1])
    return version, results


def our_result(attack: Attack, folder: Path) -> str:
    """Return the result of this package for a file: "refused", "read", or its wrong outcome."""
    result = outcome(attack, folder)
    if complaint := result.complaint():
        return f"WRONG: {complaint}"
    return "refused" if result.message is not None else "read"


def main() -> int:
    """Print the table; return 1 if this package has a wrong outcome."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", required=True, metavar="[SCANNER=]PATH")
    config = [text.rpartition("=")[::2] for text in parser.parse_args().python]
    pythons = {name: path for name, path in config if name}
    common = next((path for name, path in config if not name), None)
    warm_up()
    with tempfile.TemporaryDirectory() as root:
        files: list[tuple[str, Attack, str]] = []
        ours: dict[str, str] = {}
        for number, (row, attack) in enumerate(grouped()):
            folder = Path(root) / str(number)
            folder.mkdir()
            path = str(attack.build(folder))
            files.append((row, attack, path))
            again = Path(root) / f"{number}-ours"
            again.mkdir()
            ours[path] = our_result(attack, again)
        paths = [path for *_, path in files]
        results = {OURS: ours}
        for name in PROGRAMS:
            if (python := pythons.get(name, common)) is not None:
                version, result = scanned(name, python, paths)
                results[f"{name} {version}"] = result
    print(table(files, results))
    return int(any(result.startswith("WRONG") for result in ours.values()))


def table(files: list[tuple[str, Attack, str]], results: Mapping[str, Mapping[str, str]]) -> str:
    """Return the results in Markdown, one line for each row."""
    rows: dict[str, list[str]] = {}
    for row, _, path in files:
        rows.setdefault(row, []).append(path)
    lines = [f"| file | files | {' | '.join(results)} |", f"|---|---|{'---|' * len(results)}"]
    for row, paths in rows.items():
        cells = [counted([result[path] for path in paths]) for result in results.values()]
        lines.append(f"| {row} | {len(paths)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def counted(results: list[str]) -> str:
    """Return the results of several files: "61 flagged, 2 passed"."""
    counts = Counter(results)
    if len(results) == 1:
        return results[0]
    return ", ".join(f"{count} {result}" for result, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
