"""Run a changed PyTorch reference model step by step and compare its results with a trace.

Results have the same names as in a trace. A step that is changed is computed by a variant of the
computation; the other steps are computed by the reference model's modules. Results before the
first difference can be taken from the trace, so that only one step is computed to test a
hypothesis.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from mae_convert.diagnose.block_variants import Variants, block_steps, linear, norm
from mae_convert.diagnose.input_output_variants import (
    Ids,
    changed_images,
    decode_tokens,
    embed,
    loss,
    mask_ids,
    pooled,
    read_out,
    reconstruct,
    without_class_token,
)
from mae_convert.diagnose.weight_edits import WeightEdit
from mae_convert.runtime import run_pytorch
from mae_convert.runtime.job import Job
from mae_convert.runtime.trace_check import BLOCK_STEPS
from mae_convert.verify.distance import FUNCTION_LIMIT, function_error
from mae_convert.verify.localise import execution_order
from reference_models.outputs import Taps

Steps = Iterator[tuple[str, Tensor]]
Stage = tuple[str, Callable[[Tensor], Steps]]  # name of the stage's last result; function


class KnownResults(Protocol):
    """Results of another run, by name."""

    def __contains__(self, name: str) -> bool:
        """Return whether there is a result called `name`."""

    def __getitem__(self, name: str) -> Tensor:
        """Return the result called `name`."""


class ForwardPass:
    """The forward pass of one model on one input, step by step.

    Attributes:
        model: a PyTorch reference model.
        task: "pretrain", "encoder" or "classify".
        inputs: ``pixel_values`` (N, C, H, W) and ``noise`` (N, L), which a classifier ignores.
        results: results of another run, by name. `run` takes the results before ``start`` from
            them instead of computing these results.
    """

    def __init__(
        self,
        model: Any,
        task: str,
        inputs: Mapping[str, Tensor],
        results: KnownResults,
    ) -> None:
        self.model, self.task, self.inputs, self.results = model, task, inputs, results

    def run(self, variants: Variants, start: str | None = None) -> Steps:
        """Yield the name and value of each result in execution order.

        Args:
            variants: the variants of the computation.
            start: the first result to compute; earlier results are taken from the attribute
                `results`. If it is None, all results are computed.
        """
        pixels = changed_images(self.inputs["pixel_values"], variants)
        ids = None
        if self.task != "classify":
            ids = mask_ids(self.inputs["noise"], self.model.config.num_kept, variants)
            yield from (("mask", ids[1]), ("ids_restore", ids[2]))
        tokens = pixels
        for end, stage in self._stages(pixels, ids, variants, start):
            before = start is not None and execution_order(end) < execution_order(start)
            if before and end in self.results:
                tokens = self.results[end]
                continue
            for name, value in stage(tokens):
                yield name, value
                tokens = value
        if self.task == "pretrain":
            assert ids is not None
            yield from self._results(tokens, pixels, ids[1], variants)

    def _stages(
        self, pixels: Tensor, ids: Ids | None, variants: Variants, start: str | None
    ) -> Iterator[Stage]:
        model = self.model
        keep = None if ids is None else ids[0]
        yield (
            "encoder.embedding",
            lambda _: self._one("encoder.embedding", embed(model, pixels, keep, variants)),
        )
        yield from self._blocks("encoder.blocks", model.blocks, variants, start)
        if self.task == "classify":
            yield "logits", lambda tokens: self._classify(tokens, variants)
            return
        yield (
            "encoder.norm",
            lambda tokens: self._normed(model.norm, tokens, "encoder.norm", variants),
        )
        if self.task == "encoder":
            return
        assert ids is not None
        yield (
            "decoder.embedding",
            lambda tokens: self._one(
                "decoder.embedding", decode_tokens(model, tokens, ids[2], variants)
            ),
        )
        yield from self._blocks("decoder.blocks", model.decoder_blocks, variants, start)
        yield (
            "decoder.norm",
            lambda tokens: self._normed(model.decoder_norm, tokens, "decoder.norm", variants),
        )
        yield (
            "logits",
            lambda tokens: self._one(
                "logits",
                linear(
                    model.decoder_pred,
                    without_class_token(tokens, variants),
                    "logits",
                    variants,
                ),
            ),
        )

    def _one(self, name: str, value: Tensor) -> Steps:
        yield name, value

    def _normed(self, module: Any, tokens: Tensor, name: str, variants: Variants) -> Steps:
        normed = norm(module, tokens, name, variants)
        yield name, normed
        if name == "encoder.norm":
            yield "last_hidden_state", normed

    def _blocks(
        self, name: str, blocks: Any, variants: Variants, start: str | None
    ) -> Iterator[Stage]:
        for index, block in enumerate(blocks):
            path = f"{name}.{index}"
            step_by_step = variants.affects(path) or (start or "").startswith(f"{path}.")

            def steps(
                tokens: Tensor,
                block: Any = block,
                path: str = path,
                step_by_step: bool = step_by_step,
            ) -> Steps:
                if step_by_step:
                    results = block_steps(block, tokens, path, variants)
                else:
                    activations = Taps()
                    activations["output"] = block(tokens, activations)
                    results = ((part, activations[part]) for part in BLOCK_STEPS)
                for part, value in results:
                    yield f"{path}.{part}", value

            yield f"{path}.output", steps

    def _classify(self, tokens: Tensor, variants: Variants) -> Steps:
        model = self.model
        if model.config.normalizes_mean:
            normed = pooled(model, tokens, variants)
            yield "head.norm", normed
        else:
            normed = norm(model.norm, tokens, "encoder.norm", variants)
            yield from (("encoder.norm", normed), ("last_hidden_state", normed))
            if model.config.global_pool == "avg":  # the tokens are normalized already
                normed = normed[:, 1:].mean(dim=1, keepdim=True)
        yield (
            "logits",
            linear(model.head, read_out(normed, variants), "logits", variants),
        )

    def _results(self, logits: Tensor, pixels: Tensor, mask: Tensor, variants: Variants) -> Steps:
        yield "reconstruction", reconstruct(self.model, logits, variants)
        if mask.any():
            for name in ("loss", "loss_norm_pix"):
                yield name, loss(self.model, pixels, logits, mask, variants, name)


def inputs_as(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the inputs as tensors, with images converted to a dtype."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    return {**tensors, "pixel_values": tensors["pixel_values"].to(dtype)}


OTHER_SIDE = "B/"  # prefix of the names of tensors of the other side
SMALL_MODEL = 2_000_000  # number of parameters
EXACT = ("mask", "ids_restore")
DTYPES = {"float64": torch.float64, "float32": torch.float32}


class TraceResults:
    """The results of a trace file in one dtype, by name; a result is read when it is accessed."""

    def __init__(self, path: str, dtype: str) -> None:
        self.file = safe_open(path, "pt")
        self.names = {
            key.removeprefix(f"{dtype}/").removeprefix("tap/"): key
            for key in self.file.keys()  # noqa: SIM118 (not a mapping)
            if key.startswith(f"{dtype}/") or key in EXACT
        }

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(self.names[name])


class CandidateRun:
    """The model of one side, which can be run with weight edits and variants applied.

    Attributes:
        job: the job description of the model.
        locations: the result of `mae_convert.diagnose.candidate_process.parameter_locations`.
        other: the path of a file with tensors of the other side, by canonical name; None if no
            weight edit uses tensors of the other side.
    """

    def __init__(self, job: Job, locations: Mapping[str, Sequence[Any]], other: str | None) -> None:
        self.job, self.locations = job, locations
        self.other = safe_open(other, "pt") if other else None
        self.model = run_pytorch.build(job).double().requires_grad_(False)
        if sum(parameter.numel() for parameter in self.model.parameters()) < SMALL_MODEL:
            torch.set_num_threads(1)  # several threads are slower for a small model
        self.state = self.model.state_dict()
        self.models = {torch.float64: self.model}
        with np.load(job.inputs) as archive:
            self.inputs = dict(archive)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> "CandidateRun":
        """Create the object from the content of a job file."""
        job = Job.from_plain(description["job"])
        return cls(job, description["locations"], description["other"])

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Apply the hypotheses of a request, run the model, and compare the results with a trace.

        Returns:
            The result of ``compare`` or ``unexplained_error``; or a dictionary with a message under
            ``error`` if an edit does not fit the model.
        """
        variants = Variants([v for step in request["steps"] for v in step["variants"]])
        edits = [[WeightEdit(**edit) for edit in step["edits"]] for step in request["steps"]]
        try:
            with self._edited(edits):
                if request["dtype"] is None:
                    return self.compare(request["trace"], variants, request["start"])
                return self.unexplained_error(request, variants)
        except (ValueError, IndexError, KeyError, RuntimeError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def compare(self, trace: str, variants: Variants, start: str | None) -> dict[str, Any]:
        """Run the model in float64 until a result differs from the result in a trace.

        Args:
            trace: the trace file.
            variants: the variants of the computation.
            start: the first result to compute; earlier results are taken from the trace. None to
                compute all results.

        Returns:
            A dictionary: ``first`` is the name of the first result that differs, or None if all
            results agree within the tolerance; ``largest`` is the largest error of the results that
            agree.
        """
        results = TraceResults(trace, "float64")
        largest = 0.0
        for name, value in self._forward_pass(results, torch.float64).run(variants, start):
            if name in results:
                error = _error(name, value, results[name])
                if not error <= FUNCTION_LIMIT:
                    return {"first": name, "largest": largest}
                largest = max(largest, error)
        return {"first": None, "largest": largest}

    def unexplained_error(self, request: Mapping[str, Any], variants: Variants) -> dict[str, Any]:
        """Return how much of a recorded result's error remains if variants are applied.

        The result is computed from the trace's earlier results, without and with the variants.

        Args:
            request: ``trace``, the path of the trace; ``dtype``, the dtype of the run; ``start``,
                the name of the result.
            variants: variants that compute in lower precision.

        Returns:
            A dictionary with the item ``unexplained``: the distance to the recorded result with
            the variants, divided by the distance without them; infinity if the distance without
            them is 0.
        """
        dtype, at = DTYPES[request["dtype"]], request["start"]
        results = TraceResults(request["trace"], request["dtype"])
        forward = self._forward_pass(results, dtype)
        reference, variant = (
            next(value for name, value in forward.run(v, at) if name == at)
            for v in (Variants(), variants)
        )
        left, whole = (
            float((x.double() - results[at].double()).norm()) for x in (variant, reference)
        )
        return {"unexplained": left / whole if whole else float("inf")}

    def _forward_pass(self, results: TraceResults, dtype: torch.dtype) -> ForwardPass:
        if dtype not in self.models:
            self.models[dtype] = copy.deepcopy(self.model).to(dtype)
        inputs = inputs_as(self.inputs, dtype)
        return ForwardPass(self.models[dtype], self.job.task, inputs, results)

    @contextmanager
    def _edited(self, steps: Sequence[Sequence[WeightEdit]]) -> Iterator[None]:
        """Apply weight edits, and restore the weights when the context ends."""
        changed = {edit.target for edits in steps for edit in edits}
        before = {name: self._tensor(name).clone() for name in changed}
        try:
            for edits in steps:
                edited = [(e.target, e.apply([self._array(s) for s in e.sources])) for e in edits]
                for name, array in edited:
                    self._tensor(name).copy_(torch.from_numpy(np.array(array, np.float64)))
            yield
        finally:
            for name, tensor in before.items():
                self._tensor(name).copy_(tensor)

    def _tensor(self, name: str) -> Tensor:
        parameter, part, parts = self.locations[name]
        return self.state[parameter].chunk(parts)[part]

    def _array(self, name: str) -> np.ndarray:
        if name.startswith(OTHER_SIDE):
            assert self.other is not None
            return self.other.get_tensor(name.removeprefix(OTHER_SIDE)).double().numpy()
        return self._tensor(name).numpy().copy()


def _error(name: str, value: Tensor, expected: Tensor) -> float:
    if name in EXACT:
        same = value.shape == expected.shape and bool((value == expected).all())
        return 0.0 if same else float("inf")
    return function_error(value.numpy(), expected.numpy())
