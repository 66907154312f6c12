"""Sweeps: skipped, repeated and reported jobs, and processes that are killed."""

import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from paths import GOLDEN, HELPERS
from ray_nodes import command_of, descendants
from sweep_worker import dies, dies_once

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import CheckpointError, MaeConvertError, OutputError
from mae_convert.files.strict_json import plain
from mae_convert.sweep.freshness import checkpoint_version, is_unchanged
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.process_pool import Limits, PendingJob, Worker, _resources_for, run_local
from mae_convert.sweep.ray_engine import _submit
from mae_convert.sweep.result import error_row
from mae_convert.sweep.results import Results, read_results
from mae_convert.sweep.run_job import run_job

CONVERT = ("--to", "transformers", "--target", "out/{stem}")
LIMITS = Limits(workers=2, memory=8 << 30, threads=1)


@pytest.fixture
def runs(tmp_path, case):
    """A folder with four checkpoints, one of which is truncated."""
    checkpoint = case("pretrain_tiny").checkpoint.read_bytes()
    (tmp_path / "runs").mkdir()
    for epoch in (0, 20, 40, 60):
        broken = epoch == 40
        (tmp_path / f"runs/c-{epoch}.pth").write_bytes(checkpoint[: 3000 if broken else None])
    return tmp_path


@pytest.fixture
def sweep(run, runs):
    def sweep(*arguments):
        heads = ("--set", "num_heads=4", "--set", "decoder_num_heads=3")
        return run("sweep", "runs/*.pth", *CONVERT, *heads, *arguments, cwd=runs)

    return sweep


def outcomes(folder):
    rows = read_results(folder / "sweep.results.sqlite")
    return {Path(row.source).stem: row.outcome for row in rows}


def events(result):
    return [json.loads(line) for line in result.out.splitlines()]


def test_corrupt_checkpoint_fails_only_its_own_job(sweep, runs):
    result = sweep("--report", "report.html")
    assert result.status == 1, result.err
    *lines, summary = result.out.splitlines()  # a line for each job, as jobs end
    assert summary == "4 jobs: 3 done, 1 no result; results in sweep.results.sqlite"
    assert [line.partition("  ")[0] for line in lines] == [f"{n} of 4" for n in (1, 2, 3, 4)]
    report = sorted(re.sub(r"  \d+\.\d s$", "", line.partition("  ")[2]) for line in lines)
    assert report == [
        *(f"done  runs/c-{n}.pth to transformers: converted" for n in (0, 20, 60)),
        f"no result  runs/c-40.pth to transformers: {runs}/runs/c-40.pth is truncated or corrupt "
        "(File is not a zip file); copy or download it again",
    ]
    expected = {"c-0": "done", "c-20": "done", "c-40": "error", "c-60": "done"}
    assert outcomes(runs) == expected
    assert sorted(p.name for p in (runs / "out").iterdir()) == ["c-0", "c-20", "c-60"]
    assert '<h1 class="bad">4 jobs, 1 no result</h1>' in (runs / "report.html").read_text()


def test_second_run_repeats_only_new_changed_or_failed_jobs(sweep, runs):
    sweep()
    (runs / "runs/c-40.pth").write_bytes((runs / "runs/c-0.pth").read_bytes())  # repaired
    (runs / "runs/c-0.pth").touch()  # its bytes are the same
    shutil.rmtree(runs / "out/c-20")
    (runs / "runs/c-60.pth").unlink()
    shutil.copy(runs / "runs/c-0.pth", runs / "runs/c-80.pth")
    result = sweep("--json")
    begin, *rows, end = events(result)
    assert result.status == 0
    assert begin == {"event": "begin", "jobs": 4, "done": 1, "todo": 3}
    assert {Path(r["source"]).stem for r in rows if r["fresh"]} == {"c-20", "c-40", "c-80"}
    assert end["done"] == 4
    assert set(outcomes(runs)) == {"c-0", "c-20", "c-40", "c-60", "c-80"}


def test_changed_weights_are_converted_again(sweep, runs, run):
    sweep()
    other = GOLDEN / "encoder_tiny/checkpoint.pth"
    shutil.copy(other, runs / "runs/c-20.pth")
    begin, *_ = events(sweep("--json"))
    assert begin["todo"] == 2
    diff = run("diff", "runs/c-20.pth", "out/c-20", "--num-heads", "4", cwd=runs)
    assert diff.status == 0


