"""The golden cases of the video families: configurations, weights by name, inputs, expectations."""

import json
import re

import numpy as np
from paths import GOLDEN

# case: (family, task)
CASES = {
    "videomae_pretrain_tiny": ("videomae", "pretrain"),
    "videomae_finetune_tiny": ("videomae", "classify"),
    "mae_st_pretrain_tiny": ("mae_st", "pretrain"),
    "mae_st_finetune_tiny": ("mae_st", "classify"),
    "prithvi_v1_tiny": ("prithvi", "pretrain"),
    "prithvi_v2_tiny": ("prithvi", "pretrain"),
    "prithvi_v2_tl_tiny": ("prithvi", "pretrain"),
}
# A case of each family that uses all of its model.
WHOLE = ("videomae_pretrain_tiny", "mae_st_pretrain_tiny", "prithvi_v2_tl_tiny")
CLASSES = {
    "videomae": {
        "pretrain": "VideoMAEForPreTraining",
        "encoder": "VideoMAEModel",
        "classify": "VideoMAEForVideoClassification",
    },
    "mae_st": {
        "pretrain": "MAESTForPreTraining",
        "encoder": "MAESTModel",
        "classify": "MAESTForVideoClassification",
    },
    "prithvi": {"pretrain": "PrithviForPreTraining", "encoder": "PrithviModel"},
}
CONFIGS = {"videomae": "VideoMAEConfig", "mae_st": "MAESTConfig", "prithvi": "PrithviConfig"}
# The authors' names of fields; with a factor, the authors' field is a ratio to another field.
FIELDS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "in_chans": "num_channels",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "decoder_embed_dim": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_num_heads": "decoder_num_attention_heads",
    "num_frames": "num_frames",
    "all_frames": "num_frames",
    "tubelet_size": "tubelet_size",
    "num_classes": "num_labels",
    "use_mean_pooling": "use_mean_pooling",
    "qkv_bias": "qkv_bias",
    "t_patch_size": "tubelet_size",
    "pred_t_dim": "pred_t_dim",
    "sep_pos_embed": "sep_pos_embed",
    "cls_embed": "cls_embed",
    "coords_encoding": "coords_encoding",
    "coords_scale_learn": "coords_scale_learn",
    "mask_ratio": "mask_ratio",
    "layer_norm_eps": "layer_norm_eps",
}


def configuration(case):
    """Return the fields of a case's configuration."""
    message = json.loads((GOLDEN / case / "case.json").read_text())
    names = ((name, name.removeprefix("encoder_")) for name in message)
    fields = {FIELDS[short]: message[name] for name, short in names if short in FIELDS}
    fields["intermediate_size"] = message["mlp_ratio"] * fields["hidden_size"]
    if "decoder_hidden_size" in fields:
        fields["decoder_intermediate_size"] = message["mlp_ratio"] * fields["decoder_hidden_size"]
    if isinstance(fields["patch_size"], list):
        fields["tubelet_size"], *fields["patch_size"] = fields["patch_size"]
    return fields


def golden(case):
    """Return the case's inputs and expectations by name."""
    return dict(np.load(GOLDEN / case / "golden.npz"))


def inputs(case):
    """Return the arguments of the model's call."""
    arrays = golden(case)
    names = ("videos", "noise", "temporal_coords", "location_coords")
    return {
        "pixel_values" if name == "videos" else name: arrays[name]
        for name in names
        if name in arrays
    }


def expectations(case):
    """Return the expected results by the names of the reference model's results."""
    names = {
        "latent": "taps/encoder.norm",
        "pred": "logits",
        "logits": "logits",
        "loss": "loss",
        "loss_norm_pix": "loss_norm_pix",
        "reconstruction": "reconstruction",
        "target": "target",
    }
    expected = {}
    for stored, value in golden(case).items():
        name = stored.removeprefix("f64/")
        if block := re.fullmatch(r"tap/(encoder\.|decoder[._])?blocks\.(\d+)", name):
            prefix = "decoder" if (block[1] or "").startswith("decoder") else "encoder"
            expected[f"taps/{prefix}.blocks.{block[2]}.output"] = value
        elif name in names:
            expected[names[name]] = value
        elif name in ("mask", "ids_restore"):
            expected[name] = value
    return expected


BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.q": "attention/attention/query",
    "attn.k": "attention/attention/key",
    "attn.v": "attention/attention/value",
    "attn.proj": "attention/output/dense",
    "mlp.fc1": "intermediate/dense",
    "mlp.fc2": "output/dense",
}
# Path of a variable in Keras by the name of a parameter in PyTorch, for each family.
PLACES = {
    "videomae": {
        "mask_token": "decoder/mask_token",
        "encoder_to_decoder": "decoder/encoder_to_decoder",
        "patch_embed.proj": "encoder/projection",
        "norm": "encoder/layernorm",
        "blocks": "encoder/layer",
        "decoder.blocks": "decoder/decoder_layers",
        "decoder.norm": "decoder/norm",
        "decoder.head": "decoder/head",
        "fc_norm": "fc_norm",
        "head": "classifier",
    },
    "mae_st": {
        **{
            f"{decoder}{name}": f"{prefix}/{decoder}{name}"
            for decoder, prefix in (("", "encoder"), ("decoder_", "decoder"))
            for name in (
                "cls_token",
                "pos_embed",
                "pos_embed_spatial",
                "pos_embed_temporal",
                "pos_embed_class",
            )
        },
        "mask_token": "decoder/mask_token",
        "patch_embed.proj": "encoder/projection",
        "blocks": "encoder/layer",
        "norm": "encoder/layernorm",
        "decoder_embed": "decoder/decoder_embed",
        "decoder_blocks": "decoder/decoder_layers",
        "decoder_norm": "decoder/decoder_norm",
        "decoder_pred": "decoder/decoder_pred",
        "head_norm": "norm",
        "head": "classifier",
    },
    "prithvi": {
        "cls_token": "encoder/cls_token",
        "pos_embed": "encoder/pos_embed",
        "temporal_embed_enc.scale": "encoder/temporal_embed_enc/scale",
        "location_embed_enc.scale": "encoder/location_embed_enc/scale",
        "patch_embed.proj": "encoder/projection",
        "blocks": "encoder/layer",
        "norm": "encoder/layernorm",
        "mask_token": "decoder/mask_token",
        "decoder_pos_embed": "decoder/decoder_pos_embed",
        "temporal_embed_dec.scale": "decoder/temporal_embed_dec/scale",
        "location_embed_dec.scale": "decoder/location_embed_dec/scale",
        "decoder_embed": "decoder/decoder_embed",
        "decoder_blocks": "decoder/decoder_layers",
        "decoder_norm": "decoder/decoder_norm",
        "decoder_pred": "decoder/decoder_pred",
    },
}


def keras_weights(family, state):
    """Return a state dict (arrays) by the paths and in the orientation of the Keras model."""
    weights = {}
    if family == "mae_st" and "head.weight" in state:  # the classifier's norm is a part of its head
        state = {
            f"head_{name}" if name.startswith("norm.") else name: value
            for name, value in state.items()
        }
    for stored, value in separated(state).items():
        # Prithvi's names contain the module of a parameter twice.
        name = re.sub("^(en|de)coder\\.", "", stored) if family == "prithvi" else stored
        prefix, kind = keras_location(family, name)
        axes = {2: (1, 0), 5: (2, 3, 4, 1, 0)}.get(value.ndim, range(value.ndim))
        norm = "norm" in prefix.rpartition("/")[2]
        kinds = {"weight": "gamma" if norm else "kernel", "bias": "beta" if norm else "bias"}
        path = f"{prefix}/{kinds[kind]}" if kind else prefix
        weights[path] = value.transpose(*axes)
    return weights


def separated(state):
    """Return a state dict with separate queries, keys and values."""
    apart = {}
    for name, value in state.items():
        if ".qkv." in name:
            for part, third in zip("qkv", np.split(value, 3), strict=True):
                apart[name.replace("qkv", part)] = third
        else:
            apart[re.sub(r"\.([qv])_bias$", r".\1.bias", name)] = value
    return apart


def keras_location(family, name):
    """Return where a parameter is in the Keras model, and "weight" or "bias" if it is one."""
    places = PLACES[family]
    if name in places:
        return places[name], None
    parameter, _, kind = name.rpartition(".")
    if block := re.fullmatch(r"(.*)blocks\.(\d+)\.?(.*)", parameter):
        stack = f"{block[1]}blocks".removeprefix("encoder.")
        start = f"{places[stack]}.{block[2]}"
        return (f"{start}/{BLOCK[block[3]]}", kind) if block[3] else (f"{start}/{kind}", None)
    parameter = parameter if parameter in places else parameter.removeprefix("encoder.")
    return places[parameter], kind
