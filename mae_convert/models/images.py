"""The image processor: from pictures to ``pixel_values``, equal to transformers' ViTImageProcessor.

Its results are those of that class (its Pillow backend, `ViTImageProcessorPil` in version 5) to the
bit. Beyond it, pictures of other kinds, as grey ones and such with transparency, are converted to
the channels of the model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.containers.atomic import replacing_file
from mae_convert.errors import ConfigurationError, MaeConvertError
from mae_convert.models.naming import read_json, source_named
from mae_convert.preprocessing import (
    MODES,
    Preprocessing,
    open_picture,
    preprocessing_as_stated,
)
from mae_convert.sources import HubReference, locate_file, open_source

FILE = "preprocessor_config.json"
# What transformers' class takes where its file does not say.
DEFAULTS: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_center_crop": None,
    "crop_size": None,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
MOST_CHANNELS = 4  # of what is taken for the channels of an array


class BatchFeature(dict):
    """Inputs of a model by name, for ``model(**inputs)``, and as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def to(self, *arguments: Any, **named: Any) -> "BatchFeature":
        """Return the inputs on another device or in another dtype, as PyTorch's ``to``."""
        return BatchFeature({name: x.to(*arguments, **named) for name, x in self.items()})


class MaeImageProcessor:
    """Prepares pictures for a model: resize, rescale, normalise, channels first.

    Args:
        stated: as in ``preprocessor_config.json``: ``size``, ``resample``, ``image_mean``,
            ``image_std``, ``do_resize``, ``do_rescale``, ``rescale_factor``, ``do_normalize`` ...;
            for the rest transformers' defaults. Each is an attribute.
    """

    model_input_names = ("pixel_values",)

    def __init__(self, **stated: Any) -> None:
        self.__dict__.update({**DEFAULTS, **{n: v for n, v in stated.items() if v is not None}})
        self._preprocessing({})  # what is impossible is refused at once

    @classmethod
    def from_pretrained(cls, name: str | Path, **changes: Any) -> "MaeImageProcessor":
        """Return the processor of a checkpoint: as ``preprocessor_config.json`` says.

        A checkpoint without that file has its preprocessing inside, or that of its layout.

        Args:
            name: that file, a directory, or what `load_model` takes.
            changes: what is to be otherwise; ``revision``, ``subfolder`` of what is on the Hub.

        Raises:
            MaeConvertError: there is none, or it cannot be read.
        """
        changes = {n: v for n, v in changes.items() if n not in ("use_fast", "backend")}
        source = source_named(name, changes)
        if isinstance(source, HubReference):
            source = locate_file(replace(source, path=f"{source.path}/{FILE}".lstrip("/")))
        if isinstance(source, Path):
            file = source / FILE if source.is_dir() else source
            if file.suffix == ".json" and file.is_file():
                return cls(**{**read_json(file), **changes})
        checkpoint = open_source(source)
        configuration = checkpoint.configuration
        height, width = configuration.model.image_hw
        stated = {
            "size": {"height": height, "width": width},
            "resample": 2 if checkpoint.preprocessor else 3,
            **checkpoint.preprocessor,
            "image_mean": list(configuration.image_mean),
            "image_std": list(configuration.image_std),
        }
        return cls(**{**stated, **changes})

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``preprocessor_config.json`` into a directory, which is made if need be."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        with replacing_file(Path(directory) / FILE, overwrite=True) as temporary:
            text = json.dumps(self.to_dict(), indent=2, sort_keys=True)
            temporary.write_text(text + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return what is stated, as plain data that JSON can hold."""
        stated = {name: value for name, value in vars(self).items() if value is not None}
        return {"image_processor_type": "ViTImageProcessor", **stated}

    def __call__(self, images: Any, return_tensors: str | None = None, **changes: Any) -> Any:
        """Prepare pictures, as `preprocess`."""
        return self.preprocess(images, return_tensors, **changes)

    def preprocess(
        self, images: Any, return_tensors: str | None = None, **changes: Any
    ) -> BatchFeature:
        """Return pictures as ``pixel_values`` (N, C, H, W), float32.

        Args:
            images: a picture or several: of Pillow, a path, or an array or tensor of 8-bit values
                (H, W), (H, W, C), (C, H, W); an array of four axes is a batch.
            return_tensors: "np", "pt" or "tf"; None gives a list of arrays.
            changes: what is to be otherwise for these; and ``input_data_format``, "channels_first"
                or "channels_last", of arrays where that is not plain; ``data_format`` of the
                result.

        Raises:
            ValueError: the pictures are none, or of no one size.
            TypeError: something is to be otherwise that is not known.
        """
        order, result = changes.pop("input_data_format", None), changes.pop("data_format", None)
        if unknown := sorted(changes.keys() - set(vars(self)) - {"do_convert_rgb"}):
            raise TypeError(f"the image processor knows no {unknown[0]!r}")
        prepare = self._preprocessing(changes)
        pixels = [_prepared(image, prepare, _axes(order)) for image in _as_list(images)]
        if _axes(result) == "last":
            pixels = [array.transpose(1, 2, 0) for array in pixels]
        return BatchFeature(pixel_values=_as_tensors(pixels, return_tensors))

    def _preprocessing(self, changes: Mapping[str, Any]) -> Preprocessing:
        stated = {**vars(self), **changes}
        stated["resample"] = int(stated["resample"])  # Pillow's filters are numbers with names
        mean, std = (tuple(_numbers(stated[name])) for name in ("image_mean", "image_std"))
        if len(mean) != len(std):
            raise ConfigurationError(
                f"image_mean is for {len(mean)} channels and image_std for {len(std)}; mend one"
            )
        return preprocessing_as_stated(stated, (224, 224), (mean, std))


def _numbers(value: Any) -> Sequence[float]:
    return value if isinstance(value, list | tuple) else (value,) * 3


def _axes(name: Any) -> str | None:
    if name is None:
        return None
    return "last" if str(getattr(name, "value", name)).endswith("last") else "first"


def _as_list(images: Any) -> list[Any]:
    """Return pictures one by one."""
    if isinstance(images, list | tuple):
        return [single for image in images for single in _as_list(image)]
    if isinstance(images, Image.Image | str | Path):
        return [images]
    array = np.asarray(images.cpu() if hasattr(images, "cpu") else images)
    if array.ndim == 4:
        return list(array)
    if array.ndim not in (2, 3):
        raise ValueError(f"a picture has 2 or 3 axes, and a batch 4, but not {array.ndim}")
    return [array]


def _prepared(image: Any, prepare: Preprocessing, axes: str | None) -> np.ndarray:
    if isinstance(image, str | Path):
        image = open_picture(Path(image))
    if isinstance(image, Image.Image):
        return prepare(image)
    pixels = _channels_last(image, axes)
    if pixels.dtype.kind == "f":
        if not _is_resizing(prepare) and prepare.rescale == 1.0:
            return prepare.normalised(pixels)
        pixels = _eight_bits(pixels, prepare)
        prepare = replace(prepare, rescale=1 / 255)
    elif pixels.dtype != np.uint8:
        pixels = _in_range(pixels)
    if prepare.channels not in MODES:
        return _of_many_channels(pixels, prepare)
    return prepare(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


def _is_resizing(prepare: Preprocessing) -> bool:
    return bool(prepare.resize or prepare.shortest_edge or prepare.crop)


def _channels_last(pixels: np.ndarray, axes: str | None) -> np.ndarray:
    """Return an array as (H, W, C); where its order is not said, few channels tell it."""
    if pixels.ndim == 2:
        return pixels[..., None]
    first = axes == "first" or (axes is None and pixels.shape[0] <= MOST_CHANNELS)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0) if first else pixels)


def _eight_bits(pixels: np.ndarray, prepare: Preprocessing) -> np.ndarray:
    """Return pixels from 0 to 1 as 8-bit ones, in which pictures are resized.

    Raises:
        ValueError: they are not from 0 to 1, or would be scaled twice.
    """
    if not (pixels.min(initial=0) >= 0 and pixels.max(initial=1) <= 1):
        raise ValueError("pixels that are no whole numbers must be from 0 to 1; give 8-bit values")
    if prepare.rescale != 1.0:
        raise ValueError("these pixels are from 0 to 1 already; pass do_rescale=False")
    return (pixels * 255).astype(np.uint8)


def _in_range(pixels: np.ndarray) -> np.ndarray:
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 255:
        raise ValueError("pixels must be from 0 to 255")
    return pixels.astype(np.uint8)


def _of_many_channels(pixels: np.ndarray, prepare: Preprocessing) -> np.ndarray:
    if pixels.shape[-1] != prepare.channels:
        raise ValueError(f"a picture has {pixels.shape[-1]} channels, not {prepare.channels}")
    if prepare.resize not in (None, pixels.shape[:2]) or prepare.shortest_edge or prepare.crop:
        raise MaeConvertError(
            f"pictures of {prepare.channels} channels cannot be resized here; give them in the"
            " model's size"
        )
    return prepare.normalised(pixels)


def _as_tensors(pixels: list[np.ndarray], kind: str | None) -> Any:
    if kind is None:
        return pixels
    shapes = sorted({array.shape for array in pixels})
    if len(shapes) != 1:
        raise ValueError(f"pictures of different sizes {shapes} make no tensor; resize them")
    batch = np.stack(pixels)
    if kind == "np":
        return batch
    if kind == "pt":
        import torch

        return torch.from_numpy(batch)
    if kind == "tf":
        import tensorflow as tf

        return tf.constant(batch)
    raise ValueError(f"return_tensors must be 'np', 'pt', 'tf' or None, not {kind!r}")


ViTImageProcessor = AutoImageProcessor = MaeImageProcessor