def test_only_failed_jobs_are_repeated_on_request(sweep, runs):
    sweep()
    shutil.copy(runs / "runs/c-0.pth", runs / "runs/c-80.pth")
    shutil.copy(runs / "runs/c-0.pth", runs / "runs/c-40.pth")
    result = sweep("--retry-failed", "--json", "--report", "page.html")
    begin, *_, end = events(result)
    assert (begin["todo"], end["error"], end["not_run"]) == (1, 0, 1)
    assert result.status == 1  # one job of the plan is not done
    assert '<h1 class="bad">5 jobs, 1 not run</h1>' in (runs / "page.html").read_text()


def test_sweep_stops_at_the_first_failure_on_request(sweep, runs):
    result = sweep("--fail-fast", "--workers", "1", "--json")
    assert result.status == 1
    assert events(result)[-1]["not_run"] == 1
    assert not (runs / "out/c-60").exists()


def test_a_dry_run_shows_jobs_and_sizes_and_does_nothing(sweep, runs):
    result = sweep("--dry-run", "--json")
    assert result.status == 0
    jobs = result.json["jobs"]
    assert [job["state"] for job in jobs] == ["new"] * 4
    assert jobs[0]["bytes"] == 4 * 65448
    assert [path.name for path in runs.iterdir()] == ["runs"]


def test_files_not_written_by_the_sweep_are_not_replaced_without_the_option(sweep, runs):
    (runs / "out/c-20").mkdir(parents=True)
    result = sweep()
    assert result.status == 2
    assert "target: " in result.err
    assert "already exists and was not written by this sweep" in result.err
    assert not (runs / "out/c-0").exists()


def test_files_written_by_the_sweep_are_replaced_if_the_plan_has_changed(sweep, runs):
    (runs / "runs/c-40.pth").unlink()
    sweep()
    begin, *_, end = events(sweep("--set", "dtype=float16", "--json"))
    assert (begin["todo"], end["done"]) == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--report", "page.pdf"), "its name must end in .html, .parquet or .xml"),
        (
            ("--report", "runs/nothing/page.html"),
            "runs/nothing/page.html cannot be written: its directory does not exist",
        ),
        (("--report", "runs.html"), "is a directory and not a file"),
        (("--results", "rows.parquet"), "pass --report rows.parquet"),
        (
            ("--results", "nothing/rows.sqlite"),
            "nothing/rows.sqlite cannot be written: its directory does not exist",
        ),
        (("--address", "head:6379"), "add --engine ray"),
        (("--engine", "ray", "--workers", "2"), "--workers limits the processes on this machine"),
    ],
)
def test_invalid_sweep_call_is_refused_before_any_work(sweep, runs, options, message):
    (runs / "runs.html").mkdir()
    result = sweep(*options)
    assert (result.status, result.out) == (2, "")
    assert message in result.err
    assert sorted(path.name for path in runs.iterdir()) == ["runs", "runs.html"]


