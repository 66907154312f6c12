"""Files in remote storage: complete or absent, whichever operation fails."""

import errno
import hashlib
import http.client
import importlib.util
import os
import random
import shutil
import ssl
import sys
import threading
from datetime import timedelta

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from mae_convert.errors import MaeConvertError, MissingRequirementError, OutputError
from mae_convert.sources import storage, storage_retry, storage_upload
from mae_convert.sources.patterns import sources_named
from mae_convert.sources.storage_upload import upload
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.run_job import run_job


@pytest.fixture
def memory():
    """The in-memory file system of fsspec, which fails on request."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    return MemoryFileSystem()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Record the delays before retries instead of waiting."""
    waited = []
    monkeypatch.setattr(storage_retry.time, "sleep", waited.append)
    return waited


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "conversion.json", "model.safetensors"):
        (folder / name).write_bytes(random.Random(name).randbytes(3000))
    return folder


def held(memory):
    return {path.rpartition("/")[2]: memory.cat(path) for path in memory.find("/bucket/model")}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_directory_is_uploaded_and_downloaded(memory, model, tmp_path):
    upload(model, "memory://bucket/deep/model")
    assert sorted(memory.find("/bucket")) == [
        f"/bucket/deep/model/{name}" for name in sorted(contents(model))
    ]
    back = storage.download("memory://bucket/deep/model", tmp_path / "back")
    assert contents(back) == contents(model)


def test_file_is_uploaded_and_downloaded(memory, model, tmp_path):
    upload(model / "config.json", "memory://bucket/a.json")
    back = storage.download("memory://bucket/a.json", tmp_path / "back")
    assert back.read_bytes() == (model / "config.json").read_bytes()


def test_patterns_are_expanded_in_storage(memory, model):
    for epoch in (5, 10):
        upload(model / "config.json", f"memory://bucket/c-{epoch}.pth")
    assert sources_named("memory://bucket/c-*.pth") == [
        "memory:///bucket/c-5.pth",
        "memory:///bucket/c-10.pth",
    ]


def test_model_is_recognised_by_its_configuration_which_is_uploaded_last(
    memory, model, monkeypatch
):
    seen = []
    original = type(memory).mv

    def mv(self, a, b, **options):
        original(self, a, b, **options)
        seen.append(b.rpartition("/")[2])

    monkeypatch.setattr(type(memory), "mv", mv)
    upload(model, "memory://bucket/model")
    assert seen[-1] == "config.json"
    assert sorted(seen) == sorted(contents(model))


def test_replacing_a_model_deletes_only_files_written_by_us(memory, model):
    for name in ("tf_model.h5", "notes.txt", "config.json", "README.md"):
        memory.pipe(f"/bucket/model/{name}", b"old")
    upload(model, "memory://bucket/model")
    left = {path.rpartition("/")[2] for path in memory.find("/bucket/model")}
    assert left == {*contents(model), "notes.txt", "README.md"}
    assert memory.cat("/bucket/model/config.json") == (model / "config.json").read_bytes()


def test_old_files_of_a_killed_run_are_removed(memory, model):
    old = [f"/bucket/.model.{'a' * 32}/config.json", f"/bucket/.model.claim-{'1' * 20}-{'a' * 32}"]
    remaining = [
        f"/bucket/.model-2.{'a' * 32}/config.json",
        "/bucket/.model.notes",
        f"/bucket/.model.{'b' * 32}/model.safetensors",  # a run that is still sending
        f"/bucket/.model.{'b' * 32}/config.json",
    ]
    for path in (*old, *remaining):
        memory.pipe(path, b"data")
    for path in (*old, *remaining[:3]):
        memory.store[path].modified -= timedelta(seconds=storage_upload.ABANDONED + 1)
    upload(model, "memory://bucket/model")
    assert [path for path in memory.find("/bucket") if path.startswith("/bucket/.")] == sorted(
        remaining
    )


def test_lock_of_another_run_expires_after_an_hour(memory, model):
    claim = f"/bucket/.model.claim-{'1' * 20}-{'a' * 32}"
    memory.pipe(claim, b'{"host": "node-7", "process": 12, "since": "2026-01-01T00:00:00"}')
    message = r"another run is writing to memory://bucket/model \(process 12 on node-7, since 2026"
    with pytest.raises(OutputError, match=message):
        upload(model, "memory://bucket/model")
    assert memory.find("/bucket") == [claim]
    memory.store[claim].modified -= timedelta(seconds=storage_upload.LEASE + 1)
    upload(model, "memory://bucket/model")
    assert held(memory) == contents(model)


