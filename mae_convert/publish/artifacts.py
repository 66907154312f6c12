"""Artifacts of a publication: model directories and files with their certificates."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import CheckpointError, MaeConvertError, Option
from mae_convert.formats.container import JSON_NAMES
from mae_convert.formats.registry import CERTIFICATE_NAMES, FORMATS, NPZ
from mae_convert.sources.select_files import KERAS_SUFFIXES, PREFERENCE
from mae_convert.text import shown
from mae_convert.verify.certificate import Certificate, read_certificate

NAME = re.compile(r"\w[\w.-]*")
UNVERIFIED = (
    Option("unverified", True),
    " publishes it anyway, and the first line of the model card states that it was not verified",
)


@dataclass(frozen=True)
class Artifact:
    """Weights in one layout, the other files of the model, and its verification certificate."""

    target: Path
    """The model directory, or a single file."""

    checkpoint: Checkpoint
    """The opened checkpoint in `target`."""

    certificate: Certificate | None
    """The certificate of the verification against the source; None without a verification."""

    @property
    def record(self) -> Mapping[str, Any]:
        """The record of the conversion that created the artifact; empty if there is none."""
        return self.checkpoint.container.conversion or {}

    @property
    def weights(self) -> list[Path]:
        """The weight files; if there is an index, it comes first."""
        return list(self.checkpoint.container.files)

    @property
    def own_sha256(self) -> str | None:
        """The SHA-256 of the artifact's weights, from the certificate; None without a certificate.

        It equals the `source_sha256` of another artifact that was verified against these weights.
        """
        if self.certificate is None:
            return None
        sha256: str | None = self.certificate.document["target"].get("sha256")
        return sha256

    @property
    def source_sha256(self) -> str | None:
        """The SHA-256 of the source, from the certificate.

        Without a certificate, it is taken from the conversion record; None if the record has no
        SHA-256 of the source.
        """
        if self.certificate is not None:
            source = self.certificate.document["source"]
        else:
            source = self.record.get("source")
        return source.get("sha256") if isinstance(source, Mapping) else None


def read_artifact(target: Path, *, unverified: bool = False) -> Artifact:
    """Open a model directory or file that is to be published, and check its certificate.

    Args:
        target: the directory, or a file that contains its configuration.
        unverified: whether to publish the model without a certificate; an existing certificate is
            ignored.

    Raises:
        CheckpointError: the model cannot be published, or it has no certificate.
        MaeConvertError: the certificate does not cover the files, or states that the verification
            failed.
    """
    if not target.exists():
        raise CheckpointError(target, " does not exist", hint="check the path")
    checkpoint = open_checkpoint(target)
    if FORMATS[checkpoint.container.kind].pickled or checkpoint.container.kind == NPZ:
        raise CheckpointError(
            f"{target} contains pickled weights or an archive ({checkpoint.container.kind}), "
            "which are not published",
            hint=(
                *("convert it with ", Option("to", "transformers")),
                ", which writes model.safetensors",
            ),
            path=target,
        )
    name = checkpoint.container.weights_file.name
    if target.is_dir() and not (name in PREFERENCE or name.endswith(KERAS_SUFFIXES)):
        raise CheckpointError(
            target,
            f" stores its weights as {name}, a name that libraries do not look for",
            hint="convert it to a model directory, which has the expected names",
        )
    if wrong := [path.name for path in checkpoint.container.files if not NAME.fullmatch(path.name)]:
        raise CheckpointError(
            f"{shown(wrong[0])} is not a valid name for a published file, because commands and "
            "code in the model card use it",
            hint="rename the file, using only letters, digits and the characters . _ -",
        )
    if unverified:
        return Artifact(target, checkpoint, None)
    try:
        certificate = read_certificate(target)
    except CheckpointError as error:
        raise CheckpointError(error, hint=UNVERIFIED) from error
    artifact = Artifact(target, checkpoint, certificate)
    for problem in _problems(artifact, certificate):
        raise MaeConvertError(
            f"{target} cannot be published: {problem}; verify it again with `mae-convert verify "
            f"SOURCE {target} --certify`",
            hint=UNVERIFIED,
            path=target,
        )
    return artifact


def _problems(artifact: Artifact, certificate: Certificate) -> Iterator[str]:
    """Yield the reasons why a certificate does not cover the files to publish."""
    document = certificate.document
    if not document["passed"] or not all(check.get("passed") for check in document["checks"]):
        yield "its certificate is for a failed verification"
    if changed := certificate.changed_files():
        yield f"{', '.join(changed)} changed since it was verified"
    names = [path.name for path in artifact.weights]
    if artifact.target.is_dir():
        names += [name for name in JSON_NAMES if (artifact.target / name).is_file()]
    if missing := [name for name in names if name not in document["files"]]:
        yield f"its certificate does not cover {', '.join(missing)}"


def check_together(artifacts: Sequence[Artifact]) -> None:
    """Refuse artifacts that are different models, or that cannot be in one repository.

    Raises:
        MaeConvertError: two artifacts have different sources or tasks, or files with the same name.
    """
    first, *others = artifacts
    names = {path.name for path in first.weights}
    for other in others:
        if other.source_sha256 not in {first.source_sha256, first.own_sha256} - {None}:
            raise MaeConvertError(
                f"{other.target} and {first.target} were not converted from, or verified against, "
                "the same source",
                hint="publish them to separate repositories",
            )
        if other.checkpoint.task != first.checkpoint.task:
            raise MaeConvertError(
                f"{other.target} contains a model for the task {other.checkpoint.task}, and "
                f"{first.target} contains a model for the task {first.checkpoint.task}",
                hint="publish them to separate repositories",
            )
        if twice := names & {path.name for path in other.weights}:
            raise MaeConvertError(
                f"{other.target} and {first.target} both contain {min(twice)}",
                hint="a repository can contain only one file with this name",
            )
        names |= {path.name for path in other.weights}


def beside(artifact: Artifact) -> list[str]:
    """Return the names of the files that are published beside an artifact's weights."""
    if artifact.target.is_dir():
        names = [*JSON_NAMES, *(CERTIFICATE_NAMES if artifact.certificate else ())]
        if artifact.certificate:  # further files that were verified, such as processor_config.json
            weights = [path.name for path in artifact.weights]
            names += [
                n for n in artifact.certificate.document["files"] if n not in (*names, *weights)
            ]
        return [name for name in names if (artifact.target / name).is_file()]
    names = list(CERTIFICATE_NAMES) if artifact.certificate else []
    return [f"{artifact.target.name}.{name}" for name in names]
