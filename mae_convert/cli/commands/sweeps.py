"""Commands for many checkpoints: convert and verify them, or plot the loss of a training run."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mae_convert.cli.completion import complete_layouts
from mae_convert.cli.contradictions import CheckedCommand
from mae_convert.cli.options import (
    bands_option,
    checkpoint_options,
    device_option,
    framework_option,
    json_option,
    preprocessed_option,
)
from mae_convert.cli.reporting import ReportingCommand
from mae_convert.cli.streams import print_to_stderr
from mae_convert.text import plural

if TYPE_CHECKING:
    from mae_convert.families.checkpoint_options import Flags
    from mae_convert.sweep.result import Row
    from mae_convert.sweep.results import Results
    from mae_convert.sweep.run import Engine, SelectedJobs

FILE = click.Path(path_type=Path)


@click.command(cls=ReportingCommand)
@click.argument("plan", nargs=-1, required=True, metavar="PLAN")
@click.option(
    "--to",
    multiple=True,
    metavar="LAYOUT",
    shell_complete=complete_layouts,
    help="Layout to write, like `to` in a plan.",
)
@click.option(
    "--target",
    metavar="TEXT",
    help=(
        "Target path of each job, for example out/{stem}-{to}. {stem}, {name} and {parent} are "
        "parts of the source's path; other names, such as {to}, are fields of the plan."
    ),
)
@click.option("--verify/--no-verify", default=None, help="Verify each conversion.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Set any other field of a plan; several values of a field create several jobs.",
)
@click.option(
    "--results", type=FILE, help="SQLite file for the results. [default: PLAN.results.sqlite]"
)
@click.option(
    "--report",
    "reports",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help=(
        "Also write all results to this file; its extension determines the format: a page (.html), "
        "a JUnit report (.xml) or a table (.parquet)."
    ),
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Run jobs in processes on this machine, or as tasks on a Ray cluster.",
)
@click.option(
    "--address",
    help="Address of the Ray cluster. [default: RAY_ADDRESS, or a cluster on this machine]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Maximum number of concurrent jobs on this machine. [default: number of cores]",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help=(
        "Number of threads that a framework uses in each job. [default: cores / workers; with Ray "
        "1]"
    ),
)
@click.option(
    "--allow-code",
    is_flag=True,
    help=(
        "Allow external code and Python interpreters that the plan specifies "
        "(`against: FILE.py:FACTORY`, `framework_b: original=DIRECTORY`, `python_b: PATH`)."
    ),
)
@click.option("--dry-run", is_flag=True, help="Show the jobs and their sizes without running them.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first failure.")
@click.option(
    "--retry-failed", is_flag=True, help="Run only the jobs that failed before, and no new jobs."
)
@click.option(
    "--overwrite", is_flag=True, help="Replace existing targets that this sweep did not write."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object for each event, one per line."
)
def sweep(
    plan: tuple[str, ...],
    results: Path | None,
    reports: tuple[Path, ...],
    dry_run: bool,
    fail_fast: bool,
    retry_failed: bool,
    overwrite: bool,
    as_json: bool,
    allow_code: bool,
    **options: Any,
) -> int:
    """Convert, verify and publish many checkpoints.

    PLAN is a .yaml or .csv file, or any number of checkpoints and glob patterns. A sweep that is
    run again skips completed jobs whose source and target are unchanged; all other jobs,
    including failed jobs, are run. Exit status 1 if a job failed.

    Example:

    \b
        mae-convert sweep 'runs/checkpoint-*.pth' --to transformers \\
            --target 'out/{stem}' --verify
    """
    from mae_convert.cli.output import sweep as show
    from mae_convert.reports.sweep_files import check_names, write_reports
    from mae_convert.sweep.jobs_from_plan import read_plan
    from mae_convert.sweep.results import Results
    from mae_convert.sweep.run import refuse_targets, select_jobs

    check_names(reports)
    jobs = read_plan(plan, _take_plan_fields(options), allow_code=allow_code)
    path = results or _default_results(plan)
    nothing = dry_run and not path.exists()
    with nullcontext() if nothing else Results(path) as file:
        rows, begun = (file.rows(), file.begun()) if file else ({}, set[str]())
        selected = select_jobs(jobs, rows, only_failed=retry_failed)
        if not overwrite:
            refuse_targets(selected.pending, begun)
        if dry_run or file is None:
            show.dry_run(selected, rows, as_json=as_json)
            return 0
        rows_of_run = _run(selected, file, _engine(options), fail_fast=fail_fast, as_json=as_json)
    show.summary(selected, rows_of_run, path, as_json=as_json)
    not_run = len(jobs) - len(rows_of_run)
    write_reports(rows_of_run, reports, not_run)
    return 0 if not not_run and all(row.is_good for row in rows_of_run) else 1


def _run(
    selected: "SelectedJobs", file: "Results", engine: "Engine", *, fail_fast: bool, as_json: bool
) -> "list[Row]":
    """Run the pending jobs and return the rows of all jobs in the order of the plan."""
    from mae_convert.cli.output import sweep as show
    from mae_convert.sweep.run import run_sweep

    on_terminal = sys.stdout.isatty() and sys.stderr.isatty()
    with show.progress(selected, as_json=as_json, on_terminal=on_terminal) as on_row:
        fresh = run_sweep(selected.pending, file, engine, fail_fast=fail_fast, on_row=on_row)
    rows = {row.key: row for row in (*selected.done, *fresh)}
    return [rows[job.key] for job in selected.jobs if job.key in rows]


def _take_plan_fields(options: dict[str, Any]) -> dict[str, list[Any]]:
    """Remove the fields of a plan from the options of the command and return them."""
    plan_fields: dict[str, list[Any]] = {}
    for text in options.pop("assignments"):
        name, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set {text} is not of the form FIELD=VALUE")
        plan_fields.setdefault(name, []).append(value)
    if to := options.pop("to"):
        plan_fields["to"] = list(to)
    for name in ("target", "verify"):
        if (value := options.pop(name)) is not None:
            plan_fields[name] = [value]
    return plan_fields


def _default_results(plan: tuple[str, ...]) -> Path:
    from mae_convert.sweep.plan_file import is_plan

    return Path(plan[0] if is_plan(plan[0]) else "sweep").with_suffix(".results.sqlite")


def _engine(options: dict[str, Any]) -> "Engine":
    """Return the function that runs the jobs, in a local process pool or on Ray."""
    if options["engine"] == "ray":
        from mae_convert.sweep.ray_engine import run_on_ray

        return lambda jobs: run_on_ray(jobs, options["address"], options["threads"])
    from mae_convert.sweep.process_pool import limits, run_local

    allowed = limits(options["workers"], options["threads"])
    return lambda jobs: run_local(jobs, allowed)


@click.command(cls=CheckedCommand)
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@click.option("--images", type=FILE, metavar="DIR", help="Directory of images.")
@preprocessed_option
@bands_option
@click.option(
    "-o",
    "--output",
    "outputs",
    type=FILE,
    multiple=True,
    required=True,
    metavar="FILE",
    help=(
        "Output: an .html page, a .png with the images only, or a .csv or .json with the table "
        "only."
    ),
)
@click.option("--most", type=click.IntRange(min=1), default=8, show_default=True,
              help="Maximum number of images.")  # fmt: skip
@click.option("--shown", type=click.IntRange(min=2), default=5, show_default=True,
              help="Number of checkpoints whose reconstructions are shown.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Seed of the masking noise.")  # fmt: skip
@framework_option
@device_option
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@json_option
@checkpoint_options
def timeline(
    sources: tuple[str, ...],
    images: Path | None,
    outputs: tuple[Path, ...],
    most: int,
    framework: str | None,
    overwrite: bool,
    as_json: bool,
    state_key: str | None,
    flags: "Flags",
    **options: Any,
) -> int:
    """Show the loss of each checkpoint of a training run.

    All checkpoints are run on the same images with the same masks. SRC is any number of checkpoints
    and glob patterns. The epoch is read from the file or, if it is not stored there, from the last
    number in the file name. Exit status 1 if a checkpoint could not be run.

    Example:

    \b
        mae-convert timeline 'runs/*.pth' --images photos -o training.html
    """
    from mae_convert.checkpoint.image_files import images_in
    from mae_convert.cli.commands.images import installed
    from mae_convert.cli.output.visualization import timeline as show
    from mae_convert.cli.streams import print_json
    from mae_convert.reports.timeline_files import check_names, timeline_json, write
    from mae_convert.sources.patterns import sources_named
    from mae_convert.text import listed
    from mae_convert.visualize.timeline import TimelineOptions
    from mae_convert.visualize.timeline import timeline as follow

    check_names(outputs, overwrite=overwrite)
    if images is None and options["inputs"] is None:
        raise click.UsageError("no image is specified; pass --images DIR, or --inputs FILE.npz")
    chosen = installed(framework)
    if images and not images.is_dir():
        images_in(images)  # raises an error that describes the problem
    paths = [name for text in sources for name in sources_named(text)]
    folders = [images] if images else []
    options |= {"flags": flags, "state_key": state_key, "most": most}
    view = TimelineOptions(chosen, **options)
    with click.progressbar(
        length=len(paths),
        label="checkpoints",
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
    ) as bar:
        result = follow(list(dict.fromkeys(paths)), folders, view, bar.update)
    outputs = tuple(dict.fromkeys(outputs))
    write(result, outputs, overwrite=overwrite)
    print_json(timeline_json(result)) if as_json else show(result, outputs)
    if failed := result.failed:
        names = listed([point.source for point in failed])
        count = plural(len(result.points), "checkpoint")
        print_to_stderr(f"{len(failed)} of {count} have no loss: {names}")
    return 1 if failed else 0
