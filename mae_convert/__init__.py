"""Convert Masked Autoencoder checkpoints between frameworks and prove that nothing changed.

``load_model`` and ``save_model`` are imported when they are first asked for, so that importing this
package costs nothing; no framework is imported before a model of it is made.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # without importing typing, which would come before `python -m` is in our hands
    from mae_convert.runtime import load_model, save_model

__version__ = "0.1.0"
__all__ = ["load_model", "save_model"]
UNSUPPORTED = (
    "this program runs on Linux and macOS, not on Windows, whose file locks and renames differ; use"
    " the Windows Subsystem for Linux (WSL)"
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
