"""Publishing with errors: completely or not at all, once, and with instructions."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import wait_until
from hub_state import Account

from mae_convert.publish import upload_files
from mae_convert.publish.repository import UNVERIFIED_TITLE

REPO = "someone/my-mae"
TOKEN = "hf_theTokenOfSomeone"
OPTIONS = ("--license", "mit", "--unverified")
FILES = {"model.safetensors", "config.json", "preprocessor_config.json", "conversion.json",
         "README.md", "reconstruction.png"}  # fmt: skip


@pytest.fixture(scope="module")
def converted(case, run, tmp_path_factory):
    """A model directory; it does not have to be verified for these tests."""
    target, pretrain = tmp_path_factory.mktemp("converted") / "model", case("pretrain_tiny")
    result = run("convert", pretrain.checkpoint, target, "--to", "transformers", *pretrain.heads)
    assert result.status == 0, result.err
    (target / "reconstruction.png").write_bytes(b"\x89PNG a picture")
    return target


@pytest.fixture
def send(hub, command, converted, monkeypatch):
    """Publish the directory to the existing repository with an account that may write."""
    hub.state.accounts[TOKEN] = Account("someone")
    hub.state.accounts["hf_other"] = Account("other")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.state.create(REPO)
    return lambda *options: command("publish", converted, REPO, *OPTIONS, *options)


def commits(hub, revision="main"):
    """The commits after the first."""
    return hub.state.repositories[REPO].history(revision)[:-1]


def assert_published_once(hub, converted, revision="main"):
    assert len(commits(hub, revision)) == 1
    assert hub.state.names(REPO, revision) == FILES
    for path in converted.iterdir():
        assert hub.state.file(REPO, path.name, revision) == path.read_bytes()


EVERY_REQUEST = {
    "the account": "GET /api/whoami",
    "the repository": "GET /api/models/someone/my-mae$",
    "the list of files": "GET /api/models/someone/my-mae/revision/main",
    "the card's check": "POST /api/validate-yaml",
    "the preupload request": "POST .*/preupload/",
    "a batch": "POST .*/objects/batch",
    "an upload": "PUT /lfs/upload/",
    "an upload's check": "POST /lfs/verify/",
    "the commit": "POST .*/commit/",
    "a download's headers": "HEAD .*/resolve/.*config.json",
    "a download": "GET /cdn/",
}


@pytest.mark.parametrize("name", EVERY_REQUEST)
def test_temporary_hub_error_is_retried(hub, send, converted, name):
    hub.fail(EVERY_REQUEST[name], "status", status=500)
    result = send()
    assert result.status == 0, result.err
    assert hub.faults[0].times == 0, "the fault occurred"
    assert_published_once(hub, converted)


# The client repeats the request for a download's headers immediately, and waits only after that.
@pytest.mark.parametrize(
    "name", ["the account", "the preupload request", "an upload", "the commit", "a download"]
)
def test_retry_after_of_the_hub_is_respected(hub, send, converted, name):
    hub.fail(EVERY_REQUEST[name], "status", status=429, headers={"Retry-After": "11"})
    result = send()
    assert result.status == 0, result.err
    assert any(11 <= wait <= 12 for wait in hub.waits), hub.waits
    assert_published_once(hub, converted)


@pytest.mark.parametrize("name", ["the list of files", "a batch", "an upload", "a download"])
def test_broken_connection_is_retried(hub, send, converted, name):
    hub.fail(EVERY_REQUEST[name], "drop", after=1000)
    result = send()
    assert result.status == 0, result.err
    assert_published_once(hub, converted)


def test_repository_is_created_once_if_the_response_is_lost(hub, send, converted):
    del hub.state.repositories[REPO]
    hub.fail("POST /api/repos/create", "lose")
    result = send()
    assert result.status == 0, result.err
    assert_published_once(hub, converted)


@pytest.mark.parametrize("times", [1, 3])
def test_commit_is_not_made_twice_if_the_response_is_lost(hub, send, converted, times):
    hub.fail("POST .*/commit/", "lose", times=times)
    result = send()
    assert result.status == 0, result.err
    assert_published_once(hub, converted)
    assert commits(hub)[0].id in result.out


def test_delayed_commit_is_not_made_twice(hub, send, converted, monkeypatch):
    """The response is an error, the commit is made during the delay, and then found."""
    hub.fail("POST .*/commit/", "status", status=504)
    waits = []

    def late(seconds):
        waits.append(seconds)
        files = {path.name: path for path in converted.iterdir()}
        files["README.md"] = card
        made = hub.state.put(REPO, files)
        titled = replace(made, title=UNVERIFIED_TITLE)
        hub.state.repositories[REPO].commits[made.id] = titled

    card = send("--dry-run", "--json").json["card"].encode()
    monkeypatch.setattr(time, "sleep", late)
    result = send()
    assert result.status == 0, result.err
    assert len(waits) == 1
    assert_published_once(hub, converted)


@pytest.mark.parametrize("kind", ["lose", "drop"])
def test_pull_request_is_not_opened_twice_if_the_response_is_lost(
    hub, send, converted, monkeypatch, kind
):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    hub.fail("POST .*/commit/", kind)
    result = send("--create-pr", "--json")
    assert result.status == 0, result.err
    assert result.json["pull_request"] == f"{hub.url}/{REPO}/discussions/1"
    assert len(hub.state.repositories[REPO].pull_requests) == 1
    assert_published_once(hub, converted, "refs/pr/1")


def test_lost_response_of_an_unreachable_hub_is_reported(hub, send, converted):
    hub.fail("POST .*/commit/", "lose")
    hub.fail("GET .*/commits/", "drop", times=1000)
    result = send()
    assert result.status == 3
    assert "does not create it twice" in result.err.splitlines()[-1]
    hub.faults.clear()
    assert send().status == 0
    assert_published_once(hub, converted)


def test_concurrent_change_is_not_overwritten(hub, send):
    hub.meanwhile("POST .*/commit/", lambda: hub.state.put(REPO, {"config.json": b"theirs"}))
    result = send()
    assert result.status == 2
    assert "was changed by someone else" in result.err.splitlines()[-1]
    assert hub.state.names(REPO) == {"config.json"}
    assert hub.state.file(REPO, "config.json") == b"theirs"
    assert send().status == 0


def test_concurrently_created_repository_is_not_overwritten(hub, send):
    del hub.state.repositories[REPO]
    hub.meanwhile("POST /api/repos/create", lambda: hub.state.put(REPO, {"README.md": b"theirs"}))
    result = send()
    assert result.status == 2
    assert "was changed by someone else" in result.err
    assert hub.state.names(REPO) == {"README.md"}


def test_later_change_by_someone_else_is_not_an_error(hub, send, converted):
    hub.fail("POST .*/commit/", "lose")
    hub.meanwhile("GET .*/commits/", lambda: hub.state.put(REPO, {"LICENSE": b"theirs"}))
    result = send()
    assert result.status == 0, result.err
    ours = commits(hub)[-1]
    assert ours.id in result.out
    assert hub.state.names(REPO, ours.id) == FILES


def test_unreachable_hub_gets_no_commit_and_uploaded_files_are_not_sent_again(hub, send, converted):
    hub.fail("POST .*/commit/", "status", status=503, times=1000)
    result = send()
    assert result.status == 3
    assert "run the same command again" in result.err.splitlines()[-1]
    assert hub.state.names(REPO) == set()
    hub.faults.clear()
    before = len(hub.seen)
    assert send().status == 0
    assert_published_once(hub, converted)
    assert not [seen for seen in hub.seen[before:] if seen.line.startswith("PUT")]


def test_upload_that_never_succeeds_creates_no_commit(hub, send):
    hub.fail("PUT ", "drop", times=1000, after=2000)
    result = send()
    assert result.status == 3
    last = result.err.splitlines()[-1]
    assert "run the same command again" in last
    assert "X-Amz-Signature" not in last
    assert hub.state.names(REPO) == set()


def test_only_failed_parts_of_a_multipart_upload_are_sent_again(hub, send, converted):
    hub.part_size = 50_000
    size = (converted / "model.safetensors").stat().st_size
    hub.fail("PUT .*part=2&", "status", status=500)
    hub.fail("PUT .*part=3&", "drop", after=100)
    result = send()
    assert result.status == 0, result.err
    assert_published_once(hub, converted)
    parts = -(-size // 50_000)
    assert len(hub.lines("PUT .*part=")) == parts + 2
    assert len(hub.lines("POST /lfs/complete")) == 1


def test_corrupted_upload_is_refused_by_the_hub_and_reported(hub, send, converted):
    hub.fail("PUT ", "damage")
    result = send()
    assert result.status == 2
    assert "the object that was uploaded is another" in result.err
    assert hub.state.names(REPO) == set()
    assert send().status == 0
    assert_published_once(hub, converted)


def test_weights_that_change_during_the_upload_are_not_published(hub, send, converted, monkeypatch):
    monkeypatch.setattr(upload_files, "LARGEST_IN_GIT", 1000)  # larger files are not held in memory
    weights = converted / "model.safetensors"
    remaining = weights.read_bytes()
    other = remaining[:-1] + bytes([remaining[-1] ^ 1])
    hub.meanwhile("POST .*/preupload", lambda: weights.write_bytes(other))
    result = send()
    weights.write_bytes(remaining)
    assert result.status == 2
    assert "model.safetensors changed during the upload" in result.err
    assert hub.state.names(REPO) == set()


def test_different_content_served_by_the_hub_gives_exit_status_1(hub, send):
    hub.fail("GET /cdn/", "corrupt", after=50, times=1000)
    result = send("--json")
    assert result.status == 1
    assert set(result.json["differs"]) == {"model.safetensors"}
    again = send()
    assert again.status == 1
    assert "DIFFERENT" in again.out


def test_single_corrupted_download_is_not_a_difference(hub, send):
    hub.fail("GET /cdn/", "corrupt", after=5)
    hub.fail("GET /cdn/", "truncate", after=5)
    result = send()
    assert result.status == 0, result.err
    assert "PUBLISHED" in result.out


def test_files_that_the_hub_lost_are_a_difference(hub, send):
    def lose():
        commit = commits(hub)[0]
        del commit.files["config.json"]

    hub.meanwhile("HEAD .*/resolve/", lose)
    result = send("--json")
    assert result.status == 1
    assert set(result.json["differs"]) == {"config.json"}
    assert result.json["differs"]["config.json"].startswith("it does not exist on the Hub")


def test_unreachable_hub_after_the_commit_is_reported_with_the_commit(hub, send, converted):
    hub.fail("HEAD .*/resolve/", "drop", times=1000)
    result = send()
    assert result.status == 3
    last = result.err.splitlines()[-1]
    assert "published as" in last
    assert commits(hub)[0].id in last


def test_slow_hub_does_not_cause_a_timeout(hub, send, converted):
    hub.fail("GET ", "slow", pause=0.01, times=1000)
    assert send().status == 0
    assert_published_once(hub, converted)


@pytest.fixture
def process(hub, converted, tmp_path):
    """Start the command in its own process, with the complete log of the client."""
    hub.state.accounts[TOKEN] = Account("someone")
    hub.state.create(REPO)
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"),
        "MAE_CONVERT_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1", "HF_DEBUG": "1",
        "HF_HUB_VERBOSITY": "debug",
    }  # fmt: skip

    def start(**settings):
        command = [sys.executable, "-m", "mae_convert", "publish", converted, REPO, *OPTIONS]
        return subprocess.Popen(
            list(map(str, command)), env={**environment, **settings}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_run_killed_during_upload_creates_no_commit_and_the_next_resumes(
    hub, process, converted, number
):
    stuck = threading.Event()
    hub.meanwhile("POST .*/commit/", lambda: (stuck.set(), threading.Event().wait(0.5)))
    running = process()
    wait_until(stuck.is_set, 30)
    running.send_signal(number)
    stderr, _ = running.communicate(timeout=30)
    assert running.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), stderr
    wait_until(lambda: hub.state.lock.acquire(blocking=False))
    hub.state.lock.release()
    # The Hub may have created the commit if it had received the whole request.
    assert hub.state.names(REPO) in (set(), FILES)
    again = process()
    stderr, _ = again.communicate(timeout=60)
    assert again.returncode == 0, stderr
    assert_published_once(hub, converted)


def test_token_is_not_printed_logged_or_stored(hub, process, tmp_path):
    hub.state.put(REPO, {"README.md": b"# Theirs, which is read\n"})
    hub.fail("POST .*/preupload", "status", status=429, headers={"Retry-After": "0"})
    hub.fail("PUT ", "status", status=500)
    hub.fail("POST .*/commit/", "lose")
    hub.fail("POST .*/validate-yaml", "status", status=500)
    running = process()
    stderr, _ = running.communicate(timeout=60)
    assert running.returncode == 0, stderr
    assert "curl" in stderr, "the client logs its requests"
    assert TOKEN not in stderr
    assert {seen.token for seen in hub.seen if "/lfs/upload" in seen.line} == {None}
    remaining = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert remaining
    assert not [path for path in remaining if TOKEN.encode() in path.read_bytes()]


def test_token_echoed_by_the_hub_is_not_printed(hub, send):
    message = f"no: {TOKEN}"
    hub.fail("GET /api/whoami", "status", status=400, headers={"X-Error-Message": message})
    result = send()
    assert result.status == 2
    assert "<token>" in result.err
    assert TOKEN not in result.err


def test_xet_transfer_works_and_is_not_disabled(hub, process, converted):
    """Xet storage on the disk: uploads and downloads go through the real hf_xet."""
    hub.xet = True
    running = process(HF_HUB_DISABLE_XET="0", HF_DEBUG="0", HF_HUB_VERBOSITY="error")
    stderr, _ = running.communicate(timeout=60)
    assert running.returncode == 0, stderr
    assert hub.state.names(REPO) == FILES
    assert not hub.lines("PUT |/cdn/")
    assert len(hub.lines("xet-write-token")) >= 1
    assert len(hub.lines("xet-read-token")) >= 1
    weights = commits(hub)[0].files["model.safetensors"]
    assert weights.xet_hash is not None
    assert weights.size == (converted / "model.safetensors").stat().st_size


def test_settings_of_the_client_are_not_changed():
    """Publishing uses the client as configured: the program does not set its environment."""
    import mae_convert

    for path in Path(mae_convert.__file__).parent.rglob("*.py"):
        assert "DISABLE_XET" not in path.read_text(), path
