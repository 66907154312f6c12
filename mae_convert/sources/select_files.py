"""Select the files of a repository that are needed to open a checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mae_convert.errors import CheckpointError, HubError
from mae_convert.formats.container import JSON_NAMES, SIGNATURE_NAMES
from mae_convert.formats.directory import KERAS_SUFFIX, is_read_beside
from mae_convert.formats.registry import (
    CERTIFICATE_NAMES,
    DIRECTORY_SUFFIXES,
    FORMATS,
    INDEX_NAMES,
    INDEX_SUFFIX,
    KERAS_ARCHIVE,
    NPZ,
    WEIGHTS_NAMES,
)
from mae_convert.sources.reference import HubReference
from mae_convert.sources.snapshot import Entry, Snapshot
from mae_convert.text import listed

# A repository often has the same weights in several formats: the first name in this list is used.
PREFERENCE = tuple(
    preferred
    for name in WEIGHTS_NAMES
    for preferred in (name, f"{name}{INDEX_SUFFIX}")
    if preferred in (*WEIGHTS_NAMES, *INDEX_NAMES)
)
PROOFS = (*CERTIFICATE_NAMES, *SIGNATURE_NAMES)
KERAS_SUFFIXES = (KERAS_SUFFIX, *FORMATS[KERAS_ARCHIVE].suffixes)
# In a repository with several layouts, this folder contains certificates of further weight files.
CERTIFICATES_FOLDER = "verification"


@dataclass(frozen=True)
class FileSelection:
    """The files that must be downloaded to open a checkpoint."""

    weights: str
    """Path in the repository of the weight file, or of the index of a sharded checkpoint."""

    beside: Mapping[str, str]
    """For each file except the weights, its path in the repository, by its local name (the name in
    the local directory)."""

    is_directory: bool
    """Whether to open the local directory as a model directory, instead of only the weight file."""

    notes: tuple[str, ...] = ()
    """Messages for the user about the selection."""


def select_files(snapshot: Snapshot, *, certificate: bool) -> FileSelection:
    """Return the files to download to open a checkpoint.

    Raises:
        CheckpointError: there are no weights, there are several weight files without a conventional
            name, or the requested certificate does not exist.
        HubError: the repository does not contain the file or directory.
    """
    path, entries = snapshot.reference.path, snapshot.entries
    is_folder = not path or any(name.startswith(f"{path}/") for name in entries)
    if not is_folder and path not in entries:
        raise HubError(f"{snapshot.reference}: there is no such file", hint=snapshot.listing)
    folder = path if is_folder else folder_of(path)
    names = [name_of(p) for p in entries if folder_of(p) == folder]
    weight_files = _weights_in(snapshot, folder, names) if is_folder else [name_of(path)]
    weights = weight_files[0]
    alone = [name for name in names if _is_weights(name)] == [weights]
    beside = _beside(weights, folder, entries, belongs=is_folder or _conventional(weights) or alone)
    if not certificate:
        beside = {k: v for k, v in beside.items() if not k.endswith(PROOFS)}
    elif not any(name.endswith(CERTIFICATE_NAMES[0]) for name in beside):
        raise CheckpointError(
            f"{snapshot.reference} has no certificate ({CERTIFICATE_NAMES[0]}): it was published"
            " without verification",
            hint=f"compare it with its source: `mae-convert verify SOURCE {snapshot.reference}`",
        )
    own = f"{weights}.{CERTIFICATE_NAMES[0]}" in names
    is_directory = not own and (is_folder or _conventional(weights))
    notes: tuple[str, ...] = ()
    if further := weight_files[1:]:
        where = HubReference(snapshot.reference.repo_id, snapshot.reference.revision, folder)
        notes = (
            f"{where}: using {weights}; to use {' or '.join(further)}, specify the file, for "
            f"example {where}/{further[0]}",
        )
    return FileSelection(joined(folder, weights), beside, is_directory, notes)


def _beside(
    weights: str, folder: str, entries: Mapping[str, Entry], *, belongs: bool
) -> dict[str, str]:
    """Return the files that belong to a weight file: their paths in the repository, by local name.

    If the directory has a certificate for a single file (``FILE.verification.json``, where FILE is
    the name of the weight file), only this certificate belongs to the weights. If the folder
    `CERTIFICATES_FOLDER` has a subfolder FILE, the conversion record and the certificate are taken
    from this subfolder, because the records in the directory belong to other weights.

    Args:
        weights: the name of the weight file.
        folder: the directory of the weight file.
        entries: all files of the repository, by path.
        belongs: whether the JSON files in the directory, such as ``config.json``, belong to the
            weights.
    """
    own = [f"{weights}.{name}" for name in CERTIFICATE_NAMES]
    if joined(folder, own[0]) in entries:
        return {name: joined(folder, name) for name in own if joined(folder, name) in entries}
    if not belongs:
        return {}
    names = (*JSON_NAMES, *PROOFS)
    paths = {name: joined(folder, name) for name in (*names, *_further(folder, entries))}
    further = joined(folder, f"{CERTIFICATES_FOLDER}/{weights}")
    if any(path.startswith(f"{further}/") for path in entries):
        for name in ("conversion.json", *PROOFS):
            del paths[name]
        theirs = (*names, *_further(further, entries))
        paths |= {name: f"{further}/{name}" for name in theirs if f"{further}/{name}" in entries}
    return {name: path for name, path in paths.items() if path in entries}


def _further(folder: str, entries: Mapping[str, Entry]) -> list[str]:
    """Return the names of a folder's files, except weights, that a library may read.

    These include files that mae-convert does not read, such as processor_config.json.
    """
    names = [name_of(path) for path in entries if folder_of(path) == folder]
    return [name for name in names if is_read_beside(name) and not _is_weights_or_index(name)]


def _is_weights_or_index(name: str) -> bool:
    return name.endswith((*DIRECTORY_SUFFIXES, INDEX_SUFFIX))


def _weights_in(snapshot: Snapshot, folder: str, names: Sequence[str]) -> list[str]:
    """Return the weight files of a directory, the preferred file first.

    Args:
        snapshot: the repository.
        folder: the directory in the repository.
        names: the names of all files in the directory.

    Raises:
        CheckpointError: there is no weight file; or there are several weight files, and none has a
            conventional name.
    """
    keras = sorted(name for name in names if name.endswith(KERAS_SUFFIXES))
    weight_files = list(dict.fromkeys(name for name in (*PREFERENCE, *keras) if name in names))
    weight_files = weight_files or [name for name in names if _is_weights(name)]
    where = HubReference(snapshot.reference.repo_id, snapshot.reference.revision, folder)
    if not weight_files:
        raise CheckpointError(f"{where} has no weights in a known format", hint=snapshot.listing)
    if len(weight_files) > 1 and not _conventional(weight_files[0]):
        raise CheckpointError(
            f"{where} has {len(weight_files)} weight files ({listed(weight_files, 8)})",
            hint=f"specify one, for example {where}/{weight_files[0]}",
        )
    return weight_files


def _is_weights(name: str) -> bool:
    return name.endswith((*DIRECTORY_SUFFIXES, *FORMATS[NPZ].suffixes)) and not name.endswith(
        CERTIFICATE_NAMES
    )


def _conventional(name: str) -> bool:
    return name in PREFERENCE or name.endswith(INDEX_SUFFIX)


def name_of(path: str) -> str:
    """Return the last component of a path in a repository."""
    return path.rpartition("/")[2]


def folder_of(path: str) -> str:
    """Return the parent directory of a path in a repository; empty for the root."""
    return path.rpartition("/")[0]


def joined(folder: str, name: str) -> str:
    """Return the path of a file in a directory of a repository."""
    return f"{folder}/{name}" if folder else name
