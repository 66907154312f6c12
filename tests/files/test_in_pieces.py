"""Large files in little memory and with few descriptors."""

import errno
import gc
import json
import os
import resource
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from mae_convert.checkpoint.inspect import statistics
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert import record
from mae_convert.convert.execute import execute, execute_all
from mae_convert.convert.plan import plan_conversion
from mae_convert.convert.target import Packing
from mae_convert.errors import CheckpointError, OutputError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.files.byte_ranges import ByteFile
from mae_convert.files.progress import Progress
from mae_convert.formats import open_container, write_file
from mae_convert.formats.dtypes import DTYPES, MeasuredRounding, rounded
from mae_convert.formats.tensor import LazyTensor

FLAGS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)


@pytest.fixture
def plain(case):
    return open_checkpoint(case("pretrain_tiny").checkpoint, FLAGS)


def test_chunked_statistics_equal_those_of_the_whole_tensor() -> None:
    values = np.random.default_rng(0).normal(3, 2, 10_000)
    values[[5, 17, 9_000]] = np.nan, np.inf, 0
    finite = values[np.isfinite(values)]
    for count in (1, 7, 100):
        result = statistics(np.array_split(values, count))
        assert (result["not_finite"], result["zeros"]) == (2, 1)
        assert (result["min"], result["max"]) == (finite.min(), finite.max())
        assert result["mean"] == pytest.approx(finite.mean(), rel=1e-13)
        assert result["std"] == pytest.approx(finite.std(), rel=1e-13)
    nothing = statistics([np.array([np.nan])])
    assert (nothing["not_finite"], nothing["mean"], nothing["std"]) == (1, 0.0, 0.0)


def peak(work) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_large_tensor_is_never_completely_in_memory(tmp_path: Path) -> None:
    """Statistics and rounding of a 200 MB tensor need less than a tenth of that memory."""
    shape = (50_000, 1_000)
    header = {"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 200_000_000]}}
    text = json.dumps(header).encode()
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 200_000_000)
    tensor = open_container(tmp_path / "x.safetensors").tensors["w"]
    assert peak(lambda: statistics(tensor.pieces())) < 20_000_000
    rounding = MeasuredRounding(DTYPES["float16"], 50_000_000)
    rounding.begin()
    half = tensor.mapped(rounding, rounding.dtype)
    assert peak(lambda: [None for _ in half.pieces()]) < 20_000_000


def test_the_rounding_that_is_recorded_is_that_of_each_tensor(tmp_path: Path, plain) -> None:
    made = execute(plan_conversion(plain, tmp_path / "x.pth", "facebook", dtype="float16"))
    for entry in made["tensors"].values():
        exact = [plain.tensors[name].load().astype(np.float64) for name in entry["canonical"]]
        away = [np.abs(rounded(x, DTYPES["float16"]).astype(np.float64) - x) for x in exact]
        assert entry["rounding"]["absolute"] == max(float(x.max()) for x in away)


def test_each_tensor_is_read_once_to_write_it_and_once_to_compare(
    tmp_path: Path, plain, monkeypatch
) -> None:
    read_names = []
    read = ByteFile.read_into

    def counted(file: ByteFile, buffer: memoryview, offset: int) -> None:
        if file.path == plain.path:
            read_names.append(len(buffer))
        read(file, buffer, offset)

    monkeypatch.setattr(ByteFile, "read_into", counted)
    execute(plan_conversion(plain, tmp_path / "x.pth", "facebook", dtype="float16"))
    held = sum(tensor.nbytes for tensor in plain.container.tensors.values())
    assert sum(read_names) <= plain.path.stat().st_size + 2 * held  # hashed, written, compared


def test_a_file_is_hashed_once_for_all_targets_and_shows_its_progress(
    tmp_path: Path, plain, monkeypatch
) -> None:
    class Recorded(Progress):
        def __init__(self) -> None:
            self.totals: list[int] = []
            self.counts: list[int] = []

        def begin(self, total: int) -> None:
            self.totals.append(total)
            self.counts.append(0)

        def advance(self, count: int) -> None:
            self.counts[-1] += count

    monkeypatch.setattr(record, "confirmed_by_hash", lambda source, md5: (md5(), source)[1])
    targets = [tmp_path / "a.pth", tmp_path / "b.pth"]
    progress = Recorded()
    plans = [plan_conversion(plain, target, "facebook") for target in targets]
    execute_all(plans, progress=progress)
    assert progress.totals[0] == plain.path.stat().st_size
    assert len(progress.totals) == 2  # the MD5, and the conversion
    assert progress.counts == progress.totals


@pytest.fixture
def few_descriptors():
    """Leave six free descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, before[1]))
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    for descriptor in taken[-6:]:
        os.close(descriptor)
    yield
    for descriptor in taken[:-6]:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors as Linux does")
class TestDescriptors:
    def test_more_shards_than_file_descriptors_are_reported_as_such(
        self, tmp_path, plain, request
    ) -> None:
        packing = Packing(max_shard_size=20_000)
        execute(plan_conversion(plain, tmp_path / "m", "transformers", packing=packing))
        request.getfixturevalue("few_descriptors")
        with pytest.raises(CheckpointError, match="too many files are open"):
            open_container(tmp_path / "m")

    def test_writing_more_shards_than_file_descriptors_is_refused(
        self, tmp_path, plain, few_descriptors
    ) -> None:
        packing = Packing(max_shard_size=20_000)
        plan = plan_conversion(plain, tmp_path / "m", "transformers", packing=packing)
        with pytest.raises((OutputError, CheckpointError), match="too many files are open"):
            execute(plan)
        assert not list(tmp_path.iterdir())

    def test_no_descriptor_is_left_open_on_a_full_disk(self, tmp_path, monkeypatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "ftruncate", full)
        tensor = LazyTensor.from_array("w", np.ones(3, np.float32))
        gc.collect()  # files of earlier tests
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            with pytest.raises(OutputError, match="no space left"):
                write_file(tmp_path / "x.safetensors", "safetensors", [tensor])
        assert len(list(Path("/proc/self/fd").iterdir())) == before
