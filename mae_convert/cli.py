"""The command line: every command parses, calls one function of the library, and prints.

Imports that cost time stand inside the commands, so that ``--help`` answers at once.
"""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mae_convert import __version__
from mae_convert.commands.opening import open_and_tell, say_notes
from mae_convert.commands.pictures import features, reconstruct
from mae_convert.errors import MaeConvertError
from mae_convert.options import (
    DEVICE,
    DTYPE,
    FRAMEWORK,
    MODE,
    RUN_DTYPE,
    ByteSize,
    ImageSize,
    SourceType,
    checkpoint_options,
    input_options,
    json_option,
    side_options,
)

if TYPE_CHECKING:
    from mae_convert.checkpoint import Flags
    from mae_convert.sources import Source
    from mae_convert.verify.sides import Side
    from mae_convert.verify.verification import Options, Verification


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mae-convert")
def cli() -> None:
    """Move Masked Autoencoders between frameworks, and prove that nothing changed."""


@cli.command()
@click.argument("src", type=SourceType())
@click.option("--stats", is_flag=True, help="Read the tensors and show statistics of their values.")
@click.option("--hash", "with_hash", is_flag=True, help="Hash the file: is it an official one?")
@json_option
@checkpoint_options
def inspect(
    src: "Source",
    stats: bool,
    with_hash: bool,
    as_json: bool,
    state_key: str | None,
    flags: "Flags",
) -> None:
    """Say what a checkpoint is: layout, task, geometry, and what was assumed.

    Example:

    \b
        mae-convert inspect mae_pretrain_vit_base.pth
    """
    from mae_convert.inspection import inspect as look
    from mae_convert.show.console import as_json as print_json
    from mae_convert.show.inspection import inspection as show

    checkpoint = open_and_tell(src, flags, state_key=state_key)
    report = look(checkpoint, stats=stats, with_hash=with_hash)
    print_json(report) if as_json else show(report)


@cli.command()
@click.argument("src", type=SourceType())
@click.argument("dst", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "targets",
    multiple=True,
    required=True,
    metavar="LAYOUT[=DST]",
    help="Layout to write (see `mae-convert layouts`); more of them as LAYOUT=DST.",
)
@click.option("--task", help="Keep only this: encoder drops a decoder or a classifier head.")
@click.option("--dtype", type=DTYPE, help="Round the weights to this dtype; reported as lossy.")
@click.option(
    "--image-size",
    type=ImageSize(),
    help="Resample the position embeddings for pictures of this size; reported as lossy.",
)
@click.option(
    "--sincos-positions",
    is_flag=True,
    help="With --image-size: make fixed sine-cosine position embeddings anew instead.",
)
@click.option(
    "--num-labels",
    type=click.IntRange(min=1),
    help="Put a new classifier head of zeros on the encoder, to fine-tune.",
)
@click.option(
    "--in-channels",
    type=click.IntRange(min=1),
    help="Sum (to 1) or repeat the first layer's channels; reported as lossy.",
)
@click.option(
    "--max-shard-size",
    type=ByteSize(),
    help="Write a directory's weights in parts of at most this size, with an index.",
)
@click.option(
    "--bin", "pickled", is_flag=True, help="Write pytorch_model.bin in place of model.safetensors."
)
@click.option(
    "--prefix",
    default="",
    metavar="TEXT",
    help="Put this before every name in the file, as module. of DistributedDataParallel.",
)
@click.option("--overwrite", is_flag=True, help="Replace DST if it is there.")
@json_option
@checkpoint_options
def convert(
    src: "Source",
    dst: Path,
    targets: tuple[str, ...],
    task: str | None,
    dtype: str | None,
    image_size: tuple[int, int] | None,
    sincos_positions: bool,
    in_channels: int | None,
    num_labels: int | None,
    max_shard_size: int | None,
    pickled: bool,
    prefix: str,
    overwrite: bool,
    as_json: bool,
    state_key: str | None,
    flags: "Flags",
) -> None:
    """Convert a checkpoint to another layout; what was written is read back and compared.

    Example:

    \b
        mae-convert convert checkpoint.pth my-mae --to transformers --num-heads 12
    """
    from mae_convert.convert import execute_all
    from mae_convert.heads import with_new_head
    from mae_convert.packing import Packing
    from mae_convert.planning import parse_targets, plan_conversion
    from mae_convert.show.console import as_json as print_json
    from mae_convert.show.conversion import conversion as show
    from mae_convert.show.progress import progress
    from mae_convert.steps import Geometry

    wanted: dict[str, Any] = {
        "task": task,
        "dtype": dtype,
        "geometry": Geometry(image_size, sincos_positions, in_channels),
        "packing": Packing(prefix, pickled, max_shard_size),
    }
    source = open_and_tell(src, flags, state_key=state_key)
    source = with_new_head(source, num_labels) if num_labels else source
    plans = [
        plan_conversion(source, target, layout, **wanted)
        for layout, target in parse_targets(dst, targets)
    ]
    with progress("read, write and compare") as told:
        reports = execute_all(plans, overwrite=overwrite, progress=told)
    _ignore_interrupts()  # the outputs have their names
    if as_json:
        print_json(reports[0] if len(reports) == 1 else {"conversions": reports})
    else:
        for plan, report in zip(plans, reports, strict=True):
            show(plan, report)


