"""Go through a PyTorch reference model step by step, from any step on, with other arithmetic.

Results have the names that they have in a trace. Where nothing is otherwise, the reference model's
own modules compute; only the stage that a walk begins in is taken apart, so that whoever looks for
the first difference need not compute what comes after it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from mae_convert.diagnose import ends, losses
from mae_convert.diagnose.alternatives import Arithmetic
from mae_convert.diagnose.layers import block_steps, linear, norm
from mae_convert.diagnose.masking import Ids, mask_ids
from mae_convert.verify.localise import BLOCK_STEPS, execution_order
from reference_models.outputs import Wanted

Steps = Iterator[tuple[str, Tensor]]
Stage = tuple[str, Callable[[Tensor], Steps]]  # the tap that it ends with, and what it does
TAPS = Wanted(taps=True)


class Known(Protocol):
    """Results of another run, by name."""

    def __contains__(self, name: str) -> bool:
        """Return whether a result is there."""

    def __getitem__(self, name: str) -> Tensor:
        """Return a result."""


class Walk:
    """One model on one input.

    Attributes:
        model: a reference model.
        task: "pretrain", "encoder" or "classify".
        pixel_values: pictures (N, C, H, W).
        noise: (N, L); unused by a classifier.
        known: results of another run, by name, that earlier stages are taken from.
    """

    def __init__(
        self,
        model: Any,
        task: str,
        inputs: Mapping[str, Tensor],
        known: Known,
    ) -> None:
        self.model, self.task, self.inputs, self.known = model, task, inputs, known

    def run(self, how: Arithmetic, start: str | None = None) -> Steps:
        """Yield names and values in order, beginning with the stage that computes ``start``."""
        pixels = ends.pictures(self.inputs["pixel_values"], how)
        ids = None
        if self.task != "classify":
            ids = mask_ids(self.inputs["noise"], self.model.config.num_kept, how)
            yield from (("mask", ids[1]), ("ids_restore", ids[2]))
        tokens = pixels
        for end, stage in self._stages(pixels, ids, how, start):
            before = start is not None and execution_order(end) < execution_order(start)
            if before and end in self.known:
                tokens = self.known[end]
                continue
            for name, value in stage(tokens):
                yield name, value
                tokens = value
        if self.task == "pretrain":
            assert ids is not None
            yield from self._results(tokens, pixels, ids[1], how)

    def _stages(
        self, pixels: Tensor, ids: Ids | None, how: Arithmetic, start: str | None
    ) -> Iterator[Stage]:
        model = self.model
        keep = None if ids is None else ids[0]
        yield (
            "encoder.embedding",
            lambda _: self._one("encoder.embedding", ends.embed(model, pixels, keep, how)),
        )
        yield from self._blocks("encoder.blocks", model.blocks, how, start)
        if self.task == "classify":
            yield "logits", lambda tokens: self._classify(tokens, how)
            return
        yield "encoder.norm", lambda tokens: self._normed(model.norm, tokens, "encoder.norm", how)
        if self.task == "encoder":
            return
        assert ids is not None
        yield (
            "decoder.embedding",
            lambda tokens: self._one(
                "decoder.embedding", ends.decode_tokens(model, tokens, ids[2], how)
            ),
        )
        yield from self._blocks("decoder.blocks", model.decoder_blocks, how, start)
        yield (
            "decoder.norm",
            lambda tokens: self._normed(model.decoder_norm, tokens, "decoder.norm", how),
        )
        yield (
            "logits",
            lambda tokens: self._one(
                "logits",
                linear(model.decoder_pred, ends.without_class_token(tokens, how), "logits", how),
            ),
        )

    def _one(self, name: str, value: Tensor) -> Steps:
        yield name, value

    def _normed(self, module: Any, tokens: Tensor, name: str, how: Arithmetic) -> Steps:
        normed = norm(module, tokens, name, how)
        yield name, normed
        if name == "encoder.norm":
            yield "last_hidden_state", normed

    def _blocks(
        self, name: str, blocks: Any, how: Arithmetic, start: str | None
    ) -> Iterator[Stage]:
        for index, block in enumerate(blocks):
            place = f"{name}.{index}"
            apart = how.touches(place) or (start or "").startswith(f"{place}.")

            def steps(
                tokens: Tensor, block: Any = block, place: str = place, apart: bool = apart
            ) -> Steps:
                if apart:
                    taps = block_steps(block, tokens, place, how)
                else:
                    seen = block(tokens, TAPS).taps
                    taps = ((part, seen[part]) for part in BLOCK_STEPS)
                for part, value in taps:
                    yield f"{place}.{part}", value

            yield f"{place}.output", steps

    def _classify(self, tokens: Tensor, how: Arithmetic) -> Steps:
        model = self.model
        if model.config.normalises_mean:
            normed = ends.pooled(model, tokens, how)
            yield "head.norm", normed
        else:
            normed = norm(model.norm, tokens, "encoder.norm", how)
            yield from (("encoder.norm", normed), ("last_hidden_state", normed))
            if model.config.global_pool == "avg":  # the mean of what was normalised before
                normed = normed[:, 1:].mean(dim=1, keepdim=True)
        yield "logits", linear(model.head, ends.read_out(normed, how), "logits", how)

    def _results(self, logits: Tensor, pixels: Tensor, mask: Tensor, how: Arithmetic) -> Steps:
        yield "reconstruction", losses.reconstruct(self.model, logits, how)
        if mask.any():
            for name in ("loss", "loss_norm_pix"):
                yield name, losses.loss(self.model, pixels, logits, mask, how, name)


def inputs_as(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the inputs as tensors, the pictures in a dtype."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return {**tensors, "pixel_values": tensors["pixel_values"].to(dtype)}
