"""The pre-trained models that the authors of MAE-ST publish."""

from collections.abc import Iterator

from mae_convert.families.official_models import Card, OfficialModel
from reference_models.configuration import MAESTConfig

BASE_URL = "https://dl.fbaipublicfiles.com/video-mae/pretrain"
LICENSE = "cc-by-nc-4.0"  # the licence of facebookresearch/mae_st
# Width, depth, heads and patch size; then the first digits of the MD5 of the files trained on
# Kinetics-400, 600 and 700.
_SIZES = {
    "large": ((1024, 24, 16, 16), ("edf3a5", "9a9645", "cdbada")),
    "huge": ((1280, 32, 16, 14), ("3d7f64", "27495e", "4c4e3c")),
}


def _catalog() -> Iterator[OfficialModel]:
    for size, ((width, depth, heads, patch), hashes) in _SIZES.items():
        model = MAESTConfig(
            hidden_size=width,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            patch_size=patch,
            decoder_hidden_size=512,
            decoder_num_hidden_layers=4,
            decoder_num_attention_heads=16,
            decoder_intermediate_size=2048,
            pred_t_dim=8,
        )
        for actions, md5 in zip((400, 600, 700), hashes, strict=True):
            file = f"mae_pretrain_vit_{size}_k{actions}.pth"
            yield OfficialModel(
                f"MAE-ST ViT-{size[0].upper()}/{patch}",
                "pretrain",
                model,
                LICENSE,
                f"{BASE_URL}/{file}",
                file,
                md5,
                f"Kinetics-{actions}",
            )


OFFICIAL = tuple(_catalog())


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
