"""The model card: the generated section, and how it is inserted into an existing card.

The text between two markers (HTML comments) is regenerated each time; the rest of the card is not
changed, except that missing metadata is added.
"""

import re
from collections.abc import Mapping
from typing import Any

from mae_convert.errors import HubError
from mae_convert.publish.artifacts import Artifact
from mae_convert.publish.licence import Licence, is_repository, sources_of
from mae_convert.text import for_yaml, shown

BEGIN = (
    "<!-- mae-convert: begin (everything from this line to the end marker is replaced when the "
    "model is published again) -->"
)
END = "<!-- mae-convert: end -->"
SECTION = re.compile(
    r"^[^\n]*<!-- mae-convert: begin.*?^[^\n]*<!-- mae-convert: end -->[^\n]*$",
    re.DOTALL | re.MULTILINE,
)
DEEPEST = 30
MOST_ALIASES = 20
MARK = re.compile(r"<!-- mae-convert: (begin|end)")
# The allowed content of a line with a marker; the whole line is replaced.
MARK_LINE = re.compile(
    r"(?:> \*\*Not verified:\*\*[^<]*)?<!-- mae-convert: (?:begin|end)[^<>]*-->[ \t]*\r?"
)


def marked(lines: str, *, warning: str = "") -> str:
    """Return a section between its markers; a warning is put before the first marker."""
    first = f"{warning} {BEGIN}" if warning else BEGIN
    return f"{first}\n\n{lines.strip()}\n\n{END}"


def new_card(title: str, section: str, metadata: Mapping[str, Any], *, on_top: bool) -> str:
    """Return a new card for a repository that has no card.

    Args:
        title: the heading of the card.
        section: the generated section with its markers.
        metadata: fields of the Hub's metadata.
        on_top: whether the section comes before the title.
    """
    from huggingface_hub import ModelCard, ModelCardData

    parts = (section, f"# {title}") if on_top else (f"# {title}", section)
    card = ModelCard("---\n{}\n---\n")
    card.data = ModelCardData(**metadata)
    card.text = "\n" + "\n\n".join(parts) + "\n"
    return str(card)


def merged_card(
    existing: str, section: str, metadata: Mapping[str, Any], *, on_top: bool
) -> tuple[str, dict[str, Any]]:
    """Return a card with the generated section in it, and the metadata that was added.

    Args:
        existing: the existing card.
        section: the generated section with its markers.
        metadata: fields that are added if the card does not have them.
        on_top: whether to move the section to the beginning of the text.

    Raises:
        HubError: the card's metadata cannot be read, or its markers are incomplete or misplaced.
    """
    line_break = "\r\n" if "\r\n" in existing else "\n"
    head, text = _split(existing)
    head, added = _with_missing(head, metadata, line_break)
    text = _with_section(text, section.replace("\n", line_break), line_break, on_top)
    if _rendered_marks(text) != ["begin", "end"]:
        raise HubError(
            "the markers of mae-convert in the repository's README.md are inside a code block or "
            "another comment, where the section would not be rendered as text",
            hint="correct them there, then publish again",
        )
    return head + text, added


def metadata_of(card: str) -> dict[str, Any]:
    """Return a card's metadata.

    Raises:
        HubError: the metadata cannot be read.
    """
    import logging

    import yaml
    from huggingface_hub import ModelCard

    logger = logging.getLogger("huggingface_hub.repocard")
    level = logger.level
    try:
        _check_depth(_split(card)[0])
        logger.setLevel(logging.ERROR)  # suppress the warning about missing metadata
        return dict(ModelCard(card, ignore_metadata_errors=True).data.to_dict())
    except (ValueError, TypeError, OverflowError, RecursionError, yaml.YAMLError) as error:
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise HubError(
            f"the metadata of the repository's README.md cannot be read ({message})",
            hint="correct it there, then publish again",
        ) from error
    finally:
        logger.setLevel(level)


