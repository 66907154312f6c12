"""The embedded image MAE, which is trained, as a model of videos and of satellite images.

A Prithvi model of one frame and without coordinates is an image MAE with other tensor names. A
MAE-ST model of one time step computes for two equal frames what the image MAE computes for one, if
the patch embedding of each frame is half of the image MAE's.
"""

import json

import torch
from paths import DEMO

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def weights():
    return torch.load(DEMO / "checkpoint.pth", weights_only=True)["model"]


def as_prithvi(folder):
    """Write the model with Prithvi's names; its inputs are values from 0 to 255 in three bands."""
    state = {}
    for name, value in weights().items():
        part = "decoder" if name.startswith(("decoder", "mask_token")) else "encoder"
        state[f"{part}.{name}"] = value.unsqueeze(2) if name == "patch_embed.proj.weight" else value
    scaled = {"image_mean": [255 * x for x in MEAN], "image_std": [255 * x for x in STD]}
    (folder / "preprocessor_config.json").write_text(json.dumps(scaled))
    torch.save({"model": state}, folder / "prithvi.pth")
    return folder / "prithvi.pth"


def as_mae_st(folder):
    """Write the model with the names of MAE-ST, for two frames that are one time step."""
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
    # MAE-ST's decoder has its own class token; that of an image MAE gets the encoder's.
    state["decoder_cls_token"] = torch.zeros(1, 1, 128)
    torch.save({"model": state}, folder / "mae_st.pth")
    return folder / "mae_st.pth"
