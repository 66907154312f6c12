"""MAE-ST: masked autoencoders as spatiotemporal learners (Feichtenhofer et al. 2022).

The paper is arXiv:2205.09113. The model is the image MAE applied to patches in space and time: the
encoder sees the few patches that are visible after random masking over space and time ("agnostic"
masking, section 3); the decoder gets the encoder's output and mask tokens, in the order of the
video, and predicts the pixels of some of the frames. Position embeddings are learned. Parameters
are named as in facebookresearch/mae_st.

Shape comments: N videos, L patches (time step by time step, row by row), P values in a predicted
patch (frame, row, column, channel), width D; "[1 +]" is the class token, which some models do not
have.
"""

from typing import Unpack

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor, nn

from reference_models.configuration import BlockConfig, MAESTConfig
from reference_models.outputs import (
    ImageClassifierOutput,
    OutputOptions,
    Taps,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
    record,
    recorded,
)
from reference_models.pytorch.blocks import (
    Attention,
    initialize_linear_layers,
    run_blocks,
    stack_blocks,
)
from reference_models.pytorch.patches import (
    PatchEmbedding,
    Patches,
    PixelPrediction,
    check_pixels,
    patchify,
    prepend_class_token,
    random_masking,
    restore_order,
    take_tokens,
)


class SeparateAttention(Attention):
    """Attention with separate matrices for queries, keys and values."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        del self.qkv
        self.q = nn.Linear(config.width, config.width, bias=config.qkv_bias)
        self.k = nn.Linear(config.width, config.width, bias=config.qkv_bias)
        self.v = nn.Linear(config.width, config.width, bias=config.qkv_bias)

    def project(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, each (N, T, D)."""
        return self.q(tokens), self.k(tokens), self.v(tokens)


class Positions(nn.Module):
    """Base class of models with learned position embeddings, which are parameters of the model."""

    config: MAESTConfig

    def add_positions(self, prefix: str, width: int) -> None:
        """Add position embeddings as parameters of the model.

        If ``sep_pos_embed`` is true, there are separate parameters for space, time and the class
        token (if any); otherwise there is one parameter.

        Args:
            prefix: the prefix of the parameters' names: "" or "decoder_".
            width: the width of the embeddings, D.
        """
        config, (time, rows, columns) = self.config, self.config.grid_shape
        if config.sep_pos_embed:
            lengths = {"_spatial": rows * columns, "_temporal": time}
            lengths |= {"_class": 1} if config.cls_embed else {}
        else:
            lengths = {"": config.class_tokens + config.num_patches}
        for kind, length in lengths.items():
            table = nn.Parameter(torch.zeros(1, length, width))
            self.register_parameter(f"{prefix}pos_embed{kind}", table)

    def positions(self, prefix: str) -> Tensor:
        """Return the position embeddings (1, [1 +] L, D) of class token, if any, and patches.

        Args:
            prefix: the prefix of the parameters' names: "" or "decoder_".
        """
        if not self.config.sep_pos_embed:
            return self.get_parameter(f"{prefix}pos_embed")
        spatial = self.get_parameter(f"{prefix}pos_embed_spatial")  # (1, rows x columns, D)
        temporal = self.get_parameter(f"{prefix}pos_embed_temporal")  # (1, time, D)
        table = (temporal.unsqueeze(2) + spatial.unsqueeze(1)).flatten(1, 2)  # (1, L, D)
        if self.config.cls_embed:
            table = torch.cat([self.get_parameter(f"{prefix}pos_embed_class"), table], dim=1)
        return table

    @torch.no_grad()
    def initialize(self) -> None:
        """Initialize linear layers (Xavier uniform), tokens and position embeddings (normal)."""
        initialize_linear_layers(self)
        for name, parameter in self.named_parameters(recurse=False):
            if "pos_embed" in name or name.endswith(("cls_token", "mask_token")):
                nn.init.normal_(parameter, std=self.config.initializer_range)


