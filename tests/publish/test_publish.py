"""Publishing to a Hub, by its real client: what is sent, what is refused, and the model card."""

import io
import json
import shutil

import pytest
import yaml
from hub_state import Account
from PIL import Image

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import MissingRequirementError
from mae_convert.publish import example_image, upload_files
from mae_convert.runtime.trace import Trace
from mae_convert.sources import HubReference, locate
from mae_convert.verify.certificate import read_certificate

pytestmark = pytest.mark.usefixtures("forked_children")

REPO = "someone/my-mae"
TOKEN = "hf_theTokenOfSomeone"
MIT = ("--license", "mit")
PROOF = {"verification.json", "verification.safetensors"}
FILES = {"model.safetensors", "config.json", "preprocessor_config.json", "conversion.json",
         "README.md", "reconstruction.png", *PROOF}  # fmt: skip


@pytest.fixture(autouse=True)
def accounts(hub, monkeypatch):
    hub.state.accounts[TOKEN] = Account("someone", organisations=("institute",))
    hub.state.accounts["hf_other"] = Account("other")
    hub.state.accounts["hf_reader"] = Account("someone", may_write=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def model(certified, tmp_path):
    """Return a certified directory that a test may change; its image need not be computed."""
    target = tmp_path / "model"
    shutil.copytree(certified, target)
    (target / "reconstruction.png").write_bytes(b"\x89PNG a picture")
    return target


def card_of(hub, revision="main"):
    text = hub.state.file(REPO, "README.md", revision).decode()
    return yaml.safe_load(text.split("---\n")[1]), text.split("---\n", 2)[2]


def test_verified_directory_is_published_in_one_commit(hub, command, model):
    result = command("publish", model, REPO, *MIT)
    assert result.status == 0, result.err
    assert hub.state.names(REPO) == FILES
    commit, first = hub.state.repositories[REPO].history("main")
    assert first.title == "initial commit"
    assert f"{hub.url}/{REPO}/commit/{commit.id}" in result.out
    for name in FILES - {"README.md"}:
        assert hub.state.file(REPO, name) == (model / name).read_bytes()


def test_card_documents_source_verification_and_loading(hub, command, model, case):
    assert command("publish", model, REPO, *MIT).status == 0
    metadata, text = card_of(hub)
    assert metadata == {
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["vit_mae", "masked-autoencoder", "mae-convert"],
    }
    record = json.loads((model / "conversion.json").read_text())
    for word in (
        record["source"]["sha256"],
        f"hf://{REPO}`: `{record['fingerprint']}`",
        f"| fingerprint | `{record['source']['fingerprint']}` |",
        "| float64: logits |",
        f"mapped, bit for bit: {len(record['tensors'])} tensors",
        "dropped: nothing",
        f'ViTMAEForPreTraining.from_pretrained("{REPO}")',
        "import reference_models.keras",
        f"mae-convert convert hf://{REPO} my-mae.keras --to keras",
        'timm.create_model("local-dir:my-timm", pretrained=True)',
        f"mae-convert verify hf://{REPO}",
        "@article{he2021masked",
        "](reconstruction.png)",
        "One side was loaded through the conversion's own mapping tables",
    ):
        assert word in text, word


def test_the_card_passes_the_hubs_validation_before_anything_is_sent(hub, command, model):
    result = command("publish", model, REPO, "--license", "my-own-licence")
    assert result.status == 2
    assert "known licences" in result.err
    assert REPO not in hub.state.repositories
    assert not hub.lines("PUT |/commit/")


def test_published_certificate_is_replayed_from_the_hub(hub, command, model):
    assert command("publish", model, REPO, *MIT).status == 0
    position = f"hf://{REPO}"
    result = command("verify", position, "--framework-a", "torch", "--json")
    assert result.status == 0, result.err
    assert result.json["passed"]


def test_a_repository_without_a_certificate_is_not_replayed(hub, command, model):
    hub.state.put(REPO, {"model.safetensors": model / "model.safetensors"})
    result = command("verify", f"hf://{REPO}")
    assert result.status == 2
    assert "has no certificate" in result.err


def damage(name):
    def change(model):
        path = model / name
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    return change


def failed_check(model):
    path = model / "verification.json"
    document = json.loads(path.read_text())
    document["checks"][0]["passed"] = False
    path.write_text(json.dumps(document))


def uncovered(model):
    path = model / "verification.json"
    document = json.loads(path.read_text())
    del document["files"]["config.json"]
    path.write_text(json.dumps(document))


UNPROVEN = {
    "no certificate": (lambda model: (model / "verification.json").unlink(), "no certificate"),
    "other weights": (damage("model.safetensors"), "model.safetensors changed"),
    "another configuration": (damage("config.json"), "config.json"),
    "other inputs": (damage("verification.safetensors"), "verification.safetensors changed"),
    "a failed verification": (failed_check, "is for a failed verification"),
    "a file that was not verified": (uncovered, "does not cover config.json"),
    "a damaged certificate": (
        lambda model: (model / "verification.json").write_text("{"), "is not JSON",
    ),
}  # fmt: skip


def replaced(path, data):
    """Replace a file by another one, as a program that renames a temporary file does."""
    (path.parent / "new").write_bytes(data)
    (path.parent / "new").replace(path)


@pytest.mark.parametrize("largest", [1000, 10_000_000])  # not in memory, in memory
@pytest.mark.parametrize("request_", ["GET /api/whoami", "POST .*/preupload", "POST .*/commit/"])
def test_weights_replaced_during_publishing_are_not_uploaded(
    hub, command, model, monkeypatch, largest, request_
):
    """The files checked against the certificate are sent, even if they have been replaced."""
    hub.state.create(REPO)
    monkeypatch.setattr(upload_files, "LARGEST_IN_GIT", largest)
    verified = {n: (model / n).read_bytes() for n in ("model.safetensors", "config.json")}

    def attack():
        for name, data in verified.items():
            replaced(model / name, data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])

    hub.meanwhile(request_, attack)
    assert command("publish", model, REPO, *MIT).status == 0
    for name, data in verified.items():
        assert (model / name).read_bytes() != data
        assert hub.state.file(REPO, name) == data


