"""``attest`` and ``verify --public-key``: signed content, and later changes."""

import datetime
import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from paths import ROOT

from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.verify import signing
from mae_convert.verify.attestation import SIGNATURE, STATEMENT, attest, attestation_checks
from mae_convert.verify.signing import Signer, Trust

pytestmark = pytest.mark.usefixtures("forked_children")
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("model_signing") is None, reason="needs mae-convert[sign]"
)


def key_pair(folder, name="key"):
    """Write a private and a public key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    (folder / f"{name}.pem").write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )  # fmt: skip
    (folder / f"{name}.pub").write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return folder / f"{name}.pem", folder / f"{name}.pub"


def authority(folder, name="ca"):
    """Write the certificate of an authority; return its path, and a function that issues others."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    own = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def issue(file, subject, key, *, ca, signs=True):
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "crl_sign", "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        builder = x509.CertificateBuilder(
            issuer, subject, key.public_key(), x509.random_serial_number(), start,
            start + datetime.timedelta(days=3650),
        )  # fmt: skip
        builder = builder.add_extension(x509.BasicConstraints(ca, None), True)
        builder = builder.add_extension(
            x509.KeyUsage(digital_signature=signs, key_cert_sign=ca, **usage), True
        )
        certificate = builder.sign(own, hashes.SHA256())
        (folder / file).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return folder / file

    def of_key(private, file, **usage):
        key = serialization.load_pem_private_key(private.read_bytes(), None)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
        return issue(file, name, key, ca=False, **usage)

    return issue(f"{name}.crt", issuer, own, ca=True), of_key


@pytest.fixture(scope="module")
def signed_once(certified, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    shutil.copytree(certified, folder / "model")
    (folder / "model" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    private, public = key_pair(folder)
    attest(folder / "model", Signer(private))
    return folder / "model", private, public


@pytest.fixture
def signed(signed_once, tmp_path):
    """A signed model of this test's own, and its keys."""
    folder, private, public = signed_once
    shutil.copytree(folder, tmp_path / "model")
    return tmp_path / "model", private, public


def failed(folder, public):
    return [check.name for check in attestation_checks(folder, Trust(public)) if not check.passed]


@needs_package
def test_signed_model_is_verified_with_its_statement(signed, command):
    folder, _, public = signed
    assert failed(folder, public) == []
    result = command("verify", folder, "--public-key", public, "--json")
    assert result.status == 0, result.err
    names = [check["name"] for check in result.json["checks"][:5]]
    assert names == ["certificate/signature", "certificate/files without a signature",
                     "certificate/statement", "certificate/subjects",
                     "certificate/predicate"]  # fmt: skip
    config = json.loads((folder / STATEMENT).read_text())
    certificate = json.loads((folder / "verification.json").read_text())
    assert config["predicate"]["target"] == certificate["target"]
    assert config["predicate"]["licence"] == "cc-by-nc-4.0"
    assert {"model.safetensors", "config.json", "conversion.json", "verification.json"} <= {
        subject["name"] for subject in config["subject"]
    }


@needs_package
def test_model_signing_itself_accepts_a_signature_that_was_made_again(signed, monkeypatch):
    from click.testing import CliRunner
    from model_signing._cli import main

    folder, private, public = signed
    monkeypatch.chdir(folder.parent)
    attest(Path(folder.name), Signer(private))  # again, with a relative path
    (line,) = re.findall(r"`model_signing (.*)`", (ROOT / "docs/publishing.md").read_text())
    replaced = line.replace("my-mae", folder.name).replace("key.pub", str(public))
    result = CliRunner().invoke(main, replaced.split())
    assert (result.exit_code, result.output) == (0, "Verification succeeded\n")


@needs_package
def test_every_changed_or_missing_file_fails(signed, tmp_path):
    folder, _, public = signed
    for path in sorted(folder.iterdir()):
        if path.name == SIGNATURE:
            continue
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert problem(folder, public) == f"files changed after signing: {path.name}"
        path.unlink()
        assert problem(folder, public) == f"a signed file is missing: {path.name}"
        path.write_bytes(data)
    assert failed(folder, public) == []
    signature = (folder / SIGNATURE).read_bytes()
    for damaged in (b"{}", b"[]", signature[:300]):
        (folder / SIGNATURE).write_bytes(damaged)
        assert problem(folder, public).startswith("not readable: ")


def problem(folder, public):
    """Return why the signature is not accepted, the only failed check."""
    (check,) = (check for check in attestation_checks(folder, Trust(public)) if not check.passed)
    assert check.name == "certificate/signature"
    return check.measured


@needs_package
@pytest.mark.parametrize("name", ["mae_convert", "source", "target", "steps", "passed", "proven",
                                  "assumptions", "environment", "_type", "predicateType",
                                  "subject"])  # fmt: skip
def test_signed_statement_with_other_content_fails(signed, name):
    """The statement is signed with the correct key, but its content is wrong."""
    folder, private, public = signed
    path = folder / STATEMENT
    changed = json.loads(path.read_text())
    if name in changed["predicate"]:
        changed["predicate"][name] = ["something else"]
    elif name == "subject":
        changed[name][0]["digest"]["sha256"] = "0" * 64
    else:
        changed[name] = "something else"
    path.write_text(json.dumps(changed))
    _sign_again(folder, private)
    expected = {"subject": "subjects", "_type": "statement", "predicateType": "statement"}
    assert failed(folder, public) == [f"certificate/{expected.get(name, 'predicate')}"]


def _sign_again(folder, private):
    from model_signing import hashing, signing

    hashed = hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE])
    signer = signing.Config().use_elliptic_key_signer(private_key=private)
    signer.set_hashing_config(hashed).sign(folder, folder / SIGNATURE)


