"""How a model comes from a checkpoint and goes to one, as scripts for transformers ask for it."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mae_convert.checkpoint import Checkpoint, Flags
from mae_convert.errors import ConfigurationError
from mae_convert.heads import with_new_head
from mae_convert.in_memory.carried import Carried
from mae_convert.in_memory.loading import Wanted, make_model
from mae_convert.models.configuration import FIELDS, ViTMAEConfig, plain
from mae_convert.models.naming import source_named
from mae_convert.models.saving import push, save_into
from mae_convert.sources import open_source
from reference_models.configuration import ViTMAEConfig as ReferenceConfig

# What a caller may say of a checkpoint whatever it says itself.
SAYABLE = tuple(name for name in vars(Flags()) if name != "image_size")
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
    "state_dict",
    "add_pooling_layer",
)
HABITS = ("output_hidden_states", "output_attentions", "return_dict", "problem_type")


class Asked(NamedTuple):
    """What a call wants to have returned."""

    hidden_states: bool
    attentions: bool
    as_tuple: bool

    @property
    def flags(self) -> dict[str, bool]:
        """The arguments of a reference model."""
        return {
            "output_hidden_states": self.hidden_states,
            "output_attentions": self.attentions,
        }


def asked_for(
    config: Any,
    output_hidden_states: bool | None,
    output_attentions: bool | None,
    return_dict: bool | None,
    head_mask: Any = None,
) -> Asked:
    """Return what a call wants: what it says, else what the configuration says.

    Raises:
        NotImplementedError: heads are to be masked.
    """
    if head_mask is not None:
        raise NotImplementedError("heads cannot be masked here; leave head_mask out")

    def said(value: bool | None, name: str) -> bool:
        return bool(getattr(config, name) if value is None else value)

    return Asked(
        said(output_hidden_states, "output_hidden_states"),
        said(output_attentions, "output_attentions"),
        not said(return_dict, "return_dict"),
    )


def check_size(size: tuple[int, int], config: ReferenceConfig, interpolate: bool | None) -> None:
    """Raise ValueError for pictures (height, width) that the model takes only when it is told."""
    if size != config.image_hw and not interpolate:
        height, width = config.image_hw
        raise ValueError(
            f"Input image size ({size[0]}*{size[1]}) doesn't match model ({height}*{width});"
            " pass interpolate_pos_encoding=True to resample the position embeddings"
        )


def problem_type(config: ViTMAEConfig, *, whole_numbers: bool) -> str:
    """Return what a classifier is trained for, as transformers takes it where nothing is said.

    Args:
        config: its configuration.
        whole_numbers: whether the labels are so.
    """
    if config.problem_type:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return "single_label_classification" if whole_numbers else "multi_label_classification"


class PretrainedModel:
    """A model that is made of a checkpoint and written as one.

    Attributes:
        task: what it is for.
        layout: what `save_pretrained` writes.
        config_class: the class of its configuration.
    """

    task: ClassVar[str]
    layout: ClassVar[str]
    config_class = ViTMAEConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    config: Any
    carried: Any = None

    @classmethod
    def framework(cls) -> str:
        """Return the framework that it runs on."""
        raise NotImplementedError

    @classmethod
    def usual_dtype(cls) -> str | None:
        """Return the dtype of a model where none is asked for."""
        return "float32"

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, config: Any = None, **options: Any
    ) -> Any:
        """Return a model with the weights of a checkpoint.

        Every tensor is accounted for, and none is filled at random: an encoder alone is no
        pre-training model. A classifier's head is made new, of zeros, where ``num_labels`` asks
        for one.

        Args:
            pretrained_model_name_or_path: a file or directory, ``hf://owner/name[@revision]``, the
                name of an official checkpoint, or a repository ``owner/name`` on the Hub.
            config: a configuration whose fields are used.
            options: fields of the configuration; ``dtype`` (or ``torch_dtype``), ``device`` (or
                ``device_map``), ``revision``, ``subfolder``, ``ignore_mismatched_sizes``.

        Raises:
            MaeConvertError: the checkpoint cannot be read, or is not such a model.
            TypeError: an option that is not known.
        """
        options = {n: v for n, v in options.items() if n not in WITHOUT_EFFECT}
        source = source_named(pretrained_model_name_or_path, options)
        dtype = _dtype(options, cls.usual_dtype())
        device = options.pop("device", None) or _device(options.pop("device_map", None))
        anew = bool(options.pop("ignore_mismatched_sizes", False))
        told = options.pop("output_loading_info", False)
        changes = _changes(cls.task, config, options)
        said = {name: value for name, value in changes.items() if name in SAYABLE}
        checkpoint = open_source(source, Flags(**said))
        if cls.task == "classify":
            labels = changes.get("num_labels") if _names_labels(config, options) else None
            checkpoint = _with_head(checkpoint, labels, anew=anew)
        checkpoint = _with_free_fields(checkpoint, changes)
        size = _size(changes, checkpoint)
        model = make_model(
            checkpoint, Wanted(cls.framework(), cls.task, dtype, device, size, model_class=cls)
        )
        model.config.update(_habits(config, options))
        if cls.task == "classify" and (labels_of := _labels(config, options, model)):
            model.config.id2label = labels_of
        return (model, _loading_info()) if told else model

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        max_shard_size: int | None = None,
        **options: Any,
    ) -> None:
        """Write a model directory, as the classes of transformers 4 and 5 load it.

        What was written is read back and compared. Files of the same names are replaced.

        Args:
            save_directory: the directory, which is made if need be.
            push_to_hub: send it to the Hub afterwards, as `push_to_hub`.
            max_shard_size: write weights in parts of at most so many bytes.
            options: ``repo_id`` and what else `push_to_hub` takes; ``safe_serialization`` has no
                effect.

        Raises:
            MaeConvertError: the weights are not finite, or the directory cannot be written.
        """
        options.pop("safe_serialization", None)
        save_into(self, Path(save_directory), self.layout, self._carried(), max_shard_size)
        if push_to_hub:
            name = options.pop("repo_id", Path(save_directory).name)
            push(Path(save_directory), name, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Send the model to a repository on the Hub by one commit; return its address.

        To publish with a verification, a licence and a card, see ``mae-convert publish``.

        Args:
            repo_id: ``owner/name``; it is made if need be.
            options: ``commit_message``, ``private``, ``revision``, ``create_pr``.

        Raises:
            HubError: the Hub refuses.
            MissingRequirementError: the Hub cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "model"
            save_into(self, directory, self.layout, self._carried(), None)
            return push(directory, repo_id, **options)

    def _carried(self) -> Carried:
        carried = self.carried or Carried.nothing(self.config.num_channels)
        return replace(carried, labels=self.config.labels)


def _dtype(options: dict[str, Any], usual: str | None) -> str | None:
    """Return the name of the dtype that is asked for; "auto" is that of the checkpoint."""
    asked = options.pop("dtype", None) or options.pop("torch_dtype", None) or usual
    options.pop("torch_dtype", None)
    return None if asked == "auto" else str(getattr(asked, "name", asked)).removeprefix("torch.")


def _device(device_map: Any) -> str | None:
    if device_map is None or isinstance(device_map, str):
        return None if device_map in (None, "auto") else device_map
    if isinstance(device_map, Mapping) and set(device_map) == {""}:
        return str(device_map[""])
    raise ConfigurationError(f"a model is on one device here, not on {device_map!r}; name it")


def _changes(task: str, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
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


def _names_labels(config: Any, options: Mapping[str, Any]) -> bool:
    return config is not None or "num_labels" in options or bool(options.get("id2label"))


def _with_head(source: Checkpoint, num_labels: int | None, *, anew: bool) -> Checkpoint:
    """Return a classifier: the checkpoint's own, or a new head where that is asked for.

    Raises:
        ConfigurationError: there is no head and none is asked for; or another than is asked for.
    """
    if source.task != "classify":
        if num_labels is None:
            raise ConfigurationError(
                f"{source.name} has no classifier head; say num_labels to put a new one on it"
            )
        return with_new_head(source, num_labels)
    held = source.configuration.model.num_labels
    if num_labels in (None, held):
        return source
    if not anew:
        raise ConfigurationError(
            f"{source.name} has a head of {held} classes and not of {num_labels}; pass"
            " ignore_mismatched_sizes=True to put a new one in its place"
        )
    rest = {n: t for n, t in source.tensors.items() if not n.startswith("head.")}
    if "encoder.norm.weight" not in rest:
        raise ConfigurationError(
            f"{source.name} reads the mean of its patches, and has no norm for a class token; fine-"
            "tune it with its own head"
        )
    return with_new_head(replace(source, task="encoder", tensors=rest), num_labels)


def _with_free_fields(source: Checkpoint, changes: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint with the fields that concern training only as they are asked for.

    Raises:
        ConfigurationError: a field that belongs to the weights is to be another.
    """
    model = source.configuration.model
    for name, value in changes.items():
        ours = name in (*SAYABLE, *FREE, "image_size", "num_labels", "global_pool")
        if not ours and value != getattr(model, name):
            raise ConfigurationError(
                f"{name} is {getattr(model, name)} in {source.name} and cannot become {value};"
                " leave it out"
            )
    free = {name: value for name, value in changes.items() if name in FREE}
    configuration = replace(source.configuration, model=plain(model, **free))
    return replace(source, configuration=configuration)


def _size(changes: Mapping[str, Any], source: Checkpoint) -> tuple[int, int] | None:
    if "image_size" not in changes:
        return None
    return ReferenceConfig(
        image_size=changes["image_size"], patch_size=source.configuration.model.patch_size
    ).image_hw


def _habits(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    of_config = {name: getattr(config, name) for name in HABITS if hasattr(config, name)}
    return {**of_config, **{name: options[name] for name in HABITS if name in options}}


def _labels(config: Any, options: Mapping[str, Any], model: Any) -> Mapping[Any, str] | None:
    """Return the names of the classes: as they are given, else as the checkpoint says."""
    if options.get("id2label"):
        return dict(options["id2label"])
    if getattr(config, "labels", None):
        return dict(config.id2label)
    return dict(enumerate(model.carried.labels)) if model.carried.labels else None


def _loading_info() -> dict[str, list[str]]:
    """Return what transformers tells of names that did not fit; here they always do."""
    names = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return {name: [] for name in names}
