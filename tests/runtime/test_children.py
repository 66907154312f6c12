"""Child processes: what they import, how long they may take, how they end with their parent."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from paths import GOLDEN, ROOT
from ray_nodes import command_of, descendants

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.diagnose.candidate_process import _killed_after_time_limit
from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.files.staging import scratch_directory
from mae_convert.runtime import worker
from mae_convert.runtime.children import Clock, environment_of_child, python_process
from mae_convert.runtime.sides import TF_CLASSES_FILE, Side, choose_side
from mae_convert.sweep import ray_engine

TORCH = ("--framework-a", "torch", "--framework-b", "torch")
HANGING_TORCH = """
import sys, time
def __getattr__(name):
    time.sleep(60)
if "--serve" not in sys.argv:
    time.sleep(60)
"""
# Starts the program with the default action of a signal, which pytest's parent may ignore.
PROGRAM = """
import signal, sys
from mae_convert.__main__ import main
if __name__ == "__main__":
    signal.signal(int(sys.argv.pop(1)), signal.SIG_DFL)
    main()
"""


@pytest.fixture
def hanging(tmp_path):
    """Return environment variables for a torch that hangs, and a TMPDIR.

    The import takes a minute, or in a fork server the first access to one of its names.
    """
    (tmp_path / "path" / "torch").mkdir(parents=True)
    (tmp_path / "path/torch/__init__.py").write_text(HANGING_TORCH)
    (tmp_path / "temporary").mkdir()
    return {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "path"),
        "TMPDIR": str(tmp_path / "temporary"),
    }


@pytest.fixture
def start(tmp_path, case):
    """Start the program with a checkpoint and its heads, and the default action of a signal."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    with ExitStack() as started:

        def start(number, *arguments, env):
            process = subprocess.Popen(
                [sys.executable, script, str(int(number)), *map(str, arguments)],
                env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            )  # fmt: skip
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield start


def waited_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def stages(folder):
    return [path.read_text() for path in Path(folder).glob("*/stage.txt")]


def left_behind(folder):
    """Return the entries of a folder except the sockets of Python's multiprocessing."""
    return sorted(p.name for p in Path(folder).iterdir() if not p.name.startswith("pymp-"))


def verification(case):
    source = case("pretrain_tiny")
    return ("verify", source.checkpoint, source.checkpoint, *TORCH, *source.heads)


def sweep_of(case):
    source = case("pretrain_tiny")
    fields = ("num_heads=4", "decoder_num_heads=3", "framework_a=torch", "framework_b=torch")
    # Two jobs, so that there is a fork server.
    return ("sweep", source.checkpoint, "--to", "transformers", "--to", "facebook", "--verify",
            "--workers", "1", *(word for field in fields for word in ("--set", field)))  # fmt: skip


def forked(processes):
    """Return the processes that were forked from the fork server, and the server."""
    return [p for p in processes if command_of(p).endswith("--serve torch ")]


SIGNALS = {
    "SIGUSR1": verification,
    "SIGALRM": verification,
    "SIGQUIT": sweep_of,
    "SIGTERM": sweep_of,
}


@pytest.mark.parametrize("name", SIGNALS)
def test_after_any_signal_no_child_and_no_temporary_directory_is_left(name, hanging, start, case):
    number = getattr(signal, name)
    program = start(number, *SIGNALS[name](case), env=hanging)
    assert waited_for(lambda: stages(hanging["TMPDIR"]) == ["importing torch"] * 2)
    children = descendants(program.pid)
    assert len(forked(children)) == (5 if SIGNALS[name] is sweep_of else 0)
    program.send_signal(number)
    _, errors = program.communicate(timeout=60)
    assert (program.returncode, errors) == (128 + number, f"mae-convert: ended by {name}\n")
    assert waited_for(lambda: not any(map(is_running, children)))
    assert left_behind(hanging["TMPDIR"]) == []


@pytest.mark.parametrize("command", [verification, sweep_of])
def test_children_of_a_killed_run_end_and_the_next_run_removes_its_directories(
    command, hanging, start, case, monkeypatch
):
    program = start(signal.SIGTERM, *command(case), env=hanging)
    assert waited_for(lambda: stages(hanging["TMPDIR"]) == ["importing torch"] * 2)
    children = descendants(program.pid)
    assert len(forked(children)) == (5 if command is sweep_of else 0)
    program.kill()
    program.communicate(timeout=60)
    assert waited_for(lambda: not any(map(is_running, children)))
    monkeypatch.setattr("tempfile.tempdir", hanging["TMPDIR"])
    with scratch_directory() as used, scratch_directory() as other:
        assert left_behind(hanging["TMPDIR"]) == sorted([used.name, other.name])
    assert left_behind(hanging["TMPDIR"]) == []


