"""Print the results of ``inspect``, ``fingerprint`` and ``lineage``."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table as Grid
from rich.text import Text

from mae_convert.cli.output.console import assumptions, console, markup, pairs, table, with_options
from mae_convert.errors import Option, as_option
from mae_convert.families.checkpoint_options import OF_FIELDS
from mae_convert.families.evidence import OFFICIAL
from mae_convert.files.strict_json import plain
from mae_convert.text import format_bytes, format_size, plural

if TYPE_CHECKING:
    from mae_convert.checkpoint.fingerprint import TensorDigest
    from mae_convert.verify.lineage import DifferingTensor, Lineage

MOST_CANDIDATES = 5
GAP = 4  # spaces between the columns of a table


def inspection(report: Mapping[str, Any]) -> None:
    """Print the result of ``inspect``."""
    config, out = report["config"], console()
    size = config["image_size"]
    rows = [
        ("checkpoint", report["path"]),
        ("layout", _with_synonyms(report)),
        ("container", _container(report)),
        ("task", report["task"]),
        *family_rows(report["family"]),
        (
            "video" if "num_frames" in config else "image",
            f"{_frames(config, 'num_frames')}{format_size(size)},"
            f" {plural(config['num_channels'], 'channel')}",
        ),
        ("patch", f"{_frames(config, 'tubelet_size')}{format_size(config['patch_size'])}"),
        ("encoder", _stack(config, "")),
    ]
    if report["task"] == "pretrain":
        rows.append(("decoder", _stack(config, "decoder_")))
        rows.append(("reconstruction", report["reconstruction"]))
    if report["task"] == "classify":
        rows.append(("head", f"{config['num_labels']} classes, input: {report['pooling']}"))
    dtypes = ", ".join(f"{count} {name}" for name, count in report["dtypes"].items())
    rows.append(("tensors", f"{report['tensors']} ({dtypes})"))
    millions = report["parameters"] / 1e6
    rows.append(("parameters", f"{millions:.2f} M, {format_bytes(report['bytes'])}"))
    rows.append(("official", _official(report["official"], report["assumptions"])))
    rows += fingerprint_rows(report) if "fingerprint" in report else []
    rows += [("not used", f"{name}: {what}") for name, what in report["ignored"].items()]
    out.print(pairs(rows))
    if report.get("inferred", {}).get("fields"):
        _inferred(report["inferred"])
    if report["missing"]:
        out.print("\n[bold]Missing: not stored in the checkpoint[/bold]")
        rows = [
            (f"  {field['field']}", f"specify it with {field['option']} ({field['reason']})")
            for field in report["missing"]
        ]
        out.print(pairs(rows))
    out.print("\n[bold]Configuration that is not stored in the tensors, and its source[/bold]")
    out.print(assumptions(report["assumed"]))
    out.print("\n[bold]Can be converted to[/bold]")
    out.print(pairs(("  " + name, reason) for name, reason in report["becomes"].items()))
    if "stats" in report:
        out.print("\n[bold]Values[/bold]")
        out.print(_statistics(report["stats"], out.width))
    if odd := [*report["differences"], *report["odd"]]:
        out.print("\n[bold]Warnings[/bold]")
        out.print(pairs(("  -", what) for what in odd))


def _frames(config: Mapping[str, Any], field: str) -> str:
    """Return a number of frames as a prefix such as "16 frames of "; "" for images."""
    count = config.get(field)
    return "" if count is None else f"{plural(count, 'frame')} of "


def _inferred(inferred: Mapping[str, Any]) -> None:
    """Print the result of an experiment: for each field, its value and the best candidates."""
    out = console()
    out.print("\n[bold]Determined by experiment[/bold]")
    if inferred["images"]:
        out.print(
            f"  {inferred['images']} images, {inferred['masks_per_image']} crops of each image, "
            f"each crop with its own mask, run by {markup(inferred['framework'])}; losses on "
            "removed patches are relative to the loss of predicting each image's mean colour"
        )
    for name, field in inferred["fields"].items():
        value = markup(plain(field["value"])) if field["decided"] else "[yellow]undecided[/yellow]"
        by = f" by {markup(field['method'])}" if field["method"] else ""
        confidence = field["confidence"]
        sure = "" if confidence is None else f"; confidence of the losses {confidence:.3f}"
        out.print(f"  {markup(name)}: {value}{by} ({markup(field['reason'])}{sure})")
        if field["candidates"]:
            out.print(_candidates(field["candidates"]))


def _candidates(candidates: Sequence[Mapping[str, Any]]) -> Grid:
    """Return a table of the best candidates, with the number of the other candidates."""
    columns = [
        (head, key)
        for head, key in (("loss", "loss"), ("weights", "structure"))
        if any(candidate[key] is not None for candidate in candidates)
    ]
    heads = [head for head, _ in columns]
    grid = table("    value", *heads, right=heads)
    for candidate in candidates[:MOST_CANDIDATES]:
        numbers = ("" if candidate[k] is None else f"{candidate[k]:.4g}" for _, k in columns)
        grid.add_row(f"    {markup(plain(candidate['value']))}", *numbers)
    if len(candidates) > MOST_CANDIDATES:
        grid.add_row(f"    and {len(candidates) - MOST_CANDIDATES} more (--json has them)")
    return grid


def fingerprint_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, digest) for each part of the model and for the configuration."""
    version, weights, *_ = report["fingerprint"].split(":")
    rows = [("fingerprint", f"{version}:{weights}")]
    rows += [(f"  {part}", digest) for part, digest in report["parts"].items()]
    return [
        *rows,
        ("  configuration", report["configuration"] or "unknown: a configuration field is missing"),
    ]


