"""The generated section of a model card: model, origin, verification, and usage."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mae_convert import __version__
from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.fingerprint import checkpoint_fingerprint
from mae_convert.convert.changes import step_in_words
from mae_convert.families.configuration import PREPROCESSING
from mae_convert.files.strict_json import plain
from mae_convert.publish.artifacts import Artifact
from mae_convert.publish.card_parity import folded, in_short, verification
from mae_convert.publish.card_usage import loading
from mae_convert.publish.licence import Licence, is_repository, sources_of
from mae_convert.publish.upload_files import Staged
from mae_convert.text import (
    code_in_markdown,
    for_markdown,
    format_bytes,
    link_in_markdown,
    markdown_table,
)

MOST_NAMES = 4  # maximum number of tensor names in a line
TASKS = {
    "pretrain": "encoder and decoder",
    "encoder": "encoder, without a decoder",
    "classify": "classifier, fine-tuned",
}
WARNING = (
    "> **Not verified:** it was not shown that these weights compute the same function as their "
    "source."
)


@dataclass(frozen=True)
class CardData:
    """The data of a model card."""

    repo_id: str
    """The repository in which the model is published."""

    artifacts: Sequence[Artifact]
    """The published models, the main one first."""

    licence: Licence
    """The licence of the published weights."""

    staged: Mapping[str, Staged]
    """The files, by path in the repository."""

    image: str | None
    """The path in the repository at which an image of reconstructions is published, or None."""

    credit: str = ""
    """The credits of the photographs in the image of reconstructions, or ""."""


def section(data: CardData) -> str:
    """Return the generated section of a card as Markdown, without its begin and end markers."""
    blocks = [
        introduction(data),
        "## Where the weights come from",
        provenance(data),
        *(_changes(data.artifacts[0])),
        "## Configuration that is not stored in tensors",
        configuration_table(data.artifacts[0]),
        "## How it was verified",
        verification(data.artifacts[0]),
        *(folded(artifact) for artifact in data.artifacts[1:]),
        "## How to load the weights",
        loading(data.repo_id, data.artifacts),
        "## How to check the weights",
        checking(data),
        "## Files",
        files_table(data),
        *_citation(data.artifacts[0]),
    ]
    return "\n\n".join(blocks)


def _citation(artifact: Artifact) -> Iterator[str]:
    if citation := artifact.checkpoint.family.about().citation:
        yield "## Citation"
        yield f"```bibtex\n{citation}\n```"


def introduction(data: CardData) -> str:
    """Return a description of the model, a summary of its verification, and an example image.

    The image shows reconstructions; it is left out if `data` has no image.
    """
    checkpoint = data.artifacts[0].checkpoint
    model, family = checkpoint.configuration.model, checkpoint.family
    count = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    text = (
        f"{family.about().introduction}: {TASKS[checkpoint.task]}. "
        f"{family.inputs_in_words(model)}; encoder of {model.num_hidden_layers} blocks of width "
        f"{model.hidden_size} with {model.num_attention_heads} heads{_on_top(checkpoint)}. "
        f"{count:,} parameters."
    )
    if summary := in_short(data.artifacts[0]):
        text += f"\n\n{summary}"
    if data.image is None:
        return text
    return (
        f"{text}\n\n![original, masked, reconstruction, reconstruction with visible "
        f"patches]({data.image})\n\nOriginal, masked, reconstruction, and reconstruction with "
        f"the original visible patches. {data.credit}".rstrip()
    )


def _on_top(checkpoint: Checkpoint) -> str:
    """Return a description of the decoder or head; "" for an encoder."""
    model = checkpoint.configuration.model
    if checkpoint.task == "pretrain":
        pixels = "normalized" if model.norm_pix_loss else "plain"
        return (
            f"; decoder of {model.decoder_num_hidden_layers} blocks of width"
            f" {model.decoder_hidden_size} that predicts {pixels} pixels"
        )
    if checkpoint.task == "classify":
        read = checkpoint.family.pooling_in_words(model)
        return f"; head for {model.num_labels} classes that are predicted from {read}"
    return ""


def provenance(data: CardData) -> str:
    """Return a table of the sources with their hashes, the licence, and the mae-convert version."""
    artifact = data.artifacts[0]
    rows = []
    for number_, source in enumerate(sources_of(artifact)):
        title = "which was converted from" if number_ else "converted from"
        rows.append((title, _source(source, artifact.checkpoint.family.about().addresses)))
        rows.append(("SHA-256", code_in_markdown(source.get("sha256", "unknown"))))
        if fingerprint := source.get("fingerprint"):
            rows.append(("fingerprint", code_in_markdown(fingerprint)))
    if not rows:
        rows.append(("converted from", "unknown: there is no conversion record"))
    if (relative := artifact.checkpoint.relative) and relative.certain:
        rows.append(("family", for_markdown(relative.relative.name)))
        rows += (
            [("note", for_markdown(relative.relative.caveat))] if relative.relative.caveat else []
        )
    licence = data.licence
    name = for_markdown(licence.name)
    if link := licence.fields.get("license_link"):
        name = link_in_markdown(name, link)
    rows.append(("licence", f"{name}, {for_markdown(licence.origin)}"))
    version = artifact.record.get("mae_convert", __version__)
    if artifact.record:
        rows.append(
            ("converted by", f"mae-convert {for_markdown(version)}, to {_layout(artifact)}")
        )
    return markdown_table(("", ""), rows)


def _source(source: Mapping[str, Any], addresses: Sequence[str]) -> str:
    """Return the origin of a checkpoint as Markdown, with a link if its URL belongs to the authors.

    `addresses` are the prefixes of the authors' URLs. Anyone can write a record, so other URLs are
    shown without a link.
    """
    name = str(source.get("official") or source.get("name"))
    repository, url = source.get("repository"), str(source.get("url") or "")
    if url.startswith(tuple(addresses)):
        link = link_in_markdown(code_in_markdown(name), url)
    elif url:
        link = f"{code_in_markdown(name)} from {code_in_markdown(url)}"
    elif repository:
        revision = str(source.get("revision", "main"))
        link = (
            f"{code_in_markdown(source.get('file', name))} of {_repository(repository, revision)}"
        )
    else:
        link = code_in_markdown(name)
    layout, task = source.get("layout", "unknown"), source.get("task", "")
    return f"{link}, layout {code_in_markdown(layout)}, {for_markdown(task)}"


def _repository(name: object, revision: str) -> str:
    """Return a Hub repository and revision as Markdown, with a link if the name is valid."""
    shown = for_markdown(name)
    if is_repository(name):
        address = f"https://huggingface.co/{name}/tree/{quote(revision, safe='/')}"
        shown = link_in_markdown(shown, address)
    return f"{shown} at {code_in_markdown(revision)}"


def _changes(artifact: Artifact) -> Iterator[str]:
    """Yield a Markdown list of declared changes and of tensors mapped, dropped and created.

    Nothing is yielded without a conversion record.
    """
    record = artifact.record
    lines, steps = list[str](), record.get("steps", [])
    if "tensors" in record:  # the record in a single file does not list the tensors
        exact = "" if any(step.get("step") != "task" for step in steps) else ", bit for bit"
        lines.append(f"- mapped{exact}: {len(record['tensors'])} tensors")
    lines += [f"- declared change: {for_markdown(step_in_words(step))}" for step in steps]
    for title in ("dropped", "created"):
        tensors: Mapping[str, str] | None = record.get(title)
        if tensors is None:
            continue
        for reason in dict.fromkeys(tensors.values()):
            names = [code_in_markdown(n) for n, why in tensors.items() if why == reason]
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            shown = ", ".join(names[:MOST_NAMES]) + more
            lines.append(f"- {title}: {shown}: {for_markdown(reason)}")
        if not tensors:
            lines.append(f"- {title}: nothing")
    if lines:
        yield "\n".join(lines)


def configuration_table(artifact: Artifact) -> str:
    """Return a table of the fields that are not stored in the tensors, and their sources."""
    configuration = artifact.checkpoint.configuration
    sources = artifact.record.get("assumed") or configuration.assumed()
    rows = []
    for name, entry in configuration.assumed().items():
        source = sources.get(name, entry).get("source", "unknown")
        value = plain(entry["value"])
        if name in PREPROCESSING:
            value = ", ".join(f"{x:g}" for x in entry["value"])
        rows.append((code_in_markdown(name), for_markdown(value), for_markdown(source)))
    return markdown_table(("field", "value", "taken from"), rows)


def checking(data: CardData) -> str:
    """Return instructions for verifying the published files."""
    artifact = data.artifacts[0]
    digits = code_in_markdown(checkpoint_fingerprint(artifact.checkpoint))
    same = (
        "The fingerprint of the weights and their configuration is the same in every layout and"
        f" file format. The fingerprint is printed by `mae-convert fingerprint hf://{data.repo_id}`:"
        f" {digits}"
    )
    if artifact.certificate is None:
        return (
            f"{same}\n\nThere is no certificate. With the source, you can verify the model:\n\n"
            f"```sh\nmae-convert verify SOURCE hf://{data.repo_id}\n```"
        )
    names = [path.name for further in data.artifacts[1:] for path in further.weights[:1]]
    more = "".join(f"mae-convert verify hf://{data.repo_id}/{name}\n" for name in names)
    return (
        f"{same}\n\n`verification.json` contains the measurements. `verification.safetensors` "
        "contains the inputs and the source's float64 outputs. With these two files, you can check "
        "without the source that the model still computes the verified outputs:\n\n```sh\n"
        "pip install 'mae-convert[torch,tensorflow]'\nmae-convert verify "
        f"hf://{data.repo_id}\n{more}```\n\nA proof requires the source:\n\n```sh\nmae-convert "
        f"verify SOURCE hf://{data.repo_id}\n```"
    )


def files_table(data: CardData) -> str:
    """Return a table of the weight files with their layouts and hashes."""
    rows = []
    for artifact in data.artifacts:
        for path in artifact.weights:
            staged = data.staged[path.name]
            layout = f"`{artifact.checkpoint.layout.name}`"
            digits = code_in_markdown(staged.sha256)
            rows.append((code_in_markdown(path.name), layout, format_bytes(staged.size), digits))
    return markdown_table(("file", "layout", "size", "SHA-256"), rows)


def _layout(artifact: Artifact) -> str:
    return artifact.checkpoint.layout.title
