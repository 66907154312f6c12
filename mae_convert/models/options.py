"""What a caller of `from_pretrained` asks for, by the names of transformers, and what it means."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mae_convert.checkpoint.open import Checkpoint
from mae_convert.convert.new_head import with_new_head
from mae_convert.errors import ConfigurationError
from mae_convert.families.options import Flags
from mae_convert.models.configuration import FIELDS, plain
from mae_convert.values import size_of_image

# What a caller may say of a checkpoint whatever it says itself.
SAYABLE = tuple(name for name in vars(Flags()) if name not in ("image_size", "global_pool"))
# What concerns training only.
FREE = ("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range")
# How transformers is to load it, which here has one way.
WITHOUT_EFFECT = (
    "from_tf",
    "from_pt",
    "use_safetensors",
    "trust_remote_code",
    "low_cpu_mem_usage",
    "attn_implementation",
    "add_pooling_layer",
)
HABITS = ("output_hidden_states", "output_attentions", "return_dict", "problem_type")


def dtype_of(options: dict[str, Any], usual: str | None) -> Any:
    """Return the dtype that is asked for, in whatever form; "auto" is that of the checkpoint."""
    asked = options.pop("dtype", None) or options.pop("torch_dtype", None) or usual
    options.pop("torch_dtype", None)
    return None if isinstance(asked, str) and asked == "auto" else asked


def device_of(device_map: Any) -> str | None:
    """Return the one device that ``device_map`` names; None where it leaves the choice.

    Raises:
        ConfigurationError: it spreads a model over several.
    """
    if device_map is None or isinstance(device_map, str):
        return None if device_map in (None, "auto") else device_map
    if isinstance(device_map, Mapping) and set(device_map) == {""}:
        return str(device_map[""])
    raise ConfigurationError(
        f"a model is on one device here, not on {device_map!r}", hint="name it"
    )


def changes_of(task: str, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the configuration that a caller gives.

    Raises:
        TypeError: a name that is neither a field nor anything else that is known.
    """
    known = (*FIELDS, *HABITS, "id2label", "label2id")
    if unknown := sorted(options.keys() - set(known)):
        raise TypeError(f"from_pretrained knows no {unknown[0]!r}; fields are {', '.join(FIELDS)}")
    given = {name: getattr(config, name) for name in FIELDS if hasattr(config, name)}
    given |= {name: value for name, value in options.items() if name in FIELDS}
    if options.get("id2label"):
        given["num_labels"] = len(options["id2label"])
    if task != "pretrain":
        given = {name: value for name, value in given.items() if not name.startswith("decoder_")}
    return given


def names_labels(config: Any, options: Mapping[str, Any]) -> bool:
    """Return whether a caller says how many classes there are to be."""
    return config is not None or "num_labels" in options or bool(options.get("id2label"))


def with_head(source: Checkpoint, num_labels: int | None, *, anew: bool) -> Checkpoint:
    """Return a classifier: the checkpoint's own, or a new head where that is asked for.

    Raises:
        ConfigurationError: there is no head and none is asked for; or another than is asked for.
    """
    if source.task != "classify":
        if num_labels is None:
            raise ConfigurationError(
                f"{source.name} has no classifier head",
                hint="say num_labels to put a new one on it",
            )
        return with_new_head(source, num_labels)
    held = source.configuration.model.num_labels
    if num_labels in (None, held):
        return source
    if not anew:
        raise ConfigurationError(
            f"{source.name} has a head of {held} classes and not of {num_labels}",
            hint="pass ignore_mismatched_sizes=True to put a new one in its place",
        )
    rest = {n: t for n, t in source.tensors.items() if not n.startswith("head.")}
    if "encoder.norm.weight" not in rest:
        raise ConfigurationError(
            f"{source.name} reads the mean of its patches, and has no norm for a class token",
            hint="fine-tune it with its own head",
        )
    return with_new_head(replace(source, task="encoder", tensors=rest), num_labels)


def with_free_fields(source: Checkpoint, changes: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint with the fields that concern training only as they are asked for.

    Raises:
        ConfigurationError: a field that belongs to the weights is to be another.
    """
    model = source.configuration.model
    for name, value in changes.items():
        ours = name in (*SAYABLE, *FREE, "image_size", "num_labels", "global_pool", "fc_norm")
        if not ours and value != getattr(model, name):
            raise ConfigurationError(
                f"{name} is {getattr(model, name)} in {source.name} and cannot become {value}",
                hint="leave it out",
            )
    free = {name: value for name, value in changes.items() if name in FREE}
    configuration = replace(source.configuration, model=plain(model, **free))
    return replace(source, configuration=configuration)


def size_of(changes: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of the pictures that a caller asks for, or None."""
    if "image_size" not in changes:
        return None
    return size_of_image(changes["image_size"])


def habits_of(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a caller says of how outputs are returned."""
    of_config = {name: getattr(config, name) for name in HABITS if hasattr(config, name)}
    return {**of_config, **{name: options[name] for name in HABITS if name in options}}


def labels_of(config: Any, options: Mapping[str, Any], model: Any) -> Mapping[Any, str] | None:
    """Return the names of the classes: as they are given, else as the checkpoint says."""
    if options.get("id2label"):
        return dict(options["id2label"])
    if getattr(config, "labels", None):
        return dict(config.id2label)
    return dict(enumerate(model.carried.labels)) if model.carried.labels else None


def loading_info() -> dict[str, list[str]]:
    """Return what transformers tells of names that did not fit; here they always do."""
    names = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return {name: [] for name in names}
