"""Print how a checkpoint compares with reference results of third parties."""

from mae_convert.cli.output.console import console, markup, table
from mae_convert.verify.reference_results import PublishedResult


def published(result: PublishedResult) -> None:
    """Print the reference values, the measured values, and the verdict."""
    out, truth = console(), result.truth
    out.print(f"{markup(result.checkpoint)}, run by {markup(result.framework)}")
    whose = f"logits [0, :3, :3] as published for {truth.source} by {truth.where}"
    out.print(markup(whose))
    if truth.layer_norm_eps is not None:
        out.print(
            f"run with a layer norm epsilon of {truth.layer_norm_eps}, with which the reference "
            "results were computed"
        )
    heads = ("published", *map(markup, result.corners))
    grid = table(*heads, right=heads)
    measured = [corner.reshape(-1) for corner in result.corners.values()]
    for number, value in enumerate(x for row in truth.corner for x in row):
        grid.add_row(f"{value:.4f}", *(f"{corner[number]:.6f}" for corner in measured))
    out.print(grid)
    for dtype, share in result.share.items():
        out.print(f"{markup(dtype)}: the largest difference is {share:.2g} of the tolerance")
    if result.passed:
        out.print(
            "[bold green]AS PUBLISHED[/bold green]: these nine values agree; nothing else was "
            "compared"
        )  # fmt: skip
    else:
        out.print("[bold red]NOT AS PUBLISHED[/bold red]")
