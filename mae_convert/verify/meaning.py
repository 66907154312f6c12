"""What the distance between two models means, in sentences that are computed from the results.

A relative distance of 4e-5 says little by itself. Here it is held against the rounding errors that
were measured, and expressed in what a user of the model sees: classes, grey levels, similarities.
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
from mae_convert.verify.judge import UNIT_ROUNDOFF, own_errors

MAIN_OUTPUT = {"pretrain": "logits", "encoder": "last_hidden_state", "classify": "logits"}
ALIKE = 4.0  # times a rounding error counts as as large as that
# Precisions by increasing unit roundoff, in words.
PRECISIONS = (("float32", "float32"), ("float16", "float16 or TF32"), ("bfloat16", "bfloat16"))
SMALL_MODEL = 2_000_000  # parameters; such a model classifies many images in a second
IMAGES = {True: 1000, False: 64}  # by whether the model is small


def meanings(a: Trace, b: Trace) -> Iterator[str]:
    """Yield what the differences between the outputs of two traces mean; nothing where none is.

    Args:
        a: the trace of the source.
        b: the trace of the target, of the same task.
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
    """Return a distance in comparison with rounding errors, which are measured in float32."""
    own = own_errors(a, "float32").get(name)
    if not own:
        return f"is {distance / UNIT_ROUNDOFF['float32']:.2g} units of roundoff of float32"
    return in_precisions(distance, own)


def in_precisions(distance: float, own: float) -> str:
    """Return in which precision rounding is as large as a distance, in words.

    Args:
        distance: relative L2.
        own: the rounding error that was measured in float32; in another precision it is as much
            larger as the unit roundoff is.
    """
    ratio = f"{distance / own:.2g} times what float32 rounds A by ({own:.1e})"
    scale = own / UNIT_ROUNDOFF["float32"]
    expected = [(words, scale * UNIT_ROUNDOFF[dtype]) for dtype, words in PRECISIONS]
    for words, error in expected:
        if distance <= ALIKE * error:
            how = "as large as" if distance * ALIKE >= error else "less than"
            return f"is {ratio}: {how} rounding in {words}"
    return f"is {ratio}: more than rounding in bfloat16"


def _similarity(exact: np.ndarray, other: np.ndarray) -> Iterator[str]:
    """Yield how similar the features of an image are in both models, and those of two images."""
    left, right = (x.mean(axis=1) for x in (exact, other))  # (N, D)
    same = min(_cosine(x, y) for x, y in zip(left, right, strict=True))
    sentence = f"the mean of an image's tokens in B has a cosine similarity of {same:.6f} to A's"
    if len(left) > 1:
        sentence += f" (two of the images in A: {_cosine(left[0], left[1]):.6f})"
    yield sentence


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def _pixels(
    a: Trace, exact: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]
) -> Iterator[str]:
    """Yield by how much predicted pixels change, and the loss."""
    away = np.abs(other["logits"] - exact["logits"])
    std = np.asarray(a.description["image_std"])
    image = exact.get("reconstruction")
    if a.description["config"]["norm_pix_loss"]:
        yield f"predicted pixels change by {away.mean():.2g} of their patch's standard deviation"
    elif image is not None and "reconstruction" in other and (std <= 1).all():
        shape = (1, len(std), *[1] * (image.ndim - 2))
        levels = 255 * np.abs(other["reconstruction"] - image) * std.reshape(shape)
        yield (
            f"predicted pixels change by {levels.mean():.2g} of 255 levels, at most by"
            f" {levels.max():.2g}"
        )
    if "loss" in exact and "loss" in other:
        losses = [float(x["loss"]) for x in (exact, other)]
        yield f"the loss on these images is {losses[0]:.6g} in A and {losses[1]:.6g} in B"


def changed_decisions(runs: Sequence[Run]) -> str:
    """Return for how many random images two classifiers choose another class.

    Both are run once more, in float32, on many images.

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


def explained(runs: Sequence[Run], traces: Sequence[Trace]) -> tuple[str, ...]:
    """Return what the differences of a failed verification mean; empty where outputs agree.

    Args:
        runs: of the source and the target; empty where they cannot be run again.
        traces: of both; empty where nothing was run.
    """
    if not traces:
        return ()
    found = list(meanings(*traces[:2]))
    if found and runs and traces[0].description["task"] == "classify":
        try:
            found.append(changed_decisions(runs))
        except MaeConvertError as error:  # the verdict stands all the same
            found.append(f"how many decisions change was not found: {error.render(as_field)}")
    return tuple(found)
