"""The configuration of the image MAE, with the field names of transformers' ``config.json``."""

from dataclasses import dataclass

from reference_models.configuration.base import Configuration, check_choice

POOLINGS = ("token", "avg")


@dataclass(frozen=True, kw_only=True)
class ViTMAEConfig(Configuration):
    """Configuration of a masked autoencoder or of a classifier fine-tuned from one.

    Names and meaning are the same as in ``transformers.ViTMAEConfig``, and the defaults are the
    ViT-B of He et al. 2021 (arXiv:2111.06377, table 3 and appendix A), with one difference to
    transformers: ``layer_norm_eps`` is 1e-6, which is what the original trains with; the class in
        transformers
    defaults to 1e-12.

    Attributes:
        hidden_size: width of the encoder.
        num_hidden_layers: blocks in the encoder.
        num_attention_heads: heads of the encoder; divides ``hidden_size``.
        intermediate_size: hidden width of the encoder's MLPs.
        hidden_act: activation of the MLPs, one of ``ACTIVATIONS``.
        hidden_dropout_prob: dropout after attention and MLP (and, in a classifier, the embedding).
        attention_probs_dropout_prob: dropout on attention probabilities.
        initializer_range: standard deviation of freshly initialised tokens.
        layer_norm_eps: added to the variance in every layer normalisation.
        decoder_layer_norm_eps: the same in the decoder; None if it is ``layer_norm_eps`` there
            too.
        image_size: side of a square image or (height, width), in pixels.
        patch_size: side of a square patch or (height, width); divides ``image_size``.
        num_channels: channels of an image.
        qkv_bias: whether the query, key and value projections have biases.
        decoder_num_attention_heads: heads of the decoder; divides ``decoder_hidden_size``.
        decoder_hidden_size: width of the decoder.
        decoder_num_hidden_layers: blocks in the decoder.
        decoder_intermediate_size: hidden width of the decoder's MLPs.
        mask_ratio: share of patches that the encoder does not see, in [0, 1).
        norm_pix_loss: whether the decoder predicts pixels normalised patch by patch.
        global_pool: the input of a classifier's head: the class "token" after the final norm, or
            the "avg" of the patch tokens.
        fc_norm: whether that average is normalised (None or True, as the original fine-tunes), or
            the tokens before it (False), as in timm. Nothing for the class token.
        num_labels: classes of a classifier.

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
    def normalises_mean(self) -> bool:
        """Whether a classifier normalises the mean of its patches, and not its tokens."""
        return self.global_pool == "avg" and self.fc_norm is not False
