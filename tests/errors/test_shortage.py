"""Too little memory, too few descriptors, a full disk: status 2 and one sentence."""

import errno
import resource
import subprocess
import sys

import pytest

from mae_convert.errors.shortage import shortage, too_little_address_space

MEMORY, FILES, DISK = "not enough memory", "too many files are open", "no space left"


def caused(cause, error):
    error.__cause__ = cause
    return error


ERRORS = [
    (MemoryError(), MEMORY),
    (MemoryError("Unable to allocate 3 PiB"), r"not enough memory \(Unable to allocate 3 PiB\)"),
    (OSError(errno.ENOMEM, "x"), MEMORY),
    (OSError(errno.EMFILE, "x"), FILES),
    (OSError(errno.ENOSPC, "x", "/a/b"), r"no space left on the disk \(/a/b\)"),
    (ImportError("libtorch.so: failed to map segment from shared object"), MEMORY),
    (caused(ImportError("x.so: cannot allocate memory"), ImportError("numpy is broken")), MEMORY),
    (RuntimeError("can't start new thread"), "no further process or thread"),
    (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    (ValueError("a mistake"), None),
    (ImportError("No module named 'torch'"), None),
    (FileNotFoundError(errno.ENOENT, "x"), None),
]


@pytest.mark.parametrize(("error", "message"), ERRORS, ids=lambda value: repr(value)[:40])
def test_error_names_the_exhausted_resource(error, message):
    result = shortage(error)
    assert (result is None) == (message is None)
    if message is not None:
        with pytest.raises(OSError, match=message):
            raise OSError(result)


def run(limit, value, *call, output=subprocess.PIPE):
    def limited():
        resource.setrlimit(limit, (value, value))

    command = [sys.executable, "-m", "mae_convert", *map(str, call)]
    return subprocess.run(
        command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        preexec_fn=limited,
    )  # fmt: skip


def in_one_sentence(result, message):
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("mae-convert: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.mark.parametrize("megabytes", [40, 100])
def test_too_little_address_space_is_reported(megabytes, monkeypatch, case):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    call = ("inspect", case("encoder_tiny").checkpoint, "--num-heads", 4)
    result = run(resource.RLIMIT_AS, megabytes << 20, *call)
    in_one_sentence(result, "address space")


def test_unlimited_address_space_is_accepted(monkeypatch):
    limits = {resource.RLIMIT_AS: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", limits.get)
    assert too_little_address_space() is None
    limits[resource.RLIMIT_AS] = (1 << 27, 1 << 27)
    for threads, fits in ((1, True), (2, False), (64, False)):
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", str(threads))
        assert (too_little_address_space() is None) == fits


def fewest_descriptors():
    """Return how many descriptors Python itself needs to start in this environment."""
    for number in range(4, 20):
        process = subprocess.run(
            [sys.executable, "-c", "pass"], stdin=subprocess.DEVNULL, capture_output=True,
            check=False, preexec_fn=lambda n=number: resource.setrlimit(
                resource.RLIMIT_NOFILE, (n, n)),
        )  # fmt: skip
        if process.returncode == 0 and not process.stderr:
            return number
    raise AssertionError("Python does not start with 19 descriptors")


@pytest.mark.parametrize("more", [0, 2, 4])
def test_too_few_descriptors_are_reported(more, tmp_path, case):
    descriptors = fewest_descriptors() + more
    call = (
        *("convert", case("encoder_tiny").checkpoint, tmp_path / "out", "--to", "transformers"),
        *("--num-heads", 4),
    )
    result = run(resource.RLIMIT_NOFILE, descriptors, *call)
    in_one_sentence(result, "oo many")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("call", [("layouts",), ("catalog", "--json"), ("--help",)])
def test_full_disk_behind_standard_output_is_reported(call):
    with open("/dev/full", "w") as full:  # noqa: PTH123 (a device)
        in_one_sentence(run(resource.RLIMIT_CORE, 0, *call, output=full), DISK)
