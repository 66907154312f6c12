"""Small valid checkpoints of every format, and their mutations for `fuzz.py`."""

import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from fuzz_mutations import (
    spoil,
    spoil_description,
    spoil_header,
    spoil_in_place,
    spoil_in_zip,
    spoil_json,
    spoil_places,
    spoil_shapes,
)
from fuzz_proofs import write_proofs

from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.families.mae.schema import schema
from mae_convert.formats import LazyTensor, write_directory, write_file
from mae_convert.layouts.table import write_tensors
from reference_models.configuration import ViTMAEConfig

FORMATS = Path(__file__).resolve().parents[1] / "tests" / "data" / "torch_formats"
MODEL = ViTMAEConfig(
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    image_size=4,
    patch_size=2,
    decoder_hidden_size=4,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=6,
)
STORED_CONFIG = {
    **MODEL.to_dict(),
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "task": "pretrain",
    "dtype": "float32",
}

Spoiler = Callable[[bytes, random.Random], bytes]
# Most mutations keep the length, because a file in which offsets are shifted is usually refused.
HDF5 = (spoil_in_place, spoil_places, spoil_places)


@dataclass(frozen=True)
class Seed:
    """A valid checkpoint, and its mutations."""

    container: str
    """The name in the summary of `fuzz.py`: the checkpoint's format, or the corrupted file of a
    directory."""

    folder: Path
    """A folder with the checkpoint and its other files."""

    name: str
    """The name of the file that is corrupted."""

    opened: str
    """The name of the file that is opened, or "." for the folder."""

    spoilers: Sequence[Spoiler]
    """The functions that can corrupt the file; one of them is selected at random for each input."""

    def spoiled(self, number: int) -> bytes:
        """Return corrupted contents of the file, which depend only on `number`."""
        chance = random.Random(f"{self.container} {number}")
        data = (self.folder / self.name).read_bytes()
        try:
            return chance.choice(self.spoilers)(data, chance)
        except (ValueError, KeyError, IndexError, OSError):  # the mutation cannot write its result
            return spoil(data, chance)


def make_seeds(folder: Path) -> list[Seed]:
    """Write valid checkpoints of every format, and return them with their mutations."""
    makers = (_files, _packed_files, _hdf5_files, _torch_files, _directories, _proofs)
    return [seed for make in makers for seed in make(folder)]


def _tensors(layout: str) -> list[LazyTensor]:
    shapes = schema(MODEL, "pretrain")
    values = np.random.default_rng(0)
    canonical = {
        name: LazyTensor.from_array(name, values.standard_normal(shape, np.float32))
        for name, shape in shapes.items()
    }
    rules = LAYOUTS[layout].table_for("pretrain").expand(shapes)
    return write_tensors(canonical, [rule.bound(MODEL.num_attention_heads) for rule in rules])


def _file(folder: Path, container: str, *spoilers: Spoiler, name: str = "x") -> tuple[Path, Seed]:
    path = folder / container.replace(" ", "-") / name
    path.parent.mkdir(exist_ok=True)
    return path, Seed(container, path.parent, name, name, (spoil, *spoilers))


def _files(folder: Path) -> Iterator[Seed]:
    zipped = (spoil_in_zip, spoil_in_zip)
    for container, kind, layout, spoilers in (
        ("pth", "pth", "facebook", zipped),
        ("safetensors", "safetensors", "facebook", (spoil_header, spoil_header)),
        ("npz", "npz", "facebook", zipped),
        ("keras h5", "keras_h5", "keras", HDF5),
        ("tf h5", "tf_h5", "transformers-tf", HDF5),
    ):
        path, seed = _file(folder, container, *spoilers)
        write_file(path, kind, _tensors(layout), config=MODEL.to_dict(), conversion={"steps": []})
        yield seed
    path, seed = _file(folder, "keras archive", *zipped, name="x.keras")
    config = {**MODEL.to_dict(), "keras": LAYOUTS["keras"].write_config(STORED_CONFIG)}
    write_file(path, "keras_archive", _tensors("keras"), config=config)
    yield seed


def _packed_files(folder: Path) -> Iterator[Seed]:
    path, seed = _file(folder, "npz packed", spoil_in_zip)
    with path.open("wb") as stream:
        np.savez_compressed(stream, **{t.name: t.load() for t in _tensors("facebook")})
    yield seed
    path, seed = _file(folder, "pth packed", spoil_in_zip)
    with (
        zipfile.ZipFile(folder / "pth" / "x") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    yield seed


def _hdf5_files(folder: Path) -> Iterator[Seed]:
    """Yield seeds of HDF5 files: in the latest file format, and with compressed chunks."""
    for container, version, options in (
        ("h5 new", "latest", {}),
        ("h5 in chunks", "earliest", {"compression": "gzip", "shuffle": True, "fletcher32": True}),
    ):
        path, seed = _file(folder, container, *HDF5)
        with h5py.File(path, "w", libver=version, track_order=version == "latest") as file:
            for tensor in _tensors("keras"):
                array = tensor.load()
                chunks = {"chunks": tuple(max(1, n // 2) for n in array.shape)} if options else {}
                file.create_dataset(tensor.name, data=array, **options, **chunks)
            for number in range(12):  # more than fits into an object header
                file.attrs[f"attribute {number}"] = "a text"
            file.attrs["config"] = json.dumps(MODEL.to_dict())
        yield seed


def _torch_files(folder: Path) -> Iterator[Seed]:
    """Yield seeds of files that PyTorch 1.13 wrote, in the legacy format and as zip archives."""
    for kind, spoilers in (("legacy", (spoil_in_place,)), ("zip", (spoil_in_zip, spoil_in_zip))):
        for name in ("dict", "module"):
            path, seed = _file(folder, f"pth {kind} {name}", *spoilers)
            shutil.copy(FORMATS / f"1.13.0-{name}-{kind}-2.pth", path)
            yield seed


def _directories(folder: Path) -> Iterator[Seed]:
    """Yield a seed for each JSON file of a model directory; mutations will corrupt this file."""
    files = {
        "config.json": LAYOUTS["transformers"].write_config(STORED_CONFIG),
        "preprocessor_config.json": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        "conversion.json": {"steps": [{"step": "task", "from": "classify", "to": "encoder"}]},
    }
    index = "model.safetensors.index.json"
    for name in (*files, index):
        path = folder / name
        tensors, largest = _tensors("transformers"), 2000 if name == index else None
        write_directory(
            path, "model.safetensors", "safetensors", tensors, files, max_shard_size=largest
        )
        yield Seed(name, path, name, ".", (spoil_json, spoil_json, spoil))


def _proofs(folder: Path) -> Iterator[Seed]:
    """Yield seeds for both files of a certificate in a model directory, and for a trace.

    The model directory and the trace are first written into `folder`.
    """
    model, traces = folder / "certified", folder / "traces"
    traces.mkdir()
    files = {
        "config.json": LAYOUTS["transformers"].write_config(STORED_CONFIG),
        "conversion.json": {"steps": [{"step": "dtype", "from": ["float64"], "to": "float32"}]},
    }
    write_directory(model, "model.safetensors", "safetensors", _tensors("transformers"), files)
    write_proofs(model, traces)
    headers = (spoil_header, spoil_shapes, spoil_shapes)
    yield Seed(
        "verification.json", model, "verification.json", ".", (spoil_json, spoil_json, spoil)
    )
    yield Seed(
        "verification.safetensors", model, "verification.safetensors", ".", (*headers, spoil)
    )
    yield Seed("trace", traces, "x", "x", (*headers, *(spoil_description,) * 6, spoil))
