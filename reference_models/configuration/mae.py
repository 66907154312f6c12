"""The configuration of the image MAE, with the field names of transformers' ``config.json``."""

from dataclasses import dataclass

from reference_models.configuration.base import Configuration, check_choice

POOLINGS = ("token", "avg")


@dataclass(frozen=True, kw_only=True)
class ViTMAEConfig(Configuration):
    """Configuration of a masked autoencoder or of a classifier fine-tuned from one.

    Fields that also exist in ``transformers.ViTMAEConfig`` have the same meaning there. The
    defaults are the values of the ViT-B in He et al. 2021 (arXiv:2111.06377, table 3 and appendix
    A). Only one default differs from transformers: ``layer_norm_eps`` is 1e-6, as in the authors'
    training, instead of 1e-12.

    Attributes:
        hidden_size: width of the encoder.
        num_hidden_layers: number of blocks in the encoder.
        num_attention_heads: number of heads in the encoder; divides ``hidden_size``.
        intermediate_size: hidden width of the encoder's MLPs.
        hidden_act: activation of the MLPs, one of ``ACTIVATIONS``.
        hidden_dropout_prob: dropout probability after attention and MLP, and in a classifier also
            after the embedding.
        attention_probs_dropout_prob: dropout probability for the attention probabilities.
        initializer_range: standard deviation with which class token and mask token are initialized.
        layer_norm_eps: added to the variance in every layer normalization.
        decoder_layer_norm_eps: added to the variance in the decoder's layer normalizations; None to
            use ``layer_norm_eps``.
        image_size: side of a square image or (height, width), in pixels.
        patch_size: side of a square patch or (height, width); divides ``image_size``.
        num_channels: number of channels of an image.
        qkv_bias: whether the query, key and value projections have biases.
        decoder_num_attention_heads: number of heads in the decoder; divides
            ``decoder_hidden_size``.
        decoder_hidden_size: width of the decoder.
        decoder_num_hidden_layers: number of blocks in the decoder.
        decoder_intermediate_size: hidden width of the decoder's MLPs.
        mask_ratio: fraction of the patches that are removed, in [0, 1).
        norm_pix_loss: whether the decoder predicts pixels that are normalized per patch.
        global_pool: the input of a classifier's head: "token" for the class token after the final
            norm, "avg" for the average of the patch tokens.
        fc_norm: for ``global_pool="avg"``, whether the average is normalized (None or True, as in
            facebookresearch/mae) or the tokens are normalized before averaging (False, as in timm);
            for ``global_pool="token"``, it has no effect.
        num_labels: number of classes of a classifier.

    Raises:
        ValueError: a field is invalid, alone or in combination with others.
    """

    global_pool: str = "token"
    fc_norm: bool | None = None
    num_labels: int = 1000

    def _check(self) -> None:
        super()._check()
        check_choice(self, "global_pool", POOLINGS)
        if not (self.fc_norm is None or isinstance(self.fc_norm, bool)):
            raise ValueError(f"fc_norm must be true, false or null, not {self.fc_norm!r}")

    @property
    def normalizes_mean(self) -> bool:
        """Whether a classifier normalizes the mean of the patch tokens instead of the tokens."""
        return self.global_pool == "avg" and self.fc_norm is not False
