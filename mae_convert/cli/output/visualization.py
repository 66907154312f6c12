"""Print the results of commands that process images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mae_convert.cli.output.console import console, markup, table
from mae_convert.text import plural

if TYPE_CHECKING:
    from mae_convert.visualize.features import Features
    from mae_convert.visualize.timeline import Timeline


def reconstructions(report: Mapping[str, Any]) -> None:
    """Print the number of removed patches and the error of each image, and the output paths."""
    out = console()
    frameworks = list(report["images"][0]["loss"])
    numbers = [
        "removed patches",
        *(f"error on removed patches, {markup(name)}" for name in frameworks),
    ]
    grid = table("image", *numbers, right=numbers)
    for row in report["images"]:
        removed = f"{row['removed']} of {row['patches']}"
        errors = (row["loss"][name] for name in frameworks)
        cells = ("none" if error is None else f"{error:.4f}" for error in errors)
        grid.add_row(markup(row["image"]), removed, *cells)
    out.print(grid)
    out.print("error: mean squared error of the removed patches, in normalized pixel units")
    if "film_ratios" in report:
        first, *_, last = report["film_ratios"]
        out.print(
            f"shown: the first frame of the animation, at a mask ratio of {first:.0%}; the last "
            f"frame is at {last:.0%}"
        )
    if "largest_difference" in report:
        out.print(f"largest difference between the frameworks: {report['largest_difference']:.1e}")
    if report.get("sampling"):
        out.print(f"sampling: {markup(report['sampling'])}")
        for clip in report["images"]:
            frame_numbers = ", ".join(str(number + 1) for number in clip["frames"])
            out.print(f"frames of {markup(clip['image'])}: {frame_numbers}")
    if report["note"]:
        out.print(f"note: {markup(report['note'])}")
    for path in report["outputs"]:
        out.print(markup(path), soft_wrap=True)


def features_json(result: "Features", path: Path) -> dict[str, Any]:
    """Return the output of ``features --json``; `path` is the file with the features."""
    labels = [str(label) for label in np.unique(result.labels) if label]
    return {
        "path": str(path),
        "images": len(result.names),
        "width": result.mean.shape[1],
        "labels": labels,
        **({"sampling": result.sampling} if result.sampling else {}),
    }


def features(result: "Features", path: Path) -> None:
    """Print the number of images with features, and the path of the output."""
    report = features_json(result, path)
    count = len(report["labels"])
    labels = f", {plural(count, 'label')}" if count else ""
    out = console()
    what = plural(report["images"], "video" if result.sampling else "image")
    out.print(f"{what}, {report['width']} features each{labels}")
    if result.sampling:
        out.print(f"sampling: {markup(result.sampling)}")
    out.print(markup(report["path"]), soft_wrap=True)


def timeline(result: "Timeline", outputs: Sequence[Path]) -> None:
    """Print the loss of each checkpoint, and the paths of the outputs."""
    out = console()
    grid = table("epoch", "loss", "checkpoint", right=("epoch", "loss"), whole=("epoch", "loss"))
    for point in result.points:
        loss = "" if point.loss is None else f"{point.loss:.4f}"
        name = f"{point.source}: {point.error}" if point.error else point.source
        grid.add_row(str(point.epoch), loss, markup(name))
    out.print(grid)
    out.print(
        f"lowest loss at epoch {result.best.epoch}; 99 % of the improvement is reached at "
        f"epoch {result.near_best.epoch}"
    )
    for path in outputs:
        out.print(markup(path), soft_wrap=True)
