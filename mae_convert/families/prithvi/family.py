"""The model family Prithvi-EO.

The models are described by Jakubik et al. 2023 (arXiv:2310.18660) and Szwarcman et al. 2024
(arXiv:2412.02732).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from mae_convert.errors import ConfigurationError
from mae_convert.families.canonical import square_grid
from mae_convert.families.checkpoint_options import named
from mae_convert.families.clips import ALL, Clips
from mae_convert.families.configuration import Configuration, Missing, missing_heads
from mae_convert.families.evidence import NAMES, SQUARE, Evidence, FieldValue
from mae_convert.families.family import Family, Fields, Shapes
from mae_convert.families.position_embeddings import (
    CORNERS_ALIGNED,
    POSITION_EMBEDDINGS,
    PositionTable,
)
from mae_convert.families.prithvi import schema as canonical
from mae_convert.families.prithvi.layouts import LAYOUTS
from mae_convert.families.prithvi.layouts.keras import CLASSES
from mae_convert.families.prithvi.layouts.original import MEAN_1, STD_1
from mae_convert.families.prithvi.official import CARD, OFFICIAL
from mae_convert.layouts.transforms import Schema, Shape
from reference_models.configuration import PrithviConfig
from reference_models.positions import spacetime_position_embedding

MODELS: Mapping[str, Mapping[str, str]] = {
    "torch": {
        "pretrain": "reference_models.pytorch.prithvi:PrithviForPreTraining",
        "encoder": "reference_models.pytorch.prithvi:PrithviModel",
    },
    "keras": CLASSES,
}
MODEL_LAYOUTS = {"torch": "original", "keras": "keras", "terratorch": "original"}
NATIVE_LOADERS = {
    ("prithvi", "torch"): "facebook",
    ("prithvi, encoder", "torch"): "facebook",
    ("prithvi", "terratorch"): "terratorch",
    ("prithvi, encoder", "terratorch"): "terratorch",
    ("prithvi, keras", "tensorflow"): "keras",
    ("prithvi, keras", "jax"): "keras",
}
MOST_FRAMES = 16
BANDS = 6
TABLE = "encoder.position_embedding"
TOLERANCE = 1e-2  # for tables rounded to bfloat16; tables of other grids differ by about 1
LIKE = "in their original order, as in the authors' inference script"


class Prithvi(Family):
    """Masked autoencoders of series of satellite images with six bands."""

    name = "prithvi"
    title = "Prithvi-EO, masked autoencoders of satellite images (Szwarcman et al. 2024)"
    configuration_class = PrithviConfig
    layouts = LAYOUTS
    models = MODELS
    model_layouts = MODEL_LAYOUTS
    native_loaders = NATIVE_LOADERS
    official = OFFICIAL
    encoder_prefixes: ClassVar[Mapping[str, str]] = {"prithvi": "encoder."}
    positions = "stored"
    resampling = CORNERS_ALIGNED
    fixed_positions = "times, rows and columns"
    additional_inputs = ("temporal_coords", "location_coords")
    card = CARD
    clips = Clips(ALL, LIKE, measured=True, missing_value=(-9999, 0.0001), colours=(2, 1, 0))

    def schema(self, config: PrithviConfig, task: str) -> Schema:
        """Return the name and shape of every canonical tensor of a model, in canonical order."""
        return canonical.schema(config, task)

    def geometry(self, shapes: Shapes) -> dict[str, Any]:
        """Return the configuration fields that follow from the tensors' shapes."""
        return canonical.geometry(shapes)

    def expected(self, geometry: Fields, task: str, names: Iterable[str]) -> Schema:
        """Return the canonical tensor names and shapes of a model with the sizes in `geometry`.

        See `Family.expected`.
        """
        return canonical.expected(geometry, task)

    def position_tables(self, config: PrithviConfig) -> Mapping[str, PositionTable]:
        """Return the structure of each position embedding that is stored, by canonical name."""
        return dict.fromkeys(POSITION_EMBEDDINGS, PositionTable(times=config.grid_shape[0]))

    def conventions_by_names(self, names: Iterable[str]) -> Fields:
        """Return the image mean and std of version 1, or no fields.

        No fields are returned if the tensors do not have the names of version 1.
        """
        flat = "decoder_pos_embed" in set(names)
        return {"image_mean": MEAN_1, "image_std": STD_1} if flat else {}

    def values_of(self, name: str, task: str, evidence: Evidence) -> Iterator[FieldValue]:
        """Yield the values that ``evidence`` gives for a field, in order of priority.

        See `Family.values_of`.
        """
        yield from super().values_of(name, task, evidence)
        source = "convention of version 1, identified by the tensor names"
        yield FieldValue(evidence.by_names.get(name), source, NAMES)
        if name not in ("image_size", "num_frames"):
            return
        if grid := _grid_of_table(evidence):
            words = f"the fixed position table ({' x '.join(map(str, grid))} patches)"
            yield FieldValue(_fields_of(grid, evidence)[name], words)
        elif len(grids := list(_grids(evidence))) == 1:  # if several grids fit, the grid is unknown
            words = "the number of patches" if _size(evidence) else "square grid"
            yield FieldValue(_fields_of(grids[0], evidence)[name], words, SQUARE)

    def missing(self, name: str, evidence: Evidence) -> Missing:
        """Return the description of a missing field."""
        if name not in ("image_size", "num_frames"):
            return missing_heads(name, evidence)
        what = "the image size" if name == "image_size" else "the number of frames"
        reason = f"{evidence.geometry['num_patches']} patches in total"
        return Missing(name, what, named(name), reason)

    def placeholder(self, name: str, evidence: Evidence) -> Any:
        """Return a valid value for a missing field; it must not be used for computations."""
        grid = (1, evidence.geometry["num_patches"], 1)
        return _fields_of(grid, evidence).get(name, 1)

    def derived(self, values: Fields, evidence: Evidence) -> dict[str, Any]:
        """Check image size and frames against the number of position embeddings; return no fields.

        Raises:
            ConfigurationError: the image size and the number of frames result in a number of
                patches that differs from the number of position embeddings.
        """
        measured, size = evidence.geometry, values["image_size"]
        sides = zip(*((s, s) if isinstance(s, int) else s for s in (size, measured["patch_size"])),
                    strict=True)  # fmt: skip
        rows, columns = (side // length for side, length in sides)
        patches = rows * columns * (values["num_frames"] // measured["tubelet_size"])
        if patches != measured["num_patches"]:
            raise ConfigurationError(
                f"an image size of {size} and {values['num_frames']} frames result in {patches}"
                " patches, but the tensors have position embeddings for"
                f" {measured['num_patches']} patches",
                hint="specify the image size and the number of frames of the training",
            )
        return {}

    def compared_fields(self, tasks: set[str]) -> tuple[str, ...]:
        """Return the configuration fields that a verification of ``tasks`` compares, in order."""
        own = ("num_frames", "tubelet_size", "coords_encoding")
        return (*super().compared_fields(tasks), *own)

    def warnings(self, configuration: Configuration, layout: str) -> Iterator[str]:
        """Return warnings about a configuration."""
        model = configuration.model
        if "layer_norm_eps" in configuration.assumptions:
            yield (
                f"layer_norm_eps is assumed to be {model.layer_norm_eps:g}, as in the training of"
                " the published models; TerraTorch has used 1e-5 since December 2024 and computes"
                " another function from the same file"
            )
        if model.num_channels != BANDS:
            yield (
                f"the model has {model.num_channels} bands instead of the {BANDS} of the official"
                " models;"
                " TerraTorch initializes the weights of missing bands at random, which mae-convert"
                " never does"
            )

    def additional_shapes(self, config: PrithviConfig) -> Mapping[str, Shape]:
        """Return the shapes of the coordinates that a model takes for one sample, by name.

        ``temporal_coords`` contain the year and the day of the year for each frame, and
        ``location_coords`` contain the latitude and the longitude in degrees.
        """
        shapes: dict[str, Shape] = {}
        if config.encodes_time:
            shapes["temporal_coords"] = (config.num_frames, 2)
        if config.encodes_location:
            shapes["location_coords"] = (2,)
        return shapes

    def draw_additional(
        self, config: PrithviConfig, batch: int, generator: "np.random.Generator"
    ) -> dict[str, np.ndarray]:
        """Return random inputs: dates from the years 2015 to 2024, and locations on Earth."""
        shapes = self.additional_shapes(config)
        low_high = {
            "temporal_coords": ((2015, 0), (2025, 366)),
            "location_coords": ((-90, -180), (90, 180)),
        }
        drawn = {}
        for name, shape in shapes.items():
            low, high = low_high[name]
            drawn[name] = np.floor(generator.uniform(low, high, (batch, *shape))).astype(np.float32)
        return drawn


def _size(evidence: Evidence) -> Any:
    """Return the image size that an option or the configuration specifies, or None."""
    return evidence.flags.get("image_size") or evidence.config_value("image_size")


def _grids(evidence: Evidence) -> Iterator[tuple[int, int, int]]:
    """Yield the grids (times, rows, columns) that have as many patches as there are positions.

    They are in ascending order of times. Images are assumed to be square unless an option or the
    configuration specifies their size.
    """
    patches, tubelet = evidence.geometry["num_patches"], evidence.geometry["tubelet_size"]
    if size := _size(evidence):
        sides = zip(_pair(size), _pair(evidence.geometry["patch_size"]), strict=True)
        rows, columns = (side // length for side, length in sides)
        if rows and columns and patches % (rows * columns) == 0:
            yield (patches // (rows * columns), rows, columns)
        return
    frames = evidence.flags.get("num_frames") or evidence.config_value("num_frames")
    counts = (frames // tubelet,) if frames else range(1, MOST_FRAMES + 1)
    for time in counts:
        if time and patches % time == 0 and (grid := square_grid(patches // time)):
            yield (time, *grid)


def _grid_of_table(evidence: Evidence) -> tuple[int, int, int] | None:
    """Load the position embedding and return its grid; None if it is not the sine-cosine table."""
    table = evidence.positions.get(TABLE)
    if table is None:
        return None
    stored = table.load().astype(np.float64)
    for grid in _grids(evidence):
        exact = spacetime_position_embedding(stored.shape[-1], grid)
        if exact.shape == stored.shape and np.abs(exact - stored).max() <= TOLERANCE:
            return grid
    return None


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _fields_of(grid: tuple[int, int, int], evidence: Evidence) -> dict[str, Any]:
    height, width = _pair(evidence.geometry["patch_size"])
    size = (grid[1] * height, grid[2] * width)
    return {
        "image_size": size[0] if size[0] == size[1] else size,
        "num_frames": grid[0] * evidence.geometry["tubelet_size"],
    }


PRITHVI = Prithvi()
