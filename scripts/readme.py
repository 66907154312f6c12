"""Keep the generated parts of README.md true: the commands' help and the layouts.

python scripts/readme.py            # write them anew
python scripts/readme.py --check    # exit 1 if they have drifted
"""

import os
import re
import sys
from pathlib import Path

import click

from mae_convert.cli import cli

README = Path(__file__).resolve().parents[1] / "README.md"
MARKED = re.compile(r"(<!-- generated: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def help_of_every_command() -> str:
    """Return the help of the group and of each command as Markdown."""
    texts = []
    with click.Context(
        cli, info_name="mae-convert", max_content_width=100, terminal_width=100
    ) as top:
        texts.append(cli.get_help(top))
        for name, command in cli.commands.items():
            with click.Context(command, info_name=name, parent=top, terminal_width=100) as context:
                texts.append(command.get_help(context))
    return "\n".join(f"```\n{text}\n```\n" for text in texts)


GENERATORS = {"help": help_of_every_command}


def generated(text: str) -> str:
    """Return the README with its generated parts made anew."""
    return MARKED.sub(lambda m: m[1] + GENERATORS[m["name"]]() + m[3], text)


def main() -> int:
    """Write or check the README; the status is 1 if a check finds it stale."""
    os.environ["NO_COLOR"] = "1"
    text = README.read_text(encoding="utf-8")
    fresh = generated(text)
    if "--check" in sys.argv[1:]:
        if fresh != text:
            print("README.md is stale: run `python scripts/readme.py`", file=sys.stderr)
        return int(fresh != text)
    README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
