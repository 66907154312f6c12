"""The settings of training programs other than the original's, as configuration fields.

OpenMMLab's programs and EasyCV, made from them, keep their configuration as ``meta.cfg`` or
``meta.config``; solo-learn's keeps its own as the hyper-parameters of Lightning. Each gives plain
data; a field that it does not state, or states otherwise than as expected, is left out.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

Fields = Iterator[tuple[str, Any]]

# mmpretrain's VisionTransformer by the names of its sizes: the number of heads.
ARCHITECTURES = {
    "s": 8, "small": 8, "b": 12, "base": 12, "l": 16, "large": 16, "h": 16, "huge": 16,
    "deit-t": 3, "deit-tiny": 3, "deit-s": 6, "deit-small": 6, "deit-b": 12, "deit-base": 12,
}  # fmt: skip
# solo-learn's own factories of MAE: width, blocks and heads.
SOLO = {
    "vit_tiny": (192, 12, 12),
    "vit_small": (384, 12, 12),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}
# Its decoder has PyTorch's default epsilon, and its encoder 1e-6.
SOLO_DECODER_EPS = 1e-5
LARGEST_PIXEL = 255.0


def fields_of(arguments: Mapping[str, Any], geometry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the settings of these programs give, by configuration field.

    Args:
        arguments: the training arguments of a checkpoint.
        geometry: fields that the tensors' shapes give.

    Returns:
        Fields, and ``input_size`` and ``patch_size`` as in the original's arguments.
    """
    meta = _part(arguments, "meta")
    settings = _part(meta, "cfg") or _part(meta, "config")
    if _part(settings, "model"):
        return dict(_openmmlab(settings))
    if arguments.get("method") == "mae" and _part(arguments, "method_kwargs"):
        return dict(_solo(arguments, geometry))
    return {}


def conventions_by_names(names: Collection[str]) -> dict[str, Any]:
    """Return the fields that a program gives every model whose tensors have its names.

    solo-learn writes its settings beside the file (``args.json``), so that the file alone may hold
    none.

    Args:
        names: of all tensors in the file, as they are stored.
    """
    solo = "backbone.cls_token" in names and "decoder.decoder_pred.weight" in names
    if solo and any(name.startswith("classifier.") for name in names):
        return {"decoder_layer_norm_eps": SOLO_DECODER_EPS}
    return {}


def _openmmlab(settings: Mapping[str, Any]) -> Fields:
    model = _part(settings, "model")
    backbone, neck, head = (_part(model, name) for name in ("backbone", "neck", "head"))
    size = backbone.get("arch")
    heads = size.get("num_heads") if isinstance(size, Mapping) else backbone.get("num_heads")
    if isinstance(size, str):
        heads = ARCHITECTURES.get(size.lower())
    yield from _count("num_attention_heads", heads)
    yield from _count("decoder_num_attention_heads", neck.get("decoder_num_heads"))
    for name in ("img_size", "patch_size"):
        if name in backbone:
            yield ("input_size" if name == "img_size" else name), backbone[name]
    for holder, name in ((head, "norm_pix"), (model, "norm_pix_loss")):
        if isinstance(holder.get(name), bool):
            yield "norm_pix_loss", holder[name]
    for holder in (backbone, model):
        if isinstance(holder.get("mask_ratio"), float):
            yield "mask_ratio", holder["mask_ratio"]
    pixels = _part(model, "data_preprocessor") or _part(settings, "data_preprocessor")
    for name, field in (("mean", "image_mean"), ("std", "image_std")):
        if values := _numbers(pixels.get(name)):
            yield field, tuple(round(value / LARGEST_PIXEL, 6) for value in values)


def _solo(arguments: Mapping[str, Any], geometry: Mapping[str, Any]) -> Fields:
    backbone, method = _part(arguments, "backbone"), _part(arguments, "method_kwargs")
    width, depth, heads = SOLO.get(str(backbone.get("name")), (0, 0, 0))
    if (geometry.get("hidden_size"), geometry.get("num_hidden_layers")) == (width, depth):
        yield "num_attention_heads", heads
    yield from _count("decoder_num_attention_heads", method.get("decoder_num_heads"))
    yield "decoder_layer_norm_eps", SOLO_DECODER_EPS
    for name, kind in (("norm_pix_loss", bool), ("mask_ratio", float)):
        if isinstance(method.get(name), kind):
            yield name, method[name]
    kwargs = _part(backbone, "kwargs")
    for name, argument in (("img_size", "input_size"), ("patch_size", "patch_size")):
        if name in kwargs:
            yield argument, kwargs[name]


def _count(field: str, value: Any) -> Fields:
    if type(value) is int and value > 0:
        yield field, value


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, (list, tuple)) or not all(type(v) in (int, float) for v in values):
        return []
    return [float(value) for value in values]


def _part(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = settings.get(name)
    return part if isinstance(part, Mapping) else {}
