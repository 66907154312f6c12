"""The embedded image MAE, which is trained, as a model of videos and of satellite images.

A Prithvi of one time and without coordinates is an image MAE under other names. A MAE-ST of one
time step sees two equal frames as the image MAE sees one if each has half of the patch embedding.
"""

import json

import torch
from paths import DEMO

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights():
    return torch.load(DEMO / "checkpoint.pth", weights_only=True)["model"]


def as_prithvi(folder):
    """Write it with Prithvi's names; it takes measured values from 0 to 255 in three bands."""
    state = {}
    for name, value in weights().items():
        part = "decoder" if name.startswith(("decoder", "mask_token")) else "encoder"
        state[f"{part}.{name}"] = value.unsqueeze(2) if name == "patch_embed.proj.weight" else value
    scaled = {"image_mean": [255 * x for x in MEAN], "image_std": [255 * x for x in STD]}
    (folder / "preprocessor_config.json").write_text(json.dumps(scaled))
    torch.save({"model": state}, folder / "prithvi.pth")
    return folder / "prithvi.pth"


def as_mae_st(folder):
    """Write it with the names of MAE-ST, for two frames that are one time step."""
    state = {}
    for name, value in weights().items():
        if name == "patch_embed.proj.weight":
            state[name] = torch.stack([value / 2] * 2, dim=2)
        elif name.endswith("pos_embed"):
            state[f"{name}_class"], state[f"{name}_spatial"] = value[:, :1], value[:, 1:]
            state[f"{name}_temporal"] = torch.zeros(1, 1, value.shape[2])
        elif ".attn.qkv." in name:
            for which, part in zip("qkv", value.chunk(3), strict=True):
                state[name.replace("qkv", which)] = part
        elif name.startswith("decoder_pred."):
            state[name] = torch.cat([value, value])  # of each frame
        else:
            state[name] = value
    # The decoder of an image MAE gets the encoder's class token, this one has its own.
    state["decoder_cls_token"] = torch.zeros(1, 1, 128)
    torch.save({"model": state}, folder / "mae_st.pth")
    return folder / "mae_st.pth"
