"""The code blocks of the README and the pages of the documentation."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

DOCS = ROOT / "docs"
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>not run|setup): (?P<note>[^\n]*) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: the text after the fence.
        code: its lines.
        setup: names of the required preparations.
        not_run: why it is not run; "" if it is.
    """

    language: str
    code: str
    setup: tuple[str, ...] = ()
    not_run: str = ""

    def commands(self) -> list[list[str]]:
        """Return the words of each command of a shell block; continued lines are one command."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def pages() -> dict[str, Path]:
    """Return every page with code blocks by its name relative to the repository."""
    included = {DOCS / "changelog.md", DOCS / "contributing.md"}
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
    return {str(path.relative_to(ROOT)): path for path in paths if path not in included}


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    code_blocks = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        note = match["note"] or ""
        names = tuple(note.split(", ")) if match["mark"] == "setup" else ()
        reason = note if match["mark"] == "not run" else ""
        code_blocks.append(Block(match["language"], match["code"], names, reason))
    return code_blocks
