"""The verification section of a model card: the certificate's measurements as Markdown."""

from collections.abc import Mapping
from typing import Any

from mae_convert.publish.artifacts import Artifact
from mae_convert.text import code_in_markdown, for_html, for_markdown, format_number, markdown_table
from mae_convert.verify.assumptions import in_words, shared
from mae_convert.verify.judge import FUNCTION_LIMIT, Check
from mae_convert.verify.summary import effects_in_words, runner_in_words, summary


def in_short(artifact: Artifact) -> str:
    """Return a sentence about the result of the verification; "" without a verification."""
    if artifact.certificate is None:
        return ""
    document = artifact.certificate.document
    distances = [
        check["measured"]
        for check in document["checks"]
        if check["name"].startswith("function/") and isinstance(check["measured"], float)
    ]
    declared = bool(document.get("steps"))
    weights = any(check["name"].startswith("weights/") for check in document["checks"])
    same = ", and the tensors are bit-identical" if weights and not declared else ""
    source = "the source after the declared changes listed below" if declared else "the source"
    word = "Verified" if document["proven"] else "Verified, not proven"
    if assumed := in_words(shared(document.get("assumptions", []))):
        word += f", assuming {for_markdown(assumed)}"
    return (
        f"**{word}:** in float64, every intermediate activation and every output is within "
        f"{format_number(max(distances, default=0.0))} of the corresponding value of {source} "
        f"(relative L2, limit {format_number(FUNCTION_LIMIT)}){same}. See [how it was verified]"
        "(#how-it-was-verified) and [how to check it](#how-to-check-them)."
    )


def verification(artifact: Artifact) -> str:
    """Return a table of the measurements of an artifact's verification, and their description."""
    names = ", ".join(code_in_markdown(path.name) for path in artifact.weights[:1])
    if artifact.certificate is None:
        return f"{names} was **not verified**."
    document = artifact.certificate.document
    checks = [Check(**check) for check in document["checks"]]
    rows = [
        (
            *map(for_markdown, (line.title, line.measured, line.limit)),
            "ok" if line.passed else "**FAILED**",
        )
        for line in summary(checks)
    ]
    how = "; ".join(_runner(runner) for runner in document.get("witnesses", []))
    proven = _what_is_proven(document)
    source = document["source"]
    digits = code_in_markdown(source.get("sha256"))
    lines = [
        f"{names} against {code_in_markdown(source.get('name'))} (SHA-256 {digits}): both were run "
        f"with the same images and the same noise. {proven}",
        markdown_table(("compared", "measured difference", "limit", ""), rows),
        f"Distances are relative L2. {how}. Inputs (SHA-256):"
        f" {code_in_markdown(document['inputs'])}."
        f" {_versions(document.get('environment', {}))}",
    ]
    lines += [
        for_markdown(f"{sentence[0].upper()}{sentence[1:]}.")
        for sentence in effects_in_words(document.get("effects", {}))
    ]
    lines += [
        for_markdown(
            f"Assumed by {' and '.join(map(str, assumption['sides']))}, and not confirmed:"
            f" {in_words([assumption])}."
        )
        for assumption in document.get("assumptions", [])
        if len(assumption["sides"]) > 1
    ]
    lines += [f"Not compared: {for_markdown(what)}." for what in document.get("not_compared", [])]
    return "\n\n".join(lines)


def folded(artifact: Artifact) -> str:
    """Return the result of `verification` for a further artifact, in a collapsed section."""
    name = for_html(artifact.weights[0].name)
    return (
        f"<details><summary>The same for <code>{name}</code></summary>\n\n{verification(artifact)}"
        "\n\n</details>"
    )


def _runner(entry: Mapping[str, Any]) -> str:
    ours = entry.get("ours") or "the conversion's mapping tables"
    how = "its own tensor names" if entry.get("native") else ours
    return for_markdown(
        f"{entry.get('side')} is the checkpoint in the layout {entry.get('layout')}, run by"
        f" {runner_in_words(entry)} on {entry.get('device')}, loaded by {how}"
    )


def _versions(environment: Mapping[str, str]) -> str:
    packages = [f"{name} {version}" for name, version in environment.items() if name != "platform"]
    return f"Versions: {for_markdown(', '.join(packages))}." if packages else ""


def _what_is_proven(document: Mapping[str, Any]) -> str:
    """Return a sentence about whether the certificate's verdict is proven."""
    if document["proven"]:
        return (
            "Both sides were loaded by their own tensor names, without the conversion's mapping "
            "tables, so the comparison also proves that the tables are correct."
        )
    if unread := document.get("unread"):
        names = (for_markdown(name) for fields in unread.values() for name in fields[:8])
        return f"Fields that were not compared and that a library may use: {', '.join(names)}."
    return (
        "One side was loaded through the conversion's own mapping tables, so the comparison would "
        "not detect an error in them."
    )
