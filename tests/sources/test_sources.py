"""Checkpoints from the Hub: downloads, checks, records, and messages of failures."""

import pytest
from hub_state import Account

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import MaeConvertError
from mae_convert.families import official_named
from mae_convert.sources import HubReference, locate_file, parse_source

REPO = "someone/their-mae"
JSON_FILES = ("config.json", "preprocessor_config.json", "conversion.json")


@pytest.fixture(scope="module")
def model(case, run, tmp_path_factory):
    """A converted model directory."""
    target = tmp_path_factory.mktemp("converted") / "model"
    pretrain = case("pretrain_tiny")
    result = run("convert", pretrain.checkpoint, target, "--to", "transformers", *pretrain.heads)
    assert result.status == 0, result.err
    return target


@pytest.fixture
def repository(hub, model):
    """The same model on the Hub, among other files."""
    files = {path.name: path for path in model.iterdir()}
    hub.state.put(REPO, {**files, "README.md": b"# theirs\n", "optimizer.pt": b"large"})
    return hub.state.repositories[REPO]


def test_text_is_parsed_as_a_path_an_official_name_or_a_hub_reference(tmp_path):
    assert parse_source("hf://a/b") == HubReference("a/b")
    assert parse_source("hf://a/b@v1/sub/model.bin") == HubReference("a/b", "v1", "sub/model.bin")
    assert parse_source("hf://a/b@refs/pr/3") == HubReference("a/b", "refs/pr/3")
    assert str(parse_source("hf://a/b@refs/pr/3/x.pth")) == "hf://a/b@refs/pr/3/x.pth"
    assert parse_source("https://huggingface.co/a/b/tree/v1") == HubReference("a/b", "v1")
    assert parse_source("mae_visualize_vit_base") == official_named("mae_visualize_vit_base")
    assert parse_source(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "text",
    ["hf://a", "hf://", "hf://datasets/a/b", "hf://a/b@", "https://example.org/x.pth",
     "mae_visualize_vit_base.pth"],
)  # fmt: skip
def test_invalid_reference_is_refused_in_one_sentence(text):
    with pytest.raises(MaeConvertError, match=r"write|download"):
        parse_source(text)


def test_a_repository_is_inspected_by_the_files_that_it_takes(hub, command, repository):
    result = command("inspect", f"hf://{REPO}", "--json")
    assert result.status == 0, result.err
    assert result.json["layout"] == "transformers"
    commit = repository.refs["main"]
    assert result.json["path"] == f"hf://{REPO}@{commit}/model.safetensors"
    got = {line.rpartition("/")[2] for line in hub.lines(r"^(GET|HEAD) /someone")}
    assert got == {"model.safetensors", *JSON_FILES}


def test_a_conversion_records_the_repository_and_its_commit(command, repository, tmp_path):
    result = command("convert", f"hf://{REPO}", tmp_path / "out.pth", "--to", "facebook", "--json")
    assert result.status == 0, result.err
    source = result.json["source"]
    assert source["repository"] == REPO
    assert source["revision"] == repository.refs["main"]
    assert source["file"] == "model.safetensors"
    stored = open_checkpoint(tmp_path / "out.pth").container.conversion
    assert stored["source"]["revision"] == repository.refs["main"]


def test_safetensors_is_selected_from_several_layouts_and_the_others_are_named(
    hub, command, repository, tmp_path
):
    hub.state.put(REPO, {"tf_model.h5": b"not read", "pytorch_model.bin": b"not read"})
    result = command("inspect", f"hf://{REPO}", "--json")
    assert result.status == 0, result.err
    assert "note: " in result.err
    assert f"hf://{REPO}/pytorch_model.bin" in result.err
    assert not hub.lines("tf_model|pytorch_model")


