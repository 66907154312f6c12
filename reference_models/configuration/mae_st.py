"""The configuration of MAE-ST, the spatio-temporal masked autoencoder of facebookresearch."""

import struct
from dataclasses import dataclass

from reference_models.configuration.base import (
    PatchGeometry,
    VideoConfiguration,
    check_counts,
    check_fractions,
)


@dataclass(frozen=True, kw_only=True)
class MAESTConfig(VideoConfiguration):
    """Configuration of an MAE-ST or of a classifier fine-tuned from one.

    For fields that are not described here, see `ViTMAEConfig` and `VideoConfiguration`. Fields are
    named as in transformers; fields that transformers does not have are named as in the authors'
    code. The defaults are the values of the published ViT-L of Feichtenhofer et al. 2022
    (arXiv:2205.09113).

    Attributes:
        pred_t_dim: number of frames that the decoder predicts, evenly spaced in the video; None for
            all. The published models predict 8 of 16 frames.
        sep_pos_embed: whether the position embedding is the sum of a spatial and a temporal
            embedding, which are separate parameters; otherwise it is one parameter.
        cls_embed: whether encoder and decoder have a class token.
        qkv_bias: whether the query, key and value projections have biases.
        classifier_dropout: dropout probability before a classifier's head.
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    mask_ratio: float = 0.9
    norm_pix_loss: bool = True
    decoder_num_hidden_layers: int = 4
    pred_t_dim: int | None = None
    sep_pos_embed: bool = True
    cls_embed: bool = True
    classifier_dropout: float = 0.5
    num_labels: int = 400

    def _check(self) -> None:
        super()._check()
        check_fractions(self, ("classifier_dropout",))
        if self.pred_t_dim is not None:
            check_counts(self, ("pred_t_dim",))
        if self.tubelet_size * self.predicted_length % self.num_frames:
            raise ValueError(
                "each patch must predict a whole number of frames, but tubelet_size x pred_t_dim /"
                f" num_frames is {self.tubelet_size} x {self.predicted_length} / {self.num_frames}"
            )

    @property
    def predicted_length(self) -> int:
        """Number of frames that the decoder predicts."""
        return self.num_frames if self.pred_t_dim is None else self.pred_t_dim

    @property
    def class_tokens(self) -> int:
        """Number of class tokens, 0 or 1."""
        return int(self.cls_embed)

    @property
    def prediction(self) -> PatchGeometry:
        """The shapes of the predicted video and of its patches.

        The predicted video may have fewer frames than the input, and its patches may have fewer
        frames than the patches of the input.
        """
        frames = self.tubelet_size * self.predicted_length // self.num_frames
        return PatchGeometry(
            (self.num_channels, self.predicted_length, *self.image_hw), (frames, *self.patch_hw)
        )

    @property
    def predicted_frames(self) -> tuple[int, ...]:
        """Indices of the predicted frames: evenly spaced numbers in float32, rounded down."""
        steps, last = self.predicted_length, self.num_frames - 1
        if steps == 1:
            return (0,)
        step = _float32(last / (steps - 1))
        # As in torch.linspace: the first half is computed from the start, the second from the end.
        ascending = [_float32(step * i) for i in range(steps // 2)]
        descending = [
            _float32(last - _float32(step * (steps - 1 - i))) for i in range(steps // 2, steps)
        ]
        return tuple(int(frame) for frame in (*ascending, *descending))


def _float32(value: float) -> float:
    """Return the float32 that is nearest to a number."""
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
