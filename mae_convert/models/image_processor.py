"""The image processor: from images to ``pixel_values``, equal to transformers' ViTImageProcessor.

The results are bit-identical to the results of ViTImageProcessor with the Pillow backend
(`ViTImageProcessorPil` in version 5). In addition, images with other channels (grey, or with
transparency) are converted to the channels of the model.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mae_convert.checkpoint.preprocessing import Preprocessing, preprocessing_from_settings
from mae_convert.errors import ConfigurationError, ImageError
from mae_convert.files.atomic import write_file
from mae_convert.models.model_names import read_json, source_named
from mae_convert.models.pixel_arrays import axes_named, prepared, single_images
from mae_convert.models.transformers_errors import raising_as_transformers
from mae_convert.sources import HubReference, locate_file, open_source

FILE, PROCESSOR_FILE = "preprocessor_config.json", "processor_config.json"
# Defaults of transformers' class.
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
SWITCHES = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


class BatchFeature(dict):
    """Inputs of a model by name, for ``model(**inputs)``; each input is also an attribute."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    @property
    def data(self) -> dict[str, Any]:
        """The inputs as a plain dictionary."""
        return dict(self)

    def to(self, *arguments: Any, **named: Any) -> "BatchFeature":
        """Move the PyTorch tensors to another device or dtype, in place, and return this object.

        As in transformers, integer tensors keep their dtype, and values other than PyTorch tensors
        are not changed.
        """
        import torch

        asked = [a for a in (*arguments, *named.values()) if isinstance(a, torch.dtype)]
        for name, value in self.items():
            if not isinstance(value, torch.Tensor):
                continue
            if asked and not value.is_floating_point():
                device = named.get("device") or next(
                    (a for a in arguments if not isinstance(a, torch.dtype)), value.device
                )
                self[name] = value.to(device)
            else:
                self[name] = value.to(*arguments, **named)
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> "BatchFeature":
        """Convert the values to arrays or tensors, in place, and return this object.

        Args:
            tensor_type: "np" (NumPy), "pt" (PyTorch) or "tf" (TensorFlow); None: no conversion.

        Raises:
            ImageError: the type is unknown, or arrays of different shapes cannot be stacked.
        """
        if tensor_type is not None:
            for name, value in self.items():
                self[name] = _as_tensors([np.asarray(row) for row in value], tensor_type)
        return self


class MaeImageProcessor:
    """Prepares images for a model: resize, rescale, normalize, channels first.

    Args:
        settings: as in ``preprocessor_config.json``: ``size``, ``resample``, ``image_mean``,
            ``image_std``, ``do_resize``, ``do_rescale``, ``rescale_factor``, ``do_normalize`` ...;
            unspecified settings have transformers' defaults. Each setting is an attribute.
    """

    model_input_names = ("pixel_values",)
    is_fast = False  # as in transformers' class with the same results

    def __init__(self, **settings: Any) -> None:
        self.__dict__.update({**DEFAULTS, **_specified(settings)})
        self._preprocessing({})  # raises an error for invalid settings

    @classmethod
    @raising_as_transformers()
    def from_pretrained(cls, name: str | Path, **changes: Any) -> "MaeImageProcessor":
        """Return the processor of a checkpoint, from ``preprocessor_config.json``.

        In a directory, ``processor_config.json`` has precedence, as in version 5 of transformers.
        Without these files, the preprocessing of the checkpoint or of its layout is used.

        Args:
            name: the file, a directory, or a source as for `load_model`.
            changes: settings to change; also the ``revision`` and ``subfolder`` of a repository on
                the Hub.

        Raises:
            MaeConvertError: the source does not exist or cannot be read.
        """
        changes = {n: v for n, v in changes.items() if n not in ("use_fast", "backend")}
        source = source_named(name, changes)
        if isinstance(source, HubReference):
            source = locate_file(replace(source, path=f"{source.path}/{FILE}".lstrip("/")))
        if isinstance(source, Path):
            settings = _settings_in(source)
            if settings is not None:
                return cls(**{**settings, **changes})
        checkpoint = open_source(source, incomplete=True)
        if any(missing.field == "image_size" for missing in checkpoint.configuration.missing):
            checkpoint.require_complete()
        configuration = checkpoint.configuration
        height, width = configuration.model.image_hw
        settings = {
            "size": {"height": height, "width": width},
            "resample": 2 if checkpoint.preprocessor else 3,
            **checkpoint.preprocessor,
            "image_mean": list(configuration.image_mean),
            "image_std": list(configuration.image_std),
        }
        return cls(**{**settings, **changes})

    def save_pretrained(self, directory: str | Path) -> list[str]:
        """Write ``preprocessor_config.json`` to a directory, which is created if needed.

        Returns:
            The paths of the files that were written.
        """
        Path(directory).mkdir(parents=True, exist_ok=True)
        file = Path(directory) / FILE
        self.to_json_file(file)
        return [str(file)]

    def to_json_file(self, path: str | Path) -> None:
        """Write the settings as JSON to a file; an existing file is replaced."""
        write_file(Path(path), self.to_json_string(), overwrite=True)

    def to_json_string(self) -> str:
        """Return the settings as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    @raising_as_transformers()
    def from_json_file(cls, path: str | Path) -> "MaeImageProcessor":
        """Return the processor that a JSON file describes.

        Raises:
            MaeConvertError: the file is missing or is not a JSON object.
        """
        return cls.from_dict(read_json(Path(path)))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], **changes: Any) -> "MaeImageProcessor":
        """Return the processor for a mapping of settings; values in `changes` take precedence."""
        return cls(**{**settings, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data for JSON."""
        settings = {name: value for name, value in vars(self).items() if value is not None}
        return {"image_processor_type": "ViTImageProcessor", **settings}

    def __call__(self, images: Any, return_tensors: str | None = None, **changes: Any) -> Any:
        """Prepare images; see `preprocess`."""
        return self.preprocess(images, return_tensors, **changes)

    def preprocess(
        self, images: Any, return_tensors: str | None = None, **changes: Any
    ) -> BatchFeature:
        """Return images as ``pixel_values`` (N, C, H, W), float32.

        Args:
            images: one image or several images: Pillow images, paths, or arrays or tensors of shape
                (H, W), (H, W, C) or (C, H, W) with whole numbers from 0 to 255, or with fractions
                from 0 to 1 if ``do_rescale`` is False; an array with four axes is a batch.
            return_tensors: "np", "pt" or "tf"; None for a list of arrays.
            changes: settings to change for these images (None: unchanged); also
                ``input_data_format``, the axes of ambiguous arrays, and ``data_format``, the axes
                of the result ("channels_first" or "channels_last").

        Raises:
            ConfigurationError: a setting is invalid.
            ImageError: an argument is not an image, or the images have different sizes. An
                ImageError is also a ValueError.
            TypeError: a setting is unknown.
        """
        order, result = (
            axes_named(changes.pop(name, None), name)
            for name in ("input_data_format", "data_format")
        )
        if unknown := sorted(changes.keys() - set(vars(self)) - {"do_convert_rgb"}):
            raise TypeError(f"the image processor has no argument {unknown[0]!r}")
        prepare = self._preprocessing(changes)
        pixels = [prepared(image, prepare, order) for image in single_images(images)]
        if not pixels:
            raise ImageError("the list of images is empty", hint="pass at least one")
        if result == "last":
            pixels = [array.transpose(1, 2, 0) for array in pixels]
        return BatchFeature(pixel_values=_as_tensors(pixels, return_tensors))

    def _preprocessing(self, changes: Mapping[str, Any]) -> Preprocessing:
        settings = {**vars(self), **_specified(changes)}
        settings["resample"] = _filter(settings["resample"])
        mean, std = (_numbers(name, settings[name]) for name in ("image_mean", "image_std"))
        if len(mean) != len(std):
            raise ConfigurationError(
                f"image_mean has {len(mean)} channels and image_std has {len(std)}",
                hint="correct one",
            )
        return preprocessing_from_settings(settings, (224, 224), (mean, std))


