"""Convert Masked Autoencoder checkpoints between frameworks and verify the results.

``load_model`` and ``save_model`` are imported on first use, so that this package is imported
quickly; a framework is imported when a model is created.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # without importing typing, which must not be imported before `__main__` runs
    from mae_convert.runtime import load_model, save_model

__version__ = "0.1.0"
__all__ = ["load_model", "save_model"]
UNSUPPORTED = (
    "mae-convert runs on Linux and macOS, but not on Windows, where file locks and renames differ; "
    "use the Windows Subsystem for Linux (WSL)"
)


def is_supported() -> bool:
    """Return whether this operating system is supported (POSIX)."""
    return sys.platform != "win32"


def __getattr__(name: str) -> object:
    if name in __all__:
        if not is_supported():
            raise ImportError(UNSUPPORTED)
        from mae_convert import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
