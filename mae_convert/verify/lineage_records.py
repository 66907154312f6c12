"""Certificates and conversion records that describe checkpoints which are not available."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.fingerprint import (
    PARTS,
    VERSION,
    Fingerprint,
    checkpoint_fingerprint,
    described_fingerprint,
)
from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.files.strict_json import check_document
from mae_convert.formats.contents import json_in
from mae_convert.formats.registry import DIRECTORY_SUFFIXES
from mae_convert.verify.certificate import ARRAYS, DOCUMENT
from mae_convert.verify.lineage import Ancestor, CheckpointInfo

RECORD = "conversion.json"
ADVICE = "convert or verify again with this version, or pass the checkpoint itself"
DIGEST = re.compile("[0-9a-f]{64}")
FINGERPRINT = re.compile(f"{VERSION}:(?P<weights>{DIGEST.pattern})(:{DIGEST.pattern})?")
MOST_ANCESTORS = 100


def describe_checkpoint(checkpoint: Checkpoint, *, with_record: bool = False) -> CheckpointInfo:
    """Return the name, fingerprint and sources of a checkpoint; all tensors are read.

    Args:
        checkpoint: the checkpoint.
        with_record: whether to include the sources, which the conversion record states. Without
            the record, there are no sources in the result.

    Raises:
        CheckpointError: the conversion record contradicts itself.
    """
    fingerprint = checkpoint_fingerprint(checkpoint)
    record = (checkpoint.container.conversion if with_record else None) or {}
    ancestors = tuple(_ancestors(checkpoint.path, record.get("source")))
    steps = tuple(record.get("steps", ()))
    return CheckpointInfo(checkpoint.name, fingerprint, checkpoint, ancestors, steps)


def record_of(path: Path) -> Path | None:
    """Return the path of the JSON record that describes a checkpoint whose weights are absent.

    Args:
        path: the path that the user specified: the record, or a directory that contains it.

    Returns:
        The path of the record; None if `path` does not exist, contains weights, or is neither a
        record nor a directory that contains a record.
    """
    if path.is_file() and path.suffix == ".json":
        return path
    if not path.is_dir() or any(
        file.name.endswith(DIRECTORY_SUFFIXES) and file.name != ARRAYS for file in path.iterdir()
    ):
        return None
    return next((path / name for name in (DOCUMENT, RECORD) if (path / name).is_file()), None)


def read_record(path: Path) -> CheckpointInfo:
    """Return the fingerprint and the sources of a checkpoint, read from a record.

    Args:
        path: a certificate (``verification.json``) or a conversion record (``conversion.json``).

    Raises:
        CheckpointError: the file is neither a certificate nor a conversion record, has no
            fingerprint, contradicts itself, or describes a failed verification.
    """
    document = json_in(ByteFile(path), ADVICE)
    if not isinstance(document, Mapping):
        raise CheckpointError(
            path, " is neither a certificate nor a conversion record", hint=ADVICE
        )
    if "source_trace" in document:
        return _of_certificate(path, document)
    check_document(document, "conversion", path, ADVICE)
    ancestors = tuple(_ancestors(path, document.get("source")))
    fingerprint, steps = _fingerprint_in(path, document), tuple(document.get("steps", ()))
    return CheckpointInfo(str(path), fingerprint, ancestors=ancestors, steps=steps)


def _of_certificate(path: Path, document: Mapping[str, Any]) -> CheckpointInfo:
    check_document(document, "certificate", path, ADVICE)
    check_document(document["source_trace"], "trace", path, ADVICE)
    if not document["passed"]:
        raise CheckpointError(
            path,
            (" is the record of a failed verification, so it does not establish a relation"),
            hint="specify the record of a verification that passed",
        )
    target, source = (
        _fingerprint_in(path, document["target"]),
        _fingerprint_in(path, document["source"]),
    )
    try:
        traced = described_fingerprint(document["source_trace"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            path, f": its source_trace is invalid ({error})", hint=ADVICE
        ) from error
    # The source's tensor digests were computed after the declared steps were applied.
    if traced.weights == target.weights:
        target = with_digests_of(target, traced)
    if traced.weights == source.weights:
        source = with_digests_of(source, traced)
    ancestor = Ancestor(document["source"]["name"], source.weights)
    steps = tuple(document["steps"])
    return CheckpointInfo(str(path), target, ancestors=(ancestor,), steps=steps)


def with_digests_of(declared: Fingerprint, traced: Fingerprint) -> Fingerprint:
    """Return a copy of a declared fingerprint with the tensor digests of a trace's fingerprint.

    A declared fingerprint has no tensor digests. Both fingerprints must describe the same weights.
    """
    return Fingerprint(declared.parts, declared.configuration, traced.tensors)


def _ancestors(path: Path, source: Any) -> Iterator[Ancestor]:
    """Yield the source of a conversion, then the source of that source, and so on.

    Args:
        path: the path of the checkpoint, for messages.
        source: the field ``source`` of the conversion record.

    Raises:
        CheckpointError: a fingerprint is not valid or does not match its digests.
    """
    for _ in range(MOST_ANCESTORS):
        if not isinstance(source, Mapping):
            return
        if "fingerprint" in source:
            name = str(source.get("official") or source.get("name") or "a model in memory")
            yield Ancestor(name, _weights_in(path, source))
        source = source.get("made_from")


def _weights_in(path: Path, source: Mapping[str, Any]) -> str:
    """Return the digest of a source's tensors; see `Fingerprint.weights`.

    Records in single files contain only the fingerprint, but not the digests of which it consists.

    Raises:
        CheckpointError: the fingerprint is not valid or does not match its digests.
    """
    if "parts" in source:
        return _fingerprint_in(path, source).weights
    if found := FINGERPRINT.fullmatch(str(source["fingerprint"])):
        return found["weights"]
    raise CheckpointError(
        path,
        f" has a source with a fingerprint that is not of version {VERSION}",
        hint=ADVICE,
    )


def _fingerprint_in(path: Path, document: Mapping[str, Any]) -> Fingerprint:
    """Return the fingerprint of a checkpoint, which is stated in a document with its digests.

    Args:
        path: the path of the checkpoint or of the record, for messages.
        document: a conversion record, or the part of a record that describes the checkpoint.

    Raises:
        CheckpointError: the document has no fingerprint, or the fingerprint does not match the
            digests in the document.
    """
    if "fingerprint" not in document:
        raise CheckpointError(path, " has no fingerprint", hint=ADVICE)
    parts, configuration = document.get("parts", {}), document.get("configuration")
    digests = [*parts.values(), *([] if configuration is None else [configuration])]
    fingerprint = Fingerprint(dict(parts), configuration, {})
    if not (
        parts
        and set(parts) <= set(PARTS)
        and all(isinstance(digest, str) and DIGEST.fullmatch(digest) for digest in digests)
        and str(fingerprint) == document["fingerprint"]
    ):
        raise CheckpointError(
            path,
            (f" has a fingerprint that does not match its digests or is not of version {VERSION}"),
            hint=ADVICE,
        )
    return fingerprint
