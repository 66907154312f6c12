"""A table of related models with MAE's tensor shapes: how each is recognised, and its caveats.

A related model is recognised by the name of a tensor that no other model has, by training arguments
in the checkpoint or, without these, by the shapes of its tensors. Recognition by shapes is only
probable, because other models have the same shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Relative:
    """A model that is related to MAE and that this project converts, wholly or in part."""

    name: str
    """The common name of the model."""

    key: str | None = None
    """Pattern of the name of a tensor that only this model has; None if there is none."""

    decoder: str | None = None
    """Pattern of the names of the decoder's tensors; None if no decoder is dropped.

    The tensors are dropped, because the decoder is not MAE's decoder.
    """

    why_dropped: str = ""
    """Why the decoder is dropped, for the list of dropped tensors; "" if it is not dropped."""

    arguments: Mapping[str, str] = field(default_factory=dict)
    """Training arguments that identify this model: a pattern for the value (as text), by argument.

    One matching argument is sufficient.
    """

    shapes: tuple[Fields, ...] = ()
    """Alternative sets of fields (geometry and ``task``) that suggest this model.

    All fields of one set must match. Decoder fields are compared for pre-training models only.
    """

    by_patches: Mapping[int, Fields] = field(default_factory=dict)
    """The values of configuration fields that this model uses, by the number of patches."""

    preprocessing: Fields = field(default_factory=dict)
    """The fields of ``preprocessor_config.json`` for this model."""

    impossible: Mapping[str, str] = field(default_factory=dict)
    """The training arguments that make a conversion impossible, with the reason for each."""

    unresampled: str | None = None
    """Why the position embeddings cannot be resampled for another image size; None if they can."""

    caveat: str | None = None
    """A caveat for users of the converted model."""


def _size(width: int, depth: int, patch: int, **more: Any) -> Fields:
    """Return the configuration fields of a ViT with three channels and an MLP ratio of 4."""
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "intermediate_size": 4 * width,
        "patch_size": patch,
        "num_channels": 3,
        **more,
    }


def _decoder(width: int, depth: int) -> Fields:
    return {"decoder_hidden_size": width, "decoder_num_hidden_layers": depth}


# He et al. 2021, table 1: the default decoder, which the official files also have, has width 512
# and 8 blocks.
PUBLISHED_DECODER = _decoder(512, 8)
SMALL, BASE = _size(384, 12, 16), _size(768, 12, 16)
LARGE, HUGE = _size(1024, 24, 16), _size(1280, 32, 14)

MAE = tuple(
    Relative(f"MAE {name}", shapes=({**size, **PUBLISHED_DECODER},))
    for name, size in (("S/16", SMALL), ("B/16", BASE), ("L/16", LARGE), ("H/14", HUGE))
)


def _spectrogram(frames: int, mean: float, deviation: float) -> Fields:
    """Return the fields of AudioMAE's pre-training (``main_pretrain.py``) for a data set.

    Pixels are log mel energies, minus their mean, divided by twice their standard deviation.
    """
    return {
        "image_size": (frames, 128),
        "mask_ratio": 0.8,
        "image_mean": (mean,),
        "image_std": (2 * deviation,),
    }


AUDIO_MAE = Relative(
    name="AudioMAE",
    key=r"decoder_blocks\.\d+\.attn\.(tau|meta_mlp\..+)",
    decoder=r"mask_token|decoder_.+",
    why_dropped=(
        "AudioMAE's decoder has Swin blocks, which MAE's decoder does not have; only the encoder "
        "is read"
    ),
    arguments={"audio_exp": "True"},
    shapes=({"num_channels": 1, "patch_size": 16, "num_patches": 512},),
    by_patches={
        512: _spectrogram(1024, -4.2677393, 4.5689974),  # AudioSet
        256: _spectrogram(512, -6.6268077, 5.358466),  # ESC-50
        64: _spectrogram(128, -6.845978, 5.5654526),  # Speech Commands
    },
    preprocessing={"do_resize": False, "do_rescale": False, "do_convert_rgb": False},
    impossible={"use_custom_patch": "its patches overlap, unlike the patches of a ViT"},
    unresampled=(
        "AudioMAE computes its position table for a grid of 8 x 64 patches, but has a grid of "
        "64 x 8 patches; both are in row-major order, so most patches have the position of another "
        "patch"
    ),
    caveat=(
        "its images are one-channel spectrograms (time x 128 log mel energies), normalized by "
        "subtracting the mean and dividing by twice the standard deviation: preprocessing of "
        "photographs does not apply"
    ),
)

SCALE_MAE = Relative(
    name="Scale-MAE",
    key=r"mask_token_decoder|fpn\.fpn\d\..+|fcn(_high|_low)?\.(proj|conv_blocks|pred)\..+",
    decoder=r"mask_token(_decoder)?|decoder_.+|fpn\..+|fcn(_high|_low)?\..+|pos_emb_projection\..+",
    why_dropped=(
        "unlike MAE's decoder, Scale-MAE's decoder predicts two frequency bands by convolutions; "
        "only the encoder is read"
    ),
    arguments={"base_resolution": r".+", "eval_base_resolution": r".+"},
    shapes=({**LARGE, "task": "encoder"}, {**LARGE, "task": "classify"}),
    caveat=(
        "Scale-MAE computes its position embeddings for each image from the ground sample distance "
        "and never reads the position table in the file; the conversion uses this table, which is "
        "for a distance of 1, so all images are encoded as if their distance were 1"
    ),
)

CROSS_MAE = Relative(
    name="CrossMAE",
    key=r"(wfm|dec_norms)\..+",
    decoder=r"mask_token|decoder_.+|wfm\..+|dec_norms\..+",
    why_dropped=(
        "unlike MAE's decoder, CrossMAE's decoder attends to the encoder's outputs; only the "
        "encoder is read"
    ),
)

RETFOUND = Relative(
    name="RETFound (MAE)",
    arguments={"model": "RETFound_mae", "finetune": r"(?i)(.*/)?RETFound_(mae|cfp|oct).*"},
    shapes=({**LARGE, **PUBLISHED_DECODER},),
)

MEDICAL_MAE = Relative(
    name="medical_mae (chest X-rays)",
    arguments={
        "datasets_names": r".*'(chexpert|chestxray_nih|mimic_cxr)'.*",
        "dataset": "chestxray",
    },
    shapes=tuple(
        {**size, **_decoder(width, depth)}
        for size in (SMALL, BASE)
        for width, depth in ((512, 8), (512, 2), (128, 2))
    ),
)

MAWS = Relative(
    name="MAWS",
    shapes=tuple({**size, "task": "encoder"} for size in (BASE, LARGE, HUGE, _size(2560, 24, 14))),
)

# Bands of Sentinel-2 and Sentinel-1.
_BANDS = tuple(
    {**size, "num_channels": bands} for size in (SMALL, BASE, LARGE, HUGE) for bands in (13, 2)
)
_OF_SENTINEL = (
    "its images have the 13 bands of Sentinel-2 or the 2 bands of Sentinel-1: preprocessing of"
    " photographs does not apply"
)
SSL4EO = Relative(
    name="SSL4EO-S12 (MAE)",
    shapes=tuple({**bands, **PUBLISHED_DECODER} for bands in _BANDS),
    caveat=_OF_SENTINEL,
)
FG_MAE = Relative(
    name="FG-MAE",
    shapes=tuple({**bands, "task": "encoder"} for bands in _BANDS),
    caveat=_OF_SENTINEL,
)

KNOWN = (*MAE, AUDIO_MAE, SCALE_MAE, CROSS_MAE, RETFOUND, MEDICAL_MAE, MAWS, SSL4EO, FG_MAE)
"""The related models, in order of preference if several have the same names and shapes."""
