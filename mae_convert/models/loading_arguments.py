"""The arguments of `from_pretrained`: check them, and apply them to an opened checkpoint."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.convert.changes import with_new_head
from mae_convert.errors import ConfigurationError
from mae_convert.families.checkpoint_options import Flags, size_of_image
from mae_convert.models.transformers_config import FIELDS, plain

# Fields that an argument may override even if the checkpoint specifies them.
SAYABLE = tuple(name for name in vars(Flags()) if name not in ("image_size", "global_pool"))
# Fields that affect only training.
FREE = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")
# Arguments about how transformers loads a model, without an effect here.
WITHOUT_EFFECT = (
    "from_tf",
    "from_pt",
    "use_safetensors",
    "trust_remote_code",
    "low_cpu_mem_usage",
    "attn_implementation",
    "add_pooling_layer",
    "offload_folder",
    "offload_state_dict",
    "resume_download",
    "weights_only",
    "_fast_init",
)
# Arguments of transformers for features that are not supported; None and False are accepted.
REFUSED = (
    "adapter_kwargs",
    "gguf_file",
    "key_mapping",
    "kernel_config",
    "load_in_4bit",
    "load_in_8bit",
    "max_memory",
    "quantization_config",
    "tp_plan",
    "tp_size",
    "use_kernels",
)
OUTPUT_FIELDS = ("output_hidden_states", "output_attentions", "return_dict", "problem_type")


def without_loading_details(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` without the arguments that only control how transformers loads a model.

    Raises:
        ConfigurationError: an argument requests an unsupported feature.
    """
    for name in REFUSED:
        if options.get(name) not in (None, False):
            raise ConfigurationError(f"{name} is not supported", hint="leave it out")
    return {n: v for n, v in options.items() if n not in (*WITHOUT_EFFECT, *REFUSED)}


def dtype_of(options: dict[str, Any], default: str | None) -> Any:
    """Remove ``dtype`` and ``torch_dtype`` from the arguments, and return the requested dtype.

    The result is `default` if no dtype is requested. For "auto" the result is None, which stands
    for the dtype of the checkpoint.
    """
    asked = options.pop("dtype", None) or options.pop("torch_dtype", None) or default
    options.pop("torch_dtype", None)
    return None if isinstance(asked, str) and asked == "auto" else asked


def device_of(device_map: Any) -> str | None:
    """Return the single device of ``device_map``; None if it does not specify one.

    Raises:
        ConfigurationError: ``device_map`` distributes a model over several devices.
    """
    if device_map is None or isinstance(device_map, str):
        return None if device_map in (None, "auto") else device_map
    if isinstance(device_map, Mapping) and set(device_map) == {""}:
        return str(device_map[""])
    raise ConfigurationError(
        f"device_map {device_map!r} is not supported: a model is placed on a single device",
        hint='pass one device, such as "cuda"',
    )


def changes_of(task: str, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration fields that `config` and the arguments specify, by name.

    Arguments have precedence over `config`. Without a decoder (task "encoder" or "classify"), the
    fields of the decoder are left out.

    Raises:
        TypeError: an argument is not an argument of `from_pretrained`.
    """
    names = (*FIELDS, *OUTPUT_FIELDS, "id2label", "label2id")
    if unknown := sorted(options.keys() - set(names)):
        raise TypeError(
            f"from_pretrained has no argument {unknown[0]!r}; the configuration fields that it "
            f"accepts are {', '.join(FIELDS)}"
        )
    given = {name: getattr(config, name) for name in FIELDS if hasattr(config, name)}
    given |= {name: value for name, value in options.items() if name in FIELDS}
    if options.get("id2label"):
        given["num_labels"] = len(options["id2label"])
    if task != "pretrain":
        given = {name: value for name, value in given.items() if not name.startswith("decoder_")}
    return given


def names_labels(config: Any, options: Mapping[str, Any]) -> bool:
    """Return whether the arguments specify the number of classes."""
    return config is not None or "num_labels" in options or bool(options.get("id2label"))


def with_head(source: Checkpoint, num_labels: int | None, *, replace_head: bool) -> Checkpoint:
    """Return a classifier with the checkpoint's head or with a new head.

    The head is new if the checkpoint has none, or has one with another number of classes.

    Args:
        source: the checkpoint; the decoder of a pre-training model is dropped.
        num_labels: the number of classes; None for the number of the checkpoint's head.
        replace_head: whether an existing head may be replaced.

    Raises:
        ConfigurationError: the checkpoint has no head and `num_labels` is None, or its head has
            another number of classes and may not or cannot be replaced. It cannot be replaced in a
            model without a final encoder norm, such as a classifier with ``fc_norm``.
    """
    if source.task != "classify":
        if num_labels is None:
            raise ConfigurationError(
                f"{source.name} has no classifier head",
                hint="pass num_labels to add a new head",
            )
        return with_new_head(source, num_labels)
    held = source.configuration.model.num_labels
    if num_labels in (None, held):
        return source
    if not replace_head:
        raise ConfigurationError(
            f"{source.name} has a head for {held} classes, not for {num_labels}",
            hint="pass ignore_mismatched_sizes=True to replace it with a new head",
        )
    rest = {n: t for n, t in source.tensors.items() if not n.startswith("head.")}
    if "encoder.norm.weight" not in rest:
        raise ConfigurationError(
            f"{source.name} uses global average pooling and has no layer norm for the class token",
            hint=f"leave num_labels out to keep its head for {held} classes",
        )
    return with_new_head(replace(source, task="encoder", tensors=rest), num_labels)


def with_free_fields(source: Checkpoint, changes: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint with the requested values of fields that only affect training.

    Raises:
        ConfigurationError: the value requested for a field that callers cannot set differs from the
            value in the checkpoint.
    """
    model = source.configuration.model
    for name, value in changes.items():
        ours = name in (*SAYABLE, *FREE, "image_size", "num_labels", "global_pool", "fc_norm")
        if not ours and value != getattr(model, name):
            raise ConfigurationError(
                f"{name} is {getattr(model, name)} in {source.name} and cannot be set to {value}",
                hint="leave it out",
            )
    free = {name: value for name, value in changes.items() if name in FREE}
    configuration = replace(source.configuration, model=plain(model, **free))
    return replace(source, configuration=configuration)


def size_of(changes: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the height and width of images that new configuration values request, or None.

    Args:
        changes: the new values by the name of the field. If there is no ``image_size``, the result
            is None.
    """
    if "image_size" not in changes:
        return None
    return size_of_image(changes["image_size"])


def output_arguments(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that determine which outputs a model returns, and in which form.

    The value of an argument is taken from `options` or, if it is missing there, from `config`.
    """
    of_config = {name: getattr(config, name) for name in OUTPUT_FIELDS if hasattr(config, name)}
    return {**of_config, **{name: options[name] for name in OUTPUT_FIELDS if name in options}}


def labels_of(config: Any, options: Mapping[str, Any], model: Any) -> Mapping[Any, str] | None:
    """Return a dictionary from class numbers to names; None if there are no names.

    The names are ``id2label`` in `options`, else the labels of `config`, else the names in the
    checkpoint, which are part of the metadata of `model`.
    """
    if options.get("id2label"):
        return dict(options["id2label"])
    if getattr(config, "labels", None):
        return dict(config.id2label)
    return dict(enumerate(model.metadata.labels)) if model.metadata.labels else None


def loading_info() -> dict[str, list[str]]:
    """Return transformers' report about names that do not match.

    Its lists are always empty: a checkpoint whose tensor names match no layout is not loaded.
    """
    names = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return {name: [] for name in names}
