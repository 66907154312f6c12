"""What a model card says of MAE-ST."""

from mae_convert.families.card import Card

CARD = Card(
    introduction=(
        "MAE-ST, a spatio-temporal masked autoencoder of videos ([Feichtenhofer et al. 2022]"
        "(https://arxiv.org/abs/2205.09113))"
    ),
    citation="""@article{feichtenhofer2022masked,
  title   = {Masked Autoencoders As Spatiotemporal Learners},
  author  = {Feichtenhofer, Christoph and Fan, Haoqi and Li, Yanghao and He, Kaiming},
  journal = {arXiv:2205.09113},
  year    = {2022}
}""",
    tags=("mae-st", "video"),
    pipeline_tags={"classify": "video-classification"},
    licences={"the authors' published weights": "cc-by-nc-4.0"},
    addresses=("https://dl.fbaipublicfiles.com/video-mae/",),
)