def test_ignored_signals_stay_ignored(hanging, start, case, tmp_path):
    """As after ``nohup``, whose settings the program must not change."""
    (tmp_path / "program.py").write_text(PROGRAM.replace("signal.SIG_DFL", "signal.SIG_IGN"))
    program = start(signal.SIGHUP, *verification(case), env=hanging)
    assert waited_for(lambda: stages(hanging["TMPDIR"]) == ["importing torch"] * 2)
    program.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.5)


def test_hanging_child_is_ended_and_its_task_is_reported(hanging, run, case):
    result = run(*verification(case), "--time-limit", "1.5", env=hanging)
    assert (result.status, result.err) == (
        2,
        "mae-convert: the torch run was terminated after 1.5 seconds, while importing torch; give "
        "it more time with --time-limit SECONDS (0 means no limit)\n",
    )  # fmt: skip
    assert left_behind(hanging["TMPDIR"]) == []


def test_the_time_limit_is_that_of_the_call_or_of_the_environment_or_an_hour(monkeypatch):
    monkeypatch.delenv("MAE_CONVERT_TIME_LIMIT", raising=False)
    assert 3599 < Clock(None).left() <= 3600
    assert 6 < Clock(7).left() <= 7
    assert Clock(0).left() is None
    monkeypatch.setenv("MAE_CONVERT_TIME_LIMIT", "0")
    assert Clock(None).left() is None
    for wrong in ("an hour", "-1", "nan"):
        monkeypatch.setenv("MAE_CONVERT_TIME_LIMIT", wrong)
        with pytest.raises(MaeConvertError, match="seconds"):
            Clock(None)


