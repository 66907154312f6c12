"""Run a clone of the authors' code: facebookresearch/mae and mae_st, and MCG-NJU/VideoMAE.

The code was written for versions of timm and NumPy that current Python versions do not support.
In the child process that imports it, this module restores the names that the code uses and that
newer versions removed. The clone is not changed.
"""

import importlib
import logging
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from mae_convert.runtime.foreign_code import Code
from mae_convert.runtime.foreign_torch import drawn_noise
from mae_convert.runtime.loaders import LoadError
from reference_models.pytorch.patches import mask_in_order

Config = Mapping[str, Any]
LABEL = "original"
DEFAULT_FRAMES = 16  # fixed in VideoMAE's pre-training model, which has no argument for it
BLOCKS = {
    "{stack}.blocks.{{}}.attention": "{blocks}.{{}}.attn",
    "{stack}.blocks.{{}}.mlp": "{blocks}.{{}}.mlp",
    "{stack}.blocks.{{}}.output": "{blocks}.{{}}",
}
TOGETHER = {"{stack}.blocks.{{}}.{{q,k,v}}": "{blocks}.{{}}.attn.qkv"}
APART = {f"{{stack}}.blocks.{{{{}}}}.{part}": f"{{blocks}}.{{{{}}}}.attn.{part}" for part in "qkv"}


def original_code(folder: Path, task: str) -> Code:
    """Return the functions that create and run the models of the authors' code in a clone.

    Args:
        folder: the directory of the clone.
        task: "pretrain", "encoder" or "classify".

    Raises:
        LoadError: `folder` is not a clone of one of the three repositories, or the authors' code
            has no model for the task.
    """
    has = {name for name in ("models_mae.py", "modeling_pretrain.py") if (folder / name).is_file()}
    if "modeling_pretrain.py" in has:
        chosen = _videomae
    elif has:
        chosen = _mae_st if (folder / "util/video_vit.py").is_file() else _mae
    else:
        raise LoadError(
            folder,
            " contains neither models_mae.py nor modeling_pretrain.py",
            hint="specify a clone of facebookresearch/mae, facebookresearch/mae_st "
            "or MCG-NJU/VideoMAE",
        )
    bridge_numpy()
    bridge_timm()
    sys.path.insert(0, str(folder))
    return chosen(folder, task)


def bridge_numpy() -> None:
    """Restore the aliases of Python types that NumPy 1.24 removed."""
    for name, kind in (("float", float), ("int", int), ("bool", bool), ("object", object)):
        if name not in np.__dict__:
            setattr(np, name, kind)


def bridge_timm() -> None:
    """Restore the old names of modules that timm has moved, and the block's argument ``qk_scale``.

    Raises:
        ImportError: timm is not installed.
    """
    import timm  # noqa: F401
    from timm.models import vision_transformer

    for old, new in (("layers", "timm.layers"), ("registry", "timm.models._registry")):
        try:
            importlib.import_module(f"timm.models.{old}")
        except ImportError:
            sys.modules[f"timm.models.{old}"] = importlib.import_module(new)

    class Block(vision_transformer.Block):
        """timm's block with the argument ``qk_scale``, which timm removed; it must be None."""

        def __init__(self, *arguments: Any, qk_scale: float | None = None, **named: Any) -> None:
            if qk_scale is not None:
                raise LoadError("timm's block no longer has the argument qk_scale")
            super().__init__(*arguments, **named)

    vision_transformer.Block = Block


def _activations(stacks: Mapping[str, str], qkv: Mapping[str, str]) -> dict[str, str]:
    """Return a dictionary from canonical names of activations in blocks to names of modules.

    Args:
        stacks: a dictionary from "encoder" and "decoder" to the name of the list of their blocks in
            the authors' model.
        qkv: a dictionary from the canonical names of query, key and value in a block to the modules
            that compute them.
    """
    return {
        name.format(stack=stack): module.format(blocks=blocks)
        for stack, blocks in stacks.items()
        for name, module in {**BLOCKS, **qkv}.items()
    }


def _side(value: Any) -> int:
    """Return the side length of a square in pixels; the authors' models take only one number.

    Raises:
        LoadError: the height and the width differ.
    """
    sides = value if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1:
        raise LoadError(f"the authors' code takes square images and patches only, not {value}")
    return int(sides[0])


def _common(config: Config) -> dict[str, Any]:
    """Return the constructor arguments that the models of all three repositories share."""
    if config["hidden_act"] != "gelu":
        raise LoadError(
            f"the authors' code supports only the activation gelu, not {config['hidden_act']}"
        )
    return {
        "img_size": _side(config["image_size"]),
        "patch_size": _side(config["patch_size"]),
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "norm_layer": partial(nn.LayerNorm, eps=config["layer_norm_eps"]),
    }


