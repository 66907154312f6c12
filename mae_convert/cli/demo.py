"""The demonstration: convert, verify and reconstruct with the package's embedded checkpoint."""

import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.diff import diff
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.checkpoint.preprocessing import load_images
from mae_convert.cli.output.console import console, markup
from mae_convert.cli.output.verdict import checks_table, verdict_line
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.files.staging import scratch_directory
from mae_convert.runtime.inputs import random_inputs
from mae_convert.runtime.running import Run, run_together
from mae_convert.runtime.sides import Side, choose_side
from mae_convert.verify.judge import Check, Verdict, judge
from mae_convert.visualize.sheet import panel

TARGETS = ("transformers", "transformers-tf")
FULL_NAMES = {
    "torch": "PyTorch",
    "tensorflow": "TensorFlow",
    "jax": "JAX",
    "transformers": "transformers",
    "timm": "timm",
}
IMAGE_NAME = "reconstruction.png"


def run_demo(output: Path) -> bool:
    """Convert the embedded checkpoint to other layouts and back, verify and print the results.

    Args:
        output: directory for the models and the image; results of an earlier run are replaced.

    Returns:
        Whether all models compute the same results, and all conversions back give the same
        tensors.
    """
    started = time.monotonic()
    out = console()
    data = Path(str(resources.files("mae_convert") / "data" / "demo"))
    source = open_checkpoint(data / "checkpoint.pth")
    out.print(f"The embedded checkpoint, in the original layout: {markup(source.path)}")
    converted = {layout: output / layout for layout in TARGETS}
    output.mkdir(parents=True, exist_ok=True)
    for layout, target in converted.items():
        execute(plan_conversion(source, target, layout), overwrite=True)
        out.print(f"  converted to {layout}: {markup(target)}")
    photographs = sorted(data.glob("*.jpg"))
    pixels = load_images(photographs, source)
    noise = random_inputs(source.family, source.configuration.model, batch=len(pixels), seed=1)[
        "noise"
    ]
    inputs = {"pixel_values": pixels, "noise": noise}
    checkpoints = [source, *(open_checkpoint(path) for path in converted.values())]
    runs = [Run(c, choose_side(c, Side())) for c in checkpoints]
    names = dict.fromkeys(FULL_NAMES[str(run.side.framework)] for run in runs)
    out.print(f"  running {' and '.join(names)} with the same images and noise ...")
    traces = run_together(runs, inputs)
    verdicts = {
        layout: judge(traces[0], other) for layout, other in zip(TARGETS, traces[1:], strict=True)
    }
    round_trips = [round_trip(source, path) for path in converted.values()]
    passed = print_results(verdicts, round_trips)
    panel(
        pixels, traces[0].arrays["float64/reconstruction"], traces[0].arrays["mask"],
        [path.name for path in photographs], source,
    ).save(output / IMAGE_NAME)  # fmt: skip
    out.print("\nfour photographs, each reconstructed from a quarter of its patches:")
    out.print(f"  {markup((output / IMAGE_NAME).resolve())}")
    out.print(f"\n{time.monotonic() - started:.0f} s")
    return passed


def round_trip(source: Checkpoint, converted: Path) -> Check:
    """Convert `converted` back to the layout of `source`, and check that no tensor differs."""
    with scratch_directory() as folder:
        back = folder / "back.pth"
        execute(plan_conversion(open_checkpoint(converted), back, source.layout.name))
        difference = diff(source, open_checkpoint(back))
    return Check(f"weights/{converted.name} and back", difference.same, len(difference.tensors), 0)


def print_results(verdicts: Mapping[str, Verdict], round_trips: Sequence[Check]) -> bool:
    """Print a table for each verdict, and the round trips; return whether all of them passed."""
    out = console()
    for (layout, verdict), back in zip(verdicts.items(), round_trips, strict=True):
        first, second = verdict.witnesses
        out.print(
            f"\n[bold]A: the original in {FULL_NAMES[first['framework']]};"
            f" B: {layout} in {FULL_NAMES[second['framework']]}[/bold]"
        )
        out.print(checks_table(verdict.checks))
        bits = "all tensors are bit-identical" if back.passed else f"{back.measured} tensors differ"
        out.print(f"converted back to the original layout: {bits}")
        out.print(verdict_line(verdict))
    return all(v.passed for v in verdicts.values()) and all(c.passed for c in round_trips)
