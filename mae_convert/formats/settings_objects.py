"""Read settings from pickled objects of configuration libraries.

These classes are not imported: settings are read from the values that the pickle passes to them, if
these are exactly as the library writes them. Others are ignored.
"""

from typing import Any

from mae_convert.formats.pickle_types import Opaque

UNKNOWN = object()
"""Placeholder for a value that cannot be read."""

CONTAINERS = ("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig")
NODES = "omegaconf.nodes."
ATTRIBUTE_DICTS = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
CONFIG_DICTS = (
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "detectron2.config.config.CfgNode",
    "addict.addict.Dict",
    "easydict.EasyDict",
    "box.box.Box",
)
MAPPINGS = (*ATTRIBUTE_DICTS, *CONFIG_DICTS)
"""Subclasses of dict, whose items are their settings."""


def settings_in(item: Opaque) -> Any:
    """Return the settings in an object, one level deep: a mapping, a list or a value.

    Returns:
        The settings, or `UNKNOWN` if the object has another type or form.
    """
    if item.is_name:
        return UNKNOWN
    if item.name in CONTAINERS:
        content = _omegaconf_state(item, "_content")
        return content if type(content) in (dict, list) else UNKNOWN
    if item.name.startswith(NODES):
        return _resolved(_omegaconf_state(item, "_val"))
    return _items(item) if item.name in MAPPINGS else UNKNOWN


def _omegaconf_state(item: Opaque, name: str) -> Any:
    """Return the single state that omegaconf sets on an object."""
    state = item.received[0] if len(item.received) == 1 else None
    return state.get(name, UNKNOWN) if isinstance(state, dict) else UNKNOWN


def _resolved(value: Any) -> Any:
    """Return a value, unless it is a reference to another value or missing."""
    text = value if isinstance(value, str) else ""
    return UNKNOWN if "${" in text or text == "???" else value


def _items(item: Opaque) -> Any:
    """Return the items of a subclass of dict; some store them as attributes too."""
    _, *arguments, _ = item.arguments or (None, None)
    pairs: list[tuple[Any, Any]] = []
    if len(arguments) == 1 and isinstance(arguments[0], dict):
        pairs += arguments[0].items()
    elif arguments:
        return UNKNOWN
    for handed in item.received:
        if isinstance(handed, list) and len(handed) % 2 == 0:
            pairs += zip(handed[::2], handed[1::2], strict=True)
    names = [name for name, _ in pairs]
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        return UNKNOWN
    return dict(pairs)
