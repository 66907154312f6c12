"""The command line: exit statuses, one sentence on invalid input, and pure JSON output."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mae_convert.cli.main import cli
from mae_convert.cli.threads import limit_threads
from mae_convert.families.mae.layouts import LAYOUTS


@pytest.fixture
def pretrain(case):
    return case("pretrain_tiny")


@pytest.fixture
def converted(command, pretrain, tmp_path):
    target = tmp_path / "model"
    result = command(
        "convert", pretrain.checkpoint, target, "--to", "transformers", *pretrain.heads
    )
    assert result.status == 0, result.err
    return target


@pytest.mark.parametrize("name", cli.commands)
def test_every_command_has_a_sentence_and_an_example(name):
    text = cli.commands[name].help
    assert text.split("\n")[0].strip().endswith((".", ":")) or "\n\n" in text
    assert f"mae-convert {name}" in text.split("Example:")[1]


def test_commands_import_only_what_they_need(pretrain, tmp_path):
    code = """
import sys
from mae_convert.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "tensorflow", "keras", "jax", "transformers", "huggingface_hub"}
if sys.argv[1] == "--help":
    heavy |= {"numpy", "rich", "concurrent.futures", "mae_convert.runtime.job"}
if sys.argv[1] == "inspect":
    heavy |= {"ml_dtypes", "rich.console", "subprocess", "secrets"}
    heavy |= {"mae_convert.formats.write", "mae_convert.verify.lineage"}
loaded = heavy & set(sys.modules)
assert not loaded, loaded
"""
    chain = [
        ["--help"],
        ["inspect", pretrain.checkpoint, *pretrain.heads],
        ["convert", pretrain.checkpoint, tmp_path / "a", "--to", "transformers", *pretrain.heads],
        ["convert", tmp_path / "a", tmp_path / "b", "--to", "transformers-tf"],
        ["convert", tmp_path / "b", tmp_path / "c.weights.h5", "--to", "keras"],
        ["convert", tmp_path / "c.weights.h5", tmp_path / "d.npz", "--to", "facebook"],
        ["convert", tmp_path / "d.npz", tmp_path / "e.pth", "--to", "facebook"],
        ["diff", pretrain.checkpoint, tmp_path / "e.pth", *pretrain.heads],
        ["layouts"],
    ]
    for arguments in chain:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        assert process.returncode == 0, (arguments, process.stderr)


def test_commands_with_child_processes_do_not_limit_threads():
    for arguments in (["verify", "a", "b"], ["inspect", "a", "--infer"], ["--help"], []):
        environment = {}
        limit_threads(arguments, environment)
        assert environment == {}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux")
@pytest.mark.parametrize(("setting", "threads"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "2"}, "2")])
def test_inspect_starts_no_threads_unless_they_are_requested(setting, threads, pretrain):
    code = """
import os, sys
from mae_convert.__main__ import main
try:
    main()
finally:
    print(len(os.listdir("/proc/self/task")), file=sys.stderr)