@pytest.mark.parametrize("name", sorted(PROOF))
def test_certificate_replaced_during_publishing_is_not_uploaded(hub, command, model, name):
    hub.state.create(REPO)
    data = (model / name).read_bytes()
    attack = data.replace(b"1e-10", b"1e-11") if name.endswith("json") else data[:-1] + b"x"
    hub.meanwhile("GET /api/whoami", lambda: replaced(model / name, attack))
    result = command("publish", model, REPO, *MIT)
    assert (result.status, f"{name} of" in result.err) == (2, True), result.err
    assert hub.state.names(REPO) == set()


def test_file_added_to_the_repository_later_is_detected(hub, command, model):
    assert command("publish", model, REPO, *MIT).status == 0
    hub.state.put(REPO, {"processor_config.json": b"{}"})
    result = command("verify", f"hf://{REPO}", "--framework-a", "torch", "--json")
    assert result.status == 1
    failed = [check["name"] for check in result.json["checks"] if not check["passed"]]
    assert failed == ["file/processor_config.json"]


@pytest.mark.parametrize("name", UNPROVEN)
def test_files_that_differ_from_the_verified_files_are_not_uploaded(hub, command, model, name):
    change, word = UNPROVEN[name]
    change(model)
    result = command("publish", model, REPO, *MIT)
    assert result.status == 2
    assert word in result.err
    assert result.err.count("\n") == 1
    assert not hub.seen


def test_unverified_weights_are_published_only_on_request_with_a_warning_in_the_card(
    hub, command, model
):
    assert command("publish", model, REPO, *MIT).status == 0
    (model / "verification.json").unlink()
    result = command("publish", model, REPO, *MIT, "--unverified")
    assert result.status == 0, result.err
    assert "NOT verified" in result.out
    assert card_of(hub)[1].strip().startswith("> **Not verified:**")
    # The certificate of the previous weights is deleted.
    assert not PROOF & hub.state.names(REPO)


def test_a_second_run_makes_no_second_commit(hub, command, model):
    assert command("publish", model, REPO, *MIT).status == 0
    head = hub.state.repositories[REPO].refs["main"]
    result = command("publish", model, REPO, *MIT, "--json")
    assert result.status == 0, result.err
    assert not result.json["committed"]
    assert result.json["commit"] == head == hub.state.repositories[REPO].refs["main"]


