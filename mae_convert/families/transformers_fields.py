"""The fields of ``config.json`` in transformers: ViTMAEConfig, ViTConfig and their base class.

Versions 4 and 5 of transformers are covered. In both versions, an unknown field of the file becomes
an attribute of the configuration, so any part of the library may use it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.errors import ConfigurationError
from mae_convert.formats.directory import DISTRIBUTED
from mae_convert.formats.dtypes import DTYPES
from mae_convert.layouts.config_fields import (
    HARMLESS,
    NOTHING,
    READ,
    Only,
    Reported,
    Treatment,
    unknown_fields,
)
from mae_convert.text import shown

# What to do about an adapter.
MERGE = (
    "merge it into its base model first (peft: PeftModel.from_pretrained(base, adapter)"
    ".merge_and_unload().save_pretrained(DIR)) and convert DIR"
)
FUNCTION = (
    "decoder_hidden_size",
    "decoder_intermediate_size",
    "decoder_num_attention_heads",
    "decoder_num_hidden_layers",
    "hidden_act",
    "hidden_size",
    "id2label",
    "image_size",
    "intermediate_size",
    "layer_norm_eps",
    "mask_ratio",
    "norm_pix_loss",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "patch_size",
    "qkv_bias",
    # Fields of this project, which transformers ignores.
    "image_mean",
    "image_std",
    "key_bias",
)
CHECKED = ("architectures", "dtype", "model_type", "torch_dtype", "transformers_weights")
"""The fields that `check_config` compares with the weights."""
TRAINING = (
    "attention_probs_dropout_prob",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "initializer_range",
    "problem_type",
)
# Fields that affect only the form of outputs, or ViT's pooler and its head for masked images, which
# the supported models do not have; the tensors of a pooler are reported as not used.
FORM = (
    "chunk_size_feed_forward",
    "encoder_stride",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pooler_act",
    "pooler_output_size",
    "return_dict",
    "tie_last_hidden_states",
    "tie_word_embeddings",
    "torchscript",
)
ABOUT_THE_FILE = (
    "_commit_hash",
    "_name_or_path",
    "custom_pipelines",
    "name_or_path",
    "transformers_version",
)
# Fields for text models, which the classes of ViT ignore.
OF_TEXT = (
    "add_cross_attention",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "eos_token_id",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "is_decoder",
    "is_encoder_decoder",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "pad_token_id",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "target_lookbehind",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "typical_p",
    "use_cache",
)
# The library's own implementations of attention; any other value names code on the Hub.
ATTENTION = Reported((None, "eager", "sdpa", "flash_attention_2", "flash_attention_3",
                      "flex_attention"))  # fmt: skip
QUANTIZED = Only(
    (None, {}),
    "transformers then computes with quantized weights; load the model with transformers, write it "
    "with model.dequantize().save_pretrained(DIR), and use DIR",
)
FIELDS: Mapping[str, Treatment] = {
    **dict.fromkeys((*FUNCTION, *CHECKED), READ),
    **dict.fromkeys((*TRAINING, *FORM, *ABOUT_THE_FILE, *OF_TEXT), HARMLESS),
    "attn_implementation": ATTENTION,
    "_attn_implementation": ATTENTION,
    "_attn_implementation_autoset": HARMLESS,
    "_attn_implementation_internal": HARMLESS,  # version 5 does not read this field from a file
    "auto_map": Reported((None, {})),  # code, which trust_remote_code=True allows
    "compression_config": QUANTIZED,
    "per_layer_config": Only(
        NOTHING, "the field then changes single layers, which no supported layout can represent"
    ),
    "pruned_heads": Only(
        NOTHING,
        "transformers 4 removes these attention heads when it loads the model; load the model with "
        "transformers 4, write it with save_pretrained, and use that directory",
    ),
    "quantization_config": QUANTIZED,
    "use_bfloat16": Reported(NOTHING),
}


@dataclass(frozen=True)
class Classes:
    """The names in transformers' ``config.json`` that identify the class for a task."""

    model_types: tuple[str, ...]
    """The values of ``model_type`` for the class."""

    architectures: tuple[str, ...]
    """The class names in ``architectures``; with the prefix TF, they are TensorFlow classes."""

    fields: Mapping[str, Treatment] = field(default_factory=dict)
    """The treatment of fields that are not in `FIELDS`."""