"""
    command = [sys.executable, "-c", code, "inspect", pretrain.checkpoint, *pretrain.heads]
    env = {name: value for name, value in os.environ.items() if "NUM_THREADS" not in name}
    process = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=True, env=env | setting
    )
    assert process.stderr.strip() == threads


def test_inspect_reports_assumed_fields_and_their_sources(command, pretrain):
    report = command("inspect", pretrain.checkpoint, "--json", *pretrain.heads).json
    assert (report["layout"], report["task"], report["container"]) == (
        "facebook",
        "pretrain",
        "pth",
    )
    assert report["assumed"]["num_attention_heads"] == {"value": 4, "source": "option num_heads"}
    assert report["assumed"]["layer_norm_eps"]["source"] == "convention of the facebook layout"
    text = command("inspect", pretrain.checkpoint, *pretrain.heads).out
    assert "option --num-heads" in text
    assert "option num_heads" not in text
    assert report["tensors"] == 74
    assert report["dtypes"] == {"float32": 74}
    assert report["official"] is None
    assert report["bytes"] == 4 * report["parameters"]


def test_inspect_reports_the_known_fields_if_others_are_missing(command, pretrain):
    report = command("inspect", pretrain.checkpoint, "--json", "--stats").json
    missing = {field["field"]: field["option"] for field in report["missing"]}
    assert missing == {
        "num_attention_heads": "--num-heads",
        "decoder_num_attention_heads": "--decoder-num-heads",
    }
    assert {report["config"][name] for name in missing} == {None}
    assert not missing.keys() & report["assumed"].keys()
    assert report["config"]["image_size"] == 32
    assert report["assumptions"]["layer_norm_eps"]["assumption"] == "layout code"
    shown = command("inspect", pretrain.checkpoint)
    assert shown.status == 0
    assert "specify it with --decoder-num-heads (decoder_hidden_size 24 allows" in shown.out
    refused = command("convert", pretrain.checkpoint, "x.npz", "--to", "facebook")
    assert refused.status == 2
    assert "specify them with --num-heads and --decoder-num-heads" in refused.err
    assert refused.err.count("\n") == 1


def test_tensors_are_compared_if_fields_are_missing(command, pretrain, tmp_path):
    command("convert", pretrain.checkpoint, tmp_path / "a.npz", "--to", "facebook",
            *pretrain.heads)  # fmt: skip
    for pair in ((pretrain.checkpoint, tmp_path / "a.npz"), (pretrain.checkpoint,) * 2):
        result = command("diff", *pair, "--json").json
        sides = "A" if pair[0] != pair[1] else "A and B"
        assert result["same"]
        assert result["not_compared"]["num_attention_heads"] == sides
    assert "which is not specified for A and B" in command("diff", *pair).out


def test_inspect_shows_statistics_only_with_the_option(command, pretrain):
    plain = command("inspect", pretrain.checkpoint, "--json", *pretrain.heads).json
    full = command("inspect", pretrain.checkpoint, "--stats", "--json", *pretrain.heads).json
    assert "stats" not in plain
    assert full["stats"]["encoder.norm.weight"]["not_finite"] == 0


def test_several_targets_are_written_from_one_read_of_the_source(command, pretrain, tmp_path):
    other = f"transformers-tf={tmp_path / 'b'}"
    result = command(
        "convert", pretrain.checkpoint, tmp_path / "a", "--to", "transformers", "--to", other,
        *pretrain.heads, "--json",
    )  # fmt: skip
    assert [r["layout"] for r in result.json["conversions"]] == ["transformers", "transformers-tf"]
    assert command("diff", tmp_path / "a", tmp_path / "b").status == 0


def test_if_one_of_several_targets_fails_no_file_is_left(command, pretrain, tmp_path):
    result = command(
        "convert", pretrain.checkpoint, tmp_path / "a", "--to", "transformers",
        "--to", f"transformers-tf={tmp_path / 'no' / 'such'}", *pretrain.heads,
    )  # fmt: skip
    assert result.status == 2
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_needs_overwrite(command, pretrain, converted):
    again = ["convert", pretrain.checkpoint, converted, "--to", "transformers", *pretrain.heads]
    before = (converted / "model.safetensors").stat().st_mtime_ns
    result = command(*again)
    assert result.status == 2
    assert "--overwrite" in result.err
    assert (converted / "model.safetensors").stat().st_mtime_ns == before
    assert command(*again, "--overwrite").status == 0


def test_diff_names_the_tensor_and_the_field_that_differ(command, pretrain, converted, tmp_path):
    import safetensors.numpy

    assert command("diff", pretrain.checkpoint, converted, *pretrain.heads).status == 0
    path = converted / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["vit.layernorm.bias"][3] += 1
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((converted / "config.json").read_text())
    (converted / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-12}))
    result = command("diff", pretrain.checkpoint, converted, *pretrain.heads, "--json")
    assert result.status == 1
    assert [t["name"] for t in result.json["tensors"]] == ["encoder.norm.bias"]
    assert result.json["tensors"][0]["elements"] == 1
    assert result.json["configuration"] == {"layer_norm_eps": {"a": 1e-06, "b": 1e-12}}


def test_a_contradicting_flag_is_an_error_in_diff(command, converted):
    result = command("diff", converted, converted, "--num-heads", 8)
    assert result.status == 2
    assert "contradicts" in result.err


def test_layouts_shows_the_tables(command):
    listing = command("layouts").out
    assert all(name in listing for name in LAYOUTS)
    table = command("layouts", "transformers-tf").out
    assert "encoder.blocks.#.attention.q.weight" in table
    assert "transpose" in table
    assert command("layouts", "onnx").status == 2


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def evil_zip(path, command):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Evil(command)}, protocol=2))
        archive.writestr("archive/version", "3\n")


BAD_FILES = {
    "missing": (lambda path, raw: None, "does not exist"),
    "empty": (lambda path, raw: path.write_bytes(b""), "empty"),
    "junk": (lambda path, raw: path.write_bytes(bytes(range(1, 250)) * 30), "."),
    "truncated": (lambda path, raw: path.write_bytes(raw[: len(raw) // 2]), "truncated"),
    "a web page": (
        lambda path, raw: path.write_text("<!DOCTYPE html><html>404</html>"),
        "web page",
    ),
    "a pickle": (
        lambda path, raw: path.write_bytes(pickle.dumps(Evil("touch PWNED"), 2)),
        "system",
    ),
    "a pickle in a zip": (lambda path, raw: evil_zip(path, "touch PWNED"), "system"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_invalid_file_is_refused_in_one_sentence_and_no_file_is_left(
    command, pretrain, tmp_path, name
):
    make, word = BAD_FILES[name]
    path = tmp_path / "bad.pth"
    make(path, pretrain.checkpoint.read_bytes())
    result = command("convert", path, tmp_path / "out", "--to", "transformers", cwd=tmp_path)
    assert result.status == 2
    assert word.lower() in result.err.lower()
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    assert [p.name for p in tmp_path.iterdir() if p.name != "bad.pth"] == []


BAD_CALLS = [
    (["--to", "nonsense"], "unknown layout"),
    (["--to", "transformers", "--num-heads", "7"], "7 attention heads (--num-heads) do not divide"),
    (["--to", "transformers", "--num-heads", "0"], "0 is less than 1"),
    (["--to", "transformers", "--task", "paint"], "unknown task"),
    (["--to", "transformers", "--layer-norm-eps", "-1"], "invalid"),
    (["--to", "keras"], ".weights.h5"),
    (["--to", "transformers=elsewhere"], "--to"),
    (["--to", "transformers", "--source-image-size", "64"], "--source-image-size"),
]


@pytest.mark.parametrize(("arguments", "word"), BAD_CALLS)
def test_invalid_call_is_refused_in_one_sentence(command, pretrain, tmp_path, arguments, word):
    heads = [] if "--num-heads" in arguments else pretrain.heads
    result = command(
        "convert", pretrain.checkpoint, tmp_path / "out", *arguments, *heads, cwd=tmp_path
    )
    assert result.status == 2
    assert word in result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_reported_in_one_sentence(command, pretrain, tmp_path):
    """A limit on the size of files simulates a full disk."""
    import resource

    command = [
        sys.executable, "-m", "mae_convert", "convert", str(pretrain.checkpoint),
        str(tmp_path / "out"), "--to", "transformers", *pretrain.heads,
    ]  # fmt: skip
    process = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "cannot be written" in process.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_framework_is_named_with_installation_instructions(
    command, pretrain, converted, tmp_path
):
    environment = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    result = command(
        "verify", pretrain.checkpoint, converted, *pretrain.heads, "--python-b", python
    )
    assert result.status == 3
    assert "pip install" in result.err
    assert "tensorflow" in result.err


def test_closed_pipe_is_not_an_error(pretrain):
    command = (
        f"{sys.executable} -m mae_convert layouts transformers | head -1; exit ${{PIPESTATUS[0]}}"
    )
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr


def test_no_target_is_replaced_before_all_targets_can_be_written(
    command, pretrain, converted, tmp_path
):
    before = (converted / "model.safetensors").read_bytes()
    for more in (["--dtype", "bfloat16"], []):
        target = tmp_path / ("k.weights.h5" if more else "no/k.weights.h5")
        result = command(
            "convert", pretrain.checkpoint, converted, "--to", "transformers",
            "--to", f"keras={target}", "--overwrite", *more, *pretrain.heads,
        )  # fmt: skip
        assert result.status == 2
        assert (converted / "model.safetensors").read_bytes() == before


DISGUISED = """
import os, signal, sys
from mae_convert.checkpoint import inspect as inspection
from mae_convert.cli import main as cli
def look(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise {error} from None
signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest in the background ignores it
inspection.inspect = look
cli.main(["inspect", *sys.argv[1:]])
"""


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "RuntimeError('of C')", "OSError(5, 'x')"])
def test_interrupt_converted_to_another_error_is_still_reported_as_interrupt(pretrain, error):
    code = DISGUISED.format(error=error)
    command = [sys.executable, "-c", code, pretrain.checkpoint, *pretrain.heads]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (130, "mae-convert: interrupted\n")


FORGOTTEN = """
import os, signal, sys, time
from mae_convert.checkpoint import inspect as inspection
from mae_convert.cli import main as cli
class Gone:
    def __del__(self):  # in which Python ignores what is raised
        os.kill(os.getpid(), signal.{name})
        time.sleep(0.1)
def look(*_, **__):
    del Gone.last
    time.sleep(10)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what runs pytest may ignore it
Gone.last = Gone()
inspection.inspect = look
cli.main(["inspect", *sys.argv[1:]])
"""


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "ended by SIGTERM")],
)
def test_interrupt_in_a_destructor_or_thread_is_raised_again(pretrain, name, status, words):
    code = FORGOTTEN.format(name=name)
    command = [sys.executable, "-c", code, pretrain.checkpoint, *pretrain.heads]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (status, f"mae-convert: {words}\n")


INSISTENT = """
import os, signal, sys, threading, time
from mae_convert.checkpoint import inspect as inspection
from mae_convert.cli import main as cli
class Gone:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
class Thread(threading.Thread):
    def start(self):  # the one that sends the signal again, while the hook of Python runs
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        super().start()
def look(*_, **__):
    threading.Thread = Thread
    try:
        del Gone.last
        time.sleep(10)
    finally:  # what is cleaning up is not interrupted by a second request
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        sys.stderr.write("cleaned up\\n")
signal.signal(signal.SIGTERM, signal.SIG_DFL)
Gone.last = Gone()
inspection.inspect = look
cli.main(["inspect", *sys.argv[1:]])
"""


def test_signals_during_signal_handling_neither_get_lost_nor_prevent_cleanup(pretrain):
    command = [sys.executable, "-c", INSISTENT, pretrain.checkpoint, *pretrain.heads]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.stderr == "cleaned up\nmae-convert: ended by SIGTERM\n"
    assert process.returncode == 143


def test_an_option_without_effect_on_the_task_is_listed(command, pretrain):
    shown = command("inspect", pretrain.checkpoint, "--global-pool", "avg", *pretrain.heads)
    assert shown.status == 0
    assert shown.err == "note: --global-pool has no effect on a model for the task pretrain\n"
    pair = command("diff", pretrain.checkpoint, pretrain.checkpoint, "--mask-ratio", "0.5",
                   "--global-pool", "avg", *pretrain.heads)  # fmt: skip
    assert pair.err == "note: --global-pool has no effect on a model for the task pretrain\n"
