"""The layouts of the image MAE by name; a new layout is a module that is registered here."""

from mae_convert.families import unknown_layout
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


def layout_named(name: str) -> Layout:
    """Return a layout by its name on the command line."""
    if name not in LAYOUTS:
        raise unknown_layout(name, LAYOUTS)
    return LAYOUTS[name]


__all__ = ["LAYOUTS", "Layout", "layout_named"]
