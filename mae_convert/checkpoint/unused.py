"""Distinguish tensors that can be dropped from tensors on which a model's outputs depend.

A file may contain a complete model and tensors of a larger program: heads, projectors, copies,
another decoder. Such tensors are dropped, each with a reason. Additional tensors in the modules of
the model itself (a layer scale in a block, a norm in the attention), and some tensors elsewhere
(register tokens), change the outputs of the model and are never dropped.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mae_convert.layouts.transforms import Shape

Path = tuple[str, ...]

# Patterns for the beginning of a tensor's name below the model's root, and why such a tensor can be
# dropped; case-insensitive.
HARMLESS = (
    (
        r"vis_mask_token$",
        "the token by which UM-MAE replaces some visible patches during pre-training; MAE "
        "encodes all visible patches, so the pre-training losses of MAE and UM-MAE differ",
    ),
    (r"(.*[._/])?mask_tokens?(:0)?$", "a mask token that MAE does not use"),
    (r"(dec|decoder|decoders)([._/\d]|$)", "part of a decoder other than MAE's"),
    (
        r"wfm[._/]",
        "part of CrossMAE's decoder: the weights that combine the encoder's intermediate outputs",
    ),
    (
        r"(up|upsample|upsampling|proj_up|up_?block|up_conv|up_norm|fpn|fcn)\w*[._/]",
        "upsampling layers in addition to the MAE, as in SatMAE++ (which predicts larger images)",
    ),
    (r"pooler[._/]", "a pooler, which MAE does not have (transformers initializes it at random)"),
    (
        r"(\w*_)?(ema|momentum|target|teacher|moving_average)(_\w+)?[._/]",
        "part of a copy of the model (moving average, momentum or teacher)",
    ),
    (
        r"(\w*_)?(projector|predictor|projection_head|prediction_head|prototypes?|queue\w*|ssl_head"
        r"|dino_head|ibot_head|contrastive\w*|byol\w*)([._/]|$)",
        "part of another self-supervised objective",
    ),
    (
        r"(\w*_)?(discriminator|gan\w*|generator|perceptual\w*|lpips|vgg)[._/]",
        "part of another objective (a discriminator or a perceptual loss)",
    ),
    (
        r"(\w*_)?(head|heads|classifier|classifiers|online_classifier|linear_probe|probe|knn\w*"
        r"|online_\w+)(_\w+)?([._/]|$)",
        "a head that is not part of the model that is read",
    ),
    (
        r"(\w*_)?(text|language|bert|gpt|llm|audio|speech|tabular)(_\w+)?[./]",
        "part of a model of another modality",
    ),
    (r"(\w*_)?(loss|criterion|metrics?|meter)\w*([._/]|$)", "part of a loss or a metric"),
    (
        r"(logit_scale|logit_bias|temperature|temp|log_vars?|loss_weights?)$",
        "a scalar that only a loss uses",
    ),
)
# Tensors in a module of the model that have no effect, by the last component of the name.
BUFFERS = {
    "position_ids": "a buffer that only counts positions",
    "total_ops": "a counter of a profiler",
    "total_params": "a counter of a profiler",
    "mask_token": "a mask token that the encoder of visible patches does not use",
}
# Tensors that change a model's outputs: a pattern anywhere in the name, and a description.
FUNCTION = (
    (
        r"(^|[._/])(ls\d?|layer_scale\w*)([._/]|$)|gamma_\d$|lambda_?\d$",
        "layer scale (init_values)",
    ),
    (
        r"(^|[._/])(q|k|qk|query|key)_?(norm|layernorm|ln)([._/]|$)|(^|[._/])(norm|ln)_?(q|k)([._/]|$)",
        "normalization of query and key (qk_norm)",
    ),
    (r"(^|[._/])(reg|register|registers|storage)_?tokens?$", "register tokens (reg_tokens)"),
    (r"(^|[._/])dist(illation)?_token$", "a distillation token (DeiT)"),
    (
        r"(^|[._/])(detection|det|prompt)_?(tokens?|embeddings?\w*)",
        "additional tokens in the sequence",
    ),
    (r"rel(ative)?_pos(ition)?", "relative position biases"),
    (
        r"(^|[._/])(norm_pre|pre_norm|ln_pre|pre_ln|pre_layr?norm)([._/]|$)",
        "a layer norm before the blocks (pre_norm)",
    ),
    (r"(^|[._/])(q|k|v)_bias$", "separate query, key or value biases"),
    (r"rope|rotary|inv_freq|freqs", "rotary position embeddings"),
    (r"lora|adapter|adaptmlp|ia3", "an adapter that is not merged"),
    (r"prompt", "prompt tokens"),
    (r"(^|[._/])(w12|w3|gate\w*|fc1_g|fc1_x)([._/]|$)", "a gated MLP (SwiGLU)"),
    (r"running_(mean|var)$", "batch norm"),
    (r"patch_embed\w*[._/](\w+[._/])*(norm|ln)", "a layer norm after the patch embedding"),
    (r"norm|(^|[._/])ln", "an additional layer norm"),
    (r"pos_embed|position|token|embed", "an additional embedding or token"),
    (r"bias", "an additional bias"),
)
UNKNOWN = "a tensor in a module that a ViT does not have"
EMBEDDING = re.compile(r"(?i)(token|embed|pos(ition)?s?)(s|ding|dings)?(\d*)?(_\w+)?([._/]|$)")
NORM = re.compile(r"(?i)(\w*_)?(norm|ln|layernorm)(\w*_\w*|\d*)$")


@dataclass(frozen=True)
class Unused:
    """The tensors of a file that the mapping table of a model does not contain."""

    dropped: Mapping[str, str] = field(default_factory=dict)
    """The reasons why tensors can be dropped, by tensor name."""

    needed: Mapping[str, str] = field(default_factory=dict)
    """Descriptions of tensors that change the outputs of the model, by name."""


def sort_unused(
    unused: Mapping[str, Shape],
    encoder: Iterable[str],
    others: Iterable[str],
    task: str,
    width: int,
) -> Unused:
    """Divide tensors that are not in a model's mapping table into unneeded and needed tensors.

    A needed tensor changes the model's outputs, so a model without it would be wrong.

    Args:
        unused: the names and shapes of the tensors.
        encoder: the names of the encoder's tensors; their common prefix is the model's prefix.
        others: the names of the decoder's and the head's tensors.
        task: the task of the model.
        width: the encoder's width.
    """
    paths = [_path(name) for name in encoder]
    root = _common(paths)
    inner = (*paths, *map(_path, others))
    modules = {path[:end] for path in inner for end in range(1, len(path))}
    modules -= {root[:end] for end in range(len(root) + 1)}
    dropped: dict[str, str] = {}
    needed: dict[str, str] = {}
    for name, shape in unused.items():
        why, needs = _classify(name, shape, root, modules, task, width)
        (needed if needs else dropped)[name] = why
    return Unused(dropped, needed)


def _classify(
    name: str, shape: Shape, root: Path, modules: set[Path], task: str, width: int
) -> tuple[str, bool]:
    """Return a description of an unused tensor, and whether it changes the model's outputs.

    Args:
        name: the name of the tensor.
        shape: the shape of the tensor.
        root: the path of the model in the tensor names.
        modules: the paths of the model's modules.
        task: the task of the model.
        width: the encoder's width.
    """
    path = _path(name)
    if any(path[:end] in modules for end in range(1, len(path))):
        harmless = BUFFERS.get(path[-1].removesuffix(":0"))
        return (harmless, False) if harmless else (description_of(name), True)
    below = path[: len(root)] == root
    rest = ".".join(path[len(root) :] if below else path)
    if task == "pretrain" and re.match(r"(?i)dec(oder)?([._\d]|$)", rest):
        return "a decoder component that MAE does not have", True
    for pattern, why in HARMLESS:
        if re.match(pattern, rest, re.IGNORECASE):
            return why, False
    if below and _touches_encoder(rest, shape, width):
        return description_of(rest), True
    if task == "classify" and width in shape:
        return "a tensor that may belong to a layer between the encoder and the head", True
    return f"not part of the {task} model that is read", False


def _touches_encoder(rest: str, shape: Shape, width: int) -> bool:
    """Return whether the encoder probably uses a tensor that is in none of the encoder's modules.

    Args:
        rest: the name of the tensor without the model's prefix; only its first component is used.
        shape: the shape. A tensor with the name of an embedding or a norm is considered used only
            if one of its axes has the encoder's width.
        width: the encoder's width.
    """
    outermost = re.split(r"[./]", rest)[0]
    if any(re.search(f"(?i){pattern}", outermost) for pattern, _ in FUNCTION[:11]):
        return True
    if width not in shape:
        return False
    return bool(EMBEDDING.search(outermost) or NORM.match(outermost))


def description_of(name: str) -> str:
    """Return a description of a tensor that no mapping table contains, based on its name.

    Without this tensor, the outputs would differ from the outputs of the stored model.
    """
    descriptions = (text for pattern, text in FUNCTION if re.search(f"(?i){pattern}", name))
    return next(descriptions, UNKNOWN)


def _path(name: str) -> Path:
    return tuple(re.split(r"[./]", name))


def _common(paths: list[Path]) -> Path:
    """Return the longest module path that all tensors have in common."""
    parents = [path[:-1] for path in paths]
    shortest = min(parents, key=len, default=())
    end = next(
        (i for i, part in enumerate(shortest) if any(p[i] != part for p in parents)), len(shortest)
    )
    return shortest[:end]
