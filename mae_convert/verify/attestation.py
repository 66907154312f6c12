"""Sign a verified model directory, and check the signature.

``attestation.json`` is an in-toto statement: its subjects are the files, its predicate contains the
result of the verification. ``model.sig`` is the signature of all files, including the statement;
`mae_convert.verify.signing` creates it.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mae_convert.errors import CheckpointError, MaeConvertError
from mae_convert.files.atomic import write_file
from mae_convert.files.byte_ranges import ByteFile, file_sha256, kind_of
from mae_convert.formats.container import SIGNATURE_NAMES
from mae_convert.formats.contents import json_in
from mae_convert.verify.certificate import Certificate, read_certificate
from mae_convert.verify.judge import Check
from mae_convert.verify.signing import Signer, Trust, signed_files

STATEMENT, SIGNATURE = SIGNATURE_NAMES
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:mae-convert:verification:v1"
# Fields of the certificate that the statement repeats.
REPEATED = (
    "mae_convert", "source", "target", "steps", "passed", "proven", "assumptions", "environment",
)  # fmt: skip
ADVICE = "make it again with `mae-convert attest`"


def attest(
    folder: Path,
    signer: Signer,
    *,
    files: Collection[str] | None = None,
    licence: str | None = None,
) -> Path:
    """Write the statement and the signature of a certified model directory.

    Args:
        folder: the directory, with its certificate.
        signer: the key, the certificate or the identity that signs.
        files: the names of the files to sign; None for all.
        licence: the licence of the model; by default the licence in its model card.

    Returns:
        The path of the signature.

    Raises:
        MissingRequirementError: the package model-signing is not installed, or sigstore cannot be
            reached.
        MaeConvertError: the directory is not a model directory or has no certificate, a path is not
            a file, a file has changed since it was certified, or the key cannot be used.
    """
    signer.check()
    if not folder.is_dir():
        raise MaeConvertError(
            folder, " is not a model directory", hint="convert it to a model directory"
        )
    certificate = read_certificate(folder)
    if failed := certificate.failed_checks():
        raise MaeConvertError(
            folder,
            f" is not the verified model: {failed[0].name.partition('/')[2]} {failed[0].measured}",
            hint="verify it again: `mae-convert verify SOURCE TARGET --certify`",
        )
    present = sorted(path.name for path in folder.iterdir() if path.name not in SIGNATURE_NAMES)
    chosen = [name for name in present if files is None or name in files]
    _require_files(folder, chosen)
    document = statement(folder, certificate, chosen, licence or _licence(folder))
    text = json.dumps(document, indent=2) + "\n"
    path = folder / STATEMENT
    old = path.read_bytes() if path.is_file() else None
    write_file(path, text, overwrite=True)
    ignored = [folder / name for name in present if name not in chosen]
    try:
        signer.sign(folder, folder / SIGNATURE, ignored)
    except BaseException:  # restore the earlier statement, to which an earlier signature belongs
        if old is None:
            path.unlink(missing_ok=True)
        else:
            write_file(path, old, overwrite=True)
        raise
    return folder / SIGNATURE


def _require_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse to sign symbolic links and special files.

    The statement and the signature may replace a file, but nothing else.

    A symbolic link can refer to a file that does not belong to the model. By default, the package
    model-signing refuses links too.

    Args:
        folder: the directory.
        names: the names of the files and directories to sign.

    Raises:
        MaeConvertError: a path to sign is a symbolic link or, for example, a named pipe, or the
            path of the statement or the signature exists and is not a file.
    """
    outputs = [folder / name for name in SIGNATURE_NAMES]
    signed = [path for name in names for path in (folder / name, *(folder / name).rglob("*"))]
    for path in (*outputs, *signed):
        if path.is_symlink():
            raise MaeConvertError(
                path,
                " is a symbolic link, and links are not signed",
                hint="replace it by a copy of the file, or remove it",
            )
        kind = kind_of(path)
        if kind and (path in outputs or not path.is_dir()):
            raise MaeConvertError(path, f" is {kind} and not a file", hint="remove it")


