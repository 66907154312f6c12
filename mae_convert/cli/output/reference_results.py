"""Print how a checkpoint compares with what others published of it."""

from mae_convert.cli.output.console import console, markup, table
from mae_convert.verify.reference_results import PublishedResult


def published(result: PublishedResult) -> None:
    """Print the values, published and measured, and the answer."""
    out, truth = console(), result.truth
    out.print(f"{markup(result.checkpoint)}, run by {markup(result.framework)}")
    whose = f"logits [0, :3, :3] as published for {truth.source} by {truth.where}"
    out.print(markup(whose))
    if truth.layer_norm_eps is not None:
        out.print(
            f"run with a layer norm epsilon of {truth.layer_norm_eps}, as they were made with"
        )
    heads = ("published", *map(markup, result.corners))
    grid = table(*heads, right=heads)
    measured = [corner.reshape(-1) for corner in result.corners.values()]
    for number, value in enumerate(x for row in truth.corner for x in row):
        grid.add_row(f"{value:.4f}", *(f"{corner[number]:.6f}" for corner in measured))
    out.print(grid)
    for dtype, share in result.share.items():
        out.print(f"{markup(dtype)}: the farthest is at {share:.2g} of what is allowed")
    if result.passed:
        out.print("[bold green]AS PUBLISHED[/bold green]: these nine values; everything else is"
                  " not compared")  # fmt: skip
    else:
        out.print("[bold red]NOT AS PUBLISHED[/bold red]")
