"""Run a changed PyTorch reference model step by step, and compare its results with a trace.

Results have the names that they have in a trace. Where nothing is computed differently, the
reference model's own modules compute. Earlier results can be taken from the trace, so that a
candidate for the first difference costs one step and not the whole model.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from mae_convert.diagnose.block_variants import Arithmetic, block_steps, linear, norm
from mae_convert.diagnose.input_output_variants import (
    Ids,
    decode_tokens,
    embed,
    loss,
    mask_ids,
    pictures,
    pooled,
    read_out,
    reconstruct,
    without_class_token,
)
from mae_convert.diagnose.weight_edits import Change
from mae_convert.verify import run_pytorch
from mae_convert.verify.distance import FUNCTION_LIMIT, function_error
from mae_convert.verify.job import Job
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
        pixels = pictures(self.inputs["pixel_values"], how)
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
            lambda _: self._one("encoder.embedding", embed(model, pixels, keep, how)),
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
                "decoder.embedding", decode_tokens(model, tokens, ids[2], how)
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
                linear(
                    model.decoder_pred,
                    without_class_token(tokens, how),
                    "logits",
                    how,
                ),
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
            normed = pooled(model, tokens, how)
            yield "head.norm", normed
        else:
            normed = norm(model.norm, tokens, "encoder.norm", how)
            yield from (("encoder.norm", normed), ("last_hidden_state", normed))
            if model.config.global_pool == "avg":  # the mean of what was normalised before
                normed = normed[:, 1:].mean(dim=1, keepdim=True)
        yield (
            "logits",
            linear(model.head, read_out(normed, how), "logits", how),
        )

    def _results(self, logits: Tensor, pixels: Tensor, mask: Tensor, how: Arithmetic) -> Steps:
        yield "reconstruction", reconstruct(self.model, logits, how)
        if mask.any():
            for name in ("loss", "loss_norm_pix"):
                yield name, loss(self.model, pixels, logits, mask, how, name)


def inputs_as(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the inputs as tensors, the pictures in a dtype."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return {**tensors, "pixel_values": tensors["pixel_values"].to(dtype)}


OTHER = "B/"  # before the name of a tensor that is the other side's
SMALL = 2_000_000  # parameters
EXACT = ("mask", "ids_restore")
DTYPES = {"float64": torch.float64, "float32": torch.float32}


class Reference:
    """The results of a trace file in one dtype, by name, read when they are asked for."""

    def __init__(self, path: str, dtype: str) -> None:
        self.file = safe_open(path, "pt")
        self.names = {
            key.removeprefix(f"{dtype}/").removeprefix("tap/"): key
            for key in self.file.keys()  # noqa: SIM118 (no mapping)
            if key.startswith(f"{dtype}/") or key in EXACT
        }

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(self.names[name])


class Trial:
    """A model that is changed and run again.

    Attributes:
        job: the side whose model this is.
        places: canonical name → name of the parameter, which part of it, and of how many.
        other: file with tensors of the other side, by canonical name, or None.
    """

    def __init__(self, job: Job, places: Mapping[str, Sequence[Any]], other: str | None) -> None:
        self.job, self.places = job, places
        self.other = safe_open(other, "pt") if other else None
        self.model = run_pytorch.build(job).double().requires_grad_(False)
        if sum(parameter.numel() for parameter in self.model.parameters()) < SMALL:
            torch.set_num_threads(1)  # threads would wait for each other longer than they work
        self.state = self.model.state_dict()
        self.models = {torch.float64: self.model}
        with np.load(job.inputs) as archive:
            self.inputs = dict(archive)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Trial":
        """Return the trial that a job file describes."""
        return cls(Job.from_plain(plain["job"]), plain["places"], plain["other"])

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a request asks for.

        Returns:
            What ``compare`` or ``precision`` returns, or ``error`` where a change does not fit the
            model.
        """
        how = Arithmetic([alt for step in request["steps"] for alt in step["arithmetic"]])
        changes = [[Change(**c) for c in step["changes"]] for step in request["steps"]]
        try:
            with self._edited(changes):
                if request["dtype"] is None:
                    return self.compare(request["trace"], how, request["start"])
                return self.precision(request, how)
        except (ValueError, IndexError, KeyError, RuntimeError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def compare(self, trace: str, how: Arithmetic, start: str | None) -> dict[str, Any]:
        """Run the model in float64 until it is not what a trace says.

        Args:
            trace: the trace's file.
            how: what is computed otherwise.
            start: the first result to compute; what comes before it is taken from the trace.

        Returns:
            ``first``, the first result that differs, or None, and ``largest``, the largest error
            of the others.
        """
        known = Reference(trace, "float64")
        largest = 0.0
        for name, value in self._walk(known, torch.float64).run(how, start):
            if name in known:
                error = _error(name, value, known[name])
                if not error <= FUNCTION_LIMIT:
                    return {"first": name, "largest": largest}
                largest = max(largest, error)
        return {"first": None, "largest": largest}

    def precision(self, request: Mapping[str, Any], how: Arithmetic) -> dict[str, Any]:
        """Return how much of a trace's error at a result is not made by computing it otherwise.

        Args:
            request: ``trace`` and ``dtype`` of its run, and the result, ``start``, that is computed
                from what the trace has before it.
            how: what is computed in less precision.

        Returns:
            ``unexplained``: the distance between what is computed otherwise and the trace, over
            that between what is computed as usual and the trace; 0 is a full explanation.
        """
        dtype, at = DTYPES[request["dtype"]], request["start"]
        known = Reference(request["trace"], request["dtype"])
        walk = self._walk(known, dtype)
        usual, otherwise = (
            next(value for name, value in walk.run(h, at) if name == at)
            for h in (Arithmetic(), how)
        )
        left, whole = (float((x.double() - known[at].double()).norm()) for x in (otherwise, usual))
        return {"unexplained": left / whole if whole else float("inf")}

    def _walk(self, known: Reference, dtype: torch.dtype) -> Walk:
        if dtype not in self.models:
            self.models[dtype] = copy.deepcopy(self.model).to(dtype)
        inputs = inputs_as(self.inputs, dtype)
        return Walk(self.models[dtype], self.job.task, inputs, known)

    @contextmanager
    def _edited(self, steps: Sequence[Sequence[Change]]) -> Iterator[None]:
        """Change tensors, and put them back in the end."""
        touched = {c.target for changes in steps for c in changes}
        before = {name: self._tensor(name).clone() for name in touched}
        try:
            for changes in steps:
                made = [(c.target, c.apply([self._array(s) for s in c.sources])) for c in changes]
                for name, array in made:
                    self._tensor(name).copy_(torch.from_numpy(np.array(array, np.float64)))
            yield
        finally:
            for name, tensor in before.items():
                self._tensor(name).copy_(tensor)

    def _tensor(self, name: str) -> Tensor:
        parameter, part, parts = self.places[name]
        return self.state[parameter].chunk(parts)[part]

    def _array(self, name: str) -> np.ndarray:
        if name.startswith(OTHER):
            assert self.other is not None
            return self.other.get_tensor(name.removeprefix(OTHER)).double().numpy()
        return self._tensor(name).numpy().copy()


def _error(name: str, value: Tensor, expected: Tensor) -> float:
    if name in EXACT:
        same = value.shape == expected.shape and bool((value == expected).all())
        return 0.0 if same else float("inf")
    return function_error(value.numpy(), expected.numpy())
