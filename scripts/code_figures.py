"""Print statistics about the code: files, units, imports, files whose functions a command calls.

    python scripts/code_figures.py [DIRECTORY]...

Each directory is a checkout of the project; the default is the checkout of this script. Commands
run with this interpreter and the checkout's modules. A unit is a module or a package directly in
`mae_convert`, or `reference_models`.
"""

import argparse
import ast
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
PACKAGES = ("mae_convert", "reference_models")
CHECKPOINT = "mae_convert/data/demo/checkpoint.pth"
SHORTEST_DUPLICATE = 6  # lines of a function
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

# Prints the files of the project in which a function of the command was called; code that runs
# during an import is not counted.
TRACE = """
import sys, threading
root, files = sys.argv.pop(1) + "/", set()
def entered(frame, event, _argument):
    name = frame.f_code.co_filename
    if event != "call" or name in files or not name.startswith(root):
        return
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename != "<string>":
            return
        frame = frame.f_back
    files.add(name)
try:
    from mae_convert.cli.main import main
except ModuleNotFoundError:  # in earlier versions, cli is one module
    from mae_convert.cli import main
threading.setprofile(entered)
sys.setprofile(entered)
try:
    main(sys.argv[1:])
except SystemExit as end:
    if end.code: raise
finally:
    sys.setprofile(None)
    names = [name[len(root):] for name in files]
    print("ENTERED", *sorted(n for n in names if n.startswith(("mae_convert/", "reference_"))))
"""


def unit_of(path: Path, root: Path) -> str:
    """Return a file's unit: its module or package in ``mae_convert``, or its top-level folder."""
    package, *rest = path.relative_to(root).parts
    return package if package != "mae_convert" else rest[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of the imports of a module, including those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dependencies(trees: Mapping[Path, ast.AST], root: Path) -> dict[str, set[str]]:
    """Return, for each unit, the other units that its modules import.

    Args:
        trees: the syntax tree of each file, by path.
        root: the checkout; for units see `unit_of`.
    """
    units = {unit_of(path, root) for path in trees}
    imports: dict[str, set[str]] = {unit: set() for unit in units}
    for path, tree in trees.items():
        for name in imported(tree):
            first, _, rest = name.partition(".")
            unit = rest.partition(".")[0] if first == "mae_convert" else first
            if unit in units and first in PACKAGES:
                imports[unit_of(path, root)].add(unit)
    return {unit: used - {unit} for unit, used in imports.items()}


def levels(graph: Mapping[str, set[str]]) -> str:
    """Return the length of the longest chain of imports between units, as text.

    If the imports contain a cycle, the cycle is returned instead.
    """
    depth: dict[str, int] = {}
    try:
        for unit in TopologicalSorter(graph).static_order():
            depth[unit] = 1 + max((depth[used] for used in graph[unit]), default=0)
    except CycleError as error:
        return f"cycle: {' > '.join(error.args[1])}"
    return str(max(depth.values()))


def functions(tree: ast.AST) -> Iterator[tuple[FunctionNode, int]]:
    """Yield functions with their number of lines."""
    for node in ast.walk(tree):
        if isinstance(node, FunctionNode):
            yield node, (node.end_lineno or node.lineno) - node.lineno + 1


def duplicates(trees: Mapping[Path, ast.AST]) -> int:
    """Return how many functions repeat the body of another function; docstrings are ignored."""
    bodies: Counter[str] = Counter()
    for tree in trees.values():
        for node, count in functions(tree):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if count >= SHORTEST_DUPLICATE and body:
                text = "\n".join(ast.dump(statement) for statement in body)
                bodies[hashlib.sha256(text.encode()).hexdigest()] += 1
    return sum(count - 1 for count in bodies.values())


def entered(root: Path, *arguments: str) -> list[str]:
    """Run a command in a new process, and return the files whose functions it calls."""
    process = subprocess.run(
        [sys.executable, "-c", TRACE, root, *arguments],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in process.stdout.splitlines() if line.startswith("ENTERED")]
    if process.returncode or not lines:
        raise SystemExit(f"{' '.join(arguments)} failed: {process.stderr[-2000:]}")
    return lines[-1].split()[1:]


def figures(root: Path) -> dict[str, str]:
    """Return the statistics of a checkout, by name."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    graph = dependencies(trees, root)
    sizes = [len(text.splitlines()) for text in texts.values()]
    longest = max(
        (count, f"{path.relative_to(root)}: {node.name}")
        for path, tree in trees.items()
        for node, count in functions(tree)
    )
    names = Counter(path.name for path in paths if path.name != "__init__.py")
    repeated = sorted(name for name, count in names.items() if count > 1)
    with tempfile.TemporaryDirectory() as folder:
        converted = f"{folder}/converted"
        convert = entered(root, "convert", CHECKPOINT, converted, "--to", "transformers", "--json")
        verify = entered(root, "verify", CHECKPOINT, converted, "--json",
                         "--framework-a", "torch", "--framework-b", "torch")  # fmt: skip
    return {
        "files": str(len(paths)),
        "lines": str(sum(sizes)),
        "lines of a file, median": f"{statistics.median(sizes):.0f}",
        "files of fewer than 60 lines": str(sum(size < 60 for size in sizes)),
        "units": str(len(graph)),
        "import levels": levels(graph),
        "dependencies between units": str(sum(map(len, graph.values()))),
        "files with functions that `convert` calls": str(len(convert)),
        "files with functions that `verify` calls": str(len(verify)),
        "longest function, lines": f"{longest[0]} ({longest[1]})",
        "file names used twice or more": str(len(repeated)),
        "duplicate functions": str(duplicates(trees)),
    }


def main() -> None:
    """Print a table with a column for each checkout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "directories",
        nargs="*",
        type=Path,
        default=[HERE],
        metavar="DIRECTORY",
        help="a checkout of the project (default: the checkout of this script)",
    )
    roots = [directory.resolve() for directory in parser.parse_args().directories]
    for root in roots:
        if not (root / CHECKPOINT).is_file():
            parser.error(f"{root} is not a checkout of the project: it has no {CHECKPOINT}")
    columns = [figures(root) for root in roots]
    print(f"| | {' | '.join(root.name for root in roots)} |")
    print("| --- |" + " --- |" * len(roots))
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


if __name__ == "__main__":
    main()
