"""Commands that run models and compare their outputs."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mae_convert.cli.common import (
    open_pair_and_infer,
    open_pair_with_notes,
    open_with_notes,
    print_notes,
)
from mae_convert.cli.completion import complete_frameworks, complete_reference_results
from mae_convert.cli.contradictions import CheckedCommand
from mae_convert.cli.options import (
    DEVICE,
    MODE,
    RUN_DTYPE,
    RUNNER,
    SourceType,
    checkpoint_options,
    infer_option,
    input_options,
    json_option,
    side_options,
    signing_options,
    task_option,
    time_limit_option,
    trust_options,
)
from mae_convert.cli.reporting import ReportingCommand
from mae_convert.cli.streams import print_to_stderr
from mae_convert.text import for_terminal

if TYPE_CHECKING:
    from mae_convert.checkpoint.checkpoint import Checkpoint
    from mae_convert.families.checkpoint_options import Flags
    from mae_convert.runtime.sides import Side
    from mae_convert.sources import Source
    from mae_convert.verify.judge import Verdict
    from mae_convert.verify.signing import Signer, Trust
    from mae_convert.verify.verification import Options, Verification


@click.command(cls=CheckedCommand)
@click.argument("ckpt", type=SourceType())
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--framework",
    type=RUNNER,
    help=(
        "Framework that runs the model, or external code as for `verify --against`. [default: the "
        "framework whose tensor names the checkpoint has]"
    ),
)
@click.option("--device", type=DEVICE, default="cpu", show_default=True)
@click.option(
    "--python", help="Python interpreter of the environment in which the framework is installed."
)
@click.option(
    "--mode",
    type=MODE,
    default="eager",
    show_default=True,
    help=(
        "Run the model eagerly, compiled (torch.compile, tf.function), compiled by XLA, or in "
        "training mode with dropout 0."
    ),
)
@click.option(
    "--dtype",
    "dtypes",
    type=RUN_DTYPE,
    multiple=True,
    help="Precision of a run; can be repeated. [default: float64, float32]",
)
@click.option(
    "--taps", is_flag=True, help="Also store the intermediate activations, not only the outputs."
)
@click.option(
    "--as-converted",
    type=SourceType(),
    metavar="CONVERTED",
    help=(
        "Conversion record, or model directory with a record, whose declared lossy steps are "
        "applied to CKPT before the run."
    ),
)
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
@time_limit_option
@task_option
@input_options
@checkpoint_options
def trace(
    ckpt: "Source",
    out: Path,
    framework: str | None,
    device: str,
    python: str | None,
    mode: str,
    time_limit: float | None,
    dtypes: tuple[str, ...],
    task: str | None,
    state_key: str | None,
    flags: "Flags",
    as_converted: "Source | None",
    **options: Any,
) -> None:
    """Run a checkpoint on fixed inputs and save the results.

    `compare` compares two saved traces, which may come from different machines.

    Example:

    \b
        mae-convert trace checkpoint.pth a.safetensors --taps --num-heads 12
    """
    from mae_convert.checkpoint.checkpoint import as_task
    from mae_convert.runtime.running import DEFAULT_DTYPES
    from mae_convert.runtime.sides import Side, require_sides, with_foreign
    from mae_convert.sources import locate
    from mae_convert.verify.tracing import TraceOptions, trace_to_file

    side = with_foreign(Side(framework, device, python, mode, time_limit))
    require_sides(side)
    converted = None if as_converted is None else locate(as_converted)[0]
    trace_to_file(
        as_task(open_with_notes(ckpt, flags, state_key=state_key, task=task), task),
        side,
        out,
        TraceOptions(dtypes=dtypes or DEFAULT_DTYPES, as_converted=converted, **options),
    )
    click.echo(f"wrote {for_terminal(out)}")


@click.command(cls=CheckedCommand)
@click.argument("a", type=SourceType())
@click.argument("b", type=SourceType())
@click.option(
    "--names",
    type=click.Path(path_type=Path),
    metavar="MAP.json",
    help=(
        "B is an .npz or .safetensors file of another program; MAP.json maps the names of its "
        "arrays to the canonical names of results."
    ),
)
@json_option
def compare(a: "Source", b: "Source", names: Path | None, as_json: bool) -> int:
    """Compare two traces, which may come from different machines.

    Exit status 1 if they differ.

    Example:

    \b
        mae-convert compare a.safetensors b.safetensors
    """
    from mae_convert.diagnose.diagnosis import diagnose_traces
    from mae_convert.runtime.trace import Trace
    from mae_convert.sources import locate_file
    from mae_convert.verify.judge import judge
    from mae_convert.verify.meaning import explanations
    from mae_convert.verify.other_arrays import compare_arrays, read_arrays, read_names

    if names is not None:
        canonical_names, arrays = read_names(names), read_arrays(locate_file(b))
        verdict = compare_arrays(Trace.load(locate_file(a)), arrays, canonical_names)
        _print_verdict(verdict, as_json=as_json)
        return 0 if verdict.passed else 1
    traces = Trace.load(locate_file(a)), Trace.load(locate_file(b))
    verdict = diagnose_traces(judge(*traces), *traces)
    if not verdict.passed:
        verdict = replace(verdict, meanings=explanations((), traces))
    _print_verdict(verdict, as_json=as_json)
    return 0 if verdict.passed else 1


@click.command(cls=ReportingCommand)
@click.argument("a", type=SourceType(), required=False)
@click.argument("b", type=SourceType(), required=False)
@click.option(
    "--published",
    metavar="NAME",
    shell_complete=complete_reference_results,
    help=(
        "Compare the outputs of A with the reference results that third parties published for the "
        "checkpoint NAME. Without A, NAME itself is compared, and downloaded if necessary."
    ),
)
@side_options
@click.option(
    "--against",
    multiple=True,
    metavar="RUNNER",
    shell_complete=complete_frameworks,
    help=(
        "Also run B with the model classes of another library (FRAMEWORK, or FRAMEWORK=PYTHON "
        "with the path of a Python interpreter), with your own code (PATH.py:FACTORY or "
        "MODULE:FACTORY), or with a clone of the authors' code (original=DIRECTORY). If only A has "
        "the tensor names that this code requires, A is run instead. Such code is run only if this "
        "option specifies it."
    ),
)
@click.option(
    "--dtype",
    "dtypes",
    type=RUN_DTYPE,
    multiple=True,
    help="Precision to test in addition to float64; can be repeated. [default: float32]",
)
@click.option(
    "--at-mask-ratio",
    "mask_ratio_of_run",
    type=click.FloatRange(0, 1, max_open=True),
    help="Mask ratio of the runs, instead of the configured mask ratio.",
)
@input_options
@click.option(
    "--require-proof",
    is_flag=True,
    help=(
        "Fail unless the result is a proof: each side is read by the library of its own format, "
        "without mae-convert's mapping tables, and no uncertain configuration value is assumed on "
        "both sides."
    ),
)
@click.option(
    "--isolate",
    is_flag=True,
    help=(
        "Also compare each step (embedding, block, norm, prediction) separately, with A's input in "
        "both models, so that a difference in one step does not hide a difference in another and "
        "rounding errors do not accumulate."
    ),
)
@click.option(
    "--quick",
    is_flag=True,
    help=(
        "Compare only weights, configurations and float64 outputs, but neither intermediate "
        "activations nor outputs in lower precisions."
    ),
)
@click.option(
    "--certify",
    is_flag=True,
    help=(
        "If the verification passes, write a certificate beside B; `verify B` then repeats the "
        "check without A."
    ),
)
@click.option(
    "--report",
    "reports",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Also write the verdict to FILE.json, FILE.xml (JUnit), FILE.html or FILE.md.",
)
@click.option(
    "--reduce",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=(
        "If the verification fails, write a minimal reproducer to a new directory: one step, one "
        "image, the relevant tensors, and a script that does not need mae-convert."
    ),
)
@trust_options
@task_option
@infer_option
@json_option
@checkpoint_options
def verify(
    a: "Source | None",
    b: "Source | None",
    published: str | None,
    sides: "tuple[Side, Side]",
    reports: tuple[Path, ...],
    reduce: Path | None,
    trust: "Trust | None",
    certify: bool,
    task: str | None,
    use_infer: bool,
    as_json: bool,
    state_key: str | None,
    flags: "Flags",
    **options: Any,
) -> int:
    """Verify that two checkpoints are the same function.

    Both models are run in child processes on the same images with the same noise. If they differ,
    the output names the first difference and its cause. Without B, the checkpoint A, which may be
    on the Hub, is compared with its certificate: the results of an earlier verification, which are
    stored beside A. Exit status 1 if they differ.

    Example:

    \b
        mae-convert verify checkpoint.pth my-mae --num-heads 12
    """
    from mae_convert.reports.verdict_files import (
        check_report_names,
        remove_old_reports,
        write_reports,
    )
    from mae_convert.runtime.sides import require_sides
    from mae_convert.verify.verification import parse_options, run_verification

    if published is not None:
        require_sides(sides[0])
        return _compare_with_reference_results(a, published, sides[0], flags, as_json=as_json)
    if a is None:
        raise click.UsageError("Missing argument 'A'.")
    _check_outputs(b, reduce, trust, certify=certify, quick=options["quick"])
    check_report_names(reports, models=[s for s in (a, b) if isinstance(s, Path)])
    remove_old_reports(reports)
    parsed = parse_options(**options)
    if b is None:
        require_sides(sides[0])
        replayed = _replay(a, sides, parsed, flags, trust)
    else:
        require_sides(*sides, *parsed.against)
        keys: dict[str, Any] = {"state_key": state_key, "task": task}
        if use_infer:
            images = options["inputs"].images
            first, second = open_pair_and_infer((a, b), flags, images, **keys)
        else:
            first, second = open_pair_with_notes((a, b), flags, **keys)
        replayed = run_verification(first, second, *sides, parsed)
        if certify:
            _certify(replayed, second, b)
    replayed = _diagnosed(replayed)
    write_reports(replayed, reports)
    _print_verdict(replayed.verdict, as_json=as_json)
    if replayed.verdict.passed:
        return 0
    if reduce is not None:
        _reduce(replayed, reduce)
    if options["quick"]:
        print_to_stderr("note: run again without --quick to find the first differing activation")
    return 1


def _certify(verification: "Verification", target: "Checkpoint", name: "Source") -> None:
    """Write a certificate beside `target` if a verification passed.

    If it failed and `target` has a certificate of an earlier verification, print a note.

    Args:
        verification: the verification.
        target: the verified checkpoint.
        name: the name of the checkpoint in the note.
    """
    from mae_convert.verify.certificate import has_certificate, write_certificate

    if verification.verdict.passed:
        write_certificate(verification, target)
    elif has_certificate(target.path):
        print_to_stderr(f"note: the certificate beside {name} belongs to an earlier verification")


@click.command(cls=CheckedCommand)
@click.argument("a", type=SourceType())
@click.argument("b", type=SourceType())
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--restore",
    is_flag=True,
    help="Also copy from A the tensors whose differences no known fault explains.",
)
@side_options
@input_options
@task_option
@json_option
@checkpoint_options
def repair(
    a: "Source",
    b: "Source",
    out: Path,
    restore: bool,
    sides: "tuple[Side, Side]",
    task: str | None,
    as_json: bool,
    state_key: str | None,
    flags: "Flags",
    **options: Any,
) -> int:
    """Repair the faults of B and write the verified result to OUT.

    A is the source from which B was converted. The faults are the differences from A that B's
    conversion record does not declare, and errors in this record. Weights (transposed, exchanged,
    shifted, permuted, zero, rounded ...), the configuration and the conversion record can be
    repaired. B is not changed. OUT has B's layout and a certificate; it is written only if it
    passes the verification. Exit status 1 if it does not.

    Example:

    \b
        mae-convert repair checkpoint.pth my-mae my-mae-repaired
    """
    from mae_convert.cli.output.verdict import repaired as show
    from mae_convert.cli.streams import print_json
    from mae_convert.diagnose.repair import repair as run_repair
    from mae_convert.reports.verdict_files import verdict_json
    from mae_convert.runtime.sides import require_sides
    from mae_convert.verify.verification import parse_options

    parsed = parse_options(**options)
    require_sides(*sides)
    keys: dict[str, Any] = {"state_key": state_key, "task": task, "incomplete": True}
    first, second = open_pair_with_notes((a, b), flags, **keys)
    repaired, verification = run_repair(first, second, out, sides, parsed, restore=restore)
    verdict = verification.verdict
    if as_json:
        result = {"changes": repaired.changes, "left_out": repaired.left_out}
        print_json({"out": str(out), **result, "verdict": verdict_json(verdict)})
    else:
        show(out, repaired.changes, repaired.left_out, verdict)
    return 0


@click.command(cls=CheckedCommand)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@signing_options()
def attest(folder: Path, signer: "Signer | None") -> None:
    """Sign a certified model directory.

    The outputs are attestation.json, an in-toto statement about the files and their verification,
    and model.sig, the signature of all files. The signature is created with a key, with a key and
    its certificate, or online without a key. `verify DIR` with --public-key, --certificate-chain or
    --identity checks both files.

    Example:

    \b
        mae-convert attest my-mae --private-key key.pem
    """
    from mae_convert.verify.attestation import attest as sign
    from mae_convert.verify.signing import Signer

    click.echo(f"wrote {for_terminal(sign(folder, signer or Signer()))}")


@click.command(cls=CheckedCommand)
@click.argument("action", type=click.Choice(["new"]))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
def runner(action: str, file: Path, overwrite: bool) -> None:  # noqa: ARG001
    """Write FILE.py, a template of a runner for your own model.

    Complete the functions that create your model, load a state dict and compute the mask. Then run
    it with `verify A B --against FILE.py:build`.

    Example:

    \b
        mae-convert runner new my_runner.py
    """
    from mae_convert.files.atomic import check_target, write_file
    from mae_convert.runtime.runner_skeleton import SKELETON

    check_target(file, overwrite=overwrite, suffixes=(".py",))
    write_file(file, SKELETON, overwrite=overwrite)
    name = for_terminal(file)
    click.echo(f"wrote {name}; complete it, then: mae-convert verify A B --against {name}:build")


def _check_outputs(
    b: "Source | None",
    reduce: Path | None,
    trust: "Trust | None",
    *,
    certify: bool,
    quick: bool,
) -> None:
    """Check the arguments of ``verify`` before any work is done.

    Raises:
        UsageError: an output cannot be written with these arguments.
        OutputError: the directory of the reproducer exists or cannot be created, or the certificate
            cannot be written.
    """
    from mae_convert.errors import OutputError
    from mae_convert.files.atomic import staging_for

    if trust is not None:
        if b is not None:
            raise click.UsageError(
                "--public-key, --certificate-chain and --identity require a single signed model; "
                "leave out B"
            )
        trust.check()
    if certify and not isinstance(b, Path):
        raise click.UsageError(
            "--certify writes a certificate beside B, which must be a local path"
        )
    if certify and isinstance(b, Path) and b.exists():
        from mae_convert.verify.certificate import require_writable

        require_writable(b)
    if reduce is None:
        return
    if b is None:
        raise click.UsageError("--reduce needs A and B; a certificate does not contain A's weights")
    if quick:
        raise click.UsageError("--reduce needs the intermediate activations: leave out --quick")
    if os.path.lexists(reduce):
        raise OutputError(reduce, " exists", hint="specify a new directory")
    with staging_for(reduce):  # so that a directory without write permission is reported now
        pass


def _reduce(verification: "Verification", folder: Path) -> None:
    """Write a minimal reproducer of a failed verification and print its description."""
    from mae_convert.diagnose.reduce import reduced, write_reproducer
    from mae_convert.errors import MaeConvertError, as_option

    try:
        printed = write_reproducer(reduced(verification), folder)
    except MaeConvertError as error:  # an error here must not change the verdict
        print_to_stderr(f"note: no reproducer was written: {error.render(as_option)}")
        return
    print_to_stderr(f"wrote a minimal reproducer to {folder}; the reproducer shows:")
    for line in filter(None, printed.splitlines()):
        print_to_stderr(f"  {line}")


def _diagnosed(verification: "Verification") -> "Verification":
    """Return a verification, with causes and explanations of the differences if it failed."""
    if verification.verdict.passed:
        return verification
    from mae_convert.diagnose.diagnosis import diagnose
    from mae_convert.verify.meaning import explanations

    meanings = explanations(verification.runs, verification.traces)
    return diagnose(replace(verification, verdict=replace(verification.verdict, meanings=meanings)))


def _print_verdict(verdict: "Verdict", *, as_json: bool) -> None:
    """Print a verdict.

    The modules that print are imported after the runs, so that their import does not delay the
    runs.
    """
    from mae_convert.cli.output.verdict import verdict as show
    from mae_convert.cli.streams import print_json
    from mae_convert.reports.verdict_files import verdict_json

    print_json(verdict_json(verdict)) if as_json else show(verdict)


def _replay(
    source: "Source",
    sides: "tuple[Side, Side]",
    options: "Options",
    flags: "Flags",
    trust: "Trust | None",
) -> "Verification":
    """Verify a checkpoint against its certificate; both are downloaded if necessary.

    The signature beside the certificate is also checked, unless `trust` is None.
    """
    from mae_convert.families.official_models import OfficialFile
    from mae_convert.runtime.sides import Side
    from mae_convert.sources import locate
    from mae_convert.verify.replay import replay
    from mae_convert.verify.verification import Options

    if isinstance(source, OfficialFile):
        raise click.UsageError(
            f"an official checkpoint has no certificate; `verify --published {source.name}` "
            "compares it with reference results that third parties published"
        )
    # If an option were ignored, the verification could pass although it would fail with the option.
    unused = replace(options, dtypes=(), require_proof=False), replace(sides[1], time_limit=None)
    if unused != (Options(dtypes=()), Side()):
        raise click.UsageError(
            "without the source, `verify` repeats the runs that the certificate records, with the "
            "same inputs and settings; only --dtype, --require-proof, --report, --time-limit and "
            "the options of side A (--framework-a ...) can be used; pass the source too to use "
            "other options"
        )
    path, origin = locate(source, certificate=True)
    print_notes(origin)
    if trust is None:
        return replay(path, sides[0], options, flags, origin)
    from mae_convert.verify.attestation import attestation_checks

    checks = attestation_checks(path, trust)
    replayed = replay(path, sides[0], options, flags, origin)
    passed = replayed.verdict.passed and all(check.passed for check in checks)
    verdict = replace(replayed.verdict, passed=passed, checks=(*checks, *replayed.verdict.checks))
    return replace(replayed, verdict=verdict)


def _compare_with_reference_results(
    source: "Source | None", name: str, side: "Side", flags: "Flags", *, as_json: bool
) -> int:
    """Compare a checkpoint with reference results that third parties published.

    Args:
        source: the checkpoint to compare; None to download the checkpoint `name`.
        name: the name of the checkpoint for which the results were published.
        side: the framework and settings of the run.
        flags: configuration fields that the user specified.
        as_json: print one JSON object.

    Returns:
        The exit status.
    """
    from mae_convert.cli.output.verdict import reference_results as show
    from mae_convert.cli.streams import print_json
    from mae_convert.sources import parse_source
    from mae_convert.sources.official_download import get_array, get_image
    from mae_convert.verify.reference_results import (
        compare_with_reference,
        comparison_json,
        reference_result_of,
    )
    from mae_convert.verify.reference_results_videos import (
        MASK,
        VIDEO_REFERENCE_RESULTS,
        compare_video_with_reference,
    )

    name = name.removeprefix("hf://")
    if video := VIDEO_REFERENCE_RESULTS.get(name):
        checkpoint = open_with_notes(source or parse_source(video.source), flags)
        mask = None if video.task == "classify" else get_array(MASK)
        result = compare_video_with_reference(checkpoint, video, get_array(video.video), mask, side)
    else:
        reference = reference_result_of(name)
        checkpoint = open_with_notes(source or parse_source(reference.source), flags)
        result = compare_with_reference(checkpoint, reference, get_image(reference.image), side)
    print_json(comparison_json(result)) if as_json else show(result)
    return 0 if result.passed else 1
