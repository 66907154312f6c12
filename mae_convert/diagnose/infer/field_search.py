"""Run a trained model with candidate configurations and compare the reconstruction losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.diagnose.infer.decision import SIGNIFICANT, Candidate, Decision, wins
from mae_convert.diagnose.infer.head_structure import HeadStructure
from mae_convert.diagnose.infer.losses import Crops, Losses, Runner
from mae_convert.families.evidence import PREPROCESSING

HEADS = ("num_attention_heads", "decoder_num_attention_heads")
STATISTICS = (
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # ViT of Google
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),  # CLIP
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # pixels from 0 to 1
)
"""Image means and standard deviations that models are commonly trained with."""
SCREENING_CROPS = 4
MOST_PAIRS = 64
"""If there are at most this many pairs of head counts, all pairs are tested. Otherwise a search
changes the number of heads alternately in the encoder and in the decoder."""
COMMON_HEADS = 8
"""The search that changes the numbers of heads alternately starts with the numbers of heads that
are nearest to this number."""
BEST = "fits significantly better than every other candidate"
NONE = "no candidate fits significantly better than every other candidate"

Pair = tuple[int, int]
"""The numbers of heads of the encoder and the decoder."""


def heads_decision(
    name: str,
    structure: HeadStructure,
    losses: Mapping[int, np.ndarray],
    confidence: float | None,
    reason: str = "",
) -> Decision:
    """Return the decision on a number of heads from the weights and from reconstruction losses.

    Args:
        name: the name of the field.
        structure: the result of the test of the weights.
        losses: the losses (images, crops) relative to the mean loss of a constant prediction, by
            number of heads; empty if no model was run.
        confidence: the confidence in the number with the lowest mean loss; None without losses.
        reason: why no model was run, or why its losses are not used.
    """
    means = _means(losses)
    significant = confidence is not None and confidence >= SIGNIFICANT
    by_method = {
        "reconstruction": _lowest(losses) if losses and significant else None,
        "weights": structure.best if structure.decided else None,
    }
    candidates = tuple(
        Candidate(heads, means.get(heads), round(structure.scores[heads], 2))
        for heads in sorted(structure.scores, key=lambda h: (means.get(h, 0), -structure.scores[h]))
    )
    methods = [method for method, value in by_method.items() if value is not None]
    values = {by_method[method] for method in methods}
    if len(values) == 1:
        return Decision(name, values.pop(), confidence, " and ".join(methods), BEST, candidates)
    if values:
        weights, images = by_method["weights"], by_method["reconstruction"]
        reason = f"the weights show {weights}, the images {images}"
    elif reason:
        reason += ", and the weights show no significant structure"
    return Decision(name, None, confidence, "", reason or NONE, candidates)


@dataclass
class Search:
    """A search for the configuration values with which a model has the lowest losses."""

    checkpoint: Checkpoint
    """The checkpoint, whose patch grid is known."""

    structures: Mapping[str, HeadStructure]
    """How well each number of heads fits the weights, by name of the number-of-heads field."""

    fields: Sequence[str]
    """The configuration fields whose values are to be determined."""

    crops: Crops
    """The crops on which the model is run."""

    framework: str
    """The framework: torch, tensorflow or jax."""

    device: str | None
    """The device on which the model runs; None for the CPU."""

    runner: Runner = field(init=False)

    def __post_init__(self) -> None:
        self.runner = Runner(self.framework, self.device)

    def run(self) -> dict[str, Decision]:
        """Return the decision on each requested field except ``image_size``, by field name."""
        screened = self._screen()
        target = self._target(screened)
        best = min(screened, key=lambda pair: _mean(screened[pair], target))
        why_unfit = _why_unfit(screened[best], target)
        if why_unfit:
            losses = screened
        else:
            best, losses = self._best_pair(best, target)
        decisions = {
            name: self._heads(name, index, best, losses, target, why_unfit)
            for index, name in enumerate(HEADS)
            if name in self.fields
        }
        if "norm_pix_loss" in self.fields:
            decisions["norm_pix_loss"] = _norm_pix_loss(losses[best], why_unfit)
        if set(PREPROCESSING) & set(self.fields):
            decisions |= self._statistics(best, target, why_unfit)
        return decisions

    def _screen(self) -> dict[Pair, Losses]:
        """Return the losses on a few crops, by pair of encoder and decoder head counts.

        If there are at most `MOST_PAIRS` pairs, all pairs are run. Otherwise the number of heads is
        changed alternately in the encoder and in the decoder, and only these pairs are run.
        """
        few = self.crops.first(SCREENING_CROPS)
        encoder, decoder = (self._heads_to_try(name) for name in HEADS)
        pairs = list(product(encoder, decoder))
        if len(pairs) <= MOST_PAIRS:
            return {pair: self._losses(pair, few) for pair in pairs}
        losses: dict[Pair, Losses] = {}
        best, before = (_nearest(encoder, COMMON_HEADS), _nearest(decoder, COMMON_HEADS)), None
        while best != before:
            before = best
            for row in ([(h, best[1]) for h in encoder], [(best[0], h) for h in decoder]):
                losses |= {pair: self._losses(pair, few) for pair in row if pair not in losses}
                target = self._target(losses)
                best = min(losses, key=lambda pair: _mean(losses[pair], target))
        return losses

    def _heads_to_try(self, name: str) -> list[int]:
        if name not in self.structures:
            return [getattr(self.checkpoint.configuration.model, name)]
        structure = self.structures[name]
        return [structure.best] if structure.decided else sorted(structure.scores)

    def _losses(self, pair: Pair, crops: Crops) -> Losses:
        return self.runner.losses(self._with_heads(pair), crops)

    def _with_heads(self, pair: Pair) -> Checkpoint:
        return self.checkpoint.specified(dict(zip(HEADS, pair, strict=True)), "experiment")

    def _target(self, losses: Mapping[Pair, Losses]) -> bool:
        """Return the known value of ``norm_pix_loss`` or, if unknown, the value with lower loss."""
        if "norm_pix_loss" not in self.fields:
            return self.checkpoint.configuration.model.norm_pix_loss
        lowest = {t: min(_mean(one, t) for one in losses.values()) for t in (False, True)}
        return lowest[True] < lowest[False]

    def _best_pair(self, best: Pair, target: bool) -> tuple[Pair, dict[Pair, Losses]]:
        """Return the pair of head counts with the lowest loss on all crops, and the pairs' losses.

        A pair consists of the number of heads of the encoder and of the decoder.

        Args:
            best: the pair from which the search starts.
            target: the value of ``norm_pix_loss``.
        """
        losses: dict[Pair, Losses] = {}
        before = None
        while best != before:
            before = best
            losses = self._row_and_column(best, target) | _on_all(losses)
            on_all = _on_all(losses)
            best = min(on_all, key=lambda pair: _mean(on_all[pair], target))
        return best, losses

    def _row_and_column(self, best: Pair, target: bool) -> dict[Pair, Losses]:
        """Return the losses of a pair and of the pairs that differ from it in one number of heads.

        All these pairs are run on a few crops. A pair is then also run on all crops, unless its
        mean loss on the few crops is higher than the loss of `best` in every bootstrap sample.

        Args:
            best: the pair: the numbers of heads of the encoder and of the decoder.
            target: the value of ``norm_pix_loss``.
        """
        others = [
            (heads, best[1]) if index == 0 else (best[0], heads)
            for index, name in enumerate(HEADS)
            if name in self.structures
            for heads in self.structures[name].scores
            if heads != best[index]
        ]
        few = self.crops.first(SCREENING_CROPS)
        losses = {pair: self._losses(pair, few) for pair in (best, *others)}
        lowest = losses[best].relative(norm_pix_loss=target)
        near = [
            pair
            for pair in others
            if wins(lowest, losses[pair].relative(norm_pix_loss=target)[None]) < 1
        ]
        return losses | {pair: self._losses(pair, self.crops) for pair in (best, *near)}

    def _heads(
        self,
        name: str,
        index: int,
        best: Pair,
        losses: Mapping[Pair, Losses],
        target: bool,
        why_unfit: str,
    ) -> Decision:
        """Return the decision on a number of heads.

        Args:
            name: the name of the field.
            index: the position of the number of heads in each pair.
            best: the best pair: the numbers of heads of the encoder and of the decoder. It is
                compared only with pairs that differ from it in nothing but this number.
            losses: the losses by pair.
            target: the value of ``norm_pix_loss``.
            why_unfit: the reason why the images do not decide the number, or "".
        """
        relative = {
            pair[index]: values.relative(norm_pix_loss=target)
            for pair, values in losses.items()
            if pair[1 - index] == best[1 - index]
        }
        confidence = None if why_unfit else _confidence(relative)
        return heads_decision(name, self.structures[name], relative, confidence, why_unfit)

    def _statistics(self, pair: Pair, target: bool, why_unfit: str) -> dict[str, Decision]:
        """Return the decisions on image mean and standard deviation after testing common values.

        Args:
            pair: the numbers of heads of the encoder and of the decoder.
            target: the value of ``norm_pix_loss``.
            why_unfit: the reason why the images do not decide the fields, or "".
        """
        checkpoint = self._with_heads(pair)
        configuration = checkpoint.configuration
        current = configuration.image_mean, configuration.image_std
        conventions = [one for one in STATISTICS if len(one[0]) == configuration.model.num_channels]
        crops = self.crops.first(SCREENING_CROPS) if why_unfit else self.crops
        losses = {}
        for mean, std in dict.fromkeys((current, *conventions)):
            changed = replace(configuration, image_mean=mean, image_std=std)
            with_statistics = self.runner.losses(replace(checkpoint, configuration=changed), crops)
            losses[mean, std] = with_statistics.relative(norm_pix_loss=target)
        ordered = sorted(losses, key=lambda one: losses[one].mean())
        confidence = None if why_unfit or len(losses) == 1 else _confidence(losses)
        decided = confidence is not None and confidence >= SIGNIFICANT
        return {
            name: Decision(
                name,
                ordered[0][index] if decided else None,
                confidence,
                "reconstruction" if decided else "",
                BEST if decided else why_unfit or NONE,
                tuple(Candidate(one[index], float(losses[one].mean())) for one in ordered),
            )
            for index, name in enumerate(PREPROCESSING)
            if name in self.fields
        }


def _norm_pix_loss(losses: Losses, why_unfit: str) -> Decision:
    """Return the decision on the target of the loss: pixels or normalized patches.

    Args:
        losses: the losses with the best numbers of heads.
        why_unfit: the reason why the images do not decide the target, or "".
    """
    relative = {value: losses.relative(norm_pix_loss=value) for value in (False, True)}
    best = min(relative, key=lambda value: relative[value].mean())
    confidence = None if why_unfit else _confidence(relative)
    decided = confidence is not None and confidence >= SIGNIFICANT
    return Decision(
        "norm_pix_loss",
        best if decided else None,
        confidence,
        "reconstruction" if decided else "",
        BEST if decided else why_unfit or NONE,
        tuple(Candidate(v, float(relative[v].mean())) for v in (best, not best)),
    )


def _why_unfit(losses: Losses, target: bool) -> str:
    """Return why the reconstructions are too poor for a decision; "" if they are good enough.

    Args:
        losses: the losses with the best numbers of heads.
        target: the value of ``norm_pix_loss``.
    """
    constant = losses.zero if target else losses.one_colour
    relative = losses.relative(norm_pix_loss=target)
    if wins(relative, (constant / constant.mean())[None]) >= SIGNIFICANT:
        return ""
    return (
        "no candidate reconstructs these images significantly better than their mean colour "
        "(untrained weights, or images unlike the training images)"
    )


def _on_all(losses: Mapping[Pair, Losses]) -> dict[Pair, Losses]:
    """Return only the losses of the candidates that were run on the most crops."""
    crops = max((one.pixels.shape[1] for one in losses.values()), default=0)
    return {pair: one for pair, one in losses.items() if one.pixels.shape[1] == crops}


def _lowest(losses: Mapping[Any, np.ndarray]) -> Any:
    """Return the best candidate (lowest mean loss) among those that were run on the most crops."""
    crops = max(values.shape[1] for values in losses.values())
    means = {v: values.mean() for v, values in losses.items() if values.shape[1] == crops}
    return min(means, key=means.__getitem__)


def _means(losses: Mapping[Any, np.ndarray]) -> dict[Any, float]:
    """Return the mean loss of each candidate.

    For a candidate that was run on fewer crops, the mean is estimated as the best candidate's mean
    plus the mean difference between both candidates on the common crops.
    """
    if not losses:
        return {}
    best = losses[_lowest(losses)]
    return {
        value: float(best.mean() + (one - best[:, : one.shape[1]]).mean())
        for value, one in losses.items()
    }


def _confidence(losses: Mapping[Any, np.ndarray]) -> float:
    """Return the confidence (0 to 1) that the candidate with the lowest mean loss is the best.

    `losses` contains the losses (images, crops) of each candidate.
    """
    best = _lowest(losses)
    others = (values for value, values in losses.items() if value != best)
    return min(
        (wins(losses[best][:, : other.shape[1]], other[None]) for other in others), default=1.0
    )


def _mean(losses: Losses, target: bool) -> float:
    return float(losses.relative(norm_pix_loss=target).mean())


def _nearest(candidates: Sequence[int], value: int) -> int:
    return min(candidates, key=lambda heads: abs(heads - value))
