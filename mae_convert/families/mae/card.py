"""What a model card says of the image MAE."""

from mae_convert.families.card import Card
from mae_convert.families.mae.official import BASE_URL

CARD = Card(
    introduction=("Masked Autoencoder (MAE, [He et al. 2021](https://arxiv.org/abs/2111.06377))"),
    citation="""@article{he2021masked,
  title   = {Masked Autoencoders Are Scalable Vision Learners},
  author  = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr
             and Girshick, Ross},
  journal = {arXiv:2111.06377},
  year    = {2021}
}""",
    tags=("vit_mae",),
    pipeline_tags={
        "pretrain": "image-feature-extraction",
        "encoder": "image-feature-extraction",
        "classify": "image-classification",
    },
    addresses=(f"{BASE_URL}/",),
)
