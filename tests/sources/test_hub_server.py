"""The local Hub of the tests responds as the Hub does, also to requests that no command sends."""

import pytest
from hub_state import Account

from mae_convert.errors import MissingRequirementError
from mae_convert.sources import parse_source
from mae_convert.sources.client import client, hub_errors_explained

REPO = "someone/a-model"


@pytest.fixture
def api(hub):
    from huggingface_hub import HfApi

    hub.state.accounts["hf_x"] = Account("someone")
    files = {f"{number}.json": b"{}" for number in range(7)}
    hub.state.put(REPO, {**files, "model.safetensors": b"12345678{}"})
    return HfApi(endpoint=hub.url, token="hf_x")


def test_tree_is_listed_in_pages(hub, api):
    files = {file.path: file for file in api.list_repo_tree(REPO, recursive=True)}
    assert set(files) == hub.state.names(REPO) | {".gitattributes"}
    assert len(hub.lines("GET .*/tree/")) == 3
    assert files["model.safetensors"].lfs.size == 10
    assert files["0.json"].lfs is None


def test_single_paths_are_returned(api):
    (file,) = api.get_paths_info(REPO, ["model.safetensors", "none"])
    assert file.lfs.sha256 == file.lfs["sha256"]
    assert file.size == 10


def test_references_history_and_account_are_returned(hub, api):
    assert api.whoami()["name"] == "someone"
    assert [branch.name for branch in api.list_repo_refs(REPO).branches] == ["main"]
    titles = [commit.title for commit in api.list_repo_commits(REPO)]
    assert titles == ["by hand", "initial commit"]


def test_a_file_is_served_with_its_version_and_in_ranges(hub, api):
    from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_url

    url = hf_hub_url(REPO, "model.safetensors", endpoint=hub.url)
    report = get_hf_file_metadata(url, token="hf_x")
    assert report.commit_hash == hub.state.repositories[REPO].refs["main"]
    assert (report.size, len(report.etag)) == (10, 64)
    assert report.location.startswith(hub.cdn)
    response = get_session().get(report.location, headers={"Range": "bytes=8-"})
    assert (response.status_code, response.content) == (206, b"{}")
    assert get_session().get(report.location, headers={"Range": "bytes=10-"}).status_code == 416


def test_a_stale_parent_is_refused(hub, api):
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

    head = hub.state.repositories[REPO].refs["main"]
    hub.state.put(REPO, {"new": b"x"})
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_commit(
            REPO, [CommitOperationAdd("a", b"b")], commit_message="late", parent_commit=head
        )
    assert refused.value.response.status_code == 412


def test_an_older_client_is_refused_in_one_sentence_and_only_where_the_hub_is_asked(monkeypatch):
    """Beside transformers 4, pip installs huggingface_hub 0.36."""
    monkeypatch.setattr("mae_convert.sources.client.version", lambda _: "0.36.2")
    with pytest.raises(
        MissingRequirementError, match=r"huggingface_hub 0\.36\.2 is installed here"
    ):
        parse_source("hf://someone/some-model")
    with pytest.raises(MissingRequirementError, match="needs version 2"):
        client()
    with pytest.raises(MissingRequirementError), hub_errors_explained("some-model"):
        pass
    assert parse_source("a-folder")