@cli.command()
@click.argument("a", type=SourceType())
@click.argument("b", type=SourceType())
@json_option
@checkpoint_options
def diff(a: "Source", b: "Source", as_json: bool, state_key: str | None, flags: "Flags") -> int:
    """Compare two checkpoints tensor by tensor, across layouts.

    Exit status 1 if anything differs.

    Example:

    \b
        mae-convert diff checkpoint.pth my-mae --num-heads 12
    """
    from mae_convert.diff import diff as compare_tensors
    from mae_convert.show.console import as_json as print_json
    from mae_convert.show.conversion import difference as show
    from mae_convert.show.conversion import difference_json

    opened = [open_and_tell(p, flags, fill_only=True, state_key=state_key) for p in (a, b)]
    difference = compare_tensors(*opened)
    print_json(difference_json(difference)) if as_json else show(difference)
    return 0 if difference.same else 1


@cli.command()
@click.argument("ckpt", type=SourceType())
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--framework", type=FRAMEWORK, help="Default: the one that reads the names natively.")
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@click.option("--python", help="Interpreter of the environment that has the framework.")
@click.option(
    "--mode",
    type=MODE,
    default="eager",
    show_default=True,
    help="Run the model as it is, compiled, or as in training with dropout 0.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=RUN_DTYPE,
    multiple=True,
    help="Precision of a run; may be given several times.  [default: float64, float32]",
)
@click.option("--taps", is_flag=True, help="Keep every step between, not only the results.")
@click.option(
    "--as-converted",
    type=SourceType(),
    metavar="CONVERTED",
    help="First apply the lossy steps that a checkpoint made of this one declares.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is there.")
@input_options
@checkpoint_options
def trace(
    ckpt: "Source",
    out: Path,
    framework: str | None,
    device: str,
    python: str | None,
    mode: str,
    dtypes: tuple[str, ...],
    state_key: str | None,
    flags: "Flags",
    as_converted: "Source | None",
    **options: Any,
) -> None:
    """Run a checkpoint on fixed inputs and keep the results, for `compare` here or elsewhere.

    Example:

    \b
        mae-convert trace checkpoint.pth a.safetensors --taps --num-heads 12
    """
    from mae_convert.sources import locate
    from mae_convert.verify.running import DEFAULT_DTYPES
    from mae_convert.verify.sides import Side
    from mae_convert.verify.tracing import TraceOptions, trace_to_file

    converted = None if as_converted is None else locate(as_converted)[0]
    trace_to_file(
        open_and_tell(ckpt, flags, state_key=state_key),
        Side(framework, device, python, mode),
        out,
        TraceOptions(dtypes=dtypes or DEFAULT_DTYPES, as_converted=converted, **options),
    )
    click.echo(f"wrote {out}")


@cli.command()
@click.argument("a", type=SourceType())
@click.argument("b", type=SourceType())
@json_option
def compare(a: "Source", b: "Source", as_json: bool) -> int:
    """Judge two traces, made here or on other machines. Exit status 1 if they differ.

    Example:

    \b
        mae-convert compare a.safetensors b.safetensors
    """
    from mae_convert.show.console import as_json as print_json
    from mae_convert.show.verdict import verdict as show
    from mae_convert.sources import locate_file
    from mae_convert.verify.explain.verdict import explained_by_traces
    from mae_convert.verify.judge import judge
    from mae_convert.verify.report import verdict_json
    from mae_convert.verify.trace import Trace

    traces = Trace.load(locate_file(a)), Trace.load(locate_file(b))
    verdict = explained_by_traces(judge(*traces), *traces)
    print_json(verdict_json(verdict)) if as_json else show(verdict)
    return 0 if verdict.passed else 1


