"""The layouts of Prithvi-EO, by name."""

from mae_convert.families.prithvi.layouts.keras import KERAS
from mae_convert.families.prithvi.layouts.original import ORIGINAL
from mae_convert.layouts.layout import Layout

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (ORIGINAL, KERAS)}