def statement(
    folder: Path, certificate: Certificate, files: Iterable[str], licence: str | None
) -> dict[str, Any]:
    """Return the in-toto statement with the files of a directory and the result of verification.

    Args:
        folder: the directory.
        certificate: the certificate, which contains the result of verification.
        files: names of files of the directory; names of files that do not exist are ignored.
        licence: the licence of the model; None if it is unknown.
    """
    document = certificate.document
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": file_sha256(folder / name)}}
            for name in files
            if (folder / name).is_file()
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            **{name: document[name] for name in REPEATED},
            "licence": licence,
        },
    }


def _licence(folder: Path) -> str | None:
    """Return the licence in the model card, or None."""
    card = folder / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    licences = (line.partition(":")[2].strip() for line in lines if line.startswith("license:"))
    return next(licences, None)


def attestation_checks(folder: Path, trust: Trust) -> list[Check]:
    """Return the checks of the signature and of the signed statement.

    Files that were not signed are not checked here; the certificate covers the files that affect
    the model.

    Raises:
        MissingRequirementError: the package model-signing is not installed, or sigstore cannot be
            reached.
        MaeConvertError: there is no signature, a file specified in `trust` does not exist, or the
            fields of `trust` contradict each other.
    """
    trust.check()
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise CheckpointError(
            folder,
            f" has no signature {SIGNATURE}",
            hint="sign it with `mae-convert attest`, or leave out the key or the identity",
        )
    if problem := trust.problem(folder, signature):
        return [Check("certificate/signature", False, problem, "valid")]
    try:
        files, checks = signed_files(signature), list(_statement_checks(folder))
        names = {STATEMENT, *(subject["name"] for subject in _document(folder)["subject"])}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = f"not readable: {type(error).__name__}"
        return [Check("certificate/statement", False, reason, PREDICATE_TYPE)]
    unsigned = ", ".join(sorted(names - files)) or "none"
    return [
        Check("certificate/signature", True, "valid", "valid"),
        Check("certificate/files without a signature", unsigned == "none", unsigned, "none"),
        *checks,
    ]


def _document(folder: Path) -> Any:
    """Return the content of ``attestation.json`` or, if it is missing, an empty statement."""
    path = folder / STATEMENT
    return json_in(ByteFile(path), ADVICE) if path.is_file() else {"subject": []}


def _statement_checks(folder: Path) -> Iterator[Check]:
    """Yield checks of the signed statement, ``attestation.json``, in a directory.

    The statement must match the files in the directory and their certificate.
    """
    path = folder / STATEMENT
    if not path.is_file():
        yield Check("certificate/statement", False, "missing", STATEMENT)
        return
    document, certificate = _document(folder), read_certificate(folder).document
    values: Any = document if isinstance(document, Mapping) else {}
    types = (values.get("_type"), values.get("predicateType"))
    same = types == (STATEMENT_TYPE, PREDICATE_TYPE)
    yield Check("certificate/statement", same, str(types[1]), PREDICATE_TYPE)
    if not same:
        return
    verified = set(certificate["files"])
    missing = sorted(verified - {subject["name"] for subject in values["subject"]})
    changed = missing + [
        str(subject["name"])
        for subject in values["subject"]
        if not (folder / Path(subject["name"]).name).is_file()
        or file_sha256(folder / Path(subject["name"]).name) != subject["digest"]["sha256"]
    ]
    yield Check("certificate/subjects", not changed, ", ".join(changed) or "unchanged", "unchanged")
    predicate = values["predicate"]
    different = [name for name in REPEATED if predicate.get(name) != certificate.get(name)]
    changed_fields = ", ".join(different) or "as certified"
    yield Check("certificate/predicate", not different, changed_fields, "as certified")