class Encoder(Positions):
    """Base class of the models: embedding and blocks."""

    def __init__(self, config: MAESTConfig) -> None:
        super().__init__()
        self.config = config
        if config.cls_embed:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.add_positions("", config.hidden_size)
        self.patch_embed = PatchEmbedding(config, config.hidden_size)
        self.blocks = stack_blocks(
            config.encoder_block, config.num_hidden_layers, SeparateAttention
        )

    def embed(self, pixel_values: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Return tokens (N, [1 +] kept, D) of videos (N, C, T, H, W), class token first.

        Patches are selected by ``ids_keep`` (N, kept) before the projection; if ``ids_keep`` is
        None, all patches are used in order. There is no class token if ``cls_embed`` is false.
        """
        patches = patchify(pixel_values, self.config)
        table, class_tokens = self.positions(""), self.config.class_tokens
        first, positions = table[:, :class_tokens], table[:, class_tokens:]
        if ids_keep is not None:
            patches, positions = take_tokens(patches, ids_keep), take_tokens(positions, ids_keep)
        tokens = self.patch_embed(patches) + positions
        if not self.config.cls_embed:
            return tokens
        return prepend_class_token(self.cls_token + first, tokens)


class MaskedEncoder(Encoder):
    """Base class of models that encode visible patches: an encoder with a final norm."""

    def __init__(self, config: MAESTConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def encode_visible(
        self, pixel_values: Tensor, noise: Tensor | None, taps: Taps | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask videos (N, C, T, H, W) by noise (N, L) and encode the visible patches.

        Args:
            pixel_values: (N, C, T, H, W).
            noise: (N, L); None for uniform noise, or for ascending noise if all patches are kept.
            taps: a dictionary that receives intermediate activations; None to record none.

        Returns:
            A tuple: the output of the final norm without the class token, (N, kept, D);
            ``mask``, (N, L); ``ids_restore``, (N, L).
        """
        ids_keep, mask, ids_restore = random_masking(pixel_values, noise, self.config)
        tokens = run_blocks(self.blocks, self.embed(pixel_values, ids_keep), "encoder", taps)
        latent = self.norm(tokens)[:, self.config.class_tokens :]
        record(taps, "encoder", norm=latent)
        return latent, mask, ids_restore


class MAESTModel(MaskedEncoder):
    """The encoder of an MAE-ST, without a decoder."""

    def __init__(self, config: MAESTConfig) -> None:
        super().__init__(config)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> ViTMAEModelOutput:
        """Mask patches and encode the visible patches.

        Args:
            pixel_values: (N, C, T, H, W), of the configured size and the parameters' dtype.
            noise: (N, L); the patches with the lowest values are kept, sorted by their values. The
                default noise is uniform, or ascending if all patches are kept.
            options: additional outputs, see `OutputOptions`.

        Returns:
            ``last_hidden_state`` (N, kept, D), without the class token.

        Raises:
            ValueError: pixels or noise have the wrong shape.
        """
        taps = Taps.requested(**options)
        latent, mask, ids_restore = self.encode_visible(pixel_values, noise, taps)
        return ViTMAEModelOutput(latent, mask, ids_restore, *recorded(taps))


class MAESTForPreTraining(PixelPrediction, MaskedEncoder):
    """An MAE-ST for pre-training: an encoder and a decoder.

    ``load_state_dict(strict=True)`` accepts the authors' state dict.
    """

    def __init__(self, config: MAESTConfig) -> None:
        super().__init__(config)
        width = config.decoder_hidden_size
        if config.cls_embed:
            self.decoder_cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.add_positions("decoder_", width)
        self.decoder_embed = nn.Linear(config.hidden_size, width)
        self.decoder_blocks = stack_blocks(
            config.decoder_block, config.decoder_num_hidden_layers, SeparateAttention
        )
        self.decoder_norm = nn.LayerNorm(width, eps=config.decoder_eps)
        self.decoder_pred = nn.Linear(width, config.prediction.patch_dim)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> ViTMAEForPreTrainingOutput:
        """Predict all patches from visible patches; compute the loss over removed patches.

        For arguments and errors see `MAESTModel`. Hidden states and attentions come
        from the encoder, intermediate activations from the encoder and the decoder.
        """
        taps = Taps.requested(**options)
        latent, mask, ids_restore = self.encode_visible(pixel_values, noise, taps)
        decoder_taps = Taps.of_decoder(**options)
        logits = self.decode(latent, ids_restore, decoder_taps)
        nothing_removed = self.config.num_kept == self.config.num_patches
        loss = None if nothing_removed else self.forward_loss(pixel_values, logits, mask)
        return ViTMAEForPreTrainingOutput(
            loss, logits, mask, ids_restore, *recorded(taps, decoder_taps)
        )

    def decode(self, latent: Tensor, ids_restore: Tensor, taps: Taps | None = None) -> Tensor:
        """Predict patches (N, L, P) from the encoder's output (N, kept, D).

        Args:
            latent: (N, kept, D), the encoder's output.
            ids_restore: (N, L), the index of each patch in the shuffled order.
            taps: a dictionary that receives intermediate activations; None to record none.
        """
        tokens = restore_order(self.decoder_embed(latent), self.mask_token, ids_restore)
        if self.config.cls_embed:  # the decoder has a class token of its own
            tokens = prepend_class_token(self.decoder_cls_token, tokens)
        tokens = tokens + self.positions("decoder_")
        tokens = run_blocks(self.decoder_blocks, tokens, "decoder", taps)
        tokens = self.decoder_norm(tokens)
        record(taps, "decoder", norm=tokens)
        return self.decoder_pred(tokens[:, self.config.class_tokens :])

    @property
    def predicted(self) -> Patches:
        """The shapes of the predicted video and of its patches."""
        return self.config.prediction

    def patchify(self, pixel_values: Tensor) -> Tensor:
        """Return the patches (N, L, P) of the frames that the decoder has to predict.

        Args:
            pixel_values: videos (N, C, T, H, W) with all frames of the encoder's input.
        """
        check_pixels(pixel_values, self.config)
        frames = torch.tensor(self.config.predicted_frames, device=pixel_values.device)
        return patchify(pixel_values.index_select(2, frames), self.predicted)


class MAESTForVideoClassification(Encoder):
    """A classifier fine-tuned from an MAE-ST: an encoder of all patches, and a linear head.

    The input of the head is the mean of all tokens except the first, to which ``norm`` is applied.
    The first token is the class token; in a model without a class token it is the first patch,
    which the authors' code excludes too.
    ``load_state_dict(strict=True)`` accepts the authors' state dict.
    """

    def __init__(self, config: MAESTConfig) -> None:
        super().__init__(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> ImageClassifierOutput:
        """Classify videos, and compute the loss if ``labels`` is not None.

        Args:
            pixel_values: (N, C, T, H, W), of the configured size and the parameters' dtype.
            labels: (N,) integers, or (N, K) probabilities, as created by label smoothing and
                mixup. None: no loss is computed.
            options: additional outputs, see `OutputOptions`.

        Raises:
            ValueError: pixels have the wrong shape.
        """
        taps = Taps.requested(**options)
        tokens = run_blocks(self.blocks, self.embed(pixel_values), "encoder", taps)
        mean = self.norm(tokens[:, 1:].mean(dim=1, keepdim=True))  # (N, 1, D)
        record(taps, "head", norm=mean)
        logits = self.head(self.dropout(mean[:, 0]))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss, logits, *recorded(taps))
