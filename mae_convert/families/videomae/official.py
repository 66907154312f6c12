"""The sizes of the models that the authors of VideoMAE publish."""

from collections.abc import Iterator
from dataclasses import dataclass

from reference_models.configuration import VideoMAEConfig

# Width, depth, heads and hidden width of the MLP, then of the decoder width, depth and heads.
_SIZES = {
    "S": ((384, 12, 6, 1536), (192, 4, 3)),
    "B": ((768, 12, 12, 3072), (384, 4, 6)),
    "L": ((1024, 24, 16, 4096), (512, 12, 8)),
    "H": ((1280, 32, 16, 5120), (640, 12, 8)),
    "g": ((1408, 40, 16, 6144), (512, 4, 8)),  # version 2
}


@dataclass(frozen=True)
class Official:
    """A size of published models.

    Attributes:
        model_name: as the paper names it, for example "VideoMAE ViT-B/16".
        task: "pretrain" or "classify".
        model: the configuration.
    """

    model_name: str
    task: str
    model: VideoMAEConfig


def _catalog() -> Iterator[Official]:
    for size, (encoder, decoder) in _SIZES.items():
        patch = 14 if size == "g" else 16
        for task in ("pretrain", "classify", "encoder"):
            yield Official(
                f"VideoMAE ViT-{size}/{patch}", task, _model(encoder, decoder, patch, task)
            )


def _model(
    encoder: tuple[int, ...], decoder: tuple[int, ...], patch: int, task: str
) -> VideoMAEConfig:
    width, depth, heads, hidden = encoder
    decoder_width, decoder_depth, decoder_heads = decoder
    return VideoMAEConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=hidden,
        patch_size=patch,
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width,
        use_mean_pooling=task == "classify",
    )


OFFICIAL = tuple(_catalog())