@cli.command()
@click.argument("a", type=SourceType(), required=False)
@click.argument("b", type=SourceType(), required=False)
@click.option(
    "--published",
    metavar="NAME",
    help="Compare A, or the checkpoint NAME itself, with results that others published for NAME.",
)
@side_options
@click.option(
    "--against",
    multiple=True,
    metavar="FRAMEWORK[=PYTHON]",
    help="Have B run once more, by transformers' or timm's own classes.",
)
@click.option(
    "--dtype",
    "dtypes",
    type=RUN_DTYPE,
    multiple=True,
    help="Precision to judge besides float64; may be given several times.  [default: float32]",
)
@click.option(
    "--at-mask-ratio",
    "mask_ratio_of_run",
    type=click.FloatRange(0, 1, max_open=True),
    help="Run with this mask ratio instead of the configured one.",
)
@input_options
@click.option("--require-proof", is_flag=True, help="Fail unless both sides are native witnesses.")
@click.option(
    "--certify",
    is_flag=True,
    help="If it passes, put a certificate beside B, which `verify B` replays without A.",
)
@click.option(
    "--report",
    "reports",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Also write the verdict to FILE.json, FILE.xml (JUnit), FILE.html or FILE.md.",
)
@json_option
@checkpoint_options
def verify(
    a: "Source | None",
    b: "Source | None",
    published: str | None,
    sides: "tuple[Side, Side]",
    reports: tuple[Path, ...],
    certify: bool,
    as_json: bool,
    state_key: str | None,
    flags: "Flags",
    **options: Any,
) -> int:
    """Prove that two checkpoints are the same function, or say where they part and why.

    Both are run in child processes on the same pictures with the same noise. With A alone, its
    certificate is replayed; it may be on the Hub. Exit status 1 if they differ.

    Example:

    \b
        mae-convert verify checkpoint.pth my-mae --num-heads 12
    """
    from mae_convert.show.console import as_json as print_json
    from mae_convert.show.verdict import verdict as show
    from mae_convert.verify.certificate import write_certificate
    from mae_convert.verify.report import check_report_names, verdict_json, write_reports
    from mae_convert.verify.verification import parse_options, run_verification

    if published is not None:
        if b is not None or certify or reports:
            raise click.UsageError("--published takes no B, no --certify and no --report")
        return _verify_published(a, published, sides[0], flags, as_json=as_json)
    if a is None:
        raise click.UsageError("Missing argument 'A'.")
    if certify and not isinstance(b, Path):
        raise click.UsageError("--certify puts a certificate beside B, a local path")
    check_report_names(reports, models=[s for s in (a, b) if isinstance(s, Path)])
    if b is None:
        done = _replay(a, sides[0], parse_options(**options), flags)
    else:
        first, second = (
            open_and_tell(p, flags, fill_only=True, state_key=state_key) for p in (a, b)
        )
        done = run_verification(first, second, *sides, parse_options(**options))
        if certify and done.verdict.passed:
            write_certificate(done, second)
    write_reports(done, reports)
    print_json(verdict_json(done.verdict)) if as_json else show(done.verdict)
    return 0 if done.verdict.passed else 1


def _replay(source: "Source", side: "Side", options: "Options", flags: "Flags") -> "Verification":
    """Judge a checkpoint by its certificate, downloaded if need be."""
    from mae_convert.official import Official
    from mae_convert.sources import locate
    from mae_convert.verify.certificate import replay

    if isinstance(source, Official):
        raise click.UsageError(
            f"an official checkpoint has no certificate; `verify --published {source.name}`"
            " compares it with results that others published"
        )
    path, origin = locate(source, certificate=True)
    say_notes(origin)
    return replay(path, side, options, flags, origin)


def _verify_published(
    source: "Source | None", name: str, side: "Side", flags: "Flags", *, as_json: bool
) -> int:
    """Compare a checkpoint with what others published of it."""
    from mae_convert.show.console import as_json as print_json
    from mae_convert.show.published import published as show
    from mae_convert.sources import parse_source
    from mae_convert.sources.published import get_picture
    from mae_convert.verify.published import check_published, published_json, published_named

    truth = published_named(name)
    checkpoint = open_and_tell(source or parse_source(truth.source), flags)
    result = check_published(checkpoint, truth, get_picture(truth.picture), side)
    print_json(published_json(result)) if as_json else show(result)
    return 0 if result.passed else 1


@cli.command()
@json_option
def catalog(as_json: bool) -> None:
    """List the official checkpoints: which has the decoder, what it predicts, which one to take.

    Example:

    \b
        mae-convert catalog
    """
    from mae_convert.official import OFFICIAL
    from mae_convert.show import catalog as show
    from mae_convert.show.console import as_json as print_json

    print_json(show.catalog_json(OFFICIAL)) if as_json else show.catalog(OFFICIAL)


