"""Large sweeps: hundreds of jobs, a cluster, storage that fails, and processes that are killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from paths import GOLDEN

from mae_convert.formats import LazyTensor, open_container, write_file
from mae_convert.sweep.results import read_results

pytestmark = pytest.mark.slow
GOLDEN = GOLDEN / "pretrain_tiny" / "checkpoint.pth"
COUNT, BROKEN, VERIFIED = 300, 137, 30
# The columns that do not depend on when, where and by which process a job was run.
SAME = ("outcome", "verdict", "passed", "proven", "function", "own_error", "error", "source_sha256",
        "source_bytes", "target_sha256", "target_bytes", "task", "parameters", "layout",
        "exit_status")  # fmt: skip


def needs(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason="needs mae-convert[sweep-test]")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """300 checkpoints, all different, one of them truncated."""
    folder = tmp_path_factory.mktemp("runs")
    tensors = open_container(GOLDEN).tensors
    for epoch in range(COUNT):
        moved = tensors["cls_token"].load() + np.float32(epoch / COUNT)
        cls = LazyTensor("cls_token", moved.shape, moved.dtype, lambda moved=moved: moved)
        write_file(folder / f"c-{epoch}.pth", "pth", [{**tensors, "cls_token": cls}[n]
                                                      for n in tensors])  # fmt: skip
    path = folder / f"c-{BROKEN}.pth"
    path.write_bytes(path.read_bytes()[:5000])
    return folder


def write_plan(folder, runs, count=COUNT):
    """Write a plan: all are converted, and every tenth is verified too."""
    heads, target = "num_heads: 4, decoder_num_heads: 3", "out/{stem}"
    tenth = [n for n in range(count) if n % (COUNT // VERIFIED) == 0]
    lists = (
        ([f"{runs}/c-{n}.pth" for n in range(count) if n not in tenth], ""),
        ([f"{runs}/c-{n}.pth" for n in tenth],
         ", verify: true, framework_a: torch, framework_b: torch"),
    )  # fmt: skip
    lines = [
        f"- {{source: {json.dumps(sources)}, to: transformers, target: '{target}', {heads}{more}}}"
        for sources, more in lists
    ]
    folder.mkdir(exist_ok=True)
    (folder / "plan.yaml").write_text("\n".join(lines))


def start(folder, *arguments, env=None, inside=()):
    command = [*inside, sys.executable, "-m", "mae_convert", "sweep", "plan.yaml", "--threads", "1"]
    return subprocess.Popen(
        [*command, *arguments], cwd=folder, env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=3000)
    return process.returncode, out, err


def by_source(folder):
    rows = read_results(folder / "plan.results.sqlite")
    assert len({row.key for row in rows}) == len(rows)
    return {Path(row.source).stem: {name: getattr(row, name) for name in SAME} for row in rows}


def check_every_row(results):
    assert len(results) == COUNT
    bad = {name for name, row in results.items() if row["outcome"] != "done"}
    assert bad == {f"c-{BROKEN}"}
    assert sum(row["passed"] is True for row in results.values()) == VERIFIED
    assert len({row["source_sha256"] for row in results.values()}) == COUNT


@pytest.fixture(scope="module")
def local(runs, tmp_path_factory):
    """The results of the 300 jobs on one machine."""
    folder = tmp_path_factory.mktemp("local")
    write_plan(folder, runs)
    began = time.monotonic()
    status, _, err = finish(start(folder, "--workers", "2"))
    print(f"local: {time.monotonic() - began:.0f} s")
    assert status == 1, err
    result = by_source(folder)
    check_every_row(result)
    return result


def rows_so_far(folder):
    try:
        return len(read_results(folder / "plan.results.sqlite"))
    except Exception:
        return 0


def wait_for_rows(folder, count, process):
    while rows_so_far(folder) < count:
        assert process.poll() is None, finish(process)
        time.sleep(0.05)


def kill_one(processes, is_meant):
    """Kill one of the processes that match; they exist only for a short time each."""
    from ray_nodes import command_of

    for _ in range(3000):
        for pid in processes():
            if is_meant(command_of(pid)):
                os.kill(pid, signal.SIGKILL)
                return
        time.sleep(0.01)
    raise AssertionError("no such process was running")


def test_no_row_is_lost_by_a_killed_worker_or_driver(runs, local, tmp_path):
    from ray_nodes import children, command_of, descendants

    write_plan(tmp_path, runs)
    driver = start(tmp_path, "--workers", "2")
    for mark in (20, 60):
        wait_for_rows(tmp_path, mark, driver)
        kill_one(lambda: [p for c in children(driver.pid) for p in children(c)],
                 lambda name: "forkserver" in name)  # fmt: skip
    wait_for_rows(tmp_path, 120, driver)
    everything = descendants(driver.pid)
    driver.kill()
    driver.communicate()
    time.sleep(3)
    assert not [pid for pid in everything if "forkserver" in command_of(pid)]
    before = rows_so_far(tmp_path)
    status, out, err = finish(start(tmp_path, "--workers", "2", "--json"))
    assert status == 1, err
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0]["done"] >= before - 1  # the damaged checkpoint may be among them
    assert by_source(tmp_path) == local


@needs("ray")
def test_a_cluster_gives_the_rows_that_one_machine_gives(runs, local, tmp_path):
    from ray_nodes import cluster, descendants, own_network

    write_plan(tmp_path, runs)
    with own_network() as inside, cluster(inside, tmp_path, 2) as (address, (node,)):
        began = time.monotonic()
        driver = start(tmp_path, "--engine", "ray", "--address", address, inside=inside)
        wait_for_rows(tmp_path, 40, driver)
        kill_one(lambda: descendants(node.process.pid), lambda name: "ray::/" in name)
        status, _, err = finish(driver)
        print(f"ray: {time.monotonic() - began:.0f} s")
    assert status == 1, err
    assert by_source(tmp_path) == local


@needs("ray")
def test_jobs_of_a_lost_node_are_attempted_again(runs, local, tmp_path):
    from ray_nodes import cluster, own_network

    count = 100
    write_plan(tmp_path, runs, count)
    with own_network() as inside, cluster(inside, tmp_path, 1, 1) as (address, (_, second)):
        driver = start(tmp_path, "--engine", "ray", "--address", address, inside=inside)
        wait_for_rows(tmp_path, 30, driver)
        second.stop()
        status, _, err = finish(driver)
    assert status == 0, err
    assert by_source(tmp_path) == {f"c-{n}": local[f"c-{n}"] for n in range(count)}


@needs("moto", "s3fs")
def test_storage_that_fails_intermittently_gives_the_same_rows(runs, local, tmp_path):
    import boto3
    from s3_server import in_environment, s3_server

    count = 60
    with s3_server() as (url, server):
        env = in_environment(url)
        client = boto3.client("s3", endpoint_url=url, aws_access_key_id="nobody",
                              aws_secret_access_key="nothing", region_name="us-east-1")  # fmt: skip
        client.create_bucket(Bucket="bucket")
        for epoch in range(100, 100 + count):
            client.upload_file(f"{runs}/c-{epoch}.pth", "bucket", f"run/c-{epoch}.pth")
        (tmp_path / "plan.yaml").write_text(
            "- {source: 's3://bucket/run/c-*.pth', to: transformers, num_heads: 4,"
            " target: 's3://bucket/out/{stem}', decoder_num_heads: 3}"
        )
        server.share = 0.05
        driver = start(tmp_path, "--workers", "2", env=env)
        wait_for_rows(tmp_path, 15, driver)
        driver.kill()
        driver.communicate()
        status, _, err = finish(start(tmp_path, "--workers", "2", env=env))
        assert status == 1, err
        assert server.failed > 20
        server.share = 0.0
        begin = json.loads(finish(start(tmp_path, "--json", env=env))[1].splitlines()[0])
        objects = [
            item["Key"]
            for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket")
            for item in page.get("Contents", ())
        ]
    rows = by_source(tmp_path)
    assert len(rows) == count
    for name, row in rows.items():
        if name != f"c-{BROKEN}":
            expected = {k: local[name][k] for k in ("outcome", "source_sha256", "target_sha256")}
            if local[name]["passed"] is None:
                assert {k: row[k] for k in expected} == expected
    assert begin["todo"] == 1  # the damaged checkpoint
    whole = {f"out/c-{n}" for n in range(100, 100 + count) if n != BROKEN}
    files = {key.rpartition("/")[0] for key in objects if key.endswith("config.json")}
    assert whole <= files