@pytest.mark.parametrize(("option", "package"), [("--report", "parquet"), ("--engine", "ray")])
def test_a_missing_package_is_reported_before_any_work(runs, option, package):
    """The packages are hidden, so that it does not matter whether they are installed."""
    code = "import sys\nsys.modules.update(ray=None, pyarrow=None)\n"
    code += "from mae_convert.cli.main import main\nmain(sys.argv[1:])"
    value = {"--report": "a.parquet", "--engine": "ray"}[option]
    process = subprocess.run(
        [sys.executable, "-c", code, "sweep", "runs/*.pth", *CONVERT, option, value],
        cwd=runs, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 3, process.stderr
    assert f"pip install 'mae-convert[{package}]'" in process.stderr
    assert not (runs / "out").exists()


def test_parquet_table_contains_the_rows_of_the_results_file(runs):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs mae-convert[parquet]")
    from mae_convert.reports.sweep_files import write_reports

    rows = list(run_local([*jobs(runs, 2), Job(f"{runs}/runs/c-40.pth", None)], LIMITS))
    write_reports(rows, [runs / "rows.parquet"])
    table = parquet.read_table(runs / "rows.parquet").to_pylist()
    for result, row in zip(table, rows, strict=True):
        report = row.to_dict()
        for name in ("settings", "own_error", "source_version", "target_version"):
            assert json.loads(result.pop(name)) == plain(report.pop(name))
        assert result == report


def test_results_are_in_use_by_one_sweep_at_a_time(sweep, runs):
    with Results(runs / "sweep.results.sqlite"):
        result = sweep()
    assert result.status == 2
    assert "is in use by another sweep" in result.err


def test_other_file_in_place_of_the_results_is_not_changed(sweep, runs):
    (runs / "sweep.results.sqlite").write_text("my notes " * 99)
    result = sweep()
    assert (result.status, "is not a results file of this version" in result.err) == (2, True)
    assert (runs / "sweep.results.sqlite").read_text() == "my notes " * 99


DAMAGES = {
    "its pages are overwritten": lambda f: f.write_bytes(f.read_bytes()[:5000] + b"\xff" * 15480),
    "it is cut short": lambda f: f.write_bytes(f.read_bytes()[:9000]),
    "a cell is no JSON": lambda f: execute(f, "UPDATE jobs SET settings = '{'"),
    "a column is missing": lambda f: execute(f, "ALTER TABLE jobs DROP COLUMN host"),
    "it is of a later version": lambda f: execute(f, "PRAGMA user_version = 99"),
    "a mapping is a list": lambda f: execute(f, "UPDATE jobs SET settings = '[]'"),
    "a mapping is nested deeply": lambda f: execute(
        f, f"UPDATE jobs SET settings = '{'[' * 100_000}'"
    ),
    "an error is text": lambda f: execute(f, """UPDATE jobs SET own_error = '{"a": "b"}'"""),
    "an outcome is unknown": lambda f: execute(f, "UPDATE jobs SET outcome = 'well'"),
    "there is another table": lambda f: execute(f, "CREATE TABLE more (a)"),
    "there is a trigger": lambda f: execute(
        f, "CREATE TRIGGER t AFTER INSERT ON begun BEGIN DELETE FROM jobs; END"
    ),
    "cells are of other types": lambda f: retyped(f, "x'00ff'"),
    "its jobs are a view without an end": lambda f: (
        execute(f, "ALTER TABLE jobs RENAME TO old"),
        execute(f, "CREATE VIEW jobs AS WITH RECURSIVE n(key) AS (SELECT 1 UNION ALL SELECT key"
                   " FROM n) SELECT * FROM n"),
    ),
}  # fmt: skip


def retyped(path, value):
    """Store a value whose type the schema forbids, and restore the schema."""
    with sqlite3.connect(path) as file:
        (before,) = file.execute("SELECT sql FROM sqlite_master WHERE name = 'jobs'").fetchone()
        file.execute("PRAGMA writable_schema = ON")
        schema = "UPDATE sqlite_master SET sql = ? WHERE name = 'jobs'"
        file.execute(schema, [before.removesuffix(" STRICT")])
    with sqlite3.connect(path) as file:
        file.execute(f"UPDATE jobs SET verdict = {value}, seconds = {value}")
        file.execute("PRAGMA writable_schema = ON")
        file.execute(schema, [before])


def execute(path, statement):
    with sqlite3.connect(path) as file:
        file.execute(statement)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_results_are_refused_in_a_sentence(runs, damage):
    path = runs / "rows.sqlite"
    with Results(path) as results:
        for row in map(failed, jobs(runs, 20)):
            results.write(row)
    DAMAGES[damage](path)
    with pytest.raises(CheckpointError, match="move it away"), Results(path) as results:
        results.rows()
    with pytest.raises(CheckpointError, match="move it away"):
        read_results(path)


def test_non_finite_error_is_stored_and_read_unchanged(runs):
    path = runs / "rows.sqlite"
    (job,) = jobs(runs, 1)
    row = replace(failed(job), own_error={"float32": math.inf})
    with Results(path) as results:
        results.write(row)
        assert results.rows()[row.key].own_error == {"float32": math.inf}


def failed(job):
    return error_row(job.identity(), {}, MaeConvertError("no such thing " * 20))


def test_full_disk_is_reported(runs):
    with Results(runs / "rows.sqlite") as results:
        results._file.execute("PRAGMA max_page_count = 6")
        rows = map(failed, jobs(runs, 99))
        with pytest.raises(OutputError, match=r"cannot be written: database or disk is full"):
            list(map(results.write, rows))


def test_configuration_is_part_of_the_identity_of_a_checkpoint(runs):
    """Equal weights are not sufficient: with another epsilon the function is different."""
    (job,) = jobs(runs, 1)
    row = run_job(job, 1)
    config = Path(job.target) / "config.json"
    assert is_unchanged(row, job)
    (Path(job.target) / "notes.txt").write_text("from my evaluation")
    for path in Path(job.target).iterdir():
        path.touch()
    assert is_unchanged(row, job)
    config.write_text(config.read_text().replace("1e-06", "1e-12"))
    assert not is_unchanged(row, job)
    back = Job(job.target, None, {"to": "facebook", "verify": True})
    as_source = replace(
        row, source_version=checkpoint_version(job.target), source_sha256=row.target_sha256
    )
    assert is_unchanged(as_source, back)
    config.write_text(config.read_text().replace("1e-12", "1e-06"))
    assert not is_unchanged(as_source, back)


def test_a_verification_that_fails_is_a_row_with_its_figures_and_cause(run, runs):
    run("convert", "runs/c-0.pth", "b", "--to", "transformers", "--num-heads", "4",
        "--decoder-num-heads", "3", cwd=runs)  # fmt: skip
    config = json.loads((runs / "b/config.json").read_text())
    (runs / "b/config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    (runs / "plan.yaml").write_text(
        "- {source: runs/c-0.pth, target: b, verify: true, framework_a: torch,"
        " framework_b: torch, num_heads: 4, decoder_num_heads: 3}"
    )
    result = run("sweep", "plan.yaml", cwd=runs)
    (row,) = read_results(runs / "plan.results.sqlite")
    assert (result.status, row.outcome, row.verdict) == (1, "failed", "DIFFERENT")
    assert 1e-10 < row.function < 1
    assert row.own_error["float32"] < 1e-5
    assert "layer_norm_eps" in row.cause
    assert result.out.startswith("1 of 1  failed  runs/c-0.pth: DIFFERENT at encoder.blocks.0.q: ")


def jobs(folder, count=3):
    settings = {"to": "transformers", "num_heads": 4, "decoder_num_heads": 3}
    source = GOLDEN / "pretrain_tiny/checkpoint.pth"
    return [Job(str(source), f"{folder}/{n}", settings) for n in range(count)]


def test_job_of_a_killed_process_is_attempted_again(tmp_path):
    rows = list(run_local(jobs(tmp_path), LIMITS, dies_once))
    assert [(row.outcome, row.attempts) for row in rows] == [("done", 2)] * 3
    assert len({row.key for row in rows}) == 3


def test_process_that_always_dies_is_a_row_with_the_error(tmp_path):
    (row,) = run_local(jobs(tmp_path, 1), LIMITS, dies)
    assert row.error == "its process died 2 times, by signal 9 (SIGKILL); is there enough memory?"


def test_sweep_survives_the_death_of_the_fork_server(tmp_path):
    rows = run_local(jobs(tmp_path, 4), replace(LIMITS, workers=1))
    result = [next(rows)]
    (server,) = (p for p in descendants(os.getpid()) if "forkserver import main" in command_of(p))
    os.kill(server, signal.SIGKILL)
    result += rows
    assert {row.outcome for row in result} == {"done"}
    assert {row.key for row in result} == {job.key for job in jobs(tmp_path, 4)}


# A process of its own, because multiprocessing's server keeps the environment of the first sweep.
FORKED = """
import os, sys
from pathlib import Path
from ray_nodes import command_of, descendants
from sweep_worker import forks
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.process_pool import Limits, run_local
settings = {"to": "transformers", "num_heads": 4, "decoder_num_heads": 3, "verify": True,
            "framework_a": "torch", "framework_b": "torch"}
if __name__ == "__main__":
    jobs = [Job(sys.argv[1], name, settings) for name in "ab"]
    rows = run_local(jobs, Limits(workers=1, memory=8 << 30, threads=1), forks)
    result = [next(rows)]
    servers = [p for p in descendants(os.getpid()) if command_of(p).endswith("--serve torch ")]
    print([len(os.listdir(f"/proc/{server}/task")) for server in servers])
    result += rows
    print(*((row.outcome, row.verdict, row.cause, row.peak_memory > 200 << 20) for row in result))
    print([server for server in servers if Path(f"/proc/{server}").exists()])
"""


def test_runners_of_pytorch_are_forked_from_one_process_without_threads(tmp_path):
    (tmp_path / "main.py").write_text(FORKED)
    source = GOLDEN / "pretrain_tiny/checkpoint.pth"
    output = subprocess.run(
        [sys.executable, "main.py", source], cwd=tmp_path, capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": str(HELPERS)},
    ).stdout  # fmt: skip
    row = ("done", "PASSED", "[0, 0]", True)  # the last two: both forked, their memory is counted
    assert output == f"[1]\n{row} {row}\n[]\n"


def test_long_temporary_path_is_supported(sweep, runs, monkeypatch):
    """Batch systems set paths that are too long for the socket of multiprocessing's fork server."""
    folder = runs / ("temporary" + "x" * 100)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    result = sweep()
    assert result.status == 1, result.err
    assert sorted(outcomes(runs).values()) == ["done", "done", "done", "error"]


def test_worker_processes_end_with_their_parent(tmp_path):
    """When the process that runs the sweep is killed, its workers end too."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[3]]\n"
        "from test_sweep import *\nfrom sweep_worker import hangs\n"
        "if __name__ == '__main__':\n"
        "    list(run_local(jobs(sys.argv[2], 1), LIMITS, hangs))\n"
    )
    script = tmp_path / "main.py"
    script.write_text(code)
    driver = subprocess.Popen([sys.executable, script, HELPERS, tmp_path, Path(__file__).parent])
    mark = tmp_path / "0.pid"
    assert waited_for(mark.exists)
    driver.kill()
    driver.wait()
    assert waited_for(lambda: not is_running(int(mark.read_text() or 0)))


def waited_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_jobs_that_do_not_fit_into_the_memory_together_wait_for_each_other(tmp_path):
    narrow = Limits(workers=2, memory=400 << 20, threads=1)
    rows = list(run_local(jobs(tmp_path), narrow))
    spans = sorted((row.started, row.started + row.seconds) for row in rows)
    assert all(spans[i][1] <= spans[i + 1][0] for i in range(len(spans) - 1))


def test_job_gives_the_same_result_in_every_mode_of_execution(tmp_path):
    (ours,) = run_local(jobs(tmp_path, 1), LIMITS)
    plain = run_job(jobs(tmp_path, 1)[0], 1)
    for name in ("key", "outcome", "source_sha256", "target_sha256", "target_bytes", "parameters"):
        assert getattr(ours, name) == getattr(plain, name)
    assert ours.target_fingerprint == plain.source_fingerprint == ours.source_fingerprint
    assert ours.target_fingerprint.startswith("mae1:")
    assert ours.peak_memory is None or ours.peak_memory > 1 << 20


def test_results_can_be_read_by_any_program_that_reads_sqlite(sweep, runs):
    sweep()
    with sqlite3.connect(runs / "sweep.results.sqlite") as file:
        ((count, seconds),) = file.execute(
            "SELECT count(*), sum(seconds) FROM jobs WHERE outcome = 'done'"
        )
    assert count == 3
    assert seconds > 0


def test_conversions_of_a_sweep_import_no_framework_and_nothing_in_each_process(tmp_path):
    code = (
        "import sys\nfrom test_sweep import jobs\nimport mae_convert.sweep.preload\n"
        "from mae_convert.sweep.run_job import run_job\n"
        "before = {*sys.modules}\n"
        "assert run_job(jobs(sys.argv[1], 1)[0], 1).outcome == 'done'\n"
        "print({'torch', 'tensorflow', 'keras', 'jax', 'ray', 'fsspec'} & {*sys.modules})\n"
        "print({name for name in {*sys.modules} - before if name.startswith('mae_convert')})"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parent, capture_output=True,
        text=True, check=True, env={**os.environ, "PYTHONPATH": str(HELPERS)},
    )  # fmt: skip
    assert output.stdout == "set()\nset()\n"


def test_ray_gets_the_resources_of_a_job():
    """A job requests cores, a GPU if it uses one, and not more memory than a node has."""
    asked = []

    class Ray:
        @staticmethod
        def nodes():
            return [{"Alive": alive, "Resources": {"memory": n}} for alive, n in ((1, 9), (0, 99))]

        def options(self, **options):
            asked.append(options)
            return self

        def remote(self, *_):
            return None

    for settings in ({"to": "timm"}, {"to": "timm", "verify": True, "device_b": "cuda"}):
        _submit(Ray, Ray(), Job("a", None, settings), 3)
    assert asked == [
        {"name": "a", "num_cpus": 3, "num_gpus": 0, "memory": 9},
        {"name": "a", "num_cpus": 3, "num_gpus": 1, "memory": 9},
    ]


def test_gpu_is_assigned_to_one_job_at_a_time(tmp_path):
    settings = {"to": "timm", "verify": True, "device_b": "cuda"}
    pending = [PendingJob(Job(f"{tmp_path}/{n}", None, settings)) for n in range(3)]
    allowed = Limits(workers=8, memory=64 << 30, threads=1, gpus=("4", "7"))
    workers = []
    for job in pending[:2]:
        memory, gpu = _resources_for(job, workers, allowed)
        workers.append(Worker(job, None, None, memory, gpu))
    assert [worker.gpu for worker in workers] == ["4", "7"]
    assert _resources_for(pending[2], workers, allowed) is None
    assert _resources_for(PendingJob(jobs(tmp_path, 1)[0]), workers, allowed)[1] is None


# If pytest runs in the background, all processes that it starts ignore interrupts.
INTERRUPTED = """
import signal, sys
from mae_convert.cli.main import main
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(sys.argv[1:])
"""


def test_interrupt_ends_all_jobs_and_keeps_finished_results(runs):
    (runs / "main.py").write_text(INTERRUPTED)
    fields = ("num_heads=4", "decoder_num_heads=3", "framework_a=torch", "framework_b=torch")
    command = [sys.executable, "main.py", "sweep", "runs/c-0.pth", "runs/c-20.pth", *CONVERT,
               "--verify", *(word for field in fields for word in ("--set", field))]  # fmt: skip
    driver = subprocess.Popen(command, cwd=runs, stderr=subprocess.PIPE, text=True)
    assert waited_for((runs / "out/c-0/config.json").exists)
    started = descendants(driver.pid)
    driver.send_signal(signal.SIGINT)
    _, stderr = driver.communicate(timeout=60)
    assert (driver.returncode, stderr) == (130, "mae-convert: interrupted\n")
    assert waited_for(lambda: not any(map(is_running, started)))
    assert (runs / "sweep.results.sqlite").exists()


def test_new_head_does_not_require_the_number_of_decoder_heads(tmp_path, forked_children):
    source = str(GOLDEN / "pretrain_tiny" / "checkpoint.pth")
    settings = {"to": "facebook", "num_labels": 5, "num_heads": 4, "verify": True}
    row = run_job(Job(source, str(tmp_path / "classifier.pth"), settings))
    assert (row.error, row.task, row.passed) == (None, "classify", True)


@pytest.mark.parametrize(
    ("case", "layout", "target", "task"),
    [
        ("videomae_pretrain_tiny", "transformers", "model", "pretrain"),
        ("mae_st_pretrain_tiny", "original", "model.safetensors", "pretrain"),
        ("prithvi_v2_tl_tiny", "original", "model.safetensors", "pretrain"),
        ("videomae_finetune_tiny", "original", "model.pth", "classify"),
    ],
)
def test_sweep_supports_video_models(tmp_path, forked_children, case, layout, target, task):
    settings = {
        "to": layout, "verify": True, "num_heads": 4, "source_image_size": [32, 32],
        "framework_a": "torch", "framework_b": "torch",
        **({"decoder_num_heads": 3} if task == "pretrain" else {}),
    }  # fmt: skip
    source = str(GOLDEN / case / "checkpoint.pth")
    row = run_job(Job(source, str(tmp_path / target), settings))
    assert (row.error, row.task, row.passed) == (None, task, True)


def test_job_changes_frames_and_size_of_a_video_model(tmp_path, forked_children):
    settings = {
        "to": "original", "verify": True, "num_heads": 4, "decoder_num_heads": 3,
        "num_frames": 2, "image_size": [48, 24], "framework_a": "torch", "framework_b": "torch",
    }  # fmt: skip
    source, target = str(GOLDEN / "prithvi_v2_tiny" / "checkpoint.pth"), tmp_path / "a.safetensors"
    row = run_job(Job(source, str(target), settings))
    assert (row.error, row.passed) == (None, True)
    model = open_checkpoint(target).configuration.model
    assert (model.num_frames, model.image_hw) == (2, (48, 24))
