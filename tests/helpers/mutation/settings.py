"""Faults in configurations: a field that differs from the source's."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SettingFault:
    """A configuration whose fields are wrong.

    Attributes:
        name: field and value.
        model: the model of ``models.MODELS``.
        fields: the changed fields.
        flag: whether the compared outputs do not depend on the fields.
    """

    name: str
    model: str
    fields: dict[str, Any]
    flag: bool = False


FUNCTION: dict[str, tuple[Any, ...]] = {
    "layer_norm_eps": (1e-12, 1e-5, 1e-7, 1e-8, 1e-3, 9.9e-7, 2e-6),
    "hidden_act": ("gelu_new", "quick_gelu", "relu", "silu"),
    "num_attention_heads": (1, 2, 4, 6, 8, 12),
}
DECODER: dict[str, tuple[Any, ...]] = {
    "decoder_num_attention_heads": (1, 4, 8),
    "decoder_layer_norm_eps": (1e-5, 1e-12),
}
FLAGS: dict[str, tuple[Any, ...]] = {"norm_pix_loss": (True,), "mask_ratio": (0.5, 0.75, 0.61)}
PREPROCESSING: dict[str, tuple[Any, ...]] = {
    "image_mean": ([0.5, 0.5, 0.5], [0.406, 0.456, 0.485]),
    "image_std": ([0.5, 0.5, 0.5], [0.225, 0.224, 0.229]),
}
# Values that contradict the tensors: the file is refused when it is opened.
CONTRADICTED: dict[str, tuple[Any, ...]] = {
    "hidden_size": (32,),
    "num_hidden_layers": (2, 4),
    "intermediate_size": (96,),
    "patch_size": (4, 16),
    "num_channels": (1,),
    "image_size": (64, 224),
    "num_attention_heads": (5, 0, "three"),
    "layer_norm_eps": (0, -1e-6, "small"),
    "hidden_act": ("tanh",),
    "mask_ratio": (1.0, -0.1),
}


def setting_faults() -> Iterator[SettingFault]:
    """Yield every wrong value of every field of every model."""
    for model in ("pretrain", "encoder", "token", "avg"):
        fields = {**FUNCTION, **(DECODER if model == "pretrain" else {})}
        for field, values in fields.items():
            for value in values:
                yield SettingFault(f"{model}: {field} is {value}", model, {field: value})
        masked = {"pretrain": FLAGS, "encoder": {"mask_ratio": FLAGS["mask_ratio"]}}
        for field, values in {**masked.get(model, {}), **PREPROCESSING}.items():
            for value in values:
                name = f"{model}: {field} is {value}"
                yield SettingFault(name, model, {field: value}, flag=True)


def contradictions() -> Iterator[SettingFault]:
    """Yield wrong values with which a checkpoint is refused when it is opened."""
    for field, values in CONTRADICTED.items():
        for value in values:
            yield SettingFault(f"pretrain: {field} is {value}", "pretrain", {field: value})
