"""Files to upload, each with its size and hashes, so that checks and uploads use the same bytes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mae_convert.errors import MaeConvertError
from mae_convert.files.byte_ranges import ByteFile, open_sha256
from mae_convert.formats.container import SIGNATURE_NAMES
from mae_convert.formats.registry import CERTIFICATE_NAMES, INDEX_SUFFIX
from mae_convert.formats.shards import SHARD
from mae_convert.publish.artifacts import Artifact, beside
from mae_convert.sources.select_files import CERTIFICATES_FOLDER, PREFERENCE
from mae_convert.sources.snapshot import Entry, git_oid

# Files that describe the weights of a single artifact.
OWN_FILES = ("conversion.json", *CERTIFICATE_NAMES)
LARGEST_IN_GIT = 10_000_000  # bytes; the Hub identifies larger files by their SHA-256


@dataclass(frozen=True)
class Staged:
    """A file that the repository should contain."""

    path: str
    """The path in the repository."""

    content: ByteFile | bytes
    """The open file if it is a large local file, otherwise its bytes."""

    size: int
    """The size in bytes."""

    sha256: str
    """The SHA-256 of its bytes."""

    git_oid: str | None
    """The git object ID; None for a large file."""

    def is_at(self, entry: Entry | None) -> bool:
        """Return whether `entry`, a file in the repository, has the same bytes.

        The result is False if `entry` is None, that is, if the repository has no such file.
        """
        if entry is None:
            return False
        if entry.sha256 is not None:
            return entry.sha256 == self.sha256
        return self.git_oid is not None and entry.git_oid == self.git_oid


def stage(path: str, content: Path | ByteFile | bytes) -> Staged:
    """Return a file to upload with its size and hashes; a small file is read into memory.

    Args:
        path: the path of the file in the repository.
        content: the local file, or the bytes of the file.
    """
    if isinstance(content, Path):
        content = ByteFile(content)
    if isinstance(content, ByteFile):
        if content.size >= LARGEST_IN_GIT:
            return Staged(path, content, content.size, open_sha256(content), None)
        content = content.raw(0, content.size)
    digest = hashlib.sha256(content).hexdigest()
    return Staged(path, content, len(content), digest, git_oid(content))


def stage_artifacts(
    artifacts: Sequence[Artifact], existing: Mapping[str, Entry]
) -> dict[str, Staged]:
    """Return the files of the artifacts, by their path in the repository.

    Weights are always at the root, where frameworks load them. The other files of the first model
    directory are at the root, too, unless the repository has weights that libraries would load
    instead of the published weights.

    In this case, and always for later model directories, the record and the certificate are in a
    folder under `CERTIFICATES_FOLDER`. Any other file is in this folder only if the root already
    has a different file of the same name.

    The certificate of a single file is at the root, under a name that begins with the name of the
    file.

    Args:
        artifacts: the models to publish.
        existing: the files of the repository.

    Raises:
        MaeConvertError: a file was changed since its certificate was checked.
    """
    staged: dict[str, Staged] = {}
    at_root = not _is_taken(artifacts[0], existing)
    for number, artifact in enumerate(artifacts):
        container = artifact.checkpoint.container
        read = {file.path.name: file for file in (*container.opened, *container.beside)}
        for file in container.opened:
            staged[file.path.name] = _as_certified(artifact, stage(file.path.name, file))
        folder = f"{CERTIFICATES_FOLDER}/{artifact.weights[0].name}"
        for name in beside(artifact):
            local = (
                artifact.target / name
                if artifact.target.is_dir()
                else artifact.target.with_name(name)
            )
            staged_file = _as_certified(artifact, stage(name, read.get(name, local)))
            if artifact.target.is_dir() and (number > 0 or not at_root):
                own = name in OWN_FILES
                if not own and _same(staged_file, staged.get(name), existing.get(name)):
                    continue
                if own or name in staged or name in existing:
                    staged_file = replace(staged_file, path=f"{folder}/{name}")
            staged[staged_file.path] = staged_file
    return staged


def _as_certified(artifact: Artifact, file: Staged) -> Staged:
    """Check that the certificate covers the bytes of a file, and return the file.

    Raises:
        MaeConvertError: the file changed since the certificate was checked.
    """
    if artifact.certificate is None:
        return file
    sha256, content = artifact.certificate.sha256_of(file.path), file.content
    if sha256 is None:  # the file is the certificate itself
        data = content if isinstance(content, bytes) else content.raw(0, content.size)
        same = artifact.certificate.is_document(data)
    else:
        same = sha256 == file.sha256
    if same:
        return file
    raise MaeConvertError(
        file.path,
        " of ",
        artifact.target,
        " was changed during publishing; nothing was uploaded",
        hint="verify it again, then publish again",
    )


def _is_taken(artifact: Artifact, existing: Mapping[str, Entry]) -> bool:
    """Return whether libraries would load existing weights instead of the artifact's."""
    ours = [path.name for path in artifact.weights]
    first = next((name for name in PREFERENCE if name in existing or name in ours), None)
    return first is not None and first not in ours and not _is_in_place_of(first, ours)


def _is_in_place_of(name: str, ours: Sequence[str]) -> bool:
    """Return whether the published files `ours` replace the existing safetensors file `name`.

    They do if they are safetensors files too; a single file and shards replace each other.
    """
    return _is_safetensors(name) and any(_is_safetensors(own) for own in ours)


def _same(file: Staged, ours: Staged | None, theirs: Entry | None) -> bool:
    return ours.sha256 == file.sha256 if ours else file.is_at(theirs)


def superseded(staged: Mapping[str, Staged], existing: Mapping[str, Entry]) -> list[str]:
    """Return the paths of files to delete because they contradict the published files.

    If both a single weight file and shards remained, libraries would load only one of them. A
    certificate that is not published again describes weights that no longer exist.
    """
    publishes = any(_is_safetensors(path) for path in staged)
    gone = [path for path in existing if publishes and _is_safetensors(path)]
    gone += [path for path in existing if _is_certificate_of(path, staged, existing)]
    return [path for path in gone if path not in staged]


def _is_certificate_of(
    path: str, staged: Mapping[str, Staged], existing: Mapping[str, Entry]
) -> bool:
    """Return whether a file is part of a certificate for weights that will be replaced.

    Args:
        path: the path of the file in the repository.
        staged: the files to upload, by path; they replace files with the same path.
        existing: the files of the repository, by path.
    """
    if path in (*OWN_FILES, *SIGNATURE_NAMES):
        first = next((name for name in PREFERENCE if name in existing), None)
        return "conversion.json" in staged or first in staged
    if path.startswith(f"{CERTIFICATES_FOLDER}/"):
        return path.split("/")[1] in staged
    return any(path.removesuffix(f".{name}") in staged for name in CERTIFICATE_NAMES)


def _is_safetensors(path: str) -> bool:
    sharded = SHARD.fullmatch(path) and path.startswith("model-") and path.endswith(".safetensors")
    return bool(sharded) or path in ("model.safetensors", f"model.safetensors{INDEX_SUFFIX}")
