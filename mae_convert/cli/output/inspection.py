"""Print the results of ``inspect`` and ``fingerprint``."""

from collections.abc import Mapping
from typing import Any

from mae_convert.cli.output.lines import (
    print_assumptions,
    print_heading,
    print_line,
    print_pairs,
    with_options,
)
from mae_convert.errors import Option, as_option
from mae_convert.families.checkpoint_options import OF_FIELDS
from mae_convert.families.evidence import OFFICIAL
from mae_convert.files.strict_json import plain
from mae_convert.text import format_bytes, format_size, plural

ASSUMPTIONS = "Configuration that is not stored in the tensors, and its source"


def inspection(report: Mapping[str, Any]) -> None:
    """Print the result of ``inspect``."""
    config = report["config"]
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
    print_pairs(rows)
    if report.get("inferred", {}).get("fields"):
        from mae_convert.cli.output.inspection_tables import inferred

        inferred(report["inferred"])
    if report["missing"]:
        print_heading("Missing: not stored in the checkpoint")
        rows = [
            (f"  {field['field']}", f"specify it with {field['option']} ({field['reason']})")
            for field in report["missing"]
        ]
        print_pairs(rows)
    print_heading(ASSUMPTIONS)
    print_assumptions(report["assumed"])
    print_heading("Can be converted to")
    print_pairs(("  " + name, reason) for name, reason in report["becomes"].items())
    if "stats" in report:
        from mae_convert.cli.output.inspection_tables import statistics

        statistics(report["stats"])
    if odd := [*report["differences"], *report["odd"]]:
        print_heading("Warnings")
        print_pairs(("  -", what) for what in odd)


def _frames(config: Mapping[str, Any], field: str) -> str:
    """Return a number of frames as a prefix such as "16 frames of "; "" for images."""
    count = config.get(field)
    return "" if count is None else f"{plural(count, 'frame')} of "


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
    """Return rows about a checkpoint's related model: how it was recognised, and its caveat.

    A related model, such as AudioMAE, has the tensors of an MAE but another training or
    preprocessing. There are no rows if `family` is None: the checkpoint has no related model.
    """
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
    synonyms = ", ".join(report["synonyms"])
    same = f" (the same as {synonyms} for this checkpoint)" if synonyms else ""
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
            return (
                f"same names and shapes as {names} (--hash compares the MD5 with the published "
                "digits)"
            )
        return (
            f"same names and shapes as {names}, from which {' and '.join(assumed)} "
            f"{'is' if len(assumed) == 1 else 'are'} assumed; --hash compares the MD5 with "
            "the published digits"
        )
    values = {
        True: "the MD5 of this file begins with the published digits",
        False: "but the MD5 of this file is different",
        None: "for which no hash is published",
    }[official["confirmed"]]
    return f"{official['probable']}, {values} (md5 {official['md5']})"


def fingerprint(report: Mapping[str, Any]) -> None:
    """Print a fingerprint, its parts, and the configuration fields that it depends on."""
    print_line(report["fingerprint"])
    print_line()
    rows = [
        ("checkpoint", f"{report['path']}  ({report['layout']}, {report['task']})"),
        *fingerprint_rows(report)[1:],
        *(("not included", sentence) for sentence in report["not_read"]),
    ]
    print_pairs(rows)
    print_heading("Configuration fields of the fingerprint")
    print_pairs((f"  {name}", _value(name, report)) for name in report["fields"])


def _value(name: str, report: Mapping[str, Any]) -> str:
    """Return the value of a field and, if the checkpoint does not store it, its source."""
    if name in report["missing"]:
        known = OF_FIELDS.get(name)
        hint = f"; specify it with {as_option(Option(known.name))}" if known else ""
        return f"missing: not stored in the checkpoint{hint}"
    value = report["fields"][name]
    text = field_in_words(value)
    assumed = report["assumed"].get(name)
    return f"{text}, assumed: {with_options(assumed['source'])}" if assumed else text


def field_in_words(value: Any) -> str:
    """Return the value of a configuration field as text."""
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(plain(value))
