"""Settings inside the objects of configuration libraries, as far as their pickles state them.

These classes are not imported: what they hold is taken from the values that the pickle hands to
them, where these have exactly the form that the library writes. Anything else is left out.
"""

from typing import Any

from mae_convert.formats.pickle_types import Opaque

UNKNOWN = object()
"""Stands for what is not understood."""

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
    """Return the settings in an object, one level of it: a mapping, a list or a value.

    Returns:
        The settings, or `UNKNOWN` where the object is of another type or form.
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
    """Return a value of the one state that omegaconf gives to an object."""
    state = item.received[0] if len(item.received) == 1 else None
    return state.get(name, UNKNOWN) if isinstance(state, dict) else UNKNOWN


def _resolved(value: Any) -> Any:
    """Return a value, unless it is a reference to another one, or says that there is none."""
    text = value if isinstance(value, str) else ""
    return UNKNOWN if "${" in text or text == "???" else value


def _items(item: Opaque) -> Any:
    """Return the items of a subclass of dict; some keep them as their attributes too."""
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
