"""Time training steps of this project's classes and of other libraries' classes, in turn.

In PyTorch a step is the forward pass, the backward pass and AdamW. This project's classes are the
reference models, from which the classes of `mae_convert.models` are derived. The row "the
original's recipe" compares a training step of `scripts/pretrain.py` with a step that works as in
the training script of facebookresearch/mae and trains transformers' ``ViTMAEForPreTraining``: both
steps set the learning rate, check the loss, and exclude biases and norms from weight decay. In
TensorFlow a step is ``fit`` on one batch, with `mae_convert.models` on Keras 3 and with
transformers 4.57.6 on Keras 2, in the same environment.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench_forward import Model, started
from bench_measure import by_turns, median, ratio

Start = Callable[[], AbstractContextManager[Model]]
MOST_TOGETHER = 16
"""The largest batch size at which the two compared TensorFlow models are in memory together."""

UNCOUNTED = 2
"""The number of initial steps that are not timed: the first step compiles and creates the
optimizer's state; in TensorFlow, the second step still allocates memory that later steps reuse."""

PARTS = {"full": "pre-training", "classifier": "fine-tuning"}


class Step(NamedTuple):
    """A training step of this project and the same step of a library."""

    framework: str
    part: str
    peer: str
    mode: str = "training"
    against: str = ""


STEPS = (
    Step("pytorch", "full", "transformers"),
    Step("pytorch", "full", "transformers", "recipe", "the original's recipe"),
    Step("pytorch", "classifier", "transformers"),
    Step("pytorch", "classifier", "timm"),
    Step("tensorflow", "full", "transformers"),
    Step("tensorflow", "classifier", "transformers"),
)


def rows(
    sizes: list[str],
    batches: list[int],
    pairs: int,
    pythons: dict[tuple[str, str], Path],
    frameworks: list[str],
) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each kind of training step in `STEPS`, size and batch size.

    Args:
        sizes: the sizes of the ViT.
        batches: the batch sizes.
        pairs: how often each of the two compared models is measured.
        pythons: the Python interpreter for each pair (framework, library).
        frameworks: the frameworks to measure.
    """
    for step in STEPS:
        python = pythons.get((step.framework, step.peer))
        if step.framework not in frameworks or python is None:
            continue
        for size in sizes:
            models = {
                name: partial(started, python, library, step.framework, size, step.part)
                for name, library in (("ours", "reference"), ("theirs", step.peer))
            }
            for batch in batches:
                yield _row(step, size, batch, _times(step, batch, models, pairs))


def _times(
    step: Step, batch: int, models: dict[str, Start], pairs: int
) -> dict[str, list[tuple[float, float, int]]]:
    """Return the measurements of "ours" and "theirs", with an item for each of `pairs` rounds.

    An item contains time and processor time in seconds, and peak memory in bytes. For large batches
    in TensorFlow the two models run in separate processes, one after the other, because together
    they need more memory than small machines have.
    """
    if step.framework == "tensorflow" and batch > MOST_TOGETHER:
        return by_turns({n: partial(_alone, step, batch, m) for n, m in models.items()}, pairs)
    with models["ours"]() as ours, models["theirs"]() as theirs:
        both = {"ours": ours, "theirs": theirs}
        for model in both.values():
            _take_uncounted_steps(step, batch, model)
        return by_turns({n: partial(_turn, step, batch, m) for n, m in both.items()}, pairs)


def _alone(step: Step, batch: int, start: Start) -> tuple[float, float, int]:
    with start() as model:
        _take_uncounted_steps(step, batch, model)
        return _turn(step, batch, model)


def _take_uncounted_steps(step: Step, batch: int, model: Model) -> None:
    for _ in range(UNCOUNTED):
        model.measured(step.mode, batch, 1)


def _turn(step: Step, batch: int, model: Model) -> tuple[float, float, int]:
    return (*model.measured(step.mode, batch, 1), model.peak_memory())


def _row(
    step: Step, size: str, batch: int, times: dict[str, list[tuple[float, float, int]]]
) -> dict[str, object]:
    (a, cpu_a, held_a), (b, cpu_b, held_b) = (zip(*each, strict=True) for each in times.values())
    return {
        "framework": step.framework,
        "step of": PARTS[step.part],
        "against": step.against or step.peer,
        "ViT": size,
        "batch": batch,
        "ours, s": f"{median(a):.2f}",
        "theirs, s": f"{median(b):.2f}",
        "theirs / ours": f"{ratio(b, a):.2f}",
        "of processor time": f"{ratio(cpu_b, cpu_a):.2f}",
        "memory, GB": f"{max(held_a) / 1e9:.2f}",
        "theirs, GB": f"{max(held_b) / 1e9:.2f}",
    }
