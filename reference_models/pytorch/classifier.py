"""The fine-tuned classifier: the encoder on whole images, and a linear head."""

import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor, nn

from reference_models.configuration import ViTMAEConfig
from reference_models.outputs import ImageClassifierOutput, Wanted
from reference_models.pytorch.encoder import Encoder


class ViTForImageClassification(Encoder):
    """A ViT with a head: what facebookresearch/mae publishes as ``mae_finetuned_vit_*``.

    With ``global_pool="token"`` the head reads the class token after ``norm``; with ``"avg"`` it
    reads the mean of the patch tokens after ``fc_norm``, and there is no ``norm``; with
    ``fc_norm=False`` besides, as in timm, it reads the mean of the patch tokens after ``norm``.
    ``load_state_dict(strict=True)`` takes the original's state dict.
    """

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config, learned_positions=True)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.normalises_mean:
            self.fc_norm = norm
        else:
            self.norm = norm
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.initialize()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        output_taps: bool = False,
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (N, C, H, W), of the configured size and the parameters' dtype.
            labels: (N,) integers, or (N, K) probabilities as label smoothing and mixup give.
            output_hidden_states: return the embedding output and each block's output.
            output_attentions: return each block's attention probabilities; costs the fused kernel.
            output_taps: return intermediate results by name.

        Raises:
            ValueError: pixels have the wrong shape.
        """
        wanted = Wanted(output_hidden_states, output_attentions, output_taps)
        trunk = self.encode(self.dropout(self.embed(pixel_values)), wanted)
        if self.config.normalises_mean:
            normed = self.fc_norm(trunk.tokens[:, 1:].mean(dim=1, keepdim=True))  # (N, 1, D)
            seen = {"head.norm": normed}
        else:
            normed = self.norm(trunk.tokens)  # (N, T, D)
            seen = {"encoder.norm": normed}
        averaged = self.config.global_pool == "avg" and not self.config.normalises_mean
        read = normed[:, 1:].mean(dim=1) if averaged else normed[:, 0]  # (N, D)
        logits = self.head(read)
        return ImageClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels),
            logits=logits,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
            taps={**trunk.taps, **seen} if output_taps else None,
        )
