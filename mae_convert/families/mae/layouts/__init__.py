"""The layouts, by name: to add one, write its file and register it here."""

from mae_convert.errors import LayoutError
from mae_convert.families.mae.layouts.facebook import FACEBOOK
from mae_convert.families.mae.layouts.keras import KERAS
from mae_convert.families.mae.layouts.keras_hub import KERAS_HUB
from mae_convert.families.mae.layouts.lightly import LIGHTLY
from mae_convert.families.mae.layouts.mmpretrain import MMPRETRAIN
from mae_convert.families.mae.layouts.timm import TIMM
from mae_convert.families.mae.layouts.torchvision import TORCHVISION
from mae_convert.families.mae.layouts.transformers import TRANSFORMERS
from mae_convert.families.mae.layouts.transformers_tf import TRANSFORMERS_TF
from mae_convert.layouts.layout import Layout
from mae_convert.text import did_you_mean

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        FACEBOOK,
        TRANSFORMERS,
        TRANSFORMERS_TF,
        KERAS,
        TIMM,
        TORCHVISION,
        KERAS_HUB,
        MMPRETRAIN,
        LIGHTLY,
    )
}


SYNONYMS = {  # what a framework or a library is called, in which several layouts are at home
    **dict.fromkeys(("pytorch", "torch"), "facebook, transformers, timm or torchvision (PyTorch)"),
    **dict.fromkeys(
        ("tf", "tensorflow"), "transformers-tf (TFViTMAE classes) or keras (Keras 3 models)"
    ),
    "mae": "facebook (the original code)",
    "original": "facebook (the original code)",
    "hf": "transformers (PyTorch) or transformers-tf (TensorFlow)",
    "huggingface": "transformers (PyTorch) or transformers-tf (TensorFlow)",
    "jax": "keras (Keras 3 models, which run on JAX)",
}


def layout_named(name: str) -> Layout:
    """Return a layout by its name on the command line."""
    if name not in LAYOUTS:
        if meant := SYNONYMS.get(name.lower()):
            raise LayoutError(f"{name!r} is not the name of one layout; choose {meant}")
        near = did_you_mean(name, LAYOUTS) or f"; the layouts are {', '.join(LAYOUTS)}"
        raise LayoutError(f"unknown layout {name!r}{near}")
    return LAYOUTS[name]


__all__ = ["LAYOUTS", "Layout", "layout_named"]