def _decoder(config: Config) -> dict[str, Any]:
    """Return the arguments for the decoder, which the constructor of the authors' model takes.

    Raises:
        LoadError: the decoder has another mlp_ratio or epsilon than the encoder, which the authors'
            code does not support.
    """
    ratio = config["decoder_intermediate_size"] / config["decoder_hidden_size"]
    if ratio != config["intermediate_size"] / config["hidden_size"]:
        raise LoadError("the authors' code requires the same mlp_ratio for encoder and decoder")
    eps = config.get("decoder_layer_norm_eps")
    if eps not in (None, config["layer_norm_eps"]):
        raise LoadError("the authors' code requires the same epsilon for encoder and decoder")
    return {
        "decoder_embed_dim": config["decoder_hidden_size"],
        "decoder_depth": config["decoder_num_hidden_layers"],
        "decoder_num_heads": config["decoder_num_attention_heads"],
    }


def _encoder(config: Config) -> dict[str, Any]:
    return {
        "in_chans": config["num_channels"],
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
    }


def _as_encoder(model: nn.Module) -> nn.Module:
    """Remove the decoder of a model, so that an encoder's state dict can be loaded strictly."""
    for name in [*model._modules, *model._parameters]:
        if name.startswith("decoder") or name == "mask_token":
            delattr(model, name)
    return model


