"""Text for output: external text in a safe form, and numbers, sizes and counts as text.

File names, tensor names, configurations and responses of servers are external text, which may be
malicious. For each kind of output there is a function that makes external text safe; it is
called where the output is created.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

LONGEST_SHOWN = 200

CODE_SPAN_ENDS = frozenset("`|<")  # also cells of tables, and markers in model cards
MARKDOWN_ENTITIES = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "|": "&#124;",
    "@": "&#64;",
    "$": "&#36;",
}
# A URL becomes a link without any brackets on most sites that render Markdown.
BARE_LINK = re.compile(r"://|www\.", re.IGNORECASE)
# An underscore within a word does not mark emphasis.
EMPHASIS = re.compile(r"[\\`*\[\]~]|(?<![^\W_])_|_(?![^\W_])")
# The beginning of a heading, of a list item, or of a line that underlines a heading.
BLOCK_START = re.compile(r"^(\d{0,9})(?=(?:#{1,6}|[+.)-])(?:\s|$)|[=-]+\s*$)")
URL_CHARACTERS = ":/?#@!$&*+,;=%~-._"
BYTE_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def for_terminal(text: object) -> str:
    r"""Return text on one line, with every character that is not printable as an escape sequence.

    Control characters could control the terminal, and bidirectional controls change the displayed
    order of text. Both are shown as escape sequences (``\x1b``, ``\u202e``), and so are line
    breaks, lone surrogates and spaces other than U+0020.
    """
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return "did you mean 'x'?" with the most similar choice, or "" if no choice is similar."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(choices), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def for_html(text: object) -> str:
    """Return text escaped for an HTML element or a quoted attribute."""
    import html

    return html.escape(for_terminal(text))


def for_xml(text: object) -> str:
    """Escape the control characters of a text for XML; the XML writer escapes the markup."""
    return for_terminal(text)


def for_markdown(text: object) -> str:
    """Return text escaped so that Markdown renders it as plain text, also in a table cell."""
    line = "".join(MARKDOWN_ENTITIES.get(c, c) for c in for_terminal(text).strip())
    line = EMPHASIS.sub(lambda match: f"\\{match[0]}", line)
    line = BARE_LINK.sub(_broken_link, line)
    return BLOCK_START.sub(r"\1\\", line)


def _broken_link(match: re.Match[str]) -> str:
    return match[0].replace("/", "&#47;").replace(".", "&#46;")


def code_in_markdown(text: object) -> str:
    """Return text as inline code in Markdown, on one line; it can be used in a table cell."""
    line = for_terminal(text)
    if not line or CODE_SPAN_ENDS & set(line):
        return f"<code>{for_markdown(line)}</code>"
    return f"`{line}`"


def link_in_markdown(label: str, address: object) -> str:
    """Return a link in Markdown, or only the label if the address is not the URL of a web page.

    Args:
        label: Markdown in which the caller has escaped external text.
        address: the URL; only http and https become links.
    """
    url = for_terminal(address).strip()
    try:
        parts = urlsplit(url)
    except ValueError:
        return label
    if parts.scheme.lower() not in ("http", "https") or not parts.netloc:
        return label
    return f"[{label}]({quote(url, safe=URL_CHARACTERS)})"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; the caller has escaped external text in the cells."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def for_yaml(value: Any) -> Any:
    """Return a copy of a value for a YAML writer, with every string on one line and printable."""
    if isinstance(value, dict):
        return {for_terminal(name): for_yaml(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [for_yaml(item) for item in value]
    return for_terminal(value) if isinstance(value, str) else value


def format_number(value: Any) -> str:
    """Return a value as text; a float with two significant digits, such as 1.2e-05."""
    return f"{value:.1e}" if isinstance(value, float) and value != 0 else str(value)


def format_size(size: Any) -> str:
    """Return "height x width" for the size of an image or a patch.

    Args:
        size: the side of a square, or (height, width). If it is None, the result is "size not
            specified".
    """
    if size is None:
        return "size not specified"
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width}"


def format_bytes(count: float) -> str:
    """Return a number of bytes with a decimal unit: 12 B, 4.6 kB, 447.0 MB, 1.2 GB."""
    for unit, size in BYTE_UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def plural(count: int, noun: str) -> str:
    """Return a count and a noun, with a plural "s" unless the count is 1, such as "3 tensors"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def non_finite_values(count: int, where: str = "") -> str:
    """Return a phrase about the number of NaN and infinite values.

    Args:
        count: the number of values.
        where: text after the noun, such as " in A".
    """
    return f"{plural(count, 'value')}{where} that {'is' if count == 1 else 'are'} NaN or infinite"


def listing(words: Iterable[str], conjunction: str = "or") -> str:
    """Return words joined for a sentence: a, b or c."""
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def shown(name: object) -> str:
    """Return a name from a file for a message: truncated, with unprintable characters escaped."""
    text = str(name)[:LONGEST_SHOWN]
    return text if text.isprintable() else ascii(text)


def listed(names: Sequence[str], limit: int = 4) -> str:
    """Return the first `limit` names, joined by commas, and the number of the remaining names."""
    first = ", ".join(map(shown, names[:limit]))
    return first if len(names) <= limit else f"{first} and {len(names) - limit} more"


def natural_sort_key(text: str) -> list[Any]:
    """Return a sort key that puts checkpoint-9 before checkpoint-10, with numbers of any length."""
    pieces = filter(None, re.split(r"(\d+)", text))
    digits = ((p.isdecimal(), p.lstrip("0")) for p in pieces)
    return [(0, len(rest), rest) if is_number else (1, 0, rest) for is_number, rest in digits]
