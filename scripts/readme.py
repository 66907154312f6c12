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
from mae_convert.layouts import LAYOUTS
from reference_models.configuration import ViTMAEConfig

README = Path(__file__).resolve().parents[1] / "README.md"
MARKED = re.compile(r"(<!-- generated: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def help_of_every_command() -> str:
    """Return the help of the group and of each command as Markdown."""
    texts = []
    # With the group's own settings, so that this is what the program prints.
    settings = {**cli.context_settings, "terminal_width": 100}
    with click.Context(cli, info_name="mae-convert", **settings) as top:
        texts.append(cli.get_help(top))
        for name, command in cli.commands.items():
            with click.Context(command, info_name=name, parent=top, terminal_width=100) as context:
                texts.append(command.get_help(context))
    return "\n".join(f"```\n{text}\n```\n" for text in texts)


MODELS = {
    "pre-training model": ("pretrain", {}),
    "pre-training model, rectangular": ("pretrain", {"image_size": (224, 448)}),
    "encoder": ("encoder", {}),
    "encoder, rectangular": ("encoder", {"image_size": (224, 448)}),
    "classifier, class token": ("classify", {}),
    "classifier, mean of patches": ("classify", {"global_pool": "avg"}),
}


def which_layout_holds_what() -> str:
    """Return a table of models and the layouts that can hold them, and the number of pairs."""
    lines = ["| model | " + " | ".join(f"`{name}`" for name in LAYOUTS) + " | pairs |"]
    lines.append("|---|" + "---|" * (len(LAYOUTS) + 1))
    pairs = 0
    for title, (task, fields) in MODELS.items():
        config = ViTMAEConfig(**fields)
        held = [
            any(task in table.tasks for table in layout.tables)
            and layout.refusal(config, task) is None
            for layout in LAYOUTS.values()
        ]
        pairs += sum(held) ** 2
        cells = ["yes" if yes else "no" for yes in held]
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {sum(held) ** 2} |")
    return "\n".join(lines) + f"\n\nThat is {pairs} pairs of source and target.\n"


GENERATORS = {"help": help_of_every_command, "matrix": which_layout_holds_what}


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