def test_file_folder_and_pull_request_references_are_read(hub, command, repository, model, case):
    pth = case("pretrain_tiny").checkpoint
    inside = {f"sub/{path.name}": path for path in model.iterdir()}
    hub.state.put(REPO, {"a.pth": pth, "b.pth": b"another", **inside})
    head = repository.refs["main"]
    hub.state.open_pull_request(repository, head, "a title", "", "somebody")
    heads = case("pretrain_tiny").heads
    for position in (f"hf://{REPO}/a.pth", f"hf://{REPO}@refs/pr/1/a.pth"):
        result = command("inspect", position, "--json", *heads)
        assert result.status == 0, result.err
        assert result.json["layout"] == "facebook"
    result = command("inspect", f"hf://{REPO}/sub", "--json")
    assert result.json["layout"] == "transformers", result.err
    result = command("inspect", f"hf://{REPO}/sub/model.safetensors", "--json")
    assert result.json["assumed"]["num_attention_heads"]["source"] == "config.json"
    hub.state.put("someone/two", {"a.pth": pth, "b.pth": b"another"})
    result = command("inspect", "hf://someone/two", *heads)
    assert (result.status, "specify one, for example" in result.err) == (2, True)


def test_sharded_weights_are_downloaded_with_all_shards(hub, command, case, tmp_path):
    pretrain, target = case("pretrain_tiny"), tmp_path / "sharded"
    conversion = command("convert", pretrain.checkpoint, target, "--to", "transformers",
                   "--max-shard-size", "100KB", *pretrain.heads)  # fmt: skip
    assert conversion.status == 0, conversion.err
    hub.state.put(REPO, {path.name: path for path in target.iterdir()})
    result = command("diff", pretrain.checkpoint, f"hf://{REPO}", *pretrain.heads)
    assert result.status == 0, result.err + result.out


def test_cached_files_are_not_downloaded_again_and_work_offline(
    hub, command, repository, monkeypatch
):
    from huggingface_hub import constants

    assert command("inspect", f"hf://{REPO}").status == 0
    before = len(hub.seen)
    assert command("inspect", f"hf://{REPO}").status == 0
    assert not [seen for seen in hub.seen[before:] if "/resolve/" in seen.line]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.seen)
    result = command("inspect", f"hf://{REPO}", "--json")
    assert result.status == 0, result.err
    assert "the copy in the cache is used" in result.err
    assert len(hub.seen) == before
    other = command("inspect", "hf://someone/never-seen")
    assert (other.status, other.err.count("\n")) == (3, 1)
    assert "unset HF_HUB_OFFLINE" in other.err


def test_unreachable_hub_is_reported_and_the_cache_is_used(hub, command, repository):
    assert command("inspect", f"hf://{REPO}").status == 0
    hub.fail("GET|HEAD", "drop", times=1000)
    result = command("inspect", f"hf://{REPO}", "--json")
    assert result.status == 0, result.err
    assert repository.refs["main"] in result.err
    other = command("inspect", "hf://someone/never-seen")
    assert other.status == 3
    assert "cannot be reached" in other.err.splitlines()[-1]


ACCESS = {
    "missing": ("nobody/nothing", "does not exist on the Hub, or it is private"),
    "private": ("someone/secret", "does not exist on the Hub, or it is private"),
    "gated": ("someone/gated", "accept its terms on its page"),
    "no such revision": (f"{REPO}@v9", "no such branch"),
    "no such file": (f"{REPO}/none.bin", "there is no such file; it contains"),
}


@pytest.mark.parametrize("name", ACCESS)
def test_repository_without_access_is_reported_with_instructions(
    hub, command, repository, model, name
):
    for repo_id in ("someone/secret", "someone/gated"):
        hub.state.create(repo_id, private="secret" in repo_id, gated="gated" in repo_id)
        hub.state.put(repo_id, {path.name: path for path in model.iterdir()})
    position, word = ACCESS[name]
    result = command("inspect", f"hf://{position}")
    assert result.status == 2
    assert word in result.err
    assert result.err.count("\n") == 1


def test_file_that_is_not_a_checkpoint_is_named_by_its_hub_reference(hub, command, repository):
    result = command("inspect", f"hf://{REPO}/config.json")
    assert result.status == 2
    assert f"hf://{REPO}@" in result.err
    assert "/cache/" not in result.err


