"""Loading and saving of models, with the interface of transformers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.errors import ConfigurationError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.files.staging import scratch_directory
from mae_convert.models.loading_arguments import (
    SAYABLE,
    changes_of,
    device_of,
    dtype_of,
    labels_of,
    loading_info,
    names_labels,
    output_arguments,
    size_of,
    with_free_fields,
    with_head,
    without_loading_details,
)
from mae_convert.models.model_names import source_named
from mae_convert.models.save_pretrained import push, push_arguments, save_into
from mae_convert.models.transformers_config import ViTMAEConfig, check_problem_type
from mae_convert.models.transformers_errors import raising_as_transformers
from mae_convert.runtime.loading import ModelRequest, make_model
from mae_convert.runtime.metadata import ModelMetadata
from mae_convert.sources import open_source
from reference_models.configuration import ViTMAEConfig as ReferenceConfig

SAVING = ("is_main_process", "state_dict", "push_to_hub", "max_shard_size")


class RequestedOutputs(NamedTuple):
    """The outputs that a call requests."""

    hidden_states: bool
    attentions: bool
    as_tuple: bool

    @property
    def flags(self) -> dict[str, bool]:
        """Arguments with which the reference model's ``forward`` returns the requested outputs."""
        return {
            "output_hidden_states": self.hidden_states,
            "output_attentions": self.attentions,
        }


def requested_outputs(
    config: Any,
    output_hidden_states: bool | None,
    output_attentions: bool | None,
    return_dict: bool | None,
    head_mask: Any = None,
) -> RequestedOutputs:
    """Return the outputs that a call requests.

    If an argument is None, the value in the configuration is used.

    Raises:
        NotImplementedError: head_mask is not None.
    """
    if head_mask is not None:
        raise NotImplementedError("masking heads is not supported; leave head_mask out")

    def value_or_configured(value: bool | None, name: str) -> bool:
        return bool(getattr(config, name) if value is None else value)

    return RequestedOutputs(
        value_or_configured(output_hidden_states, "output_hidden_states"),
        value_or_configured(output_attentions, "output_attentions"),
        not value_or_configured(return_dict, "return_dict"),
    )


def usable_size(
    size: tuple[int, int], config: ReferenceConfig, interpolate: bool | None, *, whole: bool
) -> tuple[int, int]:
    """Return the height and width of the part of an image that is used.

    As in transformers, pixels below and to the right of the last whole patch are ignored.

    Args:
        size: height and width of the image.
        config: the configuration of the model.
        interpolate: whether position embeddings are resampled for an image of another size.
        whole: whether every pixel must be in a patch, as for a reconstruction.

    Raises:
        ValueError: the size differs from the model's, and ``interpolate`` is not True; or the image
            is smaller than a patch; or ``whole`` is true and a patch is incomplete.
    """
    if size == config.image_hw:
        return size
    if not interpolate:
        height, width = config.image_hw
        raise ValueError(
            f"Input image size ({size[0]}*{size[1]}) doesn't match model ({height}*{width});"
            " pass interpolate_pos_encoding=True to resample the position embeddings"
        )
    rows, columns = (side - side % patch for side, patch in zip(size, config.patch_hw, strict=True))
    if 0 in (rows, columns) or (whole and (rows, columns) != size):
        height, width = config.patch_hw
        raise ValueError(
            f"Input image size ({size[0]}*{size[1]}) is not a multiple of the patch size"
            f" ({height}*{width}); resize or crop the images"
        )
    return rows, columns


def problem_type(config: ViTMAEConfig, *, whole_numbers: bool) -> str:
    """Return the problem type of a classifier, as transformers determines it.

    Args:
        config: the configuration of the classifier.
        whole_numbers: whether the labels are integers.

    Raises:
        ValueError: the configured type is invalid, or needs several classes but the model has one.
    """
    if config.problem_type:
        check_problem_type(config.problem_type, config.num_labels)
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    return "single_label_classification" if whole_numbers else "multi_label_classification"


