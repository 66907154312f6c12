"""Fields of configuration files that a library may use but mae-convert does not use."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from mae_convert.errors import ConfigurationError
from mae_convert.families import family_of
from mae_convert.families.transformers_fields import MERGE
from mae_convert.formats import Container
from mae_convert.layouts.config_fields import (
    HARMLESS,
    NOTHING,
    READ,
    Reported,
    Treatment,
    unknown_fields,
)
from mae_convert.layouts.layout import Layout

SQUARE = Reported((None, True))
PREPROCESSOR: Mapping[str, Treatment] = {
    **dict.fromkeys(
        (
            "crop_size",
            "do_center_crop",
            "do_normalize",
            "do_rescale",
            "do_resize",
            "image_mean",
            "image_std",
            "resample",
            "rescale_factor",
            "size",
        ),
        READ,
    ),
    # Class names, data format, and conversion to RGB: images are always converted to the model's
    # channels.
    **dict.fromkeys(
        (
            "_processor_class",
            "_valid_processor_keys",
            "backend",
            "data_format",
            "device",
            "disable_grouping",
            "do_convert_rgb",
            "image_seq_length",
            "input_data_format",
            "processor_class",
            "return_tensors",
            "transformers_version",
            "use_fast",
        ),
        HARMLESS,
    ),
    "auto_map": Reported((None, {})),
    "default_to_square": SQUARE,
    "do_pad": Reported(NOTHING),
    "pad_size": Reported(NOTHING),
}
"""Fields of preprocessor_config.json, and of ``image_processor`` in processor_config.json."""
PROCESSORS = (
    "BitImageProcessor",
    "BitImageProcessorFast",
    "BitImageProcessorPil",
    "ViTFeatureExtractor",
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "ViTImageProcessorPil",
)
"""The image processor classes that are supported for every family."""


def unread(
    container: Container, layout: Layout, task: str, dtypes: Iterable[np.dtype]
) -> tuple[str, ...]:
    """Return configuration fields that a library may use but mae-convert does not use.

    Args:
        container: an open checkpoint.
        layout: the layout of the checkpoint.
        task: the task for which the checkpoint is read.
        dtypes: the dtypes of the tensors that are read.

    Returns:
        The fields with their files, such as "config.json: fusion_config".

    Raises:
        ConfigurationError: with this configuration, a library would compute different outputs.
    """
    return tuple(_unread(container, layout, task, dtypes))


def _unread(
    container: Container, layout: Layout, task: str, dtypes: Iterable[np.dtype]
) -> Iterator[str]:
    if container.adapter is not None:
        raise ConfigurationError(
            "the directory contains adapter_config.json: transformers adds this adapter to the "
            "model, so the outputs of the weights alone are different",
            hint=f"{MERGE}, or remove adapter_config.json and the adapter's weights",
        )
    for name in family_of(layout).unread(container, layout.name, task, dtypes):
        yield f"config.json: {name}"
    if container.preprocessor_source is not None and container.preprocessor:
        where = container.preprocessor_source
        kinds = Reported((None, *PROCESSORS, *family_of(layout).image_processors))
        table = {**PREPROCESSOR, "image_processor_type": kinds, "feature_extractor_type": kinds}
        for name in unknown_fields(container.preprocessor, table, where):
            yield f"{where}: {name}"
    if container.other_preprocessor:
        yield "preprocessor_config.json, which differs from processor_config.json"
