"""Run one job of a sweep with the functions of `convert`, `verify` and `publish`."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_convert.checkpoint.checkpoint import Checkpoint, Origin, check_flags, require_comparable
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.changes import Geometry, with_new_head
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import Plan, plan_conversion
from mae_convert.convert.record import files_sha256
from mae_convert.convert.target import Packing
from mae_convert.errors import MaeConvertError
from mae_convert.families.checkpoint_options import flags_of
from mae_convert.files.staging import scratch_directory
from mae_convert.runtime.fork_server import ForkServer
from mae_convert.sources import locate, parse_source, storage
from mae_convert.sweep.freshness import checkpoint_version
from mae_convert.sweep.memory import PeakMemory
from mae_convert.sweep.plan_fields import Job, Settings
from mae_convert.sweep.result import Row, error_row, verdict_fields
from mae_convert.text.redaction import without_credentials

if TYPE_CHECKING:
    from mae_convert.verify.verification import Verification

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


def thread_variables(threads: int) -> dict[str, str]:
    """Return the environment variables that set the number of threads of a framework."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def run_job(job: Job, threads: int | None = None, server: ForkServer | None = None) -> Row:
    """Convert, verify and publish as a job specifies, and return the job's row.

    An error is not raised; its message is in the row.

    Args:
        job: the job. An existing target is replaced.
        threads: the number of threads of the framework; None for its default.
        server: a fork server, which has imported PyTorch and starts the child processes of
            verifications; None to start a new Python interpreter for each child process.
    """
    if threads is not None:
        os.environ.update(thread_variables(threads))
    started, results = time.time(), dict[str, Any]()
    others = list if server is None else server.running
    with PeakMemory(others) as memory, scratch_directory() as folder:
        try:
            _work(job, folder, results, server)
            row = Row(**job.identity(), **results)
        except Exception as error:
            # Even a programming error must not stop the other jobs.
            row = error_row(job.identity(), results, _with_names_of_user(error, job, folder))
    return row.ended(started, memory.peak)


def _with_names_of_user(error: Exception, job: Job, folder: Path) -> Exception:
    """Return an error whose message contains the user's URLs instead of temporary paths."""
    names = (("source", job.source), ("target", job.target), ("converted", job.target))
    for folder_name, name in names:
        if name and storage.is_remote(name) and isinstance(error, MaeConvertError):
            path = folder / folder_name / storage.last_part(name)
            error = error.renamed(path, without_credentials(name))
    return error


def _work(job: Job, scratch: Path, row_fields: dict[str, Any], server: ForkServer | None) -> None:
    """Run a job; store the results of each step in ``row_fields``, even if a later step fails.

    Args:
        job: the job.
        scratch: a directory for temporary files.
        row_fields: receives the fields of the job's `Row`.
        server: see `run_job`.
    """
    row_fields["source_version"] = checkpoint_version(job.source)
    path, origin = _local_path(job.source, scratch / "source")
    flags, state_key = flags_of(job.settings), job.settings.get("state_key")
    settings: dict[str, Any] = {
        "state_key": state_key,
        "task": None if job.settings.get("num_labels") else job.settings.get("task"),
        "origin": origin,
    }
    output = _output_path(job, scratch)
    if job.converts:
        with _timed(row_fields, "convert_seconds"):
            plan = _plan(job, open_checkpoint(path, flags, incomplete=True, **settings), output)
            output.parent.mkdir(parents=True, exist_ok=True)
            report = execute(plan, overwrite=True)
        row_fields["source_sha256"] = report["source"].get("sha256")
        row_fields["source_fingerprint"] = report["source"]["fingerprint"]
        row_fields["target_fingerprint"] = report["fingerprint"]
    elif job.target is not None:
        output, _ = _local_path(job.target, scratch / "target")
    source = open_checkpoint(path, flags, fill_only=True, incomplete=True, **settings)
    target = open_checkpoint(output, flags, fill_only=True, incomplete=True, state_key=state_key)
    check_flags(flags, source, target)
    row_fields["task"] = target.task
    row_fields["parameters"] = sum(math.prod(tensor.shape) for tensor in target.tensors.values())
    if job.verifies:
        require_comparable(source, target)
        with _timed(row_fields, "verify_seconds"):
            verification = _verify(job, source, target, server)
        row_fields |= verdict_fields(verification.verdict)
        if not job.converts:
            names = ("source_fingerprint", "target_fingerprint")
            row_fields |= dict(zip(names, map(str, verification.fingerprints), strict=False))
        if job.settings.get("certify") and verification.verdict.passed:
            _certify(verification, target)
    for name, checkpoint in (("source", source), ("target", target)):
        _add_hash_and_size(row_fields, name, checkpoint)
    if row_fields.get("verdict") is None or row_fields["passed"]:
        _upload_and_publish(job, output, row_fields)
        if job.target is not None and "target_version" not in row_fields:
            row_fields["target_version"] = checkpoint_version(job.target)


def _local_path(text: str, folder: Path) -> tuple[Path, Any]:
    """Return the local path of a checkpoint, which is downloaded if needed, and its origin.

    The origin is None for a local path.

    Args:
        text: the path, URL, Hub reference or official name of the checkpoint.
        folder: the folder for a copy of a checkpoint from remote storage.
    """
    if storage.is_remote(text):
        return storage.download(text, folder), Origin(without_credentials(text))
    return locate(parse_source(text.removeprefix(storage.FILE)))


