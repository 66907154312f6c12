"""Sign a directory and verify its signature, with the OpenSSF package model-signing.

The signature is a DSSE envelope in a sigstore bundle. It is created with an elliptic curve key,
with a key and its certificate, or without a key by sigstore, which needs a network.
"""

import base64
import importlib.util
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_convert.errors import MaeConvertError, MissingRequirementError, Option, one_line

NETWORK = ("TUFError", "NetworkError", "DownloadError", "ConnectionError", "MaxRetryError")
LONGEST = 100
CURVES = ("secp256r1", "secp384r1", "secp521r1")  # the curves that model-signing supports


@dataclass(frozen=True)
class Signer:
    """How a directory is signed: with a key, with a key and its certificate, or by sigstore."""

    private_key: Path | None = None
    """PEM file of an elliptic curve key; None for sigstore."""

    password: str | None = None
    """The key's password, if it has one."""

    certificate: Path | None = None
    """PEM file of the certificate of the key."""

    chain: Sequence[Path] = ()
    """PEM files of the certificates of the authorities that issued ``certificate``; needed to
    verify the signature."""

    keyless: bool = False
    """Whether to sign with an identity of sigstore, which an OpenID provider confirms, instead of a
    key."""

    identity_token: str | None = None
    """The token of the OpenID provider; by default the token of the CI job or a browser login."""

    trust_config: Path | None = None
    """A JSON file with the URLs and keys of a sigstore instance other than the public one."""

    def sign(self, folder: Path, signature: Path, ignored: Sequence[Path]) -> None:
        """Write the signature of a directory.

        Args:
            folder: the directory.
            signature: the file to write, in the directory.
            ignored: files in the directory that are not signed.

        Raises:
            MissingRequirementError: model-signing is not installed, or sigstore cannot be reached.
            MaeConvertError: the key, the certificate or the identity cannot be used.
        """
        self.check()
        from model_signing import hashing, signing

        # The library resolves ignored paths against the directory.
        relative = [path.relative_to(folder) for path in (signature, *ignored)]
        hashed = hashing.Config().set_ignored_paths(paths=relative)
        hashed.set_allow_symlinks(True)  # the library checks ignored paths for links too
        try:
            config = self._configured(signing.Config())
            config.set_hashing_config(hashed).sign(folder, signature)
        except Exception as error:  # the library raises many different exceptions for invalid keys
            raise self._failure(error) from error

    def check(self) -> None:
        """Check the options, before anything is written.

        Raises:
            MissingRequirementError: model-signing is not installed.
            MaeConvertError: a file does not exist, or the options contradict each other.
        """
        require_package()
        if self.keyless == (self.private_key is not None):
            raise MaeConvertError(
                "a model is signed either with a key or with an identity of sigstore",
                hint=("give ", Option("private_key", placeholder="PEM"), " or ",
                      Option("keyless", True)),
            )  # fmt: skip
        if self.chain and self.certificate is None:
            raise MaeConvertError(
                *(Option("certificate_chain"), " needs the certificate of the key"),
                hint=("give ", Option("signing_certificate", placeholder="PEM"), " too"),
            )
        if self.certificate is not None and (self.password is not None or self.keyless):
            problem = "a key with a password" if self.password is not None else "sigstore"
            raise MaeConvertError(
                f"model-signing does not support a certificate together with {problem}",
                hint=("leave ", Option("signing_certificate"), " out"),
            )
        require_files([self.private_key, self.certificate, *self.chain, self.trust_config])
        if self.private_key is not None:
            _require_private_key(self.private_key, self.password)

    def _configured(self, config: Any) -> Any:
        if self.keyless:
            return config.use_sigstore_signer(
                use_ambient_credentials=True,
                identity_token=self.identity_token,
                trust_config=self.trust_config,
            )
        if self.certificate is not None:
            # The library needs at least one certificate; by default the key's own is repeated.
            return config.use_certificate_signer(
                private_key=self.private_key,
                signing_certificate=self.certificate,
                certificate_chain=self.chain or [self.certificate],
            )
        # The library passes the password on to cryptography, which accepts only bytes.
        password = None if self.password is None else self.password.encode()
        return config.use_elliptic_key_signer(private_key=self.private_key, password=password)

    def _failure(self, error: Exception) -> MaeConvertError:
        if self.keyless:
            return _sigstore_failure(error, "sign with")
        if isinstance(error, OSError) and error.filename:
            problem = f" cannot be read or written: {error.strerror}"
            return MaeConvertError(Path(error.filename), problem, hint="change its permissions")
        problem = one_line(str(error)) or type(error).__name__
        hint = "use an EC key in PEM format" + (", and its certificate" if self.certificate else "")
        assert self.private_key is not None
        return MaeConvertError(
            self.private_key, f" cannot be used for signing: {problem}", hint=hint
        )