def test_child_that_serves_requests_is_ended(tmp_path):
    (tmp_path / "silent.py").write_text("import time\ntime.sleep(60)\n")
    threads = set(threading.enumerate())
    with python_process(
        None, [tmp_path / "silent.py"], environment_of_child(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        with _killed_after_time_limit(process, Clock(0.2)) as late:
            assert process.stdout.readline() == ""
        assert late.is_set()
        with _killed_after_time_limit(process, Clock(60)) as late:
            pass
        assert not late.is_set()
    assert waited_for(lambda: set(threading.enumerate()) <= threads, seconds=10)


def test_standard_input_ends_a_child_where_the_system_does_not(tmp_path):
    """A child ends when its standard input is closed, even if its parent still runs."""
    code = "from mae_convert.runtime import worker as w; w._end_with_standard_input()"
    reading, writing = os.pipe()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=reading)
    os.close(reading)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    os.close(writing)
    assert child.wait(60) == 1


# ------------------------------------------------------------------------------ the import path

LIBRARIES = ("numpy", "torch", "safetensors", "h5py", "click", "rich", "yaml", "ml_dtypes",
             "filelock", "fsspec", "huggingface_hub", "PIL", "keras", "tensorflow",
             "mae_convert", "reference_models", "worker", "usercustomize")  # fmt: skip
# Python itself imports other modules for `python -m`, before it runs this package.
AFTER_DASH_M = ("random", "queue", "json", "signal", "tempfile", "secrets", "shutil", "subprocess",
                "logging", "threading", "hashlib", "zipfile", "dataclasses", "inspect",
                *(name for name in LIBRARIES if name != "mae_convert"))  # fmt: skip


@pytest.fixture
def trapped(tmp_path):
    """Return a function that writes modules, each of which records that it was run."""

    def trapped(names):
        folder, marks = tmp_path / "trapped", tmp_path / "marks"
        folder.mkdir()
        marks.mkdir()
        for name in names:
            text = f"open({str(marks / name)!r}, 'w').close()\n"
            (folder / f"{name}.py").write_text(text)
        return folder, marks

    return trapped


def program(tmp_path, *arguments, cwd, inside=()):
    script = tmp_path / "program.py"
    script.write_text("from mae_convert.__main__ import main\nif __name__ == '__main__': main()\n")
    return subprocess.run(
        [*inside, sys.executable, script, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def test_no_module_beside_the_checkpoints_is_run_by_verify_or_its_children(tmp_path, case, trapped):
    folder, marks = trapped([*sys.stdlib_module_names, *LIBRARIES])
    source = case("pretrain_tiny")
    stored = torch.load(source.checkpoint, weights_only=False)
    stored["model"]["norm.weight"] += 1
    torch.save(stored, folder / "other.pth")
    shutil.copy(source.checkpoint, folder / "checkpoint.pth")
    result = program(
        tmp_path, "verify", "checkpoint.pth", "other.pth", *TORCH, "--python-a", sys.executable,
        "--json", *source.heads, cwd=folder,
    )  # fmt: skip
    assert left_behind(marks) == []
    assert result.returncode == 1, result.stderr
    assert json.loads(result.stdout)["causes"]


def test_no_module_beside_the_checkpoints_is_run_by_a_sweep(tmp_path, case, trapped):
    folder, marks = trapped([*sys.stdlib_module_names, *LIBRARIES])
    shutil.copy(case("pretrain_tiny").checkpoint, folder / "checkpoint.pth")
    result = program(
        tmp_path, "sweep", "checkpoint.pth", "--to", "transformers", "--target", "out",
        "--set", "num_heads=4", "--set", "decoder_num_heads=3", cwd=folder,
    )  # fmt: skip
    assert left_behind(marks) == []
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_no_module_beside_the_checkpoints_is_run_on_ray(tmp_path, case, trapped, monkeypatch):
    pytest.importorskip("ray")
    from ray_nodes import cluster, own_network

    folder, marks = trapped(AFTER_DASH_M)
    shutil.copy(case("pretrain_tiny").checkpoint, folder / "checkpoint.pth")
    with own_network() as inside, cluster(inside, tmp_path, 1) as (address, _):
        result = program(
            tmp_path, "sweep", "checkpoint.pth", "--to", "transformers", "--target", "out",
            "--set", "num_heads=4", "--set", "decoder_num_heads=3",
            "--engine", "ray", "--address", address, cwd=folder, inside=inside,
        )  # fmt: skip
    assert left_behind(marks) == []
    assert result.returncode == 0, result.stderr


def test_ray_is_not_started_in_the_directory_of_the_checkpoints(monkeypatch, tmp_path):
    """Ray puts the directory in which it is started on the import path of its workers."""
    started = []
    ray = types.SimpleNamespace(init=lambda **_: started.append(Path.cwd()))
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.chdir(tmp_path)
    ray_engine._connected("127.0.0.1:1")
    assert started == [Path("/")]
    assert Path.cwd() == tmp_path


def test_python_dash_m_takes_the_current_directory_off_the_path(run, case, trapped):
    folder, marks = trapped(AFTER_DASH_M)
    source = case("pretrain_tiny")
    result = run("inspect", source.checkpoint, "--json", *source.heads, cwd=folder)
    assert left_behind(marks) == []
    assert result.status == 0, result.err


def test_child_path_has_no_entry_relative_to_the_current_directory(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f":lib:/opt/lib:{os.sep}usr/lib:.")
    assert environment_of_child()["PYTHONPATH"] == "/opt/lib:/usr/lib"
    monkeypatch.setenv("PYTHONPATH", ":.")
    assert "PYTHONPATH" not in environment_of_child()
    assert environment_of_child()["PYTHONSAFEPATH"] == "1"


# ------------------------------------------------------------------------- the choice of a runner

TORCH_ONLY = {"torch"}
TORCH_AND_TRANSFORMERS = {"torch", "transformers"}
KERAS = {"keras/src/ops", "h5py"}
TENSORFLOW_ONLY, JAX_ONLY = {"tensorflow", *KERAS}, {"jax", *KERAS}
TF_CLASSES = {"transformers", TF_CLASSES_FILE, "tensorflow", "tf_keras", "h5py"}
INSTALLED = [TORCH_ONLY, TORCH_AND_TRANSFORMERS, TENSORFLOW_ONLY, JAX_ONLY, TF_CLASSES]
CHOICE = {
    "pretrain_tiny/checkpoint.pth": ("torch", "torch", "tensorflow", "jax", None),
    "transformers_tf_pretrain_tiny_v4pt": ("torch", "transformers", "tensorflow", "jax", None),
    "transformers_tf_pretrain_tiny": ("torch", "torch", "tensorflow", "jax", "transformers"),
    "timm_finetune_gap_tiny/model.safetensors": ("torch", "torch", "tensorflow", "jax", None),
}
# The message where the choice is None.
NO_CHOICE = {
    "pretrain_tiny/checkpoint.pth":
        "torch is not installed here; pip install 'mae-convert[torch]'",
    "transformers_tf_pretrain_tiny_v4pt":
        "tensorflow needs packages that are not installed here: Keras 3; "
        "pip install 'mae-convert[tensorflow]'",
    "timm_finetune_gap_tiny/model.safetensors":
        "torch is not installed here; pip install 'mae-convert[torch]'",
}  # fmt: skip


@pytest.fixture
def installed(monkeypatch):
    def installed(names):
        names = {*names, "numpy", "safetensors"}
        monkeypatch.setattr(worker, "_is_installed", names.__contains__)

    return installed


def opened(name):
    from mae_convert.families.checkpoint_options import Flags

    heads = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
    return open_checkpoint(GOLDEN / name, None if "transformers" in name else heads)


@pytest.mark.parametrize("name", CHOICE)
def test_a_runner_is_chosen_by_all_that_it_imports(name, installed):
    for names, expected in zip(INSTALLED, CHOICE[name], strict=True):
        installed(names)
        if expected is None:
            with pytest.raises(MissingRequirementError) as caught:
                choose_side(opened(name), Side())
            assert str(caught.value) == NO_CHOICE[name]
        else:
            assert choose_side(opened(name), Side()).framework == expected, names


def test_missing_package_is_named(installed):
    model = opened("transformers_tf_pretrain_tiny")
    installed(())
    with pytest.raises(MissingRequirementError, match="tensorflow is not installed here; pip"):
        choose_side(model, Side())
    installed(TORCH_AND_TRANSFORMERS)
    with pytest.raises(MissingRequirementError, match=r"transformers needs .*tensorflow, tf_keras"):
        choose_side(model, Side("transformers"))
    installed({"tensorflow", "h5py"})  # and Keras 2
    with pytest.raises(
        MissingRequirementError,
        match="tensorflow needs packages that are not installed here: Keras 3",
    ):
        choose_side(model, Side("tensorflow"))


def test_folder_with_the_name_of_a_package_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "some_package_name").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert worker.missing(["some_package_name", "numpy", "numpy/no/such.py", "numpy/core"]) == [
        "some_package_name", "numpy/no/such.py",
    ]  # fmt: skip


def environment_without(folder, *names):
    """Create an environment without some packages of this one; return its interpreter."""
    import venv

    venv.create(folder, symlinks=True)
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    for entry in {entry for path in sys.path if path.endswith("site-packages")
                  for entry in Path(path).iterdir()}:  # fmt: skip
        package = entry.name.lower().partition("-")[0].partition(".")[0]
        expected = package not in names and entry.suffix != ".pth"  # .pth files name other folders
        if expected and not (packages / entry.name).exists():
            (packages / entry.name).symlink_to(entry)
    (packages / "project.pth").write_text(f"{ROOT}\n")
    return folder / "bin" / "python"


KERAS_PACKAGES = ("tensorflow", "keras", "tf_keras", "jax", "jaxlib")
ENVIRONMENTS = {
    "torch only": (("transformers", "timm", *KERAS_PACKAGES), 0, "transformers-tf in PyTorch"),
    "torch and transformers": (KERAS_PACKAGES, 0, "transformers in transformers"),
    "tensorflow only": (("torch", "transformers", "timm", "jax"), 0, "original in TensorFlow"),
    "jax only": (("torch", "transformers", "timm", "tensorflow"), 0, "original in JAX"),
    "none": (("torch", "transformers", "timm", *KERAS_PACKAGES), 3, "no framework is installed"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_demonstration_runs_with_whatever_is_installed(name, tmp_path):
    without, status, words = ENVIRONMENTS[name]
    if name == "jax only":
        pytest.importorskip("jax")
    python = environment_without(tmp_path / "environment", *without)
    command = [python, "-m", "mae_convert", "demo", "--output", tmp_path / "demo"]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert process.returncode == status, process.stdout + process.stderr
    assert words in process.stdout + process.stderr
    if status == 0:
        pair = GOLDEN.parents[2] / "mae_convert/data/demo/checkpoint.pth", "demo/transformers-tf"
        command = [python, "-m", "mae_convert", "verify", *pair]
        process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert process.returncode == 0, process.stdout + process.stderr


# ------------------------------------------------------------------------------------ the system

WINDOWS = """
import sys
sys.platform, sys.modules["fcntl"] = "win32", None
{}
"""


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("from mae_convert.__main__ import main; main()", 3),
        ("from mae_convert import load_model", 1),
        ("from mae_convert.formats.write import write_file", 1),
    ],
)
def test_windows_is_refused_in_one_sentence_with_instructions(code, status):
    command = [sys.executable, "-c", WINDOWS.format(code), "layouts"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == status
    assert "runs on Linux and macOS, but not on Windows" in process.stderr.splitlines()[-1]
    assert ("Traceback" in process.stderr) == (status == 1)


def test_a_package_that_keras_can_do_without_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "optional_of_keras.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        worker.as_if_not_installed(("optional_of_keras", "json")),
        pytest.raises(ImportError, match="optional_of_keras"),
    ):
        import optional_of_keras
    assert sys.modules["json"] is json  # was imported before
    import optional_of_keras

    assert optional_of_keras.__file__ == str(tmp_path / "optional_of_keras.py")
    monkeypatch.delitem(sys.modules, "optional_of_keras")
