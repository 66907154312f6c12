"""Convert Masked Autoencoder checkpoints between frameworks and prove that nothing changed.

``load_model`` and ``save_model`` are imported when they are first asked for, so that importing this
package costs nothing; no framework is imported before a model of it is made.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_convert.in_memory import load_model, save_model

__version__ = "0.1.0"
__all__ = ["load_model", "save_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from mae_convert import in_memory

        return getattr(in_memory, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