def unknown_in_config(config: Mapping[str, Any], classes: Classes) -> tuple[str, ...]:
    """Return the fields of ``config.json`` whose effect on transformers' outputs is unknown.

    Args:
        config: the content of ``config.json``.
        classes: the classes for the task of the checkpoint.

    Raises:
        ConfigurationError: because of a field, transformers would compute other outputs than the
            reference model.
    """
    unknown = list(unknown_fields(config, {**FIELDS, **classes.fields}, "config.json"))
    if config.get("model_type") not in (None, *classes.model_types):
        unknown.append(f"model_type {shown(config['model_type'])}")
    named = config.get("architectures") or ()
    class_names = {prefix + name for name in classes.architectures for prefix in ("", "TF")}
    if named and not (isinstance(named, list) and {*map(str, named)} <= class_names):
        unknown.append(f"architectures {shown(named)}")
    return tuple(unknown)


def check_config(config: Mapping[str, Any], weights_file: Path, dtypes: Iterable[np.dtype]) -> None:
    """Check that the fields of ``config.json`` about the weights match the weights.

    Args:
        config: the content of ``config.json``.
        weights_file: the file that is read, or the index of several files.
        dtypes: the dtypes of the tensors in the file.

    Raises:
        ConfigurationError: transformers would load other weights, or round the weights.
    """
    others = (path.name for path in weights_file.parent.iterdir())
    if other := next((n for n in others if DISTRIBUTED.fullmatch(n)), None):
        raise ConfigurationError(
            f"{other} is in the directory of {weights_file.name}: transformers 5 then loads only "
            "the shards of the distributed checkpoint and ignores all other weights",
            hint=f"move the shards or {weights_file.name} to another directory",
        )
    named = config.get("transformers_weights")
    if named is not None and named != weights_file.name:
        raise ConfigurationError(
            f"transformers_weights in config.json is {shown(named)}: transformers loads this file, "
            f"but mae-convert reads {weights_file.name}",
            hint="remove one of the two files, and remove transformers_weights from config.json",
        )
    for name in ("dtype", "torch_dtype"):
        stored_dtype = str(config.get(name)).removeprefix("torch.")
        if config.get(name) is None or stored_dtype == "auto":
            continue
        if stored_dtype not in DTYPES:
            raise ConfigurationError(
                f"{name} in config.json is {shown(stored_dtype)}, which is not supported",
                hint=f"remove {name}, or use one of {', '.join(DTYPES)}",
            )
        wider = [dtype for dtype in dtypes if not _holds(DTYPES[stored_dtype], dtype)]
        if wider:
            raise ConfigurationError(
                f"{name} in config.json is {stored_dtype}, to which transformers 5 rounds the "
                f"weights when it loads them, but they are stored in {wider[0]}",
                hint=(
                    f"remove {name} from config.json to keep the weights unrounded, or load and "
                    "save the model with transformers to round them"
                ),
            )
        return


def _holds(wide: np.dtype, narrow: np.dtype) -> bool:
    return wide == narrow or np.can_cast(narrow, wide)


def without_default_labels(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``config.json`` without class names that are defaults (``LABEL_0``)."""
    named = stored.get("id2label")
    unnamed = isinstance(named, Mapping) and all(
        name == f"LABEL_{number}" for number, name in named.items()
    )
    return {k: v for k, v in stored.items() if k != "id2label" or not unnamed}


def labels_as_written(complete: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``id2label`` and ``label2id``; default class names are ``LABEL_0`` and so on.

    Args:
        complete: the configuration of a classifier.
    """
    unnamed = {str(index): f"LABEL_{index}" for index in range(complete["num_labels"])}
    labels = complete.get("id2label", unnamed)
    label2id = {label: int(index) for index, label in labels.items()}
    return {"id2label": labels, "label2id": label2id}