def _output_path(job: Job, scratch: Path) -> Path:
    """Return the path of the converted file or directory: a temporary path for a remote target."""
    if job.target is not None and not storage.is_remote(job.target):
        return Path(job.target)
    folder = scratch / "converted"
    folder.mkdir()
    if job.target is not None:
        return folder / storage.last_part(job.target)
    return folder / _default_name(job.settings.get("to", ""))


def _default_name(layout: str) -> str:
    """Return the default name of a target: "model", and for a file also the format's suffix."""
    from mae_convert.errors import LayoutError
    from mae_convert.families import layouts_named
    from mae_convert.formats.registry import SUFFIX_FORMATS

    try:
        first = layouts_named(layout)[0]
    except LayoutError:
        return "model"
    if first.weights_name is not None:
        return "model"
    kinds = first.containers
    return "model" + next(suffix for suffix, kind in SUFFIX_FORMATS.items() if kind in kinds)


def _plan(job: Job, source: Checkpoint, target: Path) -> Plan:
    settings = job.settings
    if labels := settings.get("num_labels"):
        source = with_new_head(source, labels, settings.get("task"))
    size = settings.get("image_size")
    geometry = Geometry(
        None if size is None else tuple(size),
        bool(settings.get("sincos_positions")),
        settings.get("in_channels"),
        settings.get("num_frames"),
    )
    prefix, size_limit = settings.get("prefix", ""), settings.get("max_shard_size")
    packing = Packing(prefix, bool(settings.get("bin")), size_limit)
    return plan_conversion(
        source, target, settings["to"], task=settings.get("task"), dtype=settings.get("dtype"),
        geometry=geometry, packing=packing,
    )  # fmt: skip


def _verify(job: Job, a: Checkpoint, b: Checkpoint, server: ForkServer | None) -> "Verification":
    from mae_convert.diagnose.diagnosis import diagnose
    from mae_convert.runtime.inputs import InputChoice
    from mae_convert.runtime.sides import Side, with_foreign
    from mae_convert.verify.verification import parse_options, run_verification

    settings = job.settings
    sides = [
        with_foreign(
            Side(
                settings.get(f"framework_{s}"),
                settings.get(f"device_{s}", "cpu"),
                settings.get(f"python_{s}"),
                settings.get(f"mode_{s}", "eager"),
                settings.get("time_limit"),
                fork_server=server,
            ),
            f"framework_{s}",
        )
        for s in "ab"
    ]
    inputs, images = (Path(settings[n]) if n in settings else None for n in ("inputs", "images"))
    options = parse_options(
        settings.get("against", ()),
        settings.get("at_mask_ratio"),
        inputs=InputChoice(inputs, images, settings.get("seed", 0), settings.get("batch")),
        dtypes=tuple(settings.get("run_dtype", ())),
        **{name: bool(settings.get(name)) for name in ("unmasked", "gradients", "require_proof")},
    )
    return diagnose(run_verification(a, b, sides[0], sides[1], options))


def _certify(verification: "Verification", target: Checkpoint) -> None:
    from mae_convert.verify.certificate import write_certificate

    write_certificate(verification, target)


def _add_hash_and_size(results: dict[str, Any], name: str, checkpoint: Checkpoint) -> None:
    """Compute the hash and the size of a checkpoint's tensor files, and add them to the results."""
    files = checkpoint.container.opened
    if not results.get(f"{name}_sha256"):
        results[f"{name}_sha256"] = files_sha256(files).get("sha256")
    results[f"{name}_bytes"] = sum(file.size for file in files)


def _upload_and_publish(job: Job, target: Path, results: dict[str, Any]) -> None:
    """Upload the target to remote storage and publish it on the Hub, as the job specifies.

    The version of the uploaded target and the URL of the commit are stored in `results`.
    """
    if job.converts and job.target is not None and storage.is_remote(job.target):
        from mae_convert.sources.storage_upload import upload

        results["target_version"] = dict(upload(target, job.target))
    if name := job.settings.get("publish"):
        results["published"] = _publish(job.settings, target, name)


def _publish(settings: Settings, directory: Path, name: str) -> str:
    """Publish a model on the Hub and return the URL of the commit.

    Args:
        settings: the settings of the job.
        directory: the directory of the model.
        name: the name of the repository, OWNER/NAME.

    Raises:
        MaeConvertError: the model cannot be published, or the Hub serves files that differ from the
            uploaded files.
    """
    from mae_convert.publish import PublishRequest, Target, plan_publication, publish

    branch = settings.get("branch", "main")
    target = Target(name, branch, bool(settings.get("create_pr")), bool(settings.get("private")))
    licence = {n: settings[n] for n in ("license", "license_name", "license_link") if n in settings}
    request = PublishRequest(directory, target, (), bool(settings.get("unverified")), licence,
                settings.get("base_model"))  # fmt: skip
    published = publish(plan_publication(request))
    if published.wrong:
        path, how = next(iter(published.wrong.items()))
        raise MaeConvertError(
            *("published, but the Hub serves other content: ", path, f" {how}"),
            hint="publish it again",
        )
    return str(published.committed.url)


@contextmanager
def _timed(results: dict[str, Any], name: str) -> Iterator[None]:
    """Store the duration of the ``with`` block, in seconds, as ``results[name]``."""
    start = time.perf_counter()
    try:
        yield
    finally:
        results[name] = time.perf_counter() - start
