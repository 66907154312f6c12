"""What the ``keras`` layouts of all families have in common: rows of layers, and configurations.

Keras names a dataset by the attributes that lead to its layer and numbers the layer's variables in
the order of their creation: a dense layer has its kernel at 0 and its bias at 1, a norm gamma and
beta.
"""

import re
from collections.abc import Mapping
from typing import Any

from mae_convert.errors import ConfigurationError
from mae_convert.layouts.table import Drop, Row
from mae_convert.layouts.transforms import TRANSPOSE, Permute

PACKAGE = "reference_models"
KERNEL_2D = Permute((2, 3, 1, 0))  # of a convolution
KERNEL_3D = Permute((2, 3, 4, 1, 0))
STATE = "the optimizer's state"
OPTIMIZER = (
    Drop("optimizer/vars/*", STATE),
    # Around another one, as for training in mixed float16.
    Drop("optimizer/inner_optimizer/vars/*", STATE),
)


def dense(canonical: str, external: str) -> tuple[Row, Row]:
    """Return the rows of a dense layer: the kernel is the transposed weight."""
    return (
        Row(f"{canonical}.weight", f"{external}/vars/0", TRANSPOSE),
        Row(f"{canonical}.bias", f"{external}/vars/1"),
    )


def norm(canonical: str, external: str) -> Row:
    """Return the row of a layer normalisation."""
    return Row(canonical + ".{weight,bias}", external + "/vars/{0,1}")


BLOCK = (
    *dense(".attention.q", "/attention/query"),
    *dense(".attention.k", "/attention/key"),
    *dense(".attention.v", "/attention/value"),
    *dense(".attention.output", "/attention/projection"),
    *dense(".mlp.fc1", "/fc1"),
    *dense(".mlp.fc2", "/fc2"),
    norm(".norm1", "/norm1"),
    norm(".norm2", "/norm2"),
)


def archived_model(place: str, config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return ``config.json`` of a ``.keras`` file, of which Keras makes the model.

    It is what Keras 3 writes for a model that was not compiled.

    Args:
        place: "module:Class" of the model.
        config: the fields of its configuration.
        dtype: of the weights.
    """
    module, _, name = place.partition(":")
    return {
        "module": module,
        "class_name": name,
        "config": {
            "config": dict(config),
            "name": _snake_case(name),
            "dtype": {
                "module": "keras",
                "class_name": "DTypePolicy",
                "config": {"name": dtype},
                "registered_name": None,
            },
        },
        "registered_name": f"{PACKAGE}>{name}",
        "build_config": {"shapes_dict": {}},
        "compile_config": {},
    }


def _snake_case(name: str) -> str:
    """Return the name that Keras gives to a layer of a class."""
    words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def read_config(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a configuration tells; of a ``.keras`` file, what Keras makes the model of.

    What we keep beside it (image mean and deviation, names of classes) is added.

    Raises:
        ConfigurationError: ``config.json`` is not of our models' form, or the two disagree.
    """
    if "keras" not in stated:
        return dict(stated)
    theirs = archived(stated["keras"], "config", "config")
    ours = {name: value for name, value in stated.items() if name != "keras"}
    for name, value in theirs.items():
        if name in ours and ours[name] != value:
            raise ConfigurationError(
                f"Keras's config.json says {name} is {value}, but the metadata of its weights has "
                f"{ours[name]}",
                hint="write the file again with model.save",
            )
    return {**ours, **theirs}


def archived(stated: Any, *keys: str) -> Mapping[str, Any]:
    """Return the mapping at some keys of what Keras wrote as ``config.json``.

    Raises:
        ConfigurationError: there is none.
    """
    for key in keys:
        stated = stated.get(key) if isinstance(stated, Mapping) else None
    if not isinstance(stated, Mapping):
        raise ConfigurationError(
            f"Keras's config.json has no entry {'.'.join(keys)}",
            hint="write the file again with model.save",
        )
    return stated
