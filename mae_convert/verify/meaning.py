"""Explain the size of the distance between two models.

A relative distance of 4e-5 is hard to interpret. Here it is compared with the measured rounding
errors and expressed in terms of the model's outputs: classes, grey levels, similarities.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mae_convert.errors import MaeConvertError, as_field
from mae_convert.runtime.inputs import InputChoice, make_inputs
from mae_convert.runtime.running import Request, Run, run_together
from mae_convert.runtime.trace import Trace
from mae_convert.verify.distance import FUNCTION_LIMIT, relative_error
from mae_convert.verify.judge import UNIT_ROUNDOFF, rounding_errors

MAIN_OUTPUT = {"pretrain": "logits", "encoder": "last_hidden_state", "classify": "logits"}
ALIKE = 4.0  # distances that differ by less than this factor are called equally large
# Precisions by increasing unit roundoff, and their names in sentences.
PRECISIONS = (("float32", "float32"), ("float16", "float16 or TF32"), ("bfloat16", "bfloat16"))
SMALL_MODEL = 2_000_000  # number of parameters up to which many images can be classified quickly
IMAGES = {
    True: 1000,
    False: 64,
}  # the number of test images, for small models (True) and for others


def meanings(a: Trace, b: Trace) -> Iterator[str]:
    """Yield sentences that explain the differences between the outputs of two traces.

    Args:
        a: the trace of the source.
        b: the trace of the target, for the same task.
    """
    task = a.description["task"]
    if b.description["task"] != task:
        return
    exact, other = a.results("float64"), b.results("float64")
    name = MAIN_OUTPUT[task]
    if name not in exact or name not in other or exact[name].shape != other[name].shape:
        return
    distance = relative_error(other[name], exact[name])
    if distance <= FUNCTION_LIMIT or not math.isfinite(distance):
        return
    yield f"{name}: a relative distance of {distance:.1e} {_as_rounding(a, name, distance)}"
    if task == "encoder":
        yield from _similarity(exact[name], other[name])
    elif task == "pretrain":
        yield from _pixels(a, exact, other)


def _as_rounding(a: Trace, name: str, distance: float) -> str:
    """Return text that compares a distance with the measured rounding error in float32.

    Args:
        a: the trace of A, in which the rounding error is measured.
        name: the name of the result.
        distance: the relative L2 distance between the results of A and B.
    """
    own = rounding_errors(a, "float32").get(name)
    if not own:
        return f"is {distance / UNIT_ROUNDOFF['float32']:.2g} units of roundoff of float32"
    return precision_in_words(distance, own)


def precision_in_words(distance: float, own: float) -> str:
    """Return text that names the precision in which rounding errors are as large as a distance.

    Args:
        distance: the relative L2 distance between two results.
        own: the measured rounding error in float32; in other precisions it is assumed to be
            proportional to the unit roundoff.
    """
    ratio = f"{distance / own:.2g} times A's rounding error in float32 ({own:.1e})"
    scale = own / UNIT_ROUNDOFF["float32"]
    expected = [(words, scale * UNIT_ROUNDOFF[dtype]) for dtype, words in PRECISIONS]
    for words, error in expected:
        if distance <= ALIKE * error:
            how = "as large as" if distance * ALIKE >= error else "smaller than"
            return f"is {ratio}: {how} rounding errors in {words}"
    return f"is {ratio}: larger than rounding errors in bfloat16"


def _similarity(exact: np.ndarray, other: np.ndarray) -> Iterator[str]:
    """Yield a sentence with the cosine similarity of the mean tokens of an image in A and in B.

    The smallest similarity of all images is stated. For comparison, the sentence also contains the
    similarity of two different images in A, if there are several images.

    Args:
        exact: the tokens in A, (N, T, D).
        other: the tokens in B, (N, T, D).
    """
    left, right = (x.mean(axis=1) for x in (exact, other))  # (N, D)
    same = min(_cosine(x, y) for x, y in zip(left, right, strict=True))
    sentence = f"an image's mean tokens in A and in B have a cosine similarity of {same:.6f}"
    if len(left) > 1:
        sentence += f" (of two different images in A: {_cosine(left[0], left[1]):.6f})"
    yield sentence


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def _pixels(
    a: Trace, exact: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """Yield sentences about the differences between A and B in the predicted pixels and the loss.

    Args:
        a: the trace of A.
        exact: the float64 results of A, by name.
        other: the float64 results of B, by name.
    """
    change = np.abs(other["logits"] - exact["logits"])
    std = np.asarray(a.description["image_std"])
    image = exact.get("reconstruction")
    if a.description["config"]["norm_pix_loss"]:
        yield f"predicted pixels change by {change.mean():.2g} of their patch's standard deviation"
    elif image is not None and "reconstruction" in other and (std <= 1).all():
        shape = (1, len(std), *[1] * (image.ndim - 2))
        levels = 255 * np.abs(other["reconstruction"] - image) * std.reshape(shape)
        yield (
            f"predicted pixels change by {levels.mean():.2g} of 255 grey levels on average, at"
            f" most by {levels.max():.2g}"
        )
    if "loss" in exact and "loss" in other:
        losses = [float(x["loss"]) for x in (exact, other)]
        yield f"the loss on these images is {losses[0]:.6g} in A and {losses[1]:.6g} in B"


def changed_decisions(runs: Sequence[Run]) -> str:
    """Return a sentence about the number of random images whose top-1 class changes.

    Both models are run again in float32 on many images.

    Args:
        runs: the runs of source and target.

    Raises:
        MaeConvertError: a run failed.
    """
    count = IMAGES[_parameters(runs[0]) < SMALL_MODEL]
    inputs = make_inputs(InputChoice(batch=count), runs[0].checkpoint)
    request = Request(("float32",), taps=False, mask_ratio=0.0)
    traces = run_together([replace(run, request=request) for run in runs], inputs)
    a, b = (trace.arrays["float32/logits"].argmax(axis=-1) for trace in traces)
    changed = int((a != b).sum())
    share = f"{100 * changed / count:.3g} %"
    return f"the top-1 class changes for {changed} of {count} random images ({share})"


def _parameters(run: Run) -> int:
    return sum(math.prod(tensor.shape) for tensor in run.checkpoint.tensors.values())


def explanations(runs: Sequence[Run], traces: Sequence[Trace]) -> tuple[str, ...]:
    """Return sentences that explain the differences that a failed verification found.

    Args:
        runs: the runs of source and target; empty if the models cannot be run again.
        traces: the traces of source and target; empty if nothing was run.
    """
    if not traces:
        return ()
    sentences = list(meanings(*traces[:2]))
    if sentences and runs and traces[0].description["task"] == "classify":
        try:
            sentences.append(changed_decisions(runs))
        except MaeConvertError as error:  # the verdict does not depend on this run
            sentences.append(f"the number of changed classes is unknown: {error.render(as_field)}")
    return tuple(sentences)