@cli.command()
@click.argument("name")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Also copy the file here; without it, it stays in the cache alone.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file at --output if it is there.")
@json_option
def download(name: str, output: Path | None, overwrite: bool, as_json: bool) -> None:
    """Download an official checkpoint, check it, and say where it is.

    Example:

    \b
        mae-convert download mae_visualize_vit_base
    """
    from mae_convert.show.console import as_json as print_json
    from mae_convert.sources.published import download as fetch

    report = fetch(name, output, overwrite=overwrite)
    if as_json:
        print_json(report)
        return
    for field, value in report.items():
        if field != "path":
            click.echo(f"{field:<10}{value}", err=True)
    click.echo(report["path"])


@cli.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo_id")
@click.option(
    "--also",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="The same model in another layout: a directory with tf_model.h5, or a .weights.h5 file.",
)
@click.option("--branch", default="main", show_default=True, help="Made if it is not there.")
@click.option("--create-pr", is_flag=True, help="Propose the change as a pull request.")
@click.option("--private", is_flag=True, help="Make a new repository a private one.")
@click.option("--license", "license_", metavar="ID", help="Where the source does not tell it.")
@click.option("--license-name", metavar="TEXT", help="With --license other: its name.")
@click.option("--license-link", metavar="URL", help="With --license other: where its text is.")
@click.option("--base-model", metavar="REPO_ID", help="Repository that the model derives from.")
@click.option("--unverified", is_flag=True, help="Go without a certificate; the card says so.")
@click.option("--dry-run", is_flag=True, help="Show files, sizes and card, and send nothing.")
@json_option
def publish(
    directory: Path,
    repo_id: str,
    also: tuple[Path, ...],
    branch: str,
    create_pr: bool,
    private: bool,
    license_: str | None,
    license_name: str | None,
    license_link: str | None,
    base_model: str | None,
    unverified: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Publish verified weights to the Hugging Face Hub, with a card that says how they are known.

    DIR holds converted weights and the certificate of `verify --certify`. It is done by one commit;
    what the Hub then serves is downloaded and compared. Exit status 1 if it differs.

    Example:

    \b
        mae-convert publish my-mae someone/my-mae --dry-run
    """
    from mae_convert.publish import Target, Wish, plan_publication
    from mae_convert.publish import publish as send
    from mae_convert.show import publication as show
    from mae_convert.show.console import as_json as print_json

    if create_pr and branch != "main":
        raise click.UsageError("--create-pr proposes a change to main; leave --branch out")
    if (license_name or license_link) and license_ != "other":
        raise click.UsageError("--license-name and --license-link go with --license other")
    said = {"license": license_, "license_name": license_name, "license_link": license_link}
    licence = {name: value for name, value in said.items() if value}
    target = Target(repo_id, branch, create_pr, private)
    wish = Wish(directory, target, also, unverified, licence, base_model)
    if sys.stderr.isatty():
        click.echo("reading the model, its proof and the repository ...", err=True)
    publication = plan_publication(wish, dry_run=dry_run)
    if not as_json:
        show.plan(publication, with_card=dry_run)
    if dry_run:
        if as_json:
            print_json(show.plan_json(publication))
        return 0
    published = send(publication)
    print_json(show.published_json(published)) if as_json else show.published(published)
    return 1 if published.wrong else 0


@cli.command()
@click.argument("name", required=False)
def layouts(name: str | None) -> None:
    """List the layouts, or show the mapping table of one.

    Example:

    \b
        mae-convert layouts transformers-tf
    """
    from mae_convert.layouts import LAYOUTS, layout_named
    from mae_convert.show import layouts as show

    show.layout(layout_named(name)) if name else show.layouts(LAYOUTS.values())


@cli.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="mae-convert-demo",
    show_default=True,
    help="Directory for the converted models and the picture.",
)
def demo(output: Path) -> int:
    """Convert the embedded checkpoint to PyTorch and TensorFlow and back, and prove it.

    Example:

    \b
        mae-convert demo --output /tmp/demo
    """
    from mae_convert.demo import run_demo

    return 0 if run_demo(output) else 1


for command in (reconstruct, features):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit status."""
    # A polite end, so that what was begun is cleaned up.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    try:
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # Not cli.main, which takes a reader that has gone (`| head`) for a failure.
        with cli.make_context(
            "mae-convert", sys.argv[1:] if arguments is None else arguments
        ) as ctx:
            status = cli.invoke(ctx)
        sys.stdout.flush()
    except MaeConvertError as error:
        status = _complain(str(error), error.exit_status)
    except click.exceptions.Exit as error:  # --help and --version
        status = error.exit_code
    except click.UsageError as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        status = _complain("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); that is not ours to complain about.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        status = _complain(what, 2)
    _ignore_interrupts()
    sys.exit(status or 0)


def _ignore_interrupts() -> None:
    """Let the command end as it did: there is nothing left to interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _complain(sentence: str, status: int) -> int:
    click.echo(f"mae-convert: {sentence}", err=True)
    return status