@dataclass(frozen=True)
class Trust:
    """The accepted signer: a key, a certificate issued by an authority, or an identity."""

    public_key: Path | None = None
    """The PEM file of the accepted public key; None if a certificate or an identity is accepted."""

    chain: Sequence[Path] = ()
    """PEM files of the authorities; the signer's certificate must be issued by one of them. Empty
    if a key or an identity is accepted."""

    identity: str | None = None
    """The accepted identity of sigstore, which signs without a key: an e-mail address or the URL
    of a CI workflow."""

    identity_provider: str | None = None
    """The URL of the OpenID provider that confirmed the signer's identity."""

    trust_config: Path | None = None
    """A JSON file with the URLs and keys of a sigstore instance other than the public one."""

    def check(self) -> None:
        """Check that exactly one signer is specified, and that the files exist.

        Raises:
            MissingRequirementError: model-signing is not installed.
            MaeConvertError: no or several signers are specified, an identity is specified without
                its provider (or a provider without an identity), a file does not exist, or the key
                is invalid.
        """
        require_package()
        specified = [self.public_key is not None, bool(self.chain), self.identity is not None]
        if sum(specified) != 1:
            raise MaeConvertError(
                "exactly one of a key, certificates and an identity must be specified to verify a "
                "signature",
                hint=(
                    *("give one of ", Option("public_key"), ", ", Option("certificate_chain")),
                    *(" and ", Option("identity")),
                ),
            )
        if (self.identity is None) != (self.identity_provider is None):
            raise MaeConvertError(
                "an identity is specified by its name and its provider",
                hint=("give ", Option("identity"), " and ", Option("identity_provider")),
            )
        require_files([self.public_key, *self.chain, self.trust_config])
        if self.public_key is not None:
            _require_public_key(self.public_key)

    def problem(self, folder: Path, signature: Path) -> str | None:
        """Return why the signature of a directory is not accepted, or None if it is accepted.

        Files that were added after the signature are not considered.

        Raises:
            MissingRequirementError: sigstore cannot be reached.
        """
        from model_signing import hashing, verifying

        try:
            config = self._configured(verifying.Config())
            config.set_ignore_unsigned_files(True)
            config.set_hashing_config(hashing.Config().set_allow_symlinks(True))
            config.verify(folder, signature)
        except Exception as error:  # the library raises many different exceptions for signatures
            if self.identity is not None and _is_of_network(error):
                raise _sigstore_failure(error, "verify by") from error
            return _problem(error)
        return None

    def _configured(self, config: Any) -> Any:
        if self.identity is not None:
            return config.use_sigstore_verifier(
                identity=self.identity,
                oidc_issuer=self.identity_provider,
                trust_config=self.trust_config,
            )
        if self.chain:
            return config.use_certificate_verifier(certificate_chain=self.chain)
        return config.use_elliptic_key_verifier(public_key=self.public_key)


def signed_files(signature: Path) -> set[str]:
    """Return the names of the files that a verified signature covers."""
    bundle = json.loads(signature.read_text(encoding="utf-8"))
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return {str(resource["name"]) for resource in payload["predicate"]["resources"]}


