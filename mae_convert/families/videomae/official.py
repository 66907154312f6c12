"""The models that the authors of VideoMAE publish, and their sizes.

The authors' files are on Google Drive without fixed names or hashes; the same weights are on the
Hugging Face Hub in the layout of transformers.
"""

from collections.abc import Iterator

from mae_convert.families.official_models import Card, OfficialModel
from reference_models.configuration import VideoMAEConfig

LICENSE = "cc-by-nc-4.0"  # the licence of MCG-NJU/VideoMAE
# Width, depth, heads and hidden width of the MLP; then width, depth and heads of the decoder.
_SIZES = {
    "S": ((384, 12, 6, 1536), (192, 4, 3)),
    "B": ((768, 12, 12, 3072), (384, 4, 6)),
    "L": ((1024, 24, 16, 4096), (512, 12, 8)),
    "H": ((1280, 32, 16, 5120), (640, 12, 8)),
    "g": ((1408, 40, 16, 6144), (512, 4, 8)),  # version 2
}
# The models of transformers' conversion script: the data set by the name on the Hub after
# "videomae-".
_ON_THE_HUB = {
    "small-finetuned-kinetics": "Kinetics-400",
    "small-finetuned-ssv2": "Something-Something v2",
    "base-short": "Kinetics-400",
    "base-short-finetuned-kinetics": "Kinetics-400",
    "base": "Kinetics-400",
    "base-finetuned-kinetics": "Kinetics-400",
    "large": "Kinetics-400",
    "large-finetuned-kinetics": "Kinetics-400",
    "huge-finetuned-kinetics": "Kinetics-400",
    "base-short-ssv2": "Something-Something v2",
    "base-short-finetuned-ssv2": "Something-Something v2",
    "base-ssv2": "Something-Something v2",
    "base-finetuned-ssv2": "Something-Something v2",
}


def _sizes() -> Iterator[OfficialModel]:
    for size in _SIZES:
        for task in ("pretrain", "classify", "encoder"):
            yield OfficialModel(f"VideoMAE ViT-{size}/{_patch(size)}", task, _model(size, task))


def _published() -> Iterator[OfficialModel]:
    for name, data in _ON_THE_HUB.items():
        size, task = name[0].upper(), "classify" if "finetuned" in name else "pretrain"
        labels = 400 if data.startswith("Kinetics") else 174
        yield OfficialModel(
            f"VideoMAE ViT-{size}/{_patch(size)}",
            task,
            _model(size, task, labels),
            LICENSE,
            f"hf://MCG-NJU/videomae-{name}",
            data=data,
        )


def _patch(size: str) -> int:
    return 14 if size == "g" else 16


def _model(size: str, task: str, labels: int = 400) -> VideoMAEConfig:
    (width, depth, heads, hidden), (decoder_width, decoder_depth, decoder_heads) = _SIZES[size]
    return VideoMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=hidden,
        patch_size=_patch(size),
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width,
        use_mean_pooling=task == "classify",
        num_labels=labels,
    )


OFFICIAL = (*_sizes(), *_published())


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
