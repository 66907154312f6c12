"""The layouts of MAE-ST, by name."""

from mae_convert.families.mae_st.layouts.keras import KERAS
from mae_convert.families.mae_st.layouts.original import ORIGINAL
from mae_convert.layouts.layout import Layout

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (ORIGINAL, KERAS)}
