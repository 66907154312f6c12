"""The layouts of VideoMAE, by name."""

from mae_convert.families.videomae.layouts.keras import KERAS
from mae_convert.families.videomae.layouts.original import ORIGINAL
from mae_convert.families.videomae.layouts.transformers import TRANSFORMERS
from mae_convert.layouts.layout import Layout

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (ORIGINAL, TRANSFORMERS, KERAS)}
