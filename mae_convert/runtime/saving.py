"""Save a model as a checkpoint in any layout."""

from pathlib import Path
from typing import Any

from mae_convert.checkpoint.checkpoint import Checkpoint, Origin
from mae_convert.checkpoint.prefixes import as_stored
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.convert.target import Packing
from mae_convert.errors import MaeConvertError
from mae_convert.families import families
from mae_convert.families.checkpoint_options import name_of_dtype
from mae_convert.families.configuration import Configuration
from mae_convert.families.evidence import PREPROCESSING, same_size
from mae_convert.families.family import Family
from mae_convert.formats import Container, LazyTensor
from mae_convert.formats.dtypes import DTYPES
from mae_convert.layouts.table import external_shapes, read_tensors
from mae_convert.runtime.metadata import ModelMetadata

IN_MEMORY = "a model in memory"


def save_model(
    model: Any,
    target: str | Path,
    layout: str,
    *,
    dtype: Any = None,
    packing: Packing | None = None,
    metadata: ModelMetadata | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a reference model as a checkpoint, then read it back and compare every tensor.

    Args:
        model: a reference model of PyTorch or Keras. An instance of a subclass, or a model that is
            wrapped by ``torch.compile`` or ``DistributedDataParallel``, is also accepted.
        target: the directory or file to write.
        layout: the layout to write.
        dtype: round every tensor to this dtype; by default the dtypes of the model.
        packing: how the tensors are stored in files; default: ``Packing()``.
        metadata: the preprocessing and the class names; by default the metadata of the checkpoint
            that the model was loaded from or, for a new model, `ModelMetadata.default`.
        overwrite: replace an existing target.

    Returns:
        The conversion record.

    Raises:
        MaeConvertError: the model is not a reference model, its weights are not finite, or the
            layout does not support the model.
        OutputError: the target exists, or cannot be written.
    """
    name = name_of_dtype(dtype, tuple(DTYPES))
    source = checkpoint_of(model, metadata)
    plan = plan_conversion(source, Path(target), layout, dtype=name, packing=packing)
    return execute(plan, overwrite=overwrite)


def checkpoint_of(model: Any, metadata: ModelMetadata | None = None) -> Checkpoint:
    """Return a model in memory as an open checkpoint; a tensor is copied when it is read.

    Args:
        model: see `save_model`.
        metadata: see `save_model`.

    Raises:
        MaeConvertError: the model is not a reference model, or its tensors do not match its
            configuration.
    """
    model = unwrapped(model)
    family, framework, task = kind_of(model)
    layout = family.layout(family.model_layouts[framework])
    config = family.configuration_class.from_dict(model.config.to_dict())
    shapes = family.schema(config, task)
    table = layout.table_for(task, names=shapes)
    rules = tuple(table.expand(shapes))
    external = external_shapes(rules, shapes)
    tensors = _tensors(model, framework, list(external))
    if {name: tensor.shape for name, tensor in tensors.items()} != external:
        raise MaeConvertError(
            "the model's tensors do not match its configuration",
            hint="save the model with the configuration that it was created with",
        )
    canonical = read_tensors(tensors, rules)
    metadata = (
        metadata or getattr(model, "metadata", None) or ModelMetadata.default(config.num_channels)
    )
    return Checkpoint(
        container=_container(tensors, metadata),
        layout=layout,
        table=table,
        synonyms=(),
        task=task,
        configuration=_configuration(config, family, task, metadata),
        tensors={name: canonical[name] for name in shapes},
        rules=rules,
        dropped={},
        prefix=as_stored(external),
        origin=Origin(IN_MEMORY, {"name": IN_MEMORY, "loaded_from": metadata.name}),
        key_bias=metadata.key_bias,
    )


def unwrapped(model: Any) -> Any:
    """Return the model inside ``torch.compile`` or DistributedDataParallel wrappers."""
    for attribute in ("_orig_mod", "module"):
        inner = getattr(model, attribute, None)
        if hasattr(inner, "state_dict"):
            return unwrapped(inner)
    return model


def kind_of(model: Any) -> tuple[Family, str, str]:
    """Return the family of a reference model, its framework ("torch" or "keras") and its task.

    Raises:
        MaeConvertError: the model is not a reference model.
    """
    classes = [(base.__module__, base.__name__) for base in type(model).__mro__]
    for family in families().values():
        for framework in ("torch", "keras"):
            for task, class_path in family.models[framework].items():
                module, _, name = class_path.partition(":")
                if any(n == name and m.startswith(module.rpartition(".")[0]) for m, n in classes):
                    return family, framework, task
    raise MaeConvertError(
        f"{type(model).__name__} is not one of this project's models",
        hint="write its weights to a file and convert the file with `mae-convert convert`",
    )


def _tensors(model: Any, framework: str, names: list[str]) -> dict[str, LazyTensor]:
    if framework == "torch":
        from mae_convert.runtime import torch_model

        return torch_model.tensors_of(model)
    from mae_convert.runtime import keras_model

    tensors = keras_model.tensors_of(model, names)
    if len(tensors) != len(model.weights):
        raise MaeConvertError(
            f"the model has {len(model.weights)} weights, but its configuration describes "
            f"{len(tensors)}"
        )
    return tensors


def _container(tensors: dict[str, LazyTensor], metadata: ModelMetadata) -> Container:
    """Return a `Container` that has no file: the tensors and metadata of a model in memory."""
    return Container(
        path=Path(IN_MEMORY),
        kind="memory",
        weights_file=Path(IN_MEMORY),
        opened=(),
        tensors=tensors,
        config=None,
        config_source=None,
        preprocessor=metadata.preprocessor or None,
        training_args=None,
        conversion=None,
        ignored={},
        wrapper=None,
        state_key=None,
        is_directory=False,
    )


def _configuration(
    config: Any, family: Family, task: str, metadata: ModelMetadata
) -> Configuration:
    sources = dict.fromkeys(family.unspecified_fields(task), "the model's configuration")
    preprocessing_sources = {
        name: metadata.sources.get(name, "passed to save_model") for name in PREPROCESSING
    }
    # Fields that were assumed when the model was loaded remain assumptions, unless they were
    # changed afterwards.
    assumed = {
        name: entry
        for name, entry in metadata.assumptions.items()
        if name in sources
        and name not in PREPROCESSING
        and same_size(getattr(config, name)) == same_size(entry["value"])
    }
    return Configuration(
        config,
        metadata.image_mean,
        metadata.image_std,
        {
            **sources,
            **preprocessing_sources,
            **{name: entry["source"] for name, entry in assumed.items()},
        },
        metadata.labels if task == "classify" else None,
        {name: entry["assumption"] for name, entry in assumed.items()},
    )