def test_lost_response_is_not_a_failure_and_a_vanished_file_is_not_a_success(
    memory, model, monkeypatch
):
    original, lost = MemoryFileSystem.mv, []

    def mv(self, a, b, **options):
        original(self, a, b, **options)
        if b not in lost:
            lost.append(b)
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "mv", mv)
    upload(model, "memory://bucket/model")
    assert held(memory) == contents(model)
    assert len(lost) == 3

    def vanish(self, a, b, **options):
        self.rm_file(a)
        self.pipe_file(b, b"of another program")
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "mv", vanish)
    with pytest.raises(OutputError, match="another program wrote to memory://bucket/model"):
        upload(model, "memory://bucket/model")


@pytest.mark.parametrize("mistake", [TypeError("f() takes 1"), KeyError("x"), AttributeError("y")])
def test_programming_error_is_raised_unchanged_without_a_retry(
    memory, model, monkeypatch, waits, mistake
):
    def wrong(*_, **__):
        raise mistake

    monkeypatch.setattr(MemoryFileSystem, "open", wrong)
    with pytest.raises(type(mistake)) as caught:
        upload(model, "memory://bucket/model")
    assert caught.value is mistake
    assert waits == []


class StatusError(Exception):
    def __init__(self, **attributes):
        super().__init__("requested failure")
        vars(self).update(attributes)


TRANSIENT = [
    ConnectionResetError(104, "reset"), TimeoutError(), OSError(errno.EIO, "in"), OSError("short"),
    OSError(errno.EBUSY, "SlowDown"), StatusError(status=503), StatusError(code=429),
    StatusError(response={"ResponseMetadata": {"HTTPStatusCode": 500}}),
    http.client.IncompleteRead(b""), type("HTTPClientError", (Exception,), {})(),
]  # fmt: skip
PERMANENT = [
    PermissionError(13, "denied"), FileNotFoundError(), NotADirectoryError("/a"), FileExistsError(),
    OSError(errno.ENOSPC, "full"), OSError(errno.EINVAL, "InvalidBucketName"), ValueError("bad"),
    StatusError(response={"ResponseMetadata": {"HTTPStatusCode": 400}}), StatusError(status=403),
    StatusError(), NotImplementedError("cannot write"), ssl.SSLCertVerificationError("self-signed"),
]  # fmt: skip


@pytest.mark.parametrize("error", TRANSIENT + PERMANENT, ids=repr)
def test_only_temporary_errors_are_retried(waits, error):
    def work():
        raise error

    with pytest.raises(MaeConvertError, match=r"^s3://bucket/x: ."):
        storage_retry.with_retries(work, "s3://bucket/x")
    assert len(waits) == (storage_retry.ATTEMPTS - 1 if error in TRANSIENT else 0)