class PretrainedModel:
    """A model that can be loaded from a checkpoint and saved as a checkpoint.

    Attributes:
        task: "pretrain", "encoder" or "classify".
        layout: the layout that `save_pretrained` writes.
        config_class: the class of the model's configuration.
    """

    task: ClassVar[str]
    layout: ClassVar[str]
    config_class = ViTMAEConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    config: Any
    metadata: Any = None
    name_or_path = ""

    @classmethod
    def runs_on(cls) -> str:
        """Return the framework of the model: "torch", "tensorflow" or "jax"."""
        raise NotImplementedError

    @classmethod
    def default_dtype(cls) -> str | None:
        """Return the name of the dtype that `from_pretrained` uses by default.

        None stands for the dtype of the checkpoint.
        """
        return "float32"

    @classmethod
    @raising_as_transformers()
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, config: Any = None, **options: Any
    ) -> Any:
        """Return a model with the weights of a checkpoint.

        Every tensor is used or reported, and no parameter is initialized at random: an encoder
        alone cannot be loaded as a pre-training model. A new classifier head, initialized with
        zeros, is created if ``num_labels`` requires it.

        Args:
            pretrained_model_name_or_path: a file or directory, ``hf://owner/name[@revision]``, the
                name of an official checkpoint, or a repository ``owner/name`` on the Hub.
            config: a configuration, whose fields have the same effect as fields in ``options``; the
                fields in ``options`` have precedence. None to use the checkpoint's own fields.
            options: fields of the configuration; ``dtype`` (or ``torch_dtype``), ``device`` (or
                ``device_map``), ``revision``, ``subfolder``, ``ignore_mismatched_sizes``;
                ``mmap``, as in `mae_convert.load_model`. With ``output_loading_info``, the result
                is a pair of the model and a dictionary of unmatched tensor names.

        Raises:
            MaeConvertError: the checkpoint is missing or cannot be read (the error is also an
                OSError), or it is not a checkpoint that this class can load (the error is also a
                ValueError and a RuntimeError).
            TypeError: an option is unknown, or a ``state_dict`` is passed.
        """
        if options.pop("state_dict", None) is not None:
            raise TypeError(
                "from_pretrained does not accept a state_dict; call load_state_dict on the model"
                " that it returns"
            )
        options = without_loading_details(options)
        source = source_named(pretrained_model_name_or_path, options)
        dtype = dtype_of(options, cls.default_dtype())
        device = options.pop("device", None) or device_of(options.pop("device_map", None))
        replace_head = bool(options.pop("ignore_mismatched_sizes", False))
        with_info = options.pop("output_loading_info", False)
        mapped = options.pop("mmap", None)
        changes = changes_of(cls.task, config, options)
        specified = {name: value for name, value in changes.items() if name in SAYABLE}
        if "global_pool" in options:  # not from `config`, in which the field always has a value
            specified["global_pool"] = options["global_pool"]
        checkpoint = open_source(source, Flags(**specified), incomplete=True)
        cls._check_family(checkpoint)
        if cls.task == "classify":
            count = changes.get("num_labels") if names_labels(config, options) else None
            checkpoint = with_head(checkpoint, count, replace_head=replace_head)
        checkpoint = with_free_fields(checkpoint, changes)
        size = size_of(changes)
        wanted = ModelRequest(
            cls.runs_on(), cls.task, dtype, device, size, model_class=cls, mmap=mapped
        )
        model = make_model(checkpoint, wanted)
        model.config.update(output_arguments(config, options))
        if getattr(config, "gradient_checkpointing", False):
            model.gradient_checkpointing_enable()
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        if cls.task == "classify" and (labels := labels_of(config, options, model)):
            model.config.id2label = labels
        return (model, loading_info()) if with_info else model

    @classmethod
    def _check_family(cls, checkpoint: Checkpoint) -> None:
        """Raise ConfigurationError for models of families other than the image MAE."""
        if not isinstance(checkpoint.configuration.model, ReferenceConfig):
            raise ConfigurationError(
                f"{checkpoint.name} is a model of {checkpoint.family.title}, but {cls.__name__} is"
                " a class for masked autoencoders of single images",
                hint="load it with mae_convert.load_model",
            )

    @raising_as_transformers()
    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Any] | None = None,
        *,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = None,
        **options: Any,
    ) -> None:
        """Write a model directory that the classes of transformers 4 and 5 can load.

        The result is read back and compared. Existing files with the same names are replaced.

        Args:
            save_directory: the directory, which is created if needed.
            is_main_process: False in the other processes of a distributed run, which write nothing.
            state_dict: in PyTorch, the weights to write instead of the model's weights.
            push_to_hub: also upload the directory to the Hub; see `push_to_hub`.
            max_shard_size: the maximum size of a weights file, as a number of bytes or a text such
                as "200MB"; larger weights are written in shards. None to write a single weights
                file.
            options: ``repo_id`` (default: the name of the directory) and further arguments of
                `push_to_hub`; ``safe_serialization`` has no effect.

        Raises:
            MaeConvertError: the weights are not finite, the directory cannot be written, or an
                option is not supported.
            TypeError: an option is unknown.
        """
        specified = push_arguments(options, "save_pretrained", *SAVING, "repo_id")
        if not is_main_process:
            return
        model = self if state_dict is None else self._with_weights(state_dict)
        save_into(model, Path(save_directory), self.layout, self._metadata(), max_shard_size)
        if push_to_hub:
            name = options.get("repo_id") or Path(save_directory).absolute().name
            push(Path(save_directory), name, **specified)

    @raising_as_transformers()
    def push_to_hub(
        self, repo_id: str, *, max_shard_size: int | str | None = None, **options: Any
    ) -> str:
        """Upload the model to a repository on the Hub in one commit; return the commit's URL.

        No model card is written: ``mae-convert publish`` uploads a model with a card, its
        verification and a licence.

        Args:
            repo_id: ``owner/name``; it is created if needed.
            max_shard_size: as in `save_pretrained`.
            options: ``commit_message``, ``commit_description``, ``private``, ``revision``,
                ``create_pr`` (open a pull request and return its URL).

        Raises:
            ConfigurationError: an option is not supported.
            HubError: the Hub refuses the request.
            MissingRequirementError: the Hub cannot be reached.
            TypeError: an option is unknown.
        """
        specified = push_arguments(options, "push_to_hub", "max_shard_size")
        with scratch_directory() as folder:
            directory = folder / "model"
            save_into(self, directory, self.layout, self._metadata(), max_shard_size)
            return push(directory, repo_id, **specified)

    def _with_weights(self, state_dict: Mapping[str, Any]) -> Any:
        """Return a model of the same configuration with the weights of a state dict.

        Raises:
            ConfigurationError: the framework has no state dicts.
        """
        del state_dict
        raise ConfigurationError(
            "a Keras model has no state_dict",
            hint="set the weights of the model, and leave state_dict out",
        )

    def _metadata(self) -> ModelMetadata:
        metadata = self.metadata or ModelMetadata.default(self.config.num_channels)
        return replace(metadata, labels=self.config.labels)
