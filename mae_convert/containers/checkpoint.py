"""Opens what the user named: a file, or a directory with weights and their configuration."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mae_convert.containers.contents import reading
from mae_convert.containers.identify import read_contents
from mae_convert.containers.tensor import LazyTensor
from mae_convert.errors import CheckpointError

WEIGHTS_NAMES = ("model.safetensors", "tf_model.h5", "pytorch_model.bin", "model.weights.h5")
KERAS_SUFFIX = ".weights.h5"
OTHER_SUFFIXES = (".pth", ".pt", ".safetensors", ".h5", ".bin")
JSON_NAMES = ("config.json", "preprocessor_config.json", "conversion.json")
IMAGE_STATISTICS = ("image_mean", "image_std")


@dataclass(frozen=True)
class Container:
    """A checkpoint that is open: its tensors are read when they are asked for.

    Attributes:
        path: what the user named.
        kind: "pth", "safetensors", "tf_h5" (legacy Keras, as `tf_model.h5`), "keras_h5" (Keras 3's
            `.weights.h5`) or "npz".
        weights_file: the file that holds the tensors.
        tensors: by name, in stored order.
        config: `config.json` beside, or the configuration inside the file, as found; else None.
        config_source: where it was found, for a person.
        preprocessor: `preprocessor_config.json` beside, or `image_mean` and `image_std` of the
            configuration; else None.
        training_args: arguments of the training run that made the file, or None.
        conversion: the record of the conversion that made it, or None.
        ignored: what the file holds besides, by name, each with a short description.
        wrapper: "model", "state_dict", or None where nothing stands around the tensors.
        is_directory: the user named a directory.
    """

    path: Path
    kind: str
    weights_file: Path
    tensors: Mapping[str, LazyTensor]
    config: Mapping | None
    config_source: str | None
    preprocessor: Mapping | None
    training_args: Mapping | None
    conversion: Mapping | None
    ignored: Mapping[str, str]
    wrapper: str | None
    is_directory: bool


def open_container(path: Path | str) -> Container:
    """Open a file or a model directory; its content and not its suffix decides what it is.

    Raises:
        CheckpointError: it does not exist, is not a checkpoint, is damaged, would run code, or
            is a directory in which no file, or more than one, holds weights.
    """
    path = Path(path)
    is_directory = path.is_dir()
    weights_file = _find_weights(path) if is_directory else path
    contents = read_contents(weights_file)
    belongs = is_directory or _is_of_model_directory(path)
    beside, preprocessor, conversion = (
        _read_json(weights_file.with_name(name)) if belongs else None for name in JSON_NAMES
    )
    config = contents.config if beside is None else beside
    inside = f"{contents.config_place} of {weights_file.name}"
    return Container(
        path=path,
        kind=contents.kind,
        weights_file=weights_file,
        tensors=contents.tensors,
        config=config,
        config_source=None if config is None else "config.json" if beside is not None else inside,
        preprocessor=preprocessor or _image_statistics(config),
        training_args=contents.training_args,
        conversion=conversion or contents.conversion,
        ignored=contents.ignored,
        wrapper=contents.wrapper,
        is_directory=is_directory,
    )


def _find_weights(directory: Path) -> Path:
    """Return the one file with weights: one of a conventional name, else any checkpoint."""
    with reading(directory):
        files = sorted(path for path in directory.iterdir() if path.is_file())
    conventional = [path for path in files if _is_conventional(path)]
    found = conventional or [path for path in files if path.suffix in OTHER_SUFFIXES]
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:8])
        raise CheckpointError(
            f"{directory} holds {len(found)} files of weights ({names}{', …' * (len(found) > 8)}); "
            f"name the file itself, for instance {found[0]}"
        )
    if found:
        return found[0]
    shards = [path.name for path in files if path.name.endswith(".index.json")]
    if shards:
        raise CheckpointError(f"{directory} holds weights in parts ({shards[0]}); join them first")
    wanted = ", ".join((*WEIGHTS_NAMES, *(f"*{suffix}" for suffix in OTHER_SUFFIXES)))
    raise CheckpointError(f"{directory} holds no weights; looked for {wanted}; name the file")


def _is_conventional(path: Path) -> bool:
    return path.name in WEIGHTS_NAMES or path.name.endswith(KERAS_SUFFIX)


def _is_of_model_directory(path: Path) -> bool:
    """Tell whether what stands beside a file is about it, by the file's name."""
    if path.name in WEIGHTS_NAMES:
        return True
    return path.name.endswith(KERAS_SUFFIX) and list(path.parent.glob(f"*{KERAS_SUFFIX}")) == [path]


def _read_json(path: Path) -> dict | None:
    if not path.is_file():
        return None
    with reading(path):
        text = path.read_bytes()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); mend or remove it") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; mend or remove it")
    return value


def _image_statistics(config: Mapping | None) -> dict | None:
    if config is None or not all(name in config for name in IMAGE_STATISTICS):
        return None
    return {name: config[name] for name in IMAGE_STATISTICS}