def _check_depth(block: str) -> None:
    """Refuse metadata that would be too large or too deeply nested when parsed.

    Raises:
        ValueError: the metadata is too large or too deeply nested.
    """
    import yaml

    depth = aliases = 0
    for event in yaml.parse(block.replace("---", ""), Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > DEEPEST or aliases > MOST_ALIASES:
            raise ValueError("it is nested too deeply, or has too many aliases")


def _split(card: str) -> tuple[str, str]:
    """Return the metadata block with its delimiters ``---``, and the text after it."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    match = REGEX_YAML_BLOCK.search(card)
    return (card[: match.end()], card[match.end() :]) if match else ("", card)


def _with_missing(
    head: str, metadata: Mapping[str, Any], line_break: str
) -> tuple[str, dict[str, Any]]:
    """Add a line for each missing field to the metadata block of a card.

    Args:
        head: the metadata block; empty if the card has no block.
        metadata: the fields that the card must have.
        line_break: the line break of the card.

    Returns:
        The new block, and the added fields.

    Raises:
        HubError: the fields cannot be added to the block.
    """
    from huggingface_hub import ModelCardData

    before = metadata_of(head) if head else {}
    named = {match[1] for match in re.finditer(r"^([\w-]+)[ \t]*:", head, re.MULTILINE)}
    missing = {k: v for k, v in metadata.items() if k not in before and k not in named}
    if "license" not in missing:  # the card has its own licence
        missing = {k: v for k, v in missing.items() if not k.startswith("license")}
    if not missing:
        return head, {}
    lines = ModelCardData(**missing).to_yaml(line_break=line_break)
    if head:
        # New lines come first, because the last field may be a text over several lines.
        start = head.index("---") + len("---" + line_break)
        new = head[:start] + lines.rstrip() + line_break + head[start:]
    else:
        new = f"---{line_break}{lines.rstrip()}{line_break}---{line_break}{line_break}"
    if metadata_of(new) != {**before, **missing}:
        raise HubError(
            f"{', '.join(missing)} cannot be added to the metadata of the repository's README.md",
            hint="add the metadata there by hand, then publish again",
        )
    return new, missing


def _with_section(text: str, section: str, line_break: str, on_top: bool) -> str:
    marks = [match[1] for match in MARK.finditer(text)]
    if marks not in ([], ["begin", "end"]):
        raise HubError(
            f"the repository's README.md must have one begin marker and one end marker of"
            f" mae-convert, but has {', '.join(marks)}",
            hint="correct them there, then publish again",
        )
    lines = [line for line in text.split("\n") if MARK.search(line)]
    if wrong := [line for line in lines if not MARK_LINE.fullmatch(line)]:
        raise HubError(
            "a marker of mae-convert in the repository's README.md is on the same line as other "
            f"text, which would be lost ({shown(wrong[0])})",
            hint="correct it there, then publish again",
        )
    if marks and not on_top:
        return SECTION.sub(lambda _: section, text, count=1)
    rest = SECTION.sub("", text, count=1) if marks else text
    if on_top:
        return line_break + section + line_break * 2 + rest.lstrip("\r\n")
    return rest.rstrip("\r\n") + line_break * 2 + section + line_break


def _rendered_marks(text: str) -> list[str]:
    """Return "begin" or "end" for each marker that Markdown renders as a comment, in order."""
    from markdown_it import MarkdownIt

    marks = []
    for block in MarkdownIt("commonmark").parse(text):
        # A marker that follows a warning is a part of the warning's paragraph.
        pieces = [block] if block.type == "html_block" else block.children or ()
        for piece in pieces:
            if piece.type.startswith("html_") and (mark := MARK.match(piece.content.lstrip())):
                marks.append(mark[1])
    return marks


# The name on the Hub of the library that loads a layout, for each layout that has one.
LIBRARIES = {
    "transformers": "transformers",
    "transformers-tf": "transformers",
    "timm": "timm",
    "keras": "keras",
    "keras-hub": "keras-hub",
}
TAGS = ("masked-autoencoder", "mae-convert")


def card_metadata(
    repo_id: str, artifact: Artifact, licence: Licence, base_model: str | None
) -> dict[str, Any]:
    """Return the metadata of a card, which the Hub uses for search and widgets.

    Args:
        repo_id: the repository; it is not listed as its own base model.
        artifact: the published model.
        licence: the licence of the published model.
        base_model: a repository from which the model is derived, if the user specified one.
    """
    checkpoint = artifact.checkpoint
    about = checkpoint.family.about()
    pipeline = about.pipeline_tags.get(checkpoint.task)
    sources = list(sources_of(artifact))
    base = [base_model] if base_model else []
    for field in ("repository", "on_the_hub"):
        base += [source[field] for source in sources if is_repository(source.get(field))]
    told = (source["datasets"] for source in sources if isinstance(source.get("datasets"), list))
    datasets = next(([name for name in names if is_repository(name)] for names in told), None)
    library = LIBRARIES.get(checkpoint.layout.name)
    fields = {
        **licence.fields,
        **({"library_name": library} if library else {}),
        **({"pipeline_tag": pipeline} if pipeline else {}),
        **({"base_model": base[:1]} if base and base[0] != repo_id else {}),
        **({"datasets": datasets} if datasets else {}),
        "tags": [*about.tags, *TAGS],
    }
    return dict(for_yaml(fields))