@needs_package
def test_a_key_with_a_password_signs(signed, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    def write(name, key, encryption):
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
        (tmp_path / name).write_bytes(pem)
        return tmp_path / name

    folder, private, public = signed
    key = serialization.load_pem_private_key(private.read_bytes(), None)
    encrypted = write("encrypted.pem", key, serialization.BestAvailableEncryption(b"secret"))
    for signer, words in (
        (Signer(encrypted), "the key is encrypted; .*password_file"),
        (Signer(encrypted, password=""), "the key is encrypted"),
        (Signer(encrypted, password="other"), "the specified password is wrong"),
        (
            Signer(private, password="secret"),
            "the key has no password, but a password is specified",
        ),
        (Signer(private, password=""), "the password is empty"),
        (
            Signer(
                write(
                    "rsa.pem", rsa.generate_private_key(65537, 2048), serialization.NoEncryption()
                )
            ),
            "not a private key of the elliptic curve",
        ),
    ):
        with pytest.raises(MaeConvertError, match=f"cannot be used for signing: .*{words}"):
            attest(folder, signer)
    (folder / SIGNATURE).unlink()
    attest(folder, Signer(encrypted, password="secret"))
    assert failed(folder, public) == []


@needs_package
def test_a_certificate_signs_and_is_verified_by_its_authority(signed, tmp_path, command):
    folder, private, public = signed
    root, issue = authority(tmp_path)
    certificate = issue(private, "signer.crt")
    options = ["--signing-certificate", certificate, "--certificate-chain", root]
    result = command("attest", folder, "--private-key", private, *options)
    assert result.status == 0, result.err
    trust = Trust(chain=(root,))
    assert [c.name for c in attestation_checks(folder, trust) if not c.passed] == []
    other, _ = authority(tmp_path, "other")
    assert [check.passed for check in attestation_checks(folder, Trust(chain=(other,)))] == [False]
    assert failed(folder, public) == ["certificate/signature"]  # a key is not a certificate
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")
    assert not attestation_checks(folder, trust)[0].passed


@needs_package
def test_a_certificate_that_may_not_sign_or_is_of_another_key_is_refused(signed, tmp_path):
    folder, private, _ = signed
    root, issue = authority(tmp_path)
    attest(folder, Signer(private, certificate=issue(private, "no.crt", signs=False)))
    assert not attestation_checks(folder, Trust(chain=(root,)))[0].passed
    of_another = issue(key_pair(tmp_path, "other")[0], "other.crt")
    with pytest.raises(MaeConvertError, match=r"cannot be used for signing.*does not match"):
        attest(folder, Signer(private, certificate=of_another))


@needs_package
def test_files_not_covered_by_the_signature_fail(signed):
    """A statement that was added afterwards is not signed, whatever it contains."""
    folder, private, public = signed
    text = (folder / STATEMENT).read_text()
    (folder / STATEMENT).unlink()
    _sign_again(folder, private)
    (folder / STATEMENT).write_text(text)
    assert failed(folder, public) == ["certificate/files without a signature"]
    config = json.loads(text)
    config["subject"] = [s for s in config["subject"] if s["name"] != "model.safetensors"]
    (folder / STATEMENT).write_text(json.dumps(config))
    _sign_again(folder, private)
    assert failed(folder, public) == ["certificate/subjects"]
    (folder / STATEMENT).write_text('{"subject": 3}')
    _sign_again(folder, private)
    assert failed(folder, public) == ["certificate/statement"]


@needs_package
def test_sigstore_without_a_network_is_missing(signed, command, monkeypatch):
    from model_signing import signing as library
    from model_signing import verifying

    def refuse(*_, **__):
        try:
            raise ConnectionRefusedError("refused")
        except OSError as error:
            raise RuntimeError("Failed to refresh TUF metadata") from error

    monkeypatch.setattr(library.Config, "use_sigstore_signer", refuse)
    monkeypatch.setattr(verifying.Config, "use_sigstore_verifier", refuse)
    folder, _, public = signed
    result = command("attest", folder, "--keyless")
    assert (result.status, "sigstore cannot be reached" in result.err) == (3, True)
    assert failed(folder, public) == []  # an earlier signature is kept
    identity = ["--identity", "a@example.org", "--identity-provider", "https://example.org"]
    result = command("verify", folder, *identity)
    assert (result.status, "sigstore cannot be reached" in result.err) == (3, True)
    assert len(result.err.splitlines()) == 1


@needs_package
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attest", "DIR"], "either with a key or with an identity"),
        (["attest", "DIR", "--keyless", "--private-key", "KEY"], "either with a key or"),
        (["attest", "DIR", "--private-key", "none.pem"], "none.pem is not a file"),
        (["attest", "DIR", "--private-key", "KEY", "--certificate-chain", "KEY"],
         "give --signing-certificate PEM too"),
        (["attest", "DIR", "--private-key", "KEY", "--signing-certificate", "KEY",
          "--password-file", "KEY"],
         "mae-convert: model-signing does not support a certificate together with a key with a "
         "password; leave --signing-certificate out"),
        (["attest", "DIR", "--keyless", "--signing-certificate", "KEY"],
         "mae-convert: model-signing does not support a certificate together with sigstore; leave "
         "--signing-certificate out"),
        (["verify", "DIR", "--identity", "a@b.c"], "give --identity and --identity-provider"),
        (["verify", "DIR", "--identity-provider", "https://b.c"], "give one of --public-key,"),
        (["verify", "DIR", "--identity", "a", "--public-key", "KEY"], "give one of --public-key,"),
        (["verify", "DIR", "--certificate-chain", "none.pem"], "none.pem is not a file"),
        (["verify", "DIR", "--public-key", "KEY"],
         "is not an elliptic-curve public key in PEM format"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused_before_anything_runs(
    signed_once, command, arguments, words
):
    folder, private, _ = signed_once
    result = command(*({"DIR": folder, "KEY": private}.get(word, word) for word in arguments))
    assert (result.status, words in result.err) == (2, True), result.err


@needs_package
def test_the_signature_of_another_model_or_key_fails(signed, tmp_path, command):
    folder, _, _ = signed
    other, public = key_pair(tmp_path, "other")
    assert failed(folder, public) == ["certificate/signature"]
    assert attestation_checks(folder, Trust(public))[0].measured == "made with another key"
    another = tmp_path / "another"
    shutil.copytree(folder, another)
    config = another / "preprocessor_config.json"
    config.write_text(config.read_text() + "\n")
    _sign_again(another, other)
    for name in (STATEMENT, SIGNATURE):
        shutil.copy(another / name, folder / name)
    assert failed(folder, public) == ["certificate/signature"]
    result = command("verify", folder, "--public-key", public)
    assert result.status == 1
    assert "certificate/signature" in result.out
    assert "NOT SIGNED: B computes the results that its certificate records" in result.out


@needs_package
def test_unsupported_signing_and_checking_is_reported(signed, tmp_path, certified, command):
    folder, private, public = signed
    result = command("verify", certified, "--public-key", public)
    assert (result.status, "has no signature" in result.err) == (2, True)
    result = command("verify", folder, folder, "--public-key", public)
    assert (result.status, "leave out B" in result.err) == (2, True)
    (folder / "config.json").write_text("{}")
    result = command("attest", folder, "--private-key", private)
    assert (result.status, "is not the verified model: config.json" in result.err) == (2, True)
    copied = tmp_path / "copied"
    shutil.copytree(certified, copied)
    (tmp_path / "no.pem").write_text("no key")
    with pytest.raises(MaeConvertError, match="cannot be used for signing"):
        attest(copied, Signer(tmp_path / "no.pem"))
    assert not (copied / STATEMENT).exists()


def test_missing_signing_package_is_reported_with_installation_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr(signing.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingRequirementError, match=r"mae-convert\[sign\]"):
        attest(tmp_path, Signer(tmp_path / "key.pem"))


@needs_package
def test_published_files_are_signed_and_checked_after_the_download(
    hub, certified, tmp_path, monkeypatch, command
):
    from hub_state import Account

    hub.state.accounts["hf_theTokenOfSomeone"] = Account("someone")
    monkeypatch.setenv("HF_TOKEN", "hf_theTokenOfSomeone")
    shutil.copytree(certified, tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("not published, and not signed\n")
    (tmp_path / "model" / "reconstruction.png").write_bytes(b"a picture")
    private, public = key_pair(tmp_path)
    repo = "someone/my-mae"
    call = ["publish", tmp_path / "model", repo, "--license", "mit"]
    assert command(*call, "--sign", private).status == 0
    assert {STATEMENT, SIGNATURE, "README.md"} <= hub.state.names(repo)
    config = json.loads(hub.state.file(repo, STATEMENT))
    assert config["predicate"]["licence"] == "mit"
    assert "notes.txt" not in [subject["name"] for subject in config["subject"]]
    check = ["verify", f"hf://{repo}", "--framework-a", "torch", "--public-key", public]
    assert command(*check).status == 0
    assert command(*check[:-1], key_pair(tmp_path, "other")[1]).status == 1
    certificate = tmp_path / "model" / "verification.json"
    certificate.write_text(certificate.read_text() + " ")  # the same contents, and other bytes
    assert command(*call).status == 0
    assert not {STATEMENT, SIGNATURE} & hub.state.names(repo)  # the signature was of other files


@needs_package
def test_a_link_in_the_directory_is_not_signed(signed, tmp_path, command, monkeypatch):
    folder, private, public = signed
    statement = (folder / STATEMENT).read_text()
    (folder / "secret.txt").symlink_to(private)
    (folder / "more").mkdir()
    (folder / "more" / "link").symlink_to("secret.txt")
    for link in (folder / "more" / "link", folder / "secret.txt"):
        result = command("attest", folder, "--private-key", private)
        assert (result.status, f"{link} is a symbolic link" in result.err) == (2, True), result.err
        assert (folder / STATEMENT).read_text() == statement
        names = [path.name for path in folder.iterdir() if path.name not in ("more", "secret.txt")]
        link.unlink()
    assert failed(folder, public) == []
    signature = (folder / SIGNATURE).rename(tmp_path / "elsewhere")
    (folder / SIGNATURE).symlink_to(signature)  # the library would write to its target
    with pytest.raises(MaeConvertError, match=rf"{SIGNATURE} is a symbolic link"):
        attest(folder, Signer(private))
    (folder / SIGNATURE).unlink()
    (folder / SIGNATURE).mkdir()
    with pytest.raises(MaeConvertError, match=rf"{SIGNATURE} is a directory and not a file"):
        attest(folder, Signer(private))
    (folder / SIGNATURE).rmdir()
    (folder / "notes.txt").symlink_to(private)  # not among the published files
    monkeypatch.chdir(folder.parent)
    attest(Path(folder.name), Signer(private), files=names)
    (folder / "notes.txt").unlink()
    assert failed(folder, public) == []
