"""Artifacts of a publication: model directories and files with their certificates."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_convert.checkpoint.open import Checkpoint, open_checkpoint
from mae_convert.errors import CheckpointError, MaeConvertError, Option
from mae_convert.files.messages import shown
from mae_convert.formats.container import JSON_NAMES
from mae_convert.formats.registry import FORMATS, NPZ
from mae_convert.sources.select_files import CERTIFICATE, KERAS_SUFFIXES, PREFERENCE
from mae_convert.verify.certificate import Certificate, read_certificate

NAME = re.compile(r"\w[\w.-]*")
UNVERIFIED = (
    Option("unverified", True),
    " publishes it anyway, and the first line of the model card states that it was not verified",
)


@dataclass(frozen=True)
class Part:
    """Weights in one layout, the files beside them, and the certificate of their verification.

    Attributes:
        target: the model directory, or a single file.
        checkpoint: the same, opened.
        certificate: that it is the same function as its source; None where it is not verified.
    """

    target: Path
    checkpoint: Checkpoint
    certificate: Certificate | None

    @property
    def record(self) -> Mapping[str, Any]:
        """The record of the conversion that created it; empty if there is none."""
        return self.checkpoint.container.conversion or {}

    @property
    def weights(self) -> list[Path]:
        """The weight files, an index first."""
        return list(self.checkpoint.container.files)

    @property
    def own_sha256(self) -> str | None:
        """The hash of its weights, which another artifact may have been verified against."""
        if self.certificate is None:
            return None
        return str(self.certificate.document["target"].get("sha256"))

    @property
    def source_sha256(self) -> str | None:
        """The hash of the source it was verified against, or else of its stated source."""
        if self.certificate is not None:
            return str(self.certificate.document["source"].get("sha256"))
        source = self.record.get("source")
        return source.get("sha256") if isinstance(source, Mapping) else None


def read_part(target: Path, *, unverified: bool = False) -> Part:
    """Open a model directory or file that is to be published, and check its certificate.

    Args:
        target: the directory, or a file that carries its configuration.
        unverified: go without a proof; a certificate is then left aside.

    Raises:
        CheckpointError: it is no model that is published, or there is no certificate.
        MaeConvertError: the certificate does not say that these bytes were verified.
    """
    if not target.exists():
        raise CheckpointError(target, " does not exist", hint="check the path")
    checkpoint = open_checkpoint(target)
    if FORMATS[checkpoint.container.kind].pickled or checkpoint.container.kind == NPZ:
        raise CheckpointError(
            f"{target} holds pickled weights or an archive ({checkpoint.container.kind}), and "
            "these are not published",
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
            "code in the model card use it: rename it to letters, digits and . _ - only"
        )
    if unverified:
        return Part(target, checkpoint, None)
    try:
        certificate = read_certificate(target)
    except CheckpointError as error:
        raise CheckpointError(error, hint=UNVERIFIED) from error
    part = Part(target, checkpoint, certificate)
    for problem in _problems(part, certificate):
        raise MaeConvertError(
            f"{target} is not published: {problem}; verify it again with `mae-convert verify SOURCE"
            f" {target} --certify`",
            hint=UNVERIFIED,
            path=target,
        )
    return part


def _problems(part: Part, certificate: Certificate) -> Iterator[str]:
    """Yield the reasons why a certificate does not cover the files to publish."""
    document = certificate.document
    if not document["passed"] or not all(check.get("passed") for check in document["checks"]):
        yield "its certificate says that the verification failed"
    if changed := certificate.changed_files():
        yield f"{', '.join(changed)} changed since it was verified"
    names = [path.name for path in part.weights]
    if part.target.is_dir():
        names += [name for name in JSON_NAMES if (part.target / name).is_file()]
    if missing := [name for name in names if name not in document["files"]]:
        yield f"its certificate does not cover {', '.join(missing)}"


def check_together(parts: Sequence[Part]) -> None:
    """Refuse parts that are not the same model, or that a repository cannot hold beside each other.

    Raises:
        MaeConvertError: other sources or tasks, or the same file twice.
    """
    first, *others = parts
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
                f"{first.target} one for {first.checkpoint.task}",
                hint="publish them to separate repositories",
            )
        if twice := names & {path.name for path in other.weights}:
            raise MaeConvertError(
                f"{other.target} and {first.target} both contain {min(twice)}; a repository can "
                "contain only one of them"
            )
        names |= {path.name for path in other.weights}


def beside(part: Part) -> list[str]:
    """Return the names of the files that are published beside an artifact's weights."""
    if part.target.is_dir():
        names = [*JSON_NAMES, *(CERTIFICATE if part.certificate else ())]
        if part.certificate:  # what else was verified, as a processor_config.json
            weights = [path.name for path in part.weights]
            names += [n for n in part.certificate.document["files"] if n not in (*names, *weights)]
        return [name for name in names if (part.target / name).is_file()]
    return [f"{part.target.name}.{name}" for name in CERTIFICATE] if part.certificate else []
