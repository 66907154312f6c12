"""What a model card says of Prithvi-EO."""

from mae_convert.families.card import Card

CARD = Card(
    introduction=(
        "Prithvi-EO, a masked autoencoder of satellite images of several times ([Jakubik et al. "
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
