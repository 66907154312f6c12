"""Print the catalog of official checkpoints, and the layouts with their mapping tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from mae_convert.cli.output.console import console, markup, pairs, table
from mae_convert.families import families
from mae_convert.families.family import Family
from mae_convert.families.official_models import OfficialFile
from mae_convert.formats.registry import SUFFIX_FORMATS
from mae_convert.layouts.layout import Layout
from mae_convert.layouts.table import Repeat, Row
from mae_convert.verify.reference_results import REFERENCE_RESULTS
from mae_convert.verify.reference_results_videos import VIDEO_REFERENCE_RESULTS

DECODERS = {None: "none", False: "plain", True: "normalized"}
Fingerprints = Mapping[str, Mapping[str, str]]


def catalog(officials: Sequence[OfficialFile], fingerprints: Fingerprints) -> None:
    """Print the table of official checkpoints and the purpose of each.

    Args:
        officials: the official checkpoints.
        fingerprints: the result of `confirmed_fingerprints`: for each downloaded checkpoint, its
            ``fingerprint`` and ``confirmed``, a phrase that states how its file was checked.
    """
    out = console()
    heads = ("name", "folder", "task", "pixels predicted", "parameters", "md5")
    grid = table(*heads, right=("parameters",), whole=set(heads) - {"pixels predicted"})
    grid.padding = (0, 1)  # so that all names fit into 80 columns
    for official in officials:
        grid.add_row(
            official.name,
            official.folder,
            official.task,
            DECODERS[official.normalized],
            f"{official.parameters / 1e6:.1f} M",
            official.md5 or "none",
        )
    out.print(grid)
    _further(out)
    names = ", ".join(official.name for official in officials if official.name in REFERENCE_RESULTS)
    out.print(f"\nReference results published by third parties (verify --published): {names}")
    for family in families().values():
        if family.catalog_advice is None:
            continue
        which, notes = family.catalog_advice
        out.print("\n[bold]Which one?[/bold]")
        out.print(pairs((f"  {purpose}", names) for purpose, names in which))
        out.print(f"\n{notes}")
    for name, entry in fingerprints.items():
        out.print(
            f"\nfingerprint of {name}, computed from a download ({markup(entry['confirmed'])}):\n  "
            f"{markup(entry['fingerprint'])}",
            soft_wrap=True,
        )
    for base in dict.fromkeys(official.base_url for official in officials):
        out.print(
            f"address: {base}/FOLDER/NAME.pth; md5: the first digits, as published with the files"
        )


def _further(out: Console) -> None:
    """Print the official models that are specified by a path instead of a name, by family."""
    for family in further_families():
        licences = " or ".join(dict.fromkeys(o.license for o in family.official if o.where))
        out.print(f"\n[bold]{markup(family.title)}[/bold], licence {markup(licences)}")
        for official in (o for o in family.official if o.where):
            md5 = f", md5 {official.md5}..." if official.md5 else ""
            has_results = official.where.removeprefix("hf://") in VIDEO_REFERENCE_RESULTS
            results = ", reference results (verify --published)" if has_results else ""
            what = f"{official.task}, {official.data}{md5}{results}"
            out.print(f"  {markup(official.where)}\n    {markup(what)}", soft_wrap=True)


def further_families() -> list[Family]:
    """Return the families whose official models cannot be specified by a name, only by a path."""
    every_family = families().values()
    return [f for f in every_family if any(getattr(o, "where", "") for o in f.official)]


def _further_json() -> list[dict[str, Any]]:
    return [
        {
            "family": family.name,
            "model": official.model_name,
            "where": official.where,
            "task": official.task,
            "dataset": official.data,
            "parameters": sum(
                math.prod(shape) for shape in family.schema(official.model, official.task).values()
            ),
            "md5_begins_with": official.md5,
            "license": official.license,
        }
        for family in further_families()
        for official in family.official
        if official.where
    ]


def catalog_json(officials: Sequence[OfficialFile], fingerprints: Fingerprints) -> dict[str, Any]:
    """Return the catalog as a dictionary.

    ``fingerprint`` is None for a checkpoint that was not downloaded.
    """
    rows = [
        {
            "name": official.name,
            "url": f"{official.base_url}/{official.path}",
            "task": official.task,
            "has_decoder": official.task == "pretrain",
            "normalized_pixels": official.normalized,
            "parameters": official.parameters,
            "md5_begins_with": official.md5,
            "license": official.license,
            "purpose": official.purpose,
            "on_the_hub": official.on_the_hub,
            "fingerprint": fingerprints.get(official.name),
        }
        for official in officials
    ]
    published = {name: asdict(reference) for name, reference in REFERENCE_RESULTS.items()}
    videos = {name: asdict(reference) for name, reference in VIDEO_REFERENCE_RESULTS.items()}
    return {"official": rows, "further": _further_json(), "published": {**published, **videos}}


def layouts(title: str, all_layouts: Iterable[Layout]) -> None:
    """Print the layouts of a model family, one line for each layout."""
    console().print(title)
    grid = table("layout", "description", "tasks", "written as", whole=("layout",))
    for entry in all_layouts:
        tasks = ", ".join(dict.fromkeys(task for table in entry.tables for task in table.tasks))
        written = f"directory with {entry.weights_name}" if entry.weights_name else _kinds(entry)
        grid.add_row(*map(markup, (entry.name, entry.title, tasks, written)))
    console().print(grid)


def _kinds(entry: Layout) -> str:
    return ", ".join(suffix for suffix, kind in SUFFIX_FORMATS.items() if kind in entry.containers)


def layout(entry: Layout) -> None:
    """Print the mapping tables of a layout, one line for each row."""
    out = console()
    out.print(f"[bold]{entry.name}[/bold]: {entry.title}")
    for mapping in entry.tables:
        written = (
            "written and read"
            if any(entry.table_for(t) is mapping for t in mapping.tasks)
            else "read"
        )
        out.print(
            f"\n{mapping.name}: {', '.join(mapping.tasks)} ({written}); # is the index of a block"
        )
        grid = table("canonical", entry.name, "")
        for canonical, external, transform in table_rows(mapping.rows):
            grid.add_row(*map(markup, (canonical, external, transform)))
        for drop in mapping.drops:
            grid.add_row("not used", markup(drop.external), markup(drop.why))
        out.print(grid)


def table_rows(rows: Iterable[Row | Repeat]) -> Iterable[tuple[str, str, str]]:
    """Yield the canonical name, the name in the layout, and the transform of every row."""
    for row in rows:
        if isinstance(row, Repeat):
            for canonical, external, transform in table_rows(row.rows):
                yield row.canonical + canonical, row.external + external, transform
        else:
            yield row.canonical, row.external, str(row.transform)
