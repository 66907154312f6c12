"""Training steps of this project's classes and of transformers' classes, alternating.

In PyTorch a step is forward, backward, and AdamW; the classes are those of `reference_models`, from
which `mae_convert.models` derives its own, and of the transformers that this interpreter has. In
TensorFlow it is a batch of ``fit``, of `mae_convert.models` on Keras 3 and of transformers 4.57.6.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from bench_forward import Model, started
from bench_measure import median, ratio

PARTS = {"full": "pre-training", "classifier": "fine-tuning"}


def rows(
    batches: list[int], pairs: int, peer_python: Path | None, frameworks: list[str]
) -> Iterator[dict[str, object]]:
    """Yield a row of the table for each framework, kind of training and batch of a ViT-B."""
    pythons = {"pytorch": Path(sys.executable), "tensorflow": peer_python}
    for framework in frameworks:
        if (python := pythons[framework]) is None:
            continue
        for part, title in PARTS.items():
            if framework == "tensorflow" and part == "classifier":
                continue
            for batch in batches:
                with (
                    started(python, "reference", framework, "base", part) as ours,
                    started(python, "transformers", framework, "base", part) as theirs,
                ):
                    yield row(framework, title, batch, (ours, theirs), pairs)


def row(
    framework: str, title: str, batch: int, models: tuple[Model, Model], pairs: int
) -> dict[str, object]:
    """Return a row of the table: both models take steps alternately, in changing order."""
    for model in models:
        model.measured("training", batch, 1)  # compiles, and creates the optimizer's state
    ours, theirs = [], []
    for number in range(pairs):
        for which in (0, 1) if number % 2 else (1, 0):
            (ours, theirs)[which].append(models[which].measured("training", batch, 1))
    peaks = [model.peak_memory() / 1e9 for model in models]
    (a, cpu_a), (b, cpu_b) = (zip(*times, strict=True) for times in (ours, theirs))
    return {
        "framework": framework,
        "step of": title,
        "batch": batch,
        "ours, s": f"{median(a):.2f}",
        "transformers, s": f"{median(b):.2f}",
        "theirs / ours": f"{ratio(b, a):.2f}",
        "of processor time": f"{ratio(cpu_b, cpu_a):.2f}",
        "memory, GB": f"{peaks[0]:.2f}",
        "theirs, GB": f"{peaks[1]:.2f}",
    }