def test_only_changed_files_are_uploaded(hub, command, model):
    assert command("publish", model, REPO, *MIT).status == 0
    (model / "reconstruction.png").write_bytes(b"\x89PNG another picture")
    before = len(hub.seen)
    result = command("publish", model, REPO, *MIT)
    assert result.status == 0, result.err
    uploads = [seen for seen in hub.seen[before:] if seen.line.startswith("PUT")]
    assert [seen.sent for seen in uploads] == [len(b"\x89PNG another picture")]


def test_a_dry_run_sends_nothing_and_needs_no_token(hub, command, model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    result = command("publish", model, REPO, *MIT, "--dry-run")
    assert result.status == 0, result.err
    assert "model.safetensors" in result.out
    assert "library_name: transformers" in result.out
    assert "nothing was uploaded" in result.out
    assert {seen.line.split()[0] for seen in hub.seen} <= {"GET", "HEAD"}
    assert REPO not in hub.state.repositories
    hub.fail("GET", "drop", times=100)
    result = command("publish", model, REPO, *MIT, "--dry-run", "--json")
    assert result.status == 0, result.err
    assert "cannot be reached" in result.json["notes"][0]


def test_an_existing_card_keeps_its_text(hub, command, model):
    theirs = "---\nlicense: apache-2.0\nlanguage: en\n---\n# Theirs\n\nDo not touch.\n"
    hub.state.put(REPO, {"README.md": theirs.encode(), "LICENSE": b"text"})
    result = command("publish", model, REPO, *MIT)
    assert result.status == 0, result.err
    metadata, text = card_of(hub)
    assert metadata["license"] == "apache-2.0"
    assert metadata["language"] == "en"
    assert metadata["library_name"] == "transformers"
    assert text.startswith("# Theirs\n\nDo not touch.\n")
    assert "correct the text of the card" in result.out
    assert "| licence | mit, as specified by the publisher |" in text
    assert hub.state.names(REPO) == FILES | {"LICENSE"}


def test_local_readme_is_the_basis_of_a_new_card(hub, command, model):
    (model / "README.md").write_text("# By hand\n\nOf our data.\n")
    assert command("publish", model, REPO, *MIT).status == 0
    metadata, text = card_of(hub)
    assert metadata["license"] == "mit"
    assert "Of our data." in text


def test_licence_is_required_and_never_assumed(hub, command, model):
    result = command("publish", model, REPO)
    assert result.status == 2
    assert "--license" in result.err
    assert not hub.lines("POST|PUT")
    card = b"---\nlicense: cc-by-4.0\n---\n"
    hub.state.put(REPO, {"README.md": card})
    result = command("publish", model, REPO)
    assert result.status == 0, result.err
    assert "cc-by-4.0, as specified on the card of the repository" in card_of(hub)[1]


def with_source(model, **fields):
    """Add fields about the source to the record; the certificate covers the record."""
    record = json.loads((model / "conversion.json").read_text())
    record["source"] |= fields
    (model / "conversion.json").write_text(json.dumps(record))
    import hashlib

    certificate = json.loads((model / "verification.json").read_text())
    digest = hashlib.sha256((model / "conversion.json").read_bytes()).hexdigest()
    certificate["files"]["conversion.json"] = digest
    (model / "verification.json").write_text(json.dumps(certificate))


def test_the_licence_of_the_source_is_kept_and_cannot_be_changed(hub, command, model):
    made_from = {"official": "mae_visualize_vit_base", "license": "cc-by-nc-4.0",
                 "on_the_hub": "facebook/vit-mae-base", "datasets": ["imagenet-1k"],
                 "sha256": "00"}  # fmt: skip
    with_source(model, made_from=made_from)
    result = command("publish", model, REPO, "--license", "apache-2.0")
    assert result.status == 2
    assert "cc-by-nc-4.0" in result.err
    result = command("publish", model, REPO)
    assert result.status == 0, result.err
    metadata, text = card_of(hub)
    assert metadata["license"] == "cc-by-nc-4.0"
    assert metadata["base_model"] == ["facebook/vit-mae-base"]
    assert metadata["datasets"] == ["imagenet-1k"]
    assert "which was converted from" in text


def test_weights_from_the_hub_keep_licence_and_base_model(hub, command, model, tmp_path):
    licence = b"---\nlicense: other\nlicense_name: of-the-lab\nlicense_link: https://x.org\n---\n"
    files = {path.name: path for path in model.iterdir() if path.name not in PROOF}
    hub.state.put("lab/theirs", {**files, "README.md": licence})
    conversion = command("convert", "hf://lab/theirs", tmp_path / "mine", "--to", "transformers-tf")
    assert conversion.status == 0, conversion.err
    shutil.copy(model / "reconstruction.png", tmp_path / "mine")
    result = command("publish", tmp_path / "mine", REPO, "--unverified", "--dry-run", "--json")
    assert result.status == 0, result.err
    assert result.json["license"] == {
        "license": "other", "license_name": "of-the-lab", "license_link": "https://x.org",
    }  # fmt: skip
    assert "base_model:\n- lab/theirs\n" in result.json["card"]


def test_copies_of_official_weights_keep_their_licence_regardless_of_their_card(
    hub, command, model, tmp_path
):
    files = {path.name: path for path in model.iterdir() if path.name not in PROOF}
    card = b"---\nlicense: apache-2.0\n---\n"
    hub.state.put("facebook/vit-mae-base", {**files, "README.md": card})
    out = tmp_path / "x.pth"
    result = command("convert", "hf://facebook/vit-mae-base", out, "--to", "facebook", "--json")
    assert result.json["source"]["license"] == "cc-by-nc-4.0"


def test_pull_request_is_opened_once_and_then_updated(hub, command, model, monkeypatch):
    hub.state.put(REPO, {"config.json": b"{}"})
    for number in range(4):  # pages of pull requests of others
        repository = hub.state.repositories[REPO]
        hub.state.open_pull_request(repository, repository.refs["main"], f"{number}", "", "other")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    first = command("publish", model, REPO, *MIT, "--create-pr", "--json")
    assert first.status == 0, first.err
    assert first.json["pull_request"] == f"{hub.url}/{REPO}/discussions/5"
    assert hub.state.names(REPO) == {"config.json"}
    assert hub.state.names(REPO, "refs/pr/5") == FILES
    again = command("publish", model, REPO, *MIT, "--create-pr", "--json")
    assert again.status == 0, again.err
    assert not again.json["committed"]
    (model / "reconstruction.png").write_bytes(b"\x89PNG another")
    third = command("publish", model, REPO, *MIT, "--create-pr", "--json")
    assert third.json["pull_request"] == first.json["pull_request"], third.err
    assert hub.state.file(REPO, "reconstruction.png", "refs/pr/5") == b"\x89PNG another"
    assert len(hub.state.repositories[REPO].pull_requests) == 5
    hub.state.close_pull_request(hub.state.repositories[REPO], 5)
    fourth = command("publish", model, REPO, *MIT, "--create-pr", "--json")
    assert fourth.json["pull_request"] == f"{hub.url}/{REPO}/discussions/6"


def test_missing_branch_is_created(hub, command, model):
    hub.state.put(REPO, {"LICENSE": b"text"})
    main = hub.state.repositories[REPO].refs["main"]
    for _ in range(2):
        result = command("publish", model, REPO, *MIT, "--branch", "verified")
        assert result.status == 0, result.err
    assert hub.state.repositories[REPO].refs["main"] == main
    assert hub.state.names(REPO, "verified") == FILES | {"LICENSE"}
    assert len(hub.state.repositories[REPO].history("verified")) == 3
    result = command("publish", model, "someone/new", *MIT, "--branch", "verified")
    assert result.status == 0, result.err


def test_new_repository_can_be_private_and_an_existing_public_one_is_refused(hub, command, model):
    assert command("publish", model, REPO, *MIT, "--private").status == 0
    assert hub.state.repositories[REPO].private
    assert command("publish", model, REPO, *MIT).status == 0
    hub.state.put("someone/public", {"a": b"b"})
    result = command("publish", model, "someone/public", *MIT, "--private")
    assert result.status == 2
    assert "is public already" in result.err


def test_publishing_to_an_organization(hub, command, model):
    assert command("publish", model, "institute/mae", *MIT).status == 0
    assert hub.state.names("institute/mae") == FILES


REFUSALS = {
    "nobody": (None, REPO, (), "log in with"),
    "an invalid token": ("hf_expired", REPO, (), "does not accept the token"),
    "a read-only token": ("hf_reader", REPO, (), "not allowed"),
    "someone else's": ("hf_other", REPO, (), "not allowed"),
    "a pull request to a missing repository": (
        TOKEN,
        "someone/none",
        ("--create-pr",),
        "does not exist",
    ),
    "no owner": (TOKEN, "my-mae", (), "owner/my-mae"),
    "no name": (TOKEN, "a/b/c", (), "a/b/c"),
    "a branch and a pull request": (TOKEN, REPO, ("--create-pr", "--branch", "x"), "--branch"),
    "a licence name without license other": (
        TOKEN,
        REPO,
        ("--license-name", "x"),
        "--license other",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_missing_permission_is_reported_with_instructions(hub, command, model, monkeypatch, name):
    token, repo_id, options, word = REFUSALS[name]
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    hub.state.create(REPO) if "none" not in repo_id else None
    result = command("publish", model, repo_id, *MIT, *options)
    assert result.status == 2
    assert word in result.err
    assert hub.state.names(REPO) == set() if REPO in hub.state.repositories else True
    assert "Traceback" not in result.err


def test_pickled_weights_and_files_are_not_published(hub, command, case, model, tmp_path):
    pretrain, target = case("pretrain_tiny"), tmp_path / "bin"
    conversion = command("convert", pretrain.checkpoint, target, "--to", "transformers", "--bin",
                   *pretrain.heads)  # fmt: skip
    assert conversion.status == 0, conversion.err
    result = command("publish", target, REPO, *MIT, "--unverified")
    assert (result.status, "pickled" in result.err) == (2, True)
    assert command("publish", tmp_path / "none", REPO, *MIT).status == 2


@pytest.fixture
def in_tensorflow(model, tmp_path, command):
    """Return the same model as tf_model.h5 and as .weights.h5, each with a certificate.

    The certificates are derived from that of the first layout, without further verifications.
    """
    import hashlib

    folder, file = tmp_path / "tf", tmp_path / "my.weights.h5"
    for target, layout in ((folder, "transformers-tf"), (file, "keras")):
        assert command("convert", model, target, "--to", layout).status == 0
    document = json.loads((model / "verification.json").read_text())

    def digests(paths):
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    document["files"] = digests(sorted(folder.iterdir()))
    (folder / "verification.json").write_text(json.dumps(document))
    shutil.copy(model / "verification.safetensors", folder)
    shutil.copy(model / "reconstruction.png", folder)
    document["files"] = digests([file])
    file.with_name(f"{file.name}.verification.json").write_text(json.dumps(document))
    shutil.copy(model / "verification.safetensors",
                file.with_name(f"{file.name}.verification.safetensors"))  # fmt: skip
    return folder, file


def test_one_repository_contains_several_layouts_each_with_its_certificate(
    hub, command, model, in_tensorflow
):
    folder, file = in_tensorflow
    result = command("publish", model, REPO, *MIT, "--also", folder, "--also", file)
    assert result.status == 0, result.err
    own = {f"verification/tf_model.h5/{name}" for name in ("conversion.json", *PROOF)}
    beside = {file.name, *(f"{file.name}.{name}" for name in PROOF)}
    assert hub.state.names(REPO) == FILES | {"tf_model.h5"} | own | beside
    text = card_of(hub)[1]
    assert f'TFViTMAEForPreTraining.from_pretrained("{REPO}")' in text
    assert f"mae-convert verify hf://{REPO}/tf_model.h5" in text
    # Each is opened with its own record, and has its own certificate beside it.
    for name, layout in (("tf_model.h5", "transformers-tf"), (file.name, "keras")):
        path, _ = locate(HubReference(REPO, path=name), certificate=True)
        assert read_certificate(path).changed_files() == []
        assert open_checkpoint(path).layout.name == layout


def test_layout_added_later_keeps_the_first_one_and_its_certificate(
    hub, command, model, in_tensorflow
):
    folder, _ = in_tensorflow
    assert command("publish", model, REPO, *MIT).status == 0
    root = hub.state.file(REPO, "verification.json")
    result = command("publish", folder, REPO, *MIT)
    assert result.status == 0, result.err
    assert "model.safetensors is in the repository and not part of this" in " ".join(
        result.out.split()
    )
    assert hub.state.file(REPO, "verification.json") == root
    assert "verification/tf_model.h5/verification.json" in hub.state.names(REPO)
    result = command("publish", model, REPO, *MIT, "--dry-run", "--json")
    assert {f["path"] for f in result.json["files"] if f["action"] == "unchanged"} >= PROOF


def test_layouts_of_other_models_are_not_published_together(
    hub, command, model, in_tensorflow, tmp_path
):
    folder, _ = in_tensorflow
    document = json.loads((folder / "verification.json").read_text())
    own = json.loads((model / "verification.json").read_text())["target"]["sha256"]
    for digest, word in ((own, ""), ("0" * 64, "the same source")):
        document["source"]["sha256"] = digest
        (folder / "verification.json").write_text(json.dumps(document))
        result = command("publish", model, REPO, *MIT, "--also", folder, "--dry-run")
        assert (result.status, word in result.err) == (2 if word else 0, True)
    shutil.copytree(model, tmp_path / "twice")
    result = command("publish", model, REPO, *MIT, "--also", tmp_path / "twice")
    assert (result.status, "both contain model.safetensors" in result.err) == (2, True)


def test_single_file_and_sharded_weights_are_not_kept_together(hub, command, model, case, tmp_path):
    assert command("publish", model, REPO, *MIT).status == 0
    pretrain, sharded = case("pretrain_tiny"), tmp_path / "sharded"
    result = command("convert", pretrain.checkpoint, sharded, "--to", "transformers",
                   "--max-shard-size", "100KB", *pretrain.heads)  # fmt: skip
    assert result.status == 0, result.err
    (sharded / "reconstruction.png").write_bytes(b"\x89PNG")
    assert command("publish", sharded, REPO, *MIT, "--unverified").status == 0
    names = hub.state.names(REPO)
    assert "model.safetensors" not in names
    assert {p.name for p in sharded.iterdir()} <= names
    assert command("publish", model, REPO, *MIT).status == 0
    assert hub.state.names(REPO) == FILES


def test_example_image_is_created_if_the_directory_has_none(hub, command, model, monkeypatch):
    def run(runs, inputs):
        """The output of a framework that predicts the images exactly."""
        pixels = inputs["pixel_values"]
        mask = (inputs["noise"] > 0.25).astype("float32")
        return [Trace({}, {"float32/reconstruction": pixels, "mask": mask})]

    monkeypatch.setattr(example_image, "run_together", run)
    (model / "reconstruction.png").unlink()
    result = command("publish", model, REPO, *MIT)
    assert result.status == 0, result.err
    with Image.open(io.BytesIO(hub.state.file(REPO, "reconstruction.png"))) as made:
        assert made.width > 900
    assert "Aitzol Berasategi (CC BY 4.0)" in card_of(hub)[1]
    again = command("publish", model, REPO, *MIT, "--json")
    assert not again.json["committed"], again.out


def test_publishing_succeeds_if_the_example_image_cannot_be_created(
    hub, command, model, monkeypatch
):
    def missing(*_):
        raise MissingRequirementError("no framework is here")

    monkeypatch.setattr(example_image, "choose_side", missing)
    (model / "reconstruction.png").unlink()
    result = command("publish", model, REPO, *MIT)
    assert result.status == 0, result.err
    assert "reconstruction.png" not in hub.state.names(REPO)
    assert "](reconstruction.png)" not in card_of(hub)[1]


@pytest.mark.slow
def test_example_image_shows_the_output_of_a_framework(command, model):
    made = example_image.image_of(open_checkpoint(model))
    with Image.open(io.BytesIO(made)) as panel:
        assert panel.width > 900


def test_a_job_of_a_sweep_converts_proves_and_publishes(hub, case):
    from mae_convert.sweep.plan_fields import Job
    from mae_convert.sweep.run_job import run_job

    fields = {"to": "transformers", "num_heads": 4, "decoder_num_heads": 3, "verify": True,
            "certify": True, "framework_a": "torch", "framework_b": "torch", "publish": REPO,
            "license": "mit"}  # fmt: skip
    row = run_job(Job(str(case("pretrain_tiny").checkpoint), None, fields))
    assert (row.outcome, row.error) == ("done", None)
    assert row.published.startswith(f"{hub.url}/{REPO}/commit/")
    assert hub.state.names(REPO) > PROOF


def test_sweep_job_reads_from_the_hub_and_records_the_commit(command, hub, model, tmp_path):
    from mae_convert.sweep.freshness import is_unchanged
    from mae_convert.sweep.plan_fields import Job
    from mae_convert.sweep.run_job import run_job

    assert command("publish", model, REPO, *MIT).status == 0
    job = Job(f"hf://{REPO}", str(tmp_path / "back.pth"), {"to": "facebook"})
    row = run_job(job)
    assert (row.outcome, row.error) == ("done", None)
    assert set(row.source_version) == {"commit"}
    assert is_unchanged(row, job)
