"""Sign a verified model directory and check such a signature.

``attestation.json`` is an in-toto statement: its subjects are the files, its predicate contains the
result of the verification. ``model.sig`` is the signature of all files, including the statement. It
is created offline with a key by the OpenSSF package model-signing: a DSSE envelope in a sigstore
bundle.
"""

import importlib.util
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mae_convert.errors import CheckpointError, MaeConvertError, MissingRequirementError, one_line
from mae_convert.files.atomic import write_file
from mae_convert.files.byte_ranges import ByteFile, file_sha256
from mae_convert.formats.contents import json_in
from mae_convert.sources.select_files import SIGNED
from mae_convert.verify.certificate import Certificate, read_certificate
from mae_convert.verify.judge import Check

STATEMENT, SIGNATURE = SIGNED
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:mae-convert:verification:v1"
# Fields of the certificate that the statement repeats.
REPEATED = ("source", "target", "steps", "passed", "proven", "assumptions", "environment")
ADVICE = "make it again with `mae-convert attest`"


def attest(
    folder: Path,
    private_key: Path,
    password: str | None = None,
    *,
    files: Collection[str] | None = None,
    licence: str | None = None,
) -> Path:
    """Write the statement and the signature of a certified model directory.

    Args:
        folder: the directory, with its certificate.
        private_key: PEM file of an elliptic curve key.
        password: the key's password, if it has one.
        files: the names of the files to sign; None for all.
        licence: the licence of the model; None for the one in its model card.

    Returns:
        The path of the signature.

    Raises:
        MissingRequirementError: the package model-signing is not installed.
        MaeConvertError: the certificate does not hold, or the key cannot be used.
    """
    _require_package()
    if not folder.is_dir():
        raise MaeConvertError(folder, " is not a model directory", hint="convert it to one")
    if not private_key.is_file():
        raise MaeConvertError(private_key, " is not a file", hint="name the key, a PEM file")
    certificate = read_certificate(folder)
    if failed := certificate.checks():
        raise MaeConvertError(
            folder,
            f" is not the verified model: {failed[0].name.partition('/')[2]} {failed[0].measured}",
            hint="verify it again: `mae-convert verify SOURCE TARGET --certify`",
        )
    present = sorted(path.name for path in folder.iterdir() if path.name not in SIGNED)
    chosen = [name for name in present if files is None or name in files]
    document = statement(folder, certificate, chosen, licence or _licence(folder))
    text = json.dumps(document, indent=2) + "\n"
    write_file(folder / STATEMENT, text, overwrite=True)
    from model_signing import hashing, signing

    signature = folder / SIGNATURE
    ignored = [signature, *(folder / name for name in present if name not in chosen)]
    hashed = hashing.Config().set_ignored_paths(paths=ignored).set_allow_symlinks(True)
    try:
        config = signing.Config().use_elliptic_key_signer(
            private_key=private_key, password=password
        )
        config.set_hashing_config(hashed).sign(folder, signature)
    except Exception as error:  # the library raises many different exceptions for invalid keys
        (folder / STATEMENT).unlink(missing_ok=True)
        raise MaeConvertError(
            private_key, f" cannot sign: {one_line(str(error))}", hint="use an EC key in PEM"
        ) from error
    return signature


def statement(
    folder: Path, certificate: Certificate, files: Iterable[str], licence: str | None
) -> dict[str, Any]:
    """Return the in-toto statement with the files of a directory and the result of verification."""
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
            "mae_convert": document["mae_convert"],
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


def attestation_checks(folder: Path, public_key: Path) -> list[Check]:
    """Return the checks of the signature and of the signed statement.

    Files that were not signed are not checked here; the certificate covers those that affect the
    model.

    Raises:
        MissingRequirementError: the package model-signing is not installed.
        MaeConvertError: there is no signature, or the key file does not exist.
    """
    _require_package()
    if not (folder / SIGNATURE).is_file():
        raise CheckpointError(
            folder, f" has no signature {SIGNATURE}", hint="leave out the public key"
        )
    if not public_key.is_file():
        raise MaeConvertError(public_key, " is not a file", hint="name the public key, a PEM file")
    from model_signing import hashing, verifying

    config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    config.set_ignore_unsigned_files(True)
    config.set_hashing_config(hashing.Config().set_allow_symlinks(True))
    try:
        config.verify(folder, folder / SIGNATURE)
    except Exception as error:  # the library raises many different exceptions for bad signatures
        problem = (one_line(str(error)) or type(error).__name__).partition(": Expected")[0]
        return [Check("certificate/signature", False, problem[:100], "valid")]
    return [Check("certificate/signature", True, "valid", "valid"), *_statement_checks(folder)]


def _statement_checks(folder: Path) -> Iterator[Check]:
    """Yield checks that the statement describes these files and repeats their certificate."""
    path = folder / STATEMENT
    if not path.is_file():
        yield Check("certificate/statement", False, "missing", STATEMENT)
        return
    document, certificate = json_in(ByteFile(path), ADVICE), read_certificate(folder).document
    values: Any = document if isinstance(document, Mapping) else {}
    types = (values.get("_type"), values.get("predicateType"))
    same = types == (STATEMENT_TYPE, PREDICATE_TYPE)
    yield Check("certificate/statement", same, str(types[1]), PREDICATE_TYPE)
    if not same:
        return
    changed = [
        str(subject["name"])
        for subject in values["subject"]
        if not (folder / Path(subject["name"]).name).is_file()
        or file_sha256(folder / Path(subject["name"]).name) != subject["digest"]["sha256"]
    ]
    yield Check("certificate/subjects", not changed, ", ".join(changed) or "the files", "the files")
    predicate = values["predicate"]
    other = [name for name in REPEATED if predicate.get(name) != certificate.get(name)]
    changed_fields = ", ".join(other) or "as certified"
    yield Check("certificate/predicate", not other, changed_fields, "as certified")


def _require_package() -> None:
    if importlib.util.find_spec("model_signing") is None:
        raise MissingRequirementError(
            "model-signing is not installed here", hint="pip install 'mae-convert[sign]'"
        )
