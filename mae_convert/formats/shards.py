"""Sharded weights, as transformers and the Hub store them: shards and a JSON index.

The index `model.safetensors.index.json` states the shard of each tensor, for example
`model-00001-of-00002.safetensors`. The index is named `pytorch_model.bin.index.json` for PyTorch's
own format, and `tf_model.h5.index.json` for the format of transformers' TensorFlow classes.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_convert.errors import CheckpointError
from mae_convert.files.byte_ranges import ByteFile, is_plain_name
from mae_convert.files.strict_json import check_document
from mae_convert.formats.contents import Contents, json_in
from mae_convert.formats.registry import PTH, SAFETENSORS, TF_H5
from mae_convert.formats.tensor import LazyTensor
from mae_convert.text import shown

SHARD = re.compile(r".+-(\d{5})-of-(\d{5})\.(safetensors|bin|h5)")
KINDS = (SAFETENSORS, PTH, TF_H5)


def read_sharded(index: Path, read: Callable[[Path], Contents]) -> Contents:
    """Read the shards that an index lists; the tensors are in the order of the shards.

    Args:
        index: the index file.
        read: reads one shard.

    Raises:
        CheckpointError: the index or a shard is damaged or missing, or a shard does not contain
            exactly the tensors that the index lists for it.
    """
    file = ByteFile(index)
    by_file = _read_index(file)
    missing = [name for name in by_file if not index.with_name(name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} lists {shown(missing[0])}, which is not in the same folder "
            f"({len(missing)} of {len(by_file)} shards are missing)",
            hint="copy or download the whole directory",
        )
    shards = {name: read(index.with_name(name)) for name in sorted(by_file)}
    kinds = {shard.kind for shard in shards.values()}
    if len(kinds) > 1 or not kinds <= set(KINDS):
        raise CheckpointError(
            f"the shards that {index} lists have the formats {', '.join(sorted(kinds))}, which "
            "cannot be read as one checkpoint",
            hint=f"they must all be {' or all '.join(KINDS)}",
        )
    if kinds == {TF_H5}:
        by_file = {name: set(map(_without_scope, listed)) for name, listed in by_file.items()}
    for name, shard in shards.items():
        if shard.wrapper is not None:
            raise CheckpointError(
                f"{index.with_name(name)} contains tensors under the key {shown(shard.wrapper)}, "
                "but a shard must have them at the top level",
                hint="write the model again with save_pretrained",
            )
        _check_tensors_of_shard(index, name, set(shard.tensors), by_file[name])
    if sum(map(len, by_file.values())) != len(set().union(*by_file.values())):
        raise CheckpointError(f"{index} lists a tensor in two shards", hint="download it again")
    first = next(iter(shards.values()))
    return Contents(
        kind=first.kind,
        tensors={name: t for shard in shards.values() for name, t in shard.tensors.items()},
        files=(file, *(part for shard in shards.values() for part in shard.files)),
        config=first.config,
        config_location=first.config_location,
        conversion=first.conversion,
        ignored={
            f"{name}: {what}": text
            for name, shard in shards.items()
            for what, text in shard.ignored.items()
        },
    )


def _read_index(file: ByteFile) -> dict[str, set[str]]:
    """Return the names of the tensors in each shard according to the index."""
    index, document = file.path, json_in(file, "download it again")
    check_document(document, "index", index, "it is not an index of weights; download it again")
    weight_map = document["weight_map"]
    by_file: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not is_plain_name(shard):
            raise CheckpointError(
                f"{index} assigns {shown(tensor)} to {shown(shard)}, which is not the name of a "
                "file in the same directory",
                hint="shards outside the directory are not read",
            )
        by_file.setdefault(shard, set()).add(tensor)
    return by_file


def _without_scope(name: str) -> str:
    """Return a name without its first component; names in TensorFlow shards lack this component."""
    return name.partition("/")[2]


def _check_tensors_of_shard(
    index: Path, shard: str, present: set[str], listed_names: set[str]
) -> None:
    absent, surplus = sorted(listed_names - present), sorted(present - listed_names)
    if absent or surplus:
        what = f"lacks {shown(absent[0])}" if absent else f"contains {shown(surplus[0])} too"
        raise CheckpointError(
            f"{index} and {shown(shard)} do not belong together: the shard {what}",
            hint="download both again",
        )


def split(tensors: Sequence[LazyTensor], largest: int) -> list[list[LazyTensor]]:
    """Return the tensors in shards of at most `largest` bytes, in order.

    A larger tensor gets its own shard.
    """
    parts: list[list[LazyTensor]] = []
    size = math.inf
    for tensor in tensors:
        if size + tensor.nbytes > largest:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.nbytes
    return parts


def shard_names(weights_name: str, count: int) -> list[str]:
    """Return the names of `count` shards: `model-00001-of-00002.safetensors` and so on.

    Args:
        weights_name: the name that the weights have in a single file, e.g. `model.safetensors`.
        count: the number of shards.
    """
    stem, dot, suffix = weights_name.rpartition(".")
    return [f"{stem}-{n:05d}-of-{count:05d}{dot}{suffix}" for n in range(1, count + 1)]


def index_of(shards: Mapping[str, Sequence[LazyTensor]]) -> dict[str, Any]:
    """Return the index of shards in transformers' format.

    Args:
        shards: the tensors of each shard, by the name of its file.
    """
    tensors = [tensor for shard in shards.values() for tensor in shard]
    return {
        "metadata": {
            "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
            "total_size": sum(tensor.nbytes for tensor in tensors),
        },
        "weight_map": {tensor.name: file for file, shard in shards.items() for tensor in shard},
    }
