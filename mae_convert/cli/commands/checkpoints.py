"""Commands that read checkpoints and write them in other layouts."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mae_convert.cli.common import open_and_infer, open_pair_with_notes, open_with_notes
from mae_convert.cli.completion import complete_layouts
from mae_convert.cli.contradictions import CheckedCommand
from mae_convert.cli.options import (
    BYTE_SIZE,
    COUNT,
    DTYPE,
    IMAGE_SIZE,
    SourceType,
    checkpoint_options,
    images_option,
    infer_option,
    json_option,
    task_option,
)
from mae_convert.errors import as_option

if TYPE_CHECKING:
    from mae_convert.families.checkpoint_options import Flags
    from mae_convert.sources import Source


@click.command(cls=CheckedCommand)
@click.argument("src", type=SourceType())
@click.option("--stats", is_flag=True, help="Read the tensors and show statistics of their values.")
@click.option(
    "--hash",
    "with_hash",
    is_flag=True,
    help="Compute hashes of the file and its tensors, and identify official checkpoints.",
)
@task_option
@infer_option
@images_option
@json_option
@checkpoint_options
def inspect(
    src: "Source",
    stats: bool,
    with_hash: bool,
    task: str | None,
    use_infer: bool,
    images: Path | None,
    as_json: bool,
    state_key: str | None,
    flags: "Flags",
) -> None:
    """Show layout, task, sizes and assumptions of a checkpoint.

    Example:

    \b
        mae-convert inspect mae_pretrain_vit_base.pth
    """
    from mae_convert.checkpoint.checkpoint import as_task
    from mae_convert.checkpoint.inspect import inspect as look
    from mae_convert.cli.streams import print_json

    if use_infer:
        checkpoint, _ = open_and_infer(src, flags, images, state_key=state_key, task=task)
    else:
        checkpoint = open_with_notes(src, flags, state_key=state_key, task=task, incomplete=True)
    checkpoint = as_task(checkpoint, task)
    report = look(checkpoint, stats=stats, with_hash=with_hash, style=as_option)
    if as_json:
        print_json(report)
    else:
        from mae_convert.cli.output.inspection import inspection as show

        show(report)


@click.command(cls=CheckedCommand)
@click.argument("src", type=SourceType())
@click.argument("dst", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "targets",
    multiple=True,
    required=True,
    metavar="LAYOUT[=DST]",
    shell_complete=complete_layouts,
    help=(
        "Layout to write (see `mae-convert layouts`); repeat the option as LAYOUT=DST for each "
        "further layout."
    ),
)
@click.option(
    "--task",
    help=(
        "Task of the model to write (pretrain, encoder, classify); by default the task of the "
        "source. `encoder` drops a decoder or a head."
    ),
)
@click.option(
    "--dtype",
    type=DTYPE,
    help="Round the weights to this dtype. The change is reported as lossy.",
)
@click.option(
    "--image-size",
    type=IMAGE_SIZE,
    help=(
        "Resample the position embeddings for images of this size. The change is reported as lossy."
    ),
)
@click.option(
    "--num-frames",
    type=COUNT,
    help="Compute the fixed position embeddings for videos of this many frames.",
)
@click.option(
    "--sincos-positions",
    is_flag=True,
    help=(
        "With --image-size: compute new fixed sine-cosine position embeddings instead of "
        "resampling."
    ),
)
@click.option(
    "--num-labels",
    type=COUNT,
    help="Add a new classifier head, initialized with zeros, to the encoder for fine-tuning.",
)
@click.option(
    "--in-channels",
    type=COUNT,
    help=(
        "Number of input channels. For one channel, the patch embedding's weights are summed over "
        "the channels; for several channels, they are repeated, and scaled by the old number of "
        "channels divided by the new number. The change is reported as lossy."
    ),
)
@click.option(
    "--max-shard-size",
    type=BYTE_SIZE,
    help="Write the weights of a directory DST in shards of at most this size, with an index.",
)
@click.option(
    "--bin", "pickled", is_flag=True, help="Write pytorch_model.bin instead of model.safetensors."
)
@click.option(
    "--prefix",
    default="",
    metavar="TEXT",
    help="Prefix to add to each tensor name in DST, such as `module.` of DistributedDataParallel.",
)
@click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
@infer_option
@images_option
@json_option
@checkpoint_options
def convert(
    src: "Source",
    dst: Path,
    targets: tuple[str, ...],
    task: str | None,
    dtype: str | None,
    image_size: tuple[int, int] | None,
    num_frames: int | None,
    sincos_positions: bool,
    in_channels: int | None,
    num_labels: int | None,
    max_shard_size: int | None,
    pickled: bool,
    prefix: str,
    overwrite: bool,
    use_infer: bool,
    images: Path | None,
    as_json: bool,
    state_key: str | None,
    flags: "Flags",
) -> None:
    """Convert a checkpoint to another layout.

    The output is read back and compared with SRC before it is renamed to DST.

    Example:

    \b
        mae-convert convert checkpoint.pth my-mae --to transformers --num-heads 12
    """
    from mae_convert.cli.streams import print_json, progress
    from mae_convert.convert.changes import Geometry, with_new_head
    from mae_convert.convert.execute import execute_all
    from mae_convert.convert.plan import plan_conversion
    from mae_convert.convert.target import Packing, parse_targets

    requested: dict[str, Any] = {
        "task": task,
        "dtype": dtype,
        "geometry": Geometry(image_size, sincos_positions, in_channels, num_frames),
        "packing": Packing(prefix, pickled, max_shard_size),
    }
    part = None if num_labels else task
    if use_infer:
        source, _ = open_and_infer(src, flags, images, state_key=state_key, task=part)
    else:
        source = open_with_notes(src, flags, state_key=state_key, task=part, incomplete=True)
    source = with_new_head(source, num_labels, task) if num_labels else source
    plans = [
        plan_conversion(source, target, layout, **requested)
        for layout, target in parse_targets(dst, targets)
    ]
    on_commit = click.get_current_context().obj or (lambda: None)
    with progress("read, write and compare") as bar:
        reports = execute_all(plans, overwrite=overwrite, progress=bar, on_commit=on_commit)
    if as_json:
        print_json(reports[0] if len(reports) == 1 else {"conversions": reports})
    else:
        from mae_convert.cli.output.conversion import conversion as show

        for plan, report in zip(plans, reports, strict=True):
            show(plan, report)


@click.command(cls=CheckedCommand)
@click.argument("a", type=SourceType())
@click.argument("b", type=SourceType())
@task_option
@json_option
@checkpoint_options
def diff(
    a: "Source",
    b: "Source",
    task: str | None,
    as_json: bool,
    state_key: str | None,
    flags: "Flags",
) -> int:
    """Compare two checkpoints tensor by tensor, across layouts.

    Exit status 1 if anything differs.

    Example:

    \b
        mae-convert diff checkpoint.pth my-mae --num-heads 12
    """
    from mae_convert.checkpoint.diff import diff as compare_tensors
    from mae_convert.cli.output.difference import difference as show
    from mae_convert.cli.output.difference import difference_json
    from mae_convert.cli.streams import print_json

    pair = open_pair_with_notes((a, b), flags, state_key=state_key, task=task, incomplete=True)
    difference = compare_tensors(*pair)
    print_json(difference_json(difference)) if as_json else show(difference)
    return 0 if difference.same else 1


@click.command(cls=CheckedCommand)
@click.argument("src", type=SourceType())
@task_option
@json_option
@checkpoint_options
def fingerprint(
    src: "Source", task: str | None, as_json: bool, state_key: str | None, flags: "Flags"
) -> None:
    """Print a digest of the weights and the configuration.

    The same model has the same fingerprint in every layout.

    Example:

    \b
        mae-convert fingerprint my-mae
    """
    from mae_convert.checkpoint.checkpoint import as_task
    from mae_convert.checkpoint.fingerprint import fingerprint_report
    from mae_convert.checkpoint.official_match import confirmed_by_hash
    from mae_convert.cli.output.inspection import fingerprint as show
    from mae_convert.cli.streams import print_json

    checkpoint = open_with_notes(src, flags, state_key=state_key, task=task, incomplete=True)
    report = fingerprint_report(as_task(confirmed_by_hash(checkpoint), task))
    print_json(report) if as_json else show(report)


@click.command(cls=CheckedCommand)
@click.argument("a", type=SourceType())
@click.argument("b", type=SourceType())
@json_option
@checkpoint_options
def lineage(a: "Source", b: "Source", as_json: bool, state_key: str | None, flags: "Flags") -> int:
    """Show whether one checkpoint was derived from another.

    B may have A's weights, A's encoder, or A's weights after changes that B's conversion record
    declares. A and B are checkpoints, or certificates and conversion records (.json) of
    checkpoints whose files are not available. Exit status 1 if neither was derived from the other.

    Example:

    \b
        mae-convert lineage checkpoint.pth my-mae
    """
    from mae_convert.cli.output.lineage import lineage as show
    from mae_convert.cli.streams import print_json
    from mae_convert.verify.lineage import lineage as compare
    from mae_convert.verify.lineage_records import describe_checkpoint, read_record, record_of

    records = [record_of(source) if isinstance(source, Path) else None for source in (a, b)]
    options: dict[str, Any] = {"state_key": state_key, "incomplete": True}
    if records == [None, None]:
        pair = [describe_checkpoint(c) for c in open_pair_with_notes((a, b), flags, **options)]
    else:
        pair = [
            read_record(record)
            if record
            else describe_checkpoint(
                open_with_notes(source, flags, fill_only=True, **options), with_record=True
            )
            for record, source in zip(records, (a, b), strict=True)
        ]
    result = compare(*pair)
    print_json(result.to_dict()) if as_json else show(result)
    return 0 if result.related else 1


@click.command(cls=CheckedCommand)
@click.argument("name", required=False, shell_complete=complete_layouts)
def layouts(name: str | None) -> None:
    """List the layouts, or show the mapping table of one layout.

    Example:

    \b
        mae-convert layouts transformers-tf
    """
    from mae_convert.cli.output import catalog as show
    from mae_convert.families import families, layouts_named

    if name:
        for layout in layouts_named(name):
            show.layout(layout)
        return
    for family in families().values():
        show.layouts(family.title, family.layouts.values())