def _pretraining(config: Config, model: Any, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """Return the results, by name, of a pre-training model of facebookresearch/mae or mae_st.

    The model draws its masking noise by ``torch.rand``, which is replaced by a function that
    returns `noise` (N, L).
    """
    with drawn_noise(noise, LABEL):
        latent, mask, ids_restore = model.forward_encoder(pixels, config["mask_ratio"])
    mask, ids_restore = (x.reshape(noise.shape) for x in (mask, ids_restore))
    results = {"last_hidden_state": latent, "mask": mask, "ids_restore": ids_restore}
    if config["task"] == "encoder":
        return results
    results["logits"] = model.forward_decoder(latent, ids_restore)
    if "decoder_pred" in dict(model.named_modules()) and hasattr(model, "unpatchify"):
        results |= _images(model, results["logits"])
    if mask.any():
        for name, normalized in (("loss", False), ("loss_norm_pix", True)):
            model.norm_pix_loss = normalized
            results[name] = model.forward_loss(pixels, results["logits"], mask)
    return results


def _images(model: Any, logits: Tensor) -> dict[str, Tensor]:
    """Return a dictionary with the reconstruction (N, C, H, W).

    The dictionary is empty for mae_st, because its ``unpatchify`` requires that ``patchify`` was
    called before.
    """
    return {} if hasattr(model, "pred_t_dim") else {"reconstruction": model.unpatchify(logits)}


def _classified(model: Any, pixels: Tensor, noise: None) -> dict[str, Tensor]:  # noqa: ARG001
    """Return the logits of facebookresearch/mae's classifier.

    Its ``forward`` is not called, because newer versions of timm would pool the features again.
    `noise` is always None, because a classifier does not mask.
    """
    return {"logits": model.head(model.forward_features(pixels))}


def _mae(folder: Path, task: str) -> Code:  # noqa: ARG001
    encoder = {"encoder": "blocks"}
    if task == "classify":
        module = importlib.import_module("models_vit")

        def classifier(config: dict[str, Any]) -> nn.Module:
            if config.get("fc_norm") is False:
                raise LoadError(
                    "the authors' classifier applies the layer norm to the mean of the tokens, "
                    "not to each token"
                )
            pool = {"global_pool": config["global_pool"] == "avg"}
            more = {"num_classes": config["num_labels"], "qkv_bias": config["qkv_bias"]}
            made: nn.Module = module.VisionTransformer(
                **_common(config), **_encoder(config), **pool, **more
            )
            return made

        activations = _activations(encoder, TOGETHER)
        return Code(LABEL, classifier, forward=_classified, activations=activations)
    module = importlib.import_module("models_mae")
    stacks = encoder if task == "encoder" else {**encoder, "decoder": "decoder_blocks"}
    activations = {
        **_activations(stacks, TOGETHER),
        "encoder.embedding": "blocks.0:input",
        "encoder.norm": "norm",
    }
    if task == "pretrain":
        more = {"decoder.embedding": "decoder_blocks.0:input", "decoder.norm": "decoder_norm"}
        activations |= more
    return _masked(module.MaskedAutoencoderViT, task, activations, lambda _: {})


def _masked(
    kind: Any,
    task: str,
    activations: Mapping[str, str],
    more: Callable[[Config], dict[str, Any]],
) -> Code:
    """Return the functions that create and run a pre-training model or its encoder.

    Args:
        kind: the class of the authors' pre-training model.
        task: "pretrain" or "encoder".
        activations: by the canonical name of each activation, the path of the module whose output
            it is, or ``PATH:input`` for the input of a module.
        more: a function that returns further arguments of the class for a configuration.
    """
    arguments: dict[str, Any] = {}

    def factory(config: dict[str, Any]) -> nn.Module:
        arguments.update(config)
        small = {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 1}
        decoder = _decoder(config) if task == "pretrain" else small
        model: nn.Module = kind(**_common(config), **_encoder(config), **decoder, **more(config))
        return model if task == "pretrain" else _as_encoder(model)

    def forward(model: Any, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return _pretraining(arguments, model, pixels, noise)

    return Code(LABEL, factory, forward=forward, activations=activations)


def _mae_st(folder: Path, task: str) -> Code:
    package = ModuleType("mae_st")
    package.__path__ = [str(folder)]
    sys.modules["mae_st"] = package
    _bridge_logging()
    stacks = {"encoder": "blocks", **({"decoder": "decoder_blocks"} if task == "pretrain" else {})}
    activations = _activations(stacks, APART)

    def video(config: Config) -> dict[str, Any]:
        return {
            "num_frames": config["num_frames"],
            "t_patch_size": config["tubelet_size"],
            "sep_pos_embed": config["sep_pos_embed"],
            "cls_embed": config["cls_embed"],
            "no_qkv_bias": not config["qkv_bias"],
        }

    if task == "classify":
        kind = importlib.import_module("mae_st.models_vit").VisionTransformer

        def classifier(config: dict[str, Any]) -> nn.Module:
            labels = {"num_classes": config["num_labels"]}
            made: nn.Module = kind(**_common(config), **_encoder(config), **video(config), **labels)
            return made

        return Code(LABEL, classifier, mask=None, activations=activations)

    def masked(config: Config) -> dict[str, Any]:
        predicted = config["pred_t_dim"] or config["num_frames"]
        return {**video(config), "pred_t_dim": predicted}

    kind = importlib.import_module("mae_st.models_mae").MaskedAutoencoderViT
    return _masked(kind, task, activations, masked)


def _bridge_logging() -> None:
    """Replace the logging module of mae_st if it requires packages that are not installed."""
    try:
        importlib.import_module("mae_st.util.logging")
    except ImportError:
        module = ModuleType("mae_st.util.logging")
        module.__dict__.update(get_logger=logging.getLogger, master_print=lambda *_, **__: None)
        sys.modules["mae_st.util.logging"] = module


def _videomae(folder: Path, task: str) -> Code:  # noqa: ARG001
    name = "modeling_finetune" if task == "classify" else "modeling_pretrain"
    module = importlib.import_module(name)
    if task == "classify":
        return Code(LABEL, partial(_videomae_classifier, module), mask=None,
                    activations=_activations({"encoder": "blocks"}, {}))  # fmt: skip
    if task == "encoder":
        raise LoadError("VideoMAE's code has no model of the encoder alone")
    activations = {
        **_activations({"encoder": "encoder.blocks", "decoder": "decoder.blocks"}, {}),
        "encoder.embedding": "encoder.blocks.0:input",
        "encoder.norm": "encoder.norm",
        "decoder.embedding": "decoder.blocks.0:input",
        "decoder.norm": "decoder.norm",
    }
    arguments: dict[str, Any] = {}

    def factory(config: dict[str, Any]) -> nn.Module:
        arguments.update(config)
        return _videomae_pretraining(module, config)

    def forward(model: Any, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
        mask, _, ids_restore = mask_in_order(noise, arguments["num_kept"])
        logits = model(pixels, mask > 0)
        return {"mask": mask, "ids_restore": ids_restore, "logits": logits}

    return Code(LABEL, factory, forward=forward, activations=activations)


def _videomae_pretraining(module: Any, config: Config) -> nn.Module:
    if config["num_frames"] != DEFAULT_FRAMES:
        raise LoadError(f"VideoMAE's code for pre-training takes {DEFAULT_FRAMES} frames only")
    encoder = {f"encoder_{name}": value for name, value in _encoder(config).items()}
    made: nn.Module = module.PretrainVisionTransformer(
        **_common(config),
        **encoder,
        **_decoder(config),
        **_layers(config),
        decoder_num_classes=config["num_channels"]
        * config["tubelet_size"]
        * _side(config["patch_size"]) ** 2,
    )
    return made


def _videomae_classifier(module: Any, config: Config) -> nn.Module:
    made: nn.Module = module.VisionTransformer(
        **_common(config),
        **_encoder(config),
        **_layers(config),
        num_classes=config["num_labels"],
        all_frames=config["num_frames"],
        use_mean_pooling=config["use_mean_pooling"],
    )
    return made


def _layers(config: Config) -> dict[str, Any]:
    return {
        "qkv_bias": config["qkv_bias"],
        "init_values": config["layer_scale_init_value"],
        "tubelet_size": config["tubelet_size"],
    }