def test_a_token_opens_private_and_gated_repositories_and_stays_on_the_hub(
    hub, command, model, monkeypatch
):
    token = "hf_thisIsTheToken"
    hub.state.accounts[token] = Account("someone", may_read_gated=True)
    hub.state.create(REPO, private=True, gated=True)
    hub.state.put(REPO, {path.name: path for path in model.iterdir()})
    monkeypatch.setenv("HF_TOKEN", token)
    result = command("inspect", f"hf://{REPO}")
    assert result.status == 0, result.err
    assert {seen.token for seen in hub.seen if "/cdn/" in seen.line} == {None}
    assert token not in result.out + result.err
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    result = command("inspect", "hf://someone/other")
    assert result.status == 2
    assert "does not accept the token" in result.err
    assert "hf_expired" not in result.err


def test_corrupted_download_is_detected_and_repeated(hub, command, repository):
    for path in ("GET /cdn/", "GET .*/config.json"):
        hub.fail(path, "corrupt", after=100)
    result = command("inspect", f"hf://{REPO}")
    assert result.status == 0, result.err
    assert len(hub.lines("GET /cdn/")) == 2


def test_a_download_that_stays_corrupted_is_refused_and_not_kept(
    hub, command, repository, tmp_path
):
    hub.fail("GET /cdn/", "corrupt", after=100, times=2)
    result = command("convert", f"hf://{REPO}", tmp_path / "x.pth", "--to", "facebook")
    assert result.status == 2
    assert "was corrupt both times" in result.err
    assert not (tmp_path / "x.pth").exists()
    assert command("inspect", f"hf://{REPO}").status == 0  # not from a damaged cache


DOWNLOAD_FAULTS = {
    "truncated": ("GET /cdn/", "truncate", {"after": 5000}),
    "dropped": ("GET /cdn/", "drop", {}),
    "busy": ("GET /api/models", "status", {"status": 429, "headers": {"Retry-After": "7"}}),
    "busy storage": ("GET /cdn/", "status", {"status": 429, "headers": {"Retry-After": "7"}}),
    "out of order": ("GET /api/models", "status", {"status": 500}),
    "storage out of order": ("GET /cdn/", "status", {"status": 503}),
    "headers out of order": ("HEAD ", "status", {"status": 500}),
    "slow": ("GET /cdn/", "slow", {"pause": 0.02}),
}


@pytest.mark.parametrize("name", DOWNLOAD_FAULTS)
def test_download_resumes_after_an_error(hub, command, repository, monkeypatch, name):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the unit that is kept
    pattern, kind, options = DOWNLOAD_FAULTS[name]
    hub.fail(pattern, kind, **options)
    result = command("inspect", f"hf://{REPO}", "--json")
    assert result.status == 0, result.err
    if "headers" in options:
        assert any(wait >= 7 for wait in hub.waits)
    if kind == "truncate":
        ranges = [seen.headers.get("Range") for seen in hub.seen if "GET /cdn" in seen.line]
        assert ranges == [None, "bytes=5000-"]


def test_persistent_hub_error_is_reported_in_one_sentence(hub, command, repository):
    hub.fail("GET /api/models", "status", status=503, times=1000)
    result = command("inspect", f"hf://{REPO}")
    assert result.status == 3
    assert "run the same command again" in result.err.splitlines()[-1]
    assert sum(hub.waits) >= 20


def test_traces_are_read_from_the_hub_too(hub, command, model):
    hub.state.put(REPO, {"traces/a.safetensors": model / "model.safetensors"})
    position = f"hf://{REPO}/traces/a.safetensors"
    assert (
        locate_file(parse_source(position)).read_bytes()
        == (model / "model.safetensors").read_bytes()
    )
    result = command("compare", position, position)
    assert (result.status, "is not a trace" in result.err) == (2, True)
    assert "another program with --names MAP.json" in result.err
    result = command("compare", model / "nope", position)
    assert (result.status, "nope does not exist; check the path" in result.err) == (2, True)
    result = command("compare", f"hf://{REPO}", position)
    assert (result.status, "there is no such file" in result.err) == (2, True)