def test_checkpoint_from_storage_is_named_by_its_address(memory, case, tmp_path):
    whole = case("pretrain_tiny").checkpoint.read_bytes()
    memory.pipe("/bucket/whole.pth", whole)
    memory.pipe("/bucket/short.pth", whole[:3000])
    fields = {"to": "transformers", "num_heads": 4, "decoder_num_heads": 3}
    row = run_job(Job("memory://bucket/short.pth", f"{tmp_path}/out", fields))
    assert row.error.startswith("memory://bucket/short.pth is truncated or corrupt")
    row = run_job(Job("memory://bucket/whole.pth", f"{tmp_path}/out", {"to": "transformers"}))
    assert row.error == (
        "memory://bucket/whole.pth: the checkpoint stores neither the number of attention heads of "
        "the encoder (hidden_size 32 allows 1, 2, 4, 8) nor the number of attention heads of the "
        "decoder (decoder_hidden_size 24 allows 1, 2, 3, 4, 6); specify them with num_heads and "
        "decoder_num_heads, or determine them with `mae-convert inspect FILE --infer`"
    )
    row = run_job(Job("memory://bucket/whole.pth", "memory://bucket/out", fields))
    assert (row.outcome, row.source_sha256) == ("done", hashlib.sha256(whole).hexdigest())
    assert set(row.target_version) == {
        "config.json", "conversion.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip


def test_upload_that_reads_back_differently_is_not_renamed_to_the_target(
    memory, model, monkeypatch
):
    def write(self, data):
        return super(MemoryFile, self).write(b"x" + bytes(data)[1:])

    monkeypatch.setattr(MemoryFile, "write", write, raising=False)
    with pytest.raises(OutputError, match="does not contain what was sent"):
        upload(model, "memory://bucket/model")
    assert memory.find("/bucket") == []


def test_interrupted_read_resumes_at_its_position(memory, tmp_path, monkeypatch, waits):
    data = random.Random(1).randbytes(3 * 1000)
    memory.pipe("/bucket/a.pth", data)
    monkeypatch.setattr(storage, "CHUNK", 1000)
    starts, original = [], MemoryFile.read

    def read(self, size=-1):
        starts.append(self.tell())
        if len(starts) in (2, 4):
            raise ConnectionError("reset by peer")
        return original(self, size)

    monkeypatch.setattr(MemoryFile, "read", read, raising=False)
    back = storage.download("memory://bucket/a.pth", tmp_path)
    assert hashlib.sha256(back.read_bytes()).digest() == hashlib.sha256(data).digest()
    assert starts == [0, 1000, 1000, 2000, 2000, 3000]
    assert waits == [0.5, 1.0]


def test_persistent_storage_error_is_reported_with_its_message(
    memory, monkeypatch, tmp_path, waits
):
    memory.pipe("/bucket/a.pth", b"data")

    def find(self, *_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(memory), "find", find)
    with pytest.raises(MaeConvertError, match="no route to host"):
        storage.download("memory://bucket/a.pth", tmp_path)
    assert len(waits) == storage_retry.ATTEMPTS - 1


def test_missing_file_is_reported_without_a_retry(memory, tmp_path, waits):
    with pytest.raises(MaeConvertError, match=r"memory://bucket/none\.pth does not exist"):
        storage.download("memory://bucket/none.pth", tmp_path)
    assert waits == []


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingRequirementError, match="pip install 'gcsfs'"):
        storage.exists("gs://bucket/a")
    with pytest.raises(MaeConvertError, match="not a valid URL"):
        storage.exists("nonsense://bucket/a")


S3 = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("moto", "s3fs")),
    reason="needs mae-convert[test]",
)


@pytest.fixture
def s3(monkeypatch):
    from s3_server import in_environment, s3_server

    with s3_server() as (url, server):
        for name, value in in_environment(url).items():
            monkeypatch.setenv(name, value)
        import boto3
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # which know the server of another test
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield server


@S3
def test_bucket_is_not_created_without_a_request(s3, model):
    import boto3

    for local, url in ((model, "s3://mistyped/model"), (model / "config.json", "s3://mistyped/c")):
        with pytest.raises(OutputError, match=f"{url} cannot be written: "):
            upload(local, url)
    assert [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]] == ["bucket"]


@S3
@pytest.mark.parametrize("share", [0.0, 0.15])
def test_transfer_with_a_real_server_that_fails_occasionally(s3, model, tmp_path, share):
    (model / "model.safetensors").write_bytes(os.urandom(20 << 20))  # several parts
    s3.share = share
    upload(model, "s3://bucket/out/model")
    back = storage.download("s3://bucket/out/model", tmp_path / "back")
    assert contents(back) == contents(model)
    assert bool(s3.failed) == bool(share)
    s3.share = 0.0
    import boto3

    listed = boto3.client("s3").list_objects_v2(Bucket="bucket")["Contents"]
    assert {item["Key"] for item in listed} == {f"out/model/{name}" for name in contents(model)}


@S3
def test_two_runs_at_one_target_of_a_real_server(s3, model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    for path in other.iterdir():
        path.write_bytes(path.read_bytes()[::-1])
    outcomes = {}

    def work(folder):
        try:
            upload(folder, "s3://bucket/out/model")
            outcomes[folder] = "done"
        except OutputError as error:
            outcomes[folder] = str(error)

    threads = [threading.Thread(target=work, args=(folder,)) for folder in (model, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [folder for folder, outcome in outcomes.items() if outcome == "done"]
    assert all("another run is writing" in outcomes[f] for f in outcomes if f not in winners)
    back = contents(storage.download("s3://bucket/out/model", tmp_path / "back"))
    assert back in [contents(folder) for folder in winners]
    import boto3

    listed = boto3.client("s3").list_objects_v2(Bucket="bucket")["Contents"]
    assert len(listed) == len(back)
