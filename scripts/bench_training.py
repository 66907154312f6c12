"""Training steps of this project's classes and of other libraries' classes, alternating.

In PyTorch a step is forward, backward, and AdamW; this project's classes are those of
`reference_models`, from which `mae_convert.models` derives its own. "The original's recipe" is the
step of facebookresearch/mae with transformers' class, against the step of `scripts/pretrain.py`:
both set the learning rate, check the loss, and exclude biases and norms from weight decay. In
TensorFlow a step is a batch of ``fit``, of `mae_convert.models` on Keras 3 and of transformers
4.57.6 on Keras 2, in one environment.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench_forward import Model, started
from bench_measure import by_turns, median, ratio

PARTS = {"full": "pre-training", "classifier": "fine-tuning"}


class Step(NamedTuple):
    """A training step of this project and the same step of a library."""

    framework: str
    part: str
    library: str
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
    """Yield a row for each step, size and batch; `pythons` by framework and library."""
    for step in STEPS:
        python = pythons.get((step.framework, step.library))
        if step.framework not in frameworks or python is None:
            continue
        for size in sizes:
            for batch in batches:
                with (
                    started(python, "reference", step.framework, size, step.part) as ours,
                    started(python, step.library, step.framework, size, step.part) as theirs,
                ):
                    yield row(step, size, batch, {"ours": ours, "theirs": theirs}, pairs)


def row(
    step: Step, size: str, batch: int, models: dict[str, Model], pairs: int
) -> dict[str, object]:
    """Return a row of the table: both models take steps alternately, in changing order."""
    for model in models.values():
        model.measured(step.mode, batch, 1)  # compiles, and creates the optimizer's state
    ways = {name: partial(each.measured, step.mode, batch, 1) for name, each in models.items()}
    times = by_turns(ways, pairs)
    (a, cpu_a), (b, cpu_b) = (zip(*times[name], strict=True) for name in models)
    peaks = [model.peak_memory() / 1e9 for model in models.values()]
    return {
        "framework": step.framework,
        "step of": PARTS[step.part],
        "against": step.against or step.library,
        "ViT": size,
        "batch": batch,
        "ours, s": f"{median(a):.2f}",
        "theirs, s": f"{median(b):.2f}",
        "theirs / ours": f"{ratio(b, a):.2f}",
        "of processor time": f"{ratio(cpu_b, cpu_a):.2f}",
        "memory, GB": f"{peaks[0]:.2f}",
        "theirs, GB": f"{peaks[1]:.2f}",
    }
