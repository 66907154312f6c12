"""The metadata in the output of a conversion: record, configuration, preprocessing and hashes."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert import __version__
from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.fingerprint import (
    VERSION,
    Fingerprint,
    TensorDigest,
    configuration_digest,
    digest_of_configuration,
    fingerprint,
)
from mae_convert.checkpoint.official_match import confirmed, confirmed_by_hash, open_md5
from mae_convert.convert.plan import Plan
from mae_convert.families.configuration import Configuration
from mae_convert.files.byte_ranges import ByteFile, hex_digest, open_sha256
from mae_convert.files.progress import Progress
from mae_convert.formats.tensor import LazyTensor

NOT_YET = "0" * 64
"""Placeholder for a SHA-256 that is not yet computed, with the same length."""


def conversion_record(plan: Plan, hashes: "SourceHashes") -> dict[str, Any]:
    """Return the record of a conversion: source, report on every tensor, and declared steps.

    Args:
        plan: the conversion.
        hashes: the hashes of the source's files.
    """
    source = confirmed_by_hash(plan.source, hashes.md5)
    stored = source.prefix.stored
    origin = {name: stored[rule.external] for rule in source.rules for name in rule.canonicals}
    return {
        "mae_convert": __version__,
        "source": {
            **hashes.described(),
            **_origin_of(source, hashes.md5),
            "container": source.container.kind,
            "wrapper": source.container.wrapper,
            "prefix": source.prefix.in_words(),
            "layout": source.layout.name,
            "task": source.task,
        },
        "family": source.relative.to_dict() if source.relative else None,
        "model_family": plan.source.family.name,
        "layout": plan.layout.name,
        "task": plan.task,
        "assumed": source.configuration.assumed(),
        "assumptions": source.configuration.only_assumed(),
        **_inferred(source),
        "steps": list(plan.steps),
        "tensors": {
            rule.external: {
                "from": list(dict.fromkeys(origin[n] for n in rule.canonicals if n in origin)),
                "canonical": list(rule.canonicals),
            }
            for rule in plan.rules
        },
        "dropped": dict(plan.dropped),
        **({"unread": list(source.unread)} if source.unread else {}),
        **_differences(plan),
        **({"repaired": dict(plan.repaired)} if plan.repaired else {}),
        "created": {
            **{
                rule.external: source.created[rule.canonicals[0]]
                for rule in plan.rules
                if not origin.keys() & rule.canonicals
            },
            **plan.created,
        },
    }


def _differences(plan: Plan) -> dict[str, Any]:
    """Return a dictionary with the record's field ``differences``, or an empty dictionary.

    The field lists sentences about programs that read the target but compute other outputs than
    the model. It is omitted if there are no such programs.
    """
    differences = plan.layout.differences(plan.configuration.model, plan.task)
    return {"differences": list(map(str, differences))} if differences else {}


def _inferred(source: Checkpoint) -> dict[str, Any]:
    """Return a dictionary with the record's field ``inferred``, or an empty dictionary.

    The field describes the experiment that determined fields of the configuration. It is omitted
    if there was no experiment.
    """
    inferred = source.configuration.inferred
    return {"inferred": dict(inferred)} if inferred else {}


def _origin_of(source: Checkpoint, md5: Callable[[], str]) -> dict[str, Any]:
    """Return the record's entries about the origin of a checkpoint; empty if it is unknown.

    The origin is a Hub repository or an official file; for a checkpoint that was itself converted,
    ``made_from`` describes the checkpoint that it was converted from.

    Args:
        source: the checkpoint.
        md5: a function that returns the MD5 of the checkpoint's file.
    """
    entry: dict[str, Any] = dict(source.origin.record) if source.origin else {}
    if not entry and (official := confirmed(source, md5)):
        entry = official.record
    before = (source.container.conversion or {}).get("source")
    return {**entry, **({"made_from": before} if isinstance(before, Mapping) else {})}


class Fingerprints:
    """The fingerprints of the source and the target of a conversion, computed once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._computed: tuple[Fingerprint, Fingerprint] | None = None

    def __call__(self, hashes: Mapping[str, str]) -> tuple[Fingerprint, Fingerprint]:
        """Return the fingerprints of source and target.

        Args:
            hashes: SHA-256 of each tensor of the target, by name.
        """
        if self._computed is None:
            self._computed = conversion_fingerprints(self._plan, hashes)
        return self._computed

    def reserved(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of `record` with placeholders for both fingerprints.

        The record is stored in an output that is a single file. The placeholders have the length of
        the fingerprints, which replace them when all tensors have been hashed (see `complete`).
        """
        plan = self._plan
        configuration_sha256 = configuration_digest(
            plan.source.family, plan.configuration.model, plan.task
        )
        before = digest_of_configuration(plan.source.as_opened)
        empty = (
            ":".join(filter(None, (VERSION, NOT_YET, digest)))
            for digest in (before, configuration_sha256)
        )
        return _with_fingerprints(record, *empty)

    def complete(self, record: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, Any]:
        """Return a copy of `record` with both fingerprints; see `reserved`.

        Args:
            record: the record, without fingerprints or with placeholders for them.
            hashes: SHA-256 of each tensor of the target, by name.
        """
        return _with_fingerprints(record, *map(str, self(hashes)))


def _with_fingerprints(record: Mapping[str, Any], before: str, after: str) -> dict[str, Any]:
    source = {**record["source"], "fingerprint": before}
    return {**record, "source": source, "fingerprint": after}


def completed(
    record: Mapping[str, Any],
    plan: Plan,
    source: "SourceHashes",
    hashes: Mapping[str, str],
    fingerprints: Fingerprints,
) -> dict[str, Any]:
    """Return a record completed with the results of writing and comparing the tensors.

    Args:
        record: the result of `conversion_record`.
        plan: the conversion.
        source: the hashes of the source's files.
        hashes: SHA-256 of each tensor of the target, by name.
        fingerprints: the fingerprints of source and target.
    """
    before, after = fingerprints(hashes)
    amended = source.amend(with_rounding(record, plan))
    return {
        **amended,
        "source": {**amended["source"], **before.to_dict()},
        **after.to_dict(),
        "sha256": hashes,
    }


def conversion_fingerprints(
    plan: Plan, hashes: Mapping[str, str]
) -> tuple[Fingerprint, Fingerprint]:
    """Return the fingerprint of the source before any changes, and the fingerprint of the target.

    Only tensors of the source that the conversion did not hash are read here: dropped tensors, and
    tensors that a declared change altered.

    Args:
        plan: an executed conversion.
        hashes: SHA-256 of each tensor of the target, by name.
    """
    measured = plan.measured
    stored = {name: hashes[rule.external] for rule in plan.rules for name in rule.canonicals}
    digests = {
        name: measured.hashed[name].hexdigest() if name in measured.hashed else digest
        for name, digest in stored.items()
    }
    opened, source = plan.source.as_opened, plan.source.tensors
    before = {
        name: TensorDigest.of(tensor, digests.get(name) if source.get(name) is tensor else None)
        for name, tensor in opened.tensors.items()
    }
    after = {}
    for name in plan.target_schema():
        if name not in stored:  # a zero key bias that the target does not store
            after[name] = TensorDigest.of(_zeros_of_target(plan, name))
        elif name not in measured.roundings:
            after[name] = TensorDigest.of(source[name], digests[name])
        else:
            rounded = replace(source[name], dtype=measured.roundings[name].dtype)
            hashed = measured.hashed_rounded.get(name)
            digest = hashed.hexdigest() if hashed else stored[name]
            after[name] = TensorDigest.of(rounded, digest)
    return (
        fingerprint(before, digest_of_configuration(opened)),
        fingerprint(
            after, configuration_digest(plan.source.family, plan.configuration.model, plan.task)
        ),
    )


def _zeros_of_target(plan: Plan, name: str) -> LazyTensor:
    """Return a key bias that the target does not store: zeros with the dtype of the query bias."""
    query = name.removesuffix("k.bias") + "q.bias"
    dtype = (plan.measured.roundings.get(query) or plan.source.tensors[query]).dtype
    shape = plan.source.tensors[name].shape
    return LazyTensor(name, shape, dtype, lambda: np.zeros(shape, dtype))


def with_rounding(record: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Return a record with the largest rounding errors in the entry of each rounded tensor."""
    tensors = {
        name: {**entry, **_rounding(plan, entry["canonical"])}
        for name, entry in record["tensors"].items()
    }
    return {**record, "tensors": tensors}


def _rounding(plan: Plan, canonicals: Sequence[str]) -> dict[str, Any]:
    """Return the rounding errors of one tensor of the target; empty if it is not rounded.

    For each kind of error, the result has the maximum over the canonical tensors (`canonicals`)
    from which the tensor is made.
    """
    roundings = plan.measured.roundings
    errors = [roundings[name].error() for name in canonicals if name in roundings]
    if not errors:
        return {}
    return {"rounding": {kind: max(error[kind] for error in errors) for kind in errors[0]}}


def record_in_file(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a record that is stored in the metadata of a single file."""
    names = ("mae_convert", "source", "task", "steps", "assumptions", "inferred", "repaired")
    short = {name: record[name] for name in names if name in record}
    family = record["family"]
    return {**short, "family": family} if family and family["certainty"] == "known" else short


def complete_config(plan: Plan) -> dict[str, Any]:
    """Return the complete configuration that is stored in the output of a conversion."""
    labels, preprocessor = plan.configuration.labels, _preprocessor(plan)
    named = {str(number): name for number, name in enumerate(labels or ())}
    return {
        **({"id2label": named} if named and plan.task == "classify" else {}),
        **({"preprocessor": preprocessor} if preprocessor else {}),
        **plan.configuration.model.to_dict(),
        **_image_statistics(plan.configuration),
        **({} if plan.source.key_bias else {"key_bias": False}),
        "task": plan.task,
        "model_family": plan.source.family.name,
        "layout": plan.layout.name,
    }


def archived_config(plan: Plan) -> dict[str, Any]:
    """Return the complete configuration, with Keras's own configuration under the key "keras".

    The dtype of the Keras model is the dtype of its weights; if the weights have several dtypes, it
    is a dtype that can represent all of their values.
    """
    complete = complete_config(plan)
    dtype = str(np.result_type(*(tensor.dtype for tensor in plan.tensors)))
    return {**complete, "keras": plan.layout.write_config({**complete, "dtype": dtype})}


def preprocessor_config(plan: Plan) -> dict[str, Any]:
    """Return the content of ``preprocessor_config.json``.

    The family determines the settings that the source does not specify, and the sizes if the
    conversion changed the image size.
    """
    theirs, family = _preprocessor(plan), plan.source.family
    return {
        **family.preprocessing(plan.configuration.model, theirs),
        **theirs,
        **_image_statistics(plan.configuration),
    }


def _preprocessor(plan: Plan) -> dict[str, Any]:
    """Return the source's preprocessing, without sizes if the conversion changed the image size."""
    theirs = dict(plan.source.preprocessor)
    steps = [step for step in plan.steps if step["step"] == "image_size"]
    if steps != _declared(plan.source, "image_size"):
        return {name: value for name, value in theirs.items() if "size" not in name}
    return theirs


def _declared(source: Checkpoint, kind: str) -> list[Mapping[str, Any]]:
    """Return the steps of one kind that the source's conversion declared."""
    steps = (source.container.conversion or {}).get("steps", [])
    return [step for step in steps if step["step"] == kind]


def _image_statistics(configuration: Configuration) -> dict[str, list[float]]:
    return {
        "image_mean": list(configuration.image_mean),
        "image_std": list(configuration.image_std),
    }


class SourceHashes:
    """The SHA-256 of the source's files, computed during the conversion.

    Args:
        files: the open files.
        progress: receives the progress of the method `md5`. By default, no progress is shown.
    """

    def __init__(self, files: Sequence[ByteFile], progress: Progress | None = None) -> None:
        self._files = files
        self._progress = progress or Progress()
        self._hashes = [NOT_YET] * len(files)
        self._md5: str | None = None
        self.nbytes = sum(file.size for file in files)

    def work(self, advance: Callable[[int], None]) -> None:
        """Hash the files; `advance` is called with the number of bytes of each hashed piece."""
        self._hashes = [hex_digest(file, hashlib.sha256(), advance) for file in self._files]

    def md5(self) -> str:
        """Return the MD5 of the first file, by which official checkpoints are identified.

        The MD5 is computed when this method is called for the first time.
        """
        if self._md5 is None:
            self._progress.begin(self._files[0].size)
            self._md5 = open_md5(self._files[0], self._progress.advance)
        return self._md5

    def require_unchanged(self) -> None:
        """Raise CheckpointError if a file has changed since it was opened."""
        for file in self._files:
            file.require_unchanged()

    def amend(self, conversion: Mapping) -> Mapping:
        """Return the record of a conversion with the computed hashes filled in."""
        return {**conversion, "source": {**conversion["source"], **self.described()}}

    def described(self) -> dict[str, Any]:
        """Return the names and hashes of the files in the format of the function `files_sha256`."""
        paths = [file.path for file in self._files]
        return _description(dict(zip(paths, self._hashes, strict=True)))


def files_sha256(files: Sequence[ByteFile]) -> dict[str, Any]:
    """Return the name and the SHA-256 of the open files of a checkpoint.

    For several files, ``name`` is the first file's name with its directory, ``files`` has the
    SHA-256 of each file, and ``sha256`` is the hash of the lines that ``sha256sum`` prints for the
    files. The result is empty if there are no files.

    Raises:
        CheckpointError: a file has changed since it was opened.
    """
    return _description({file.path: open_sha256(file) for file in files})


def _description(hashes: Mapping[Path, str]) -> dict[str, Any]:
    if not hashes:  # there are no files for a model in memory
        return {}
    first = next(iter(hashes))
    if len(hashes) == 1:
        return {"name": first.name, "sha256": hashes[first]}
    named = {path.name: digest for path, digest in hashes.items()}
    lines = "".join(f"{digest}  {name}\n" for name, digest in named.items())
    whole = hashlib.sha256(lines.encode()).hexdigest()
    folder = first.resolve().parent.name
    return {"name": f"{folder}/{first.name}", "sha256": whole, "files": named}
