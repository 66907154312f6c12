"""Load checkpoints as models of a framework, and save models as checkpoints.

``load_model`` and ``save_model`` are imported on first use, because child processes import modules
of this package too, in environments with few packages besides a framework.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from mae_convert.runtime.loading import load_model
    from mae_convert.runtime.saving import save_model

__all__ = ["load_model", "save_model"]


def __getattr__(name: str) -> object:
    if name == "load_model":
        from mae_convert.runtime.loading import load_model

        return load_model
    if name == "save_model":
        from mae_convert.runtime.saving import save_model

        return save_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