def _settings_in(path: Path) -> dict[str, Any] | None:
    """Return the image processor's settings in a JSON file or a directory; None if it has none.

    A directory has the settings in ``processor_config.json`` or ``preprocessor_config.json``.
    """
    if path.is_dir() and (path / PROCESSOR_FILE).is_file():
        nested = read_json(path / PROCESSOR_FILE).get("image_processor")
        if isinstance(nested, dict):
            return nested
    file = path / FILE if path.is_dir() else path
    if file.suffix != ".json" or not file.is_file():
        return None
    settings = read_json(file)
    nested = settings.get("image_processor")
    return nested if isinstance(nested, dict) else settings


def _specified(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are not None; as in transformers 4, None means not specified."""
    specified = {name: value for name, value in changes.items() if value is not None}
    for name in SWITCHES:
        if not isinstance(specified.get(name, True), bool):
            raise ConfigurationError(
                f"{name} must be True or False, not {specified[name]!r}", hint="pass one of the two"
            )
    sizes: dict[str, Any] = {
        name: _size(specified[name]) for name in ("size", "crop_size") if name in specified
    }
    return {**specified, **sizes}


def _size(value: Any) -> Any:
    """Return a size as a dictionary: a number means a square, a pair means (height, width).

    An invalid size is returned unchanged, and refused when it is used.
    """
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    return {"height": sides[0], "width": sides[1]} if whole and len(sides) == 2 else value


def _filter(value: Any) -> Any:
    """Return Pillow's number of a resampling filter, given its number, name or enum member."""
    name = getattr(value, "value", value)  # a member of an enumeration of Pillow or torchvision
    if isinstance(name, str) and name.upper() in Image.Resampling.__members__:
        return int(Image.Resampling[name.upper()])
    return int(name) if isinstance(name, float) and name.is_integer() else name


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    """Return a number for each channel; a single number is repeated for three channels.

    Raises:
        ConfigurationError: the value is invalid.
    """
    numbers = np.asarray(value if isinstance(value, list | tuple | np.ndarray) else [value] * 3)
    if numbers.dtype.kind not in "iuf" or numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise ConfigurationError(
            f"{name} is {value!r}, but must be a number for each channel",
            hint="correct it, or leave it out",
        )
    if name == "image_std" and not numbers.all():
        raise ConfigurationError(f"{name} is {value!r}, but must not be 0", hint="correct it")
    return tuple(numbers.tolist())


def _as_tensors(pixels: list[np.ndarray], kind: str | None) -> Any:
    if kind is None:
        return pixels
    shapes = sorted({array.shape for array in pixels})
    if len(shapes) != 1:
        raise ImageError(
            f"images of different sizes {shapes} cannot be stacked into one tensor",
            hint="resize them",
        )
    batch = np.stack(pixels)
    if kind == "np":
        return batch
    if kind == "pt":
        import torch

        return torch.from_numpy(batch)
    if kind == "tf":
        import tensorflow as tf

        return tf.constant(batch)
    raise ImageError(
        f"return_tensors must be 'np', 'pt', 'tf' or None, not {kind!r}", hint="choose one of these"
    )


ViTImageProcessor = AutoImageProcessor = MaeImageProcessor