def secret_in(path: Path | None) -> str | None:
    """Return the password or token in a file, without its final newline; None without a path.

    Raises:
        MaeConvertError: the file cannot be read as text.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MaeConvertError(
            path, " cannot be read", hint="specify a text file with the password or token"
        ) from error


def require_files(paths: Sequence[Path | None]) -> None:
    """Require that PEM and JSON files exist; None, an unspecified file, is skipped.

    Raises:
        MaeConvertError: a file does not exist.
    """
    for path in filter(None, paths):
        if not path.is_file():
            raise MaeConvertError(path, " is not a file", hint="specify an existing file")


def _problem(error: Exception) -> str:
    """Return the reason why model-signing does not accept a signature."""
    text = one_line(str(error)) or type(error).__name__
    if text.startswith("Key mismatch"):
        return "made with another key"
    if changed := re.findall(r"Hash mismatch for \\*'([^'\\]*)\\*'", text):
        return f"files changed after signing: {', '.join(changed)}"
    if missing := re.match(r"Cannot use '([^']*)' as file or directory", text):
        return f"a signed file is missing: {Path(missing[1]).name}"
    if isinstance(error, LookupError | TypeError | AttributeError | json.JSONDecodeError):
        text = f"not readable: {type(error).__name__} {text}"
    return textwrap.shorten(text.partition(": Expected")[0], LONGEST, placeholder=" ...")


def _read(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        MaeConvertError: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise MaeConvertError(
            path, f" cannot be read: {error.strerror}", hint="change its permissions"
        ) from error


def _require_public_key(path: Path) -> None:
    """Require that a file contains an elliptic-curve public key in PEM format.

    Raises:
        MaeConvertError: the file cannot be read, or it contains no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePublicKey):
        raise MaeConvertError(
            path,
            " is not an elliptic-curve public key in PEM format",
            hint="get it from the private key: `openssl ec -in KEY -pubout`",
        )


def _require_private_key(path: Path, password: str | None) -> None:
    """Require that a file contains an elliptic-curve private key in PEM format.

    Args:
        path: the file.
        password: the password with which the key is encrypted; None if the key is not encrypted.

    Raises:
        MaeConvertError: the file does not contain such a key, or the password is wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data, option = _read(path), Option("password_file")
    try:
        secret = None if password is None else password.encode()
        key = load_pem_private_key(data, secret or None)
        if secret == b"":
            raise MaeConvertError(
                path,
                " cannot be used for signing: the password is empty",
                hint=("leave ", option, " out"),
            )
    except TypeError as error:  # only one of the two: an encrypted key, a password
        is_encrypted = not password
        problem = (
            "the key is encrypted"
            if is_encrypted
            else "the key has no password, but a password is specified"
        )
        hint = (
            ("specify a file with the password: ", Option("password_file", placeholder="PATH"))
            if is_encrypted
            else ("leave ", option, " out")
        )
        raise MaeConvertError(path, f" cannot be used for signing: {problem}", hint=hint) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if password and b"ENCRYPTED" in data:
            raise MaeConvertError(
                path,
                " cannot be used for signing: the specified password is wrong",
                hint=("check ", option),
            ) from error
        key = None
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise MaeConvertError(
            path,
            " cannot be used for signing: it is not a private key of the elliptic curve P-256, "
            "P-384 or P-521 in PEM format",
            hint="create one: `openssl ecparam -name prime256v1 -genkey -noout -out KEY`",
        )


def require_package() -> None:
    """Require the package model-signing.

    Raises:
        MissingRequirementError: the package is not installed.
    """
    if importlib.util.find_spec("model_signing") is None:
        raise MissingRequirementError(
            "model-signing is not installed here", hint="pip install 'mae-convert[sign]'"
        )


def _sigstore_failure(error: Exception, what: str) -> MaeConvertError:
    problem = one_line(str(error)) or type(error).__name__
    if _is_of_network(error):
        return MissingRequirementError(
            f"sigstore cannot be reached to {what} an identity: {problem}",
            hint="sigstore needs a network; without a network, use a key or a certificate",
        )
    return MaeConvertError(f"sigstore refused: {problem}", hint="check the identity and its token")


def _is_of_network(error: BaseException) -> bool:
    """Return whether an error was caused by a connection that failed."""
    return any(
        isinstance(cause, ConnectionError | TimeoutError)
        or any(kind.__name__ in NETWORK for kind in type(cause).__mro__)
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
