"""``attest`` and ``verify --public-key``: what was signed, and what may be changed since."""

import importlib.util
import json
import shutil

import pytest

from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.verify import attestation
from mae_convert.verify.attestation import SIGNATURE, STATEMENT, attest, attestation_checks

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


@pytest.fixture(scope="module")
def signed_once(certified, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    shutil.copytree(certified, folder / "model")
    (folder / "model" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    private, public = key_pair(folder)
    attest(folder / "model", private)
    return folder / "model", private, public


@pytest.fixture
def signed(signed_once, tmp_path):
    """A signed model of this test's own, and its keys."""
    folder, private, public = signed_once
    shutil.copytree(folder, tmp_path / "model")
    return tmp_path / "model", private, public


def failed(folder, public):
    return [check.name for check in attestation_checks(folder, public) if not check.passed]


@needs_package
def test_a_signed_model_is_verified_with_what_it_states(signed, command):
    folder, _, public = signed
    assert failed(folder, public) == []
    result = command("verify", folder, "--public-key", public, "--json")
    assert result.status == 0, result.err
    names = [check["name"] for check in result.json["checks"][:4]]
    assert names == ["certificate/signature", "certificate/statement", "certificate/subjects",
                     "certificate/predicate"]  # fmt: skip
    config = json.loads((folder / STATEMENT).read_text())
    certificate = json.loads((folder / "verification.json").read_text())
    assert config["predicate"]["target"] == certificate["target"]
    assert config["predicate"]["licence"] == "cc-by-nc-4.0"
    assert {"model.safetensors", "config.json", "conversion.json", "verification.json"} <= {
        subject["name"] for subject in config["subject"]
    }


@needs_package
def test_every_file_that_is_changed_or_gone_fails(signed, tmp_path):
    folder, _, public = signed
    for path in sorted(folder.iterdir()):
        if path.name == SIGNATURE:
            continue
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert failed(folder, public) == ["certificate/signature"], path.name
        path.unlink()
        assert failed(folder, public) == ["certificate/signature"], path.name
        path.write_bytes(data)
    assert failed(folder, public) == []


@needs_package
@pytest.mark.parametrize("name", ["source", "target", "steps", "passed", "proven", "assumptions",
                                  "environment", "_type", "predicateType", "subject"])  # fmt: skip
def test_a_statement_that_says_something_else_fails_though_it_is_signed(signed, name):
    """By whoever has the key: the signature is then valid, and what it is of is not."""
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
def test_the_signature_of_another_model_or_key_fails(signed, tmp_path, command):
    folder, _, _ = signed
    other, public = key_pair(tmp_path, "other")
    assert failed(folder, public) == ["certificate/signature"]
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


@needs_package
def test_what_cannot_be_signed_or_checked_is_said(signed, tmp_path, certified, command):
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
    with pytest.raises(MaeConvertError, match="cannot sign"):
        attest(copied, tmp_path / "no.pem")
    assert not (copied / STATEMENT).exists()


def test_without_the_package_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(attestation.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingRequirementError, match=r"mae-convert\[sign\]"):
        attest(tmp_path, tmp_path / "key.pem")


@needs_package
def test_what_is_published_is_signed_and_checked_after_the_download(
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
    assert not {STATEMENT, SIGNATURE} & hub.state.names(repo)  # they were of other files