def family_rows(family: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return rows about the related model: how it was recognised, and its caveats."""
    if family is None:
        return []
    if family["certainty"] == "known":
        rows = [("family", f"{family['name']}: {family['because']}")]
    else:
        alike = ", ".join((*family["also"], "any other ViT of this size"))
        rows = [("family", f"{family['name']} (probable: the shapes also fit {alike})")]
    if family["caveat"]:
        about = "" if family["certainty"] == "known" else f"if it is {family['name']}: "
        rows.append(("caveat", about + family["caveat"]))
    return rows


def _container(report: Mapping[str, Any]) -> str:
    """Return a phrase about the file format, the key of the weights and the prefix of names."""
    files = f", {plural(report['files'], 'file')}" if report["files"] > 1 else ""
    wrapper = f", under {report['wrapper']}" if report["wrapper"] else ""
    prefix = f", prefix {report['prefix']} removed" if report["prefix"] else ""
    return report["container"] + files + wrapper + prefix


def _with_synonyms(report: Mapping[str, Any]) -> str:
    same = f" (the same as {', '.join(report['synonyms'])} here)" if report["synonyms"] else ""
    naming = "" if report["naming_variant"] == report["layout"] else report["naming_variant"]
    return report["layout"] + (f" ({naming})" if naming else "") + same


def _stack(config: Mapping[str, Any], prefix: str) -> str:
    return (
        f"{config[prefix + 'num_hidden_layers']} blocks, width {config[prefix + 'hidden_size']},"
        f" MLP {config[prefix + 'intermediate_size']},"
        f" {config[prefix + 'num_attention_heads'] or 'an unspecified number of'} heads"
    )


def _official(
    official: Mapping[str, Any] | None, assumptions: Mapping[str, Mapping[str, Any]]
) -> str:
    if official is None:
        return "none with these names and shapes"
    if "md5" not in official:
        names = " or ".join((official["probable"], *official.get("or", ())))
        assumed = [name for name, a in assumptions.items() if a["assumption"] == OFFICIAL]
        if not assumed:
            return f"same names and shapes as {names} (--hash compares the MD5)"
        return (
            f"same names and shapes as {names}, from which {' and '.join(assumed)} "
            f"{'is' if len(assumed) == 1 else 'are'} assumed; --hash compares the MD5"
        )
    values = {
        True: "the MD5 of this file begins with the published digits",
        False: "but the MD5 of this file is different",
        None: "for which no hash is published",
    }[official["confirmed"]]
    return f"{official['probable']}, {values} (md5 {official['md5']})"


def _statistics(stats: Mapping[str, Mapping[str, float]], width: int) -> Grid | Group:
    """Return a table of tensor statistics; names are on separate lines if `width` is too small."""
    numbers = ("min", "max", "mean", "std", "zeros", "not finite")
    rows = {
        name: [*(f"{s[key]:.4g}" for key in numbers[:4]), str(s["zeros"]), str(s["not_finite"])]
        for name, s in stats.items()
    }
    widths = [max(map(len, column)) for column in zip(numbers, *rows.values(), strict=True)]
    if max(map(len, rows), default=0) + sum(w + GAP for w in widths) <= width:
        grid = table("tensor", *numbers, right=numbers, whole=numbers)
        for name, values in rows.items():
            grid.add_row(markup(name), *values)
        return grid
    lines = ["[bold]tensor[/bold]", f"[bold]{_aligned(numbers, widths)}[/bold]"]
    for name, values in rows.items():
        lines += [markup(name), _aligned(values, widths)]
    return Group(*(Text.from_markup(line, emoji=False) for line in lines))


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line of right-aligned cells."""
    return "".join(cell.rjust(width + 2) for cell, width in zip(cells, widths, strict=True))


MOST_TENSORS = 10


def fingerprint(report: Mapping[str, Any]) -> None:
    """Print a fingerprint, its parts, and the configuration fields that it depends on."""
    out = console()
    out.print(report["fingerprint"], soft_wrap=True)
    out.print()
    rows = [
        ("checkpoint", f"{report['path']}  ({report['layout']}, {report['task']})"),
        *fingerprint_rows(report)[1:],
        *(("not included", sentence) for sentence in report["not_read"]),
    ]
    out.print(pairs(rows))
    out.print("\n[bold]Configuration fields of the fingerprint[/bold]")
    out.print(pairs((f"  {name}", _value(name, report)) for name in report["fields"]))


def _value(name: str, report: Mapping[str, Any]) -> str:
    """Return the value of a field and, if the checkpoint does not store it, its source."""
    if name in report["missing"]:
        known = OF_FIELDS.get(name)
        hint = f"; specify it with {as_option(Option(known.name))}" if known else ""
        return f"missing: not stored in the checkpoint{hint}"
    value = report["fields"][name]
    text = _field(value)
    assumed = report["assumed"].get(name)
    return f"{text}, assumed: {with_options(assumed['source'])}" if assumed else text


def lineage(result: "Lineage") -> None:
    """Print how two checkpoints are related, the evidence, and the differences."""
    from mae_convert.convert.changes import step_in_words

    out = console()
    out.print(f"[bold]{markup(result.sentence)}[/bold]", soft_wrap=not out.is_terminal)
    rows = [
        ("steps" if number == 0 else "", step_in_words(step))
        for number, step in enumerate(result.steps)
    ]
    rows += [
        ("configuration", f"{name} is {_field(a)} in A and {_field(b)} in B")
        for name, (a, b) in result.configuration.items()
    ]
    rows += [("not compared", what) for what in result.not_compared]
    rows += [("based on", what) for what in result.rests_on]
    if result.equal is not None:
        rows.append(("tensors", counts_in_words(result.equal, result.tensors)))
    elif result.parts:
        rows.append(("parts", f"{', '.join(result.parts)} differ"))
    out.print(pairs(rows))
    if not result.tensors:
        return
    out.print(differing_tensors(result.tensors[:MOST_TENSORS], out.width))
    if (more := len(result.tensors) - MOST_TENSORS) > 0:
        out.print(f"and {more} more (--json has them)")


def differing_tensors(tensors: "Sequence[DifferingTensor]", width: int) -> Grid | Group:
    """Return a table of tensor digests, or three lines per tensor if the table is too wide."""
    rows = [(tensor.name, _digest(tensor.a), _digest(tensor.b)) for tensor in tensors]
    if sum(max(map(len, column)) + GAP for column in zip(*rows, strict=True)) > width:
        return Group(
            *(
                renderable
                for name, a, b in rows
                for renderable in (markup(name), pairs([("  in A", a), ("  in B", b)]))
            )
        )
    grid = table("tensor", "in A", "in B", whole=("in A", "in B"))
    for row in rows:
        grid.add_row(*map(markup, row))
    return grid


def counts_in_words(equal: int, tensors: "Sequence[DifferingTensor]") -> str:
    """Return the numbers of equal and differing tensors, and of tensors in A or B only, as text."""
    only = {"A": sum(t.b is None for t in tensors), "B": sum(t.a is None for t in tensors)}
    differing = len(tensors) - sum(only.values())
    counts = [
        f"{equal} {'is' if equal == 1 else 'are'} bit-identical",
        f"{differing} {'differs' if differing == 1 else 'differ'}",
    ]
    counts += [
        f"{count} {'is' if count == 1 else 'are'} only in {side}"
        for side, count in only.items()
        if count
    ]
    return ", ".join(counts)


def _digest(tensor: "TensorDigest | None") -> str:
    """Return dtype, shape and the first digits of the digest of a tensor, in one line."""
    if tensor is None:
        return "missing"
    return f"{tensor.dtype} {'x'.join(map(str, tensor.shape))} {tensor.sha256[:12]}"


def _field(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(plain(value))
