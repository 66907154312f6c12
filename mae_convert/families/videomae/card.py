"""What a model card says of VideoMAE."""

from mae_convert.families.card import Card

CARD = Card(
    introduction=(
        "VideoMAE, a masked autoencoder of videos ([Tong et al. 2022]"
        "(https://arxiv.org/abs/2203.12602), version 2 [Wang et al. 2023]"
        "(https://arxiv.org/abs/2303.16727))"
    ),
    citation="""@article{tong2022videomae,
  title   = {VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video
             Pre-Training},
  author  = {Tong, Zhan and Song, Yibing and Wang, Jue and Wang, Limin},
  journal = {arXiv:2203.12602},
  year    = {2022}
}
@article{wang2023videomae,
  title   = {VideoMAE V2: Scaling Video Masked Autoencoders with Dual Masking},
  author  = {Wang, Limin and Huang, Bingkun and Zhao, Zhiyu and Tong, Zhan and He, Yinan and
             Wang, Yi and Wang, Yali and Qiao, Yu},
  journal = {arXiv:2303.16727},
  year    = {2023}
}""",
    tags=("videomae", "video"),
    pipeline_tags={"classify": "video-classification"},
    licences={"the authors' published weights of version 1": "cc-by-nc-4.0"},
)
