"""The models of Prithvi-EO on the Hugging Face Hub; no hash of a file is published."""

from collections.abc import Iterator

from mae_convert.families.official_models import Card, OfficialModel
from reference_models.configuration import PrithviConfig

LICENSE = "apache-2.0"
BOTH = ("time", "location")
# By name: width, depth, heads, patch size, frames, and which coordinates the model embeds. The tiny
# and the base model of version 2 exist only with coordinates.
_MODELS: dict[str, tuple[int, int, int, int, int, tuple[str, ...]]] = {
    "Prithvi-EO-1.0-100M": (768, 12, 12, 16, 3, ()),
    "Prithvi-EO-2.0-tiny-TL": (192, 12, 3, 16, 1, BOTH),
    "Prithvi-EO-2.0-100M-TL": (768, 12, 12, 16, 4, BOTH),
    "Prithvi-EO-2.0-300M": (1024, 24, 16, 16, 4, ()),
    "Prithvi-EO-2.0-300M-TL": (1024, 24, 16, 16, 4, BOTH),
    "Prithvi-EO-2.0-600M": (1280, 32, 16, 14, 4, ()),
    "Prithvi-EO-2.0-600M-TL": (1280, 32, 16, 14, 4, BOTH),
}


def _catalog() -> Iterator[OfficialModel]:
    for name, (width, depth, heads, patch, frames, coordinates) in _MODELS.items():
        model = PrithviConfig(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            patch_size=patch,
            num_frames=frames,
            coords_encoding=coordinates,
            decoder_hidden_size=512,
            decoder_num_hidden_layers=8,
            decoder_num_attention_heads=16,
            decoder_intermediate_size=2048,
        )
        yield OfficialModel(
            name, "pretrain", model, LICENSE, f"hf://ibm-nasa-geospatial/{name}", data="HLS"
        )


OFFICIAL = tuple(_catalog())


CARD = Card(
    introduction=(
        "Prithvi-EO, a masked autoencoder of time series of satellite images ([Jakubik et al. "
        "2023](https://arxiv.org/abs/2310.18660), version 2 [Szwarcman et al. 2024]"
        "(https://arxiv.org/abs/2412.02732))"
    ),
    citation="""@article{jakubik2023foundation,
  title   = {Foundation Models for Generalist Geospatial Artificial Intelligence},
  author  = {Jakubik, Johannes and others},
  journal = {arXiv:2310.18660},
  year    = {2023}
}
@article{szwarcman2024prithvi,
  title   = {Prithvi-EO-2.0: A Versatile Multi-Temporal Foundation Model for Earth Observation
             Applications},
  author  = {Szwarcman, Daniela and others},
  journal = {arXiv:2412.02732},
  year    = {2024}
}""",
    tags=("prithvi", "earth-observation"),
    licences={"the authors' published weights": "apache-2.0"},
)
