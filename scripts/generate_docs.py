"""Write the generated parts of the documentation: commands, layouts and packages.

python scripts/generate_docs.py            # write the parts
python scripts/generate_docs.py --check    # exit with status 1 if they are out of date
"""

import argparse
import ast
import html
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mae_convert.cli.main import cli
from mae_convert.families.mae.layouts import LAYOUTS
from reference_models.configuration import ViTMAEConfig

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = (DOCS / "reference" / "commands.md", DOCS / "layouts.md", DOCS / "architecture.md")
MARKED = re.compile(r"(<!-- generated: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
EXAMPLE = re.compile(r"\n*Example:\s*\x08?\n(.*)", re.DOTALL)


def command_reference() -> str:
    """Return usage, description, example and options of every command as Markdown."""
    # The context gets the settings of the group, so that options are shown as `--help` shows them.
    with click.Context(cli, info_name="mae-convert", **cli.context_settings) as top:
        sections = [_overview(top), _table(cli, top)]
        for name in sorted(cli.commands):
            command = cli.commands[name]
            with click.Context(command, info_name=name, parent=top) as context:
                sections.append(_section(name, command, context))
    return "\n".join(sections)


def _overview(top: click.Context) -> str:
    lines = ["| command | what it does |", "|---|---|"]
    for name in sorted(cli.commands):
        lines.append(f"| [`{name}`](#{name}) | {_text(cli.commands[name])[0].splitlines()[0]} |")
    usage = cli.get_usage(top).removeprefix("Usage: ")
    title, *statuses = inspect.cleandoc((cli.epilog or "").replace("\b", "")).splitlines()
    rows = [f"| {' | '.join(line.split(maxsplit=1))} |" for line in statuses]
    table = [f"| {title.lower().rstrip(':')} | meaning |", "|---|---|", *rows, ""]
    return "\n".join([f"```text\n{usage}\n```\n", *lines, "", *table])


def _section(name: str, command: click.Command, context: click.Context) -> str:
    description, example = _text(command)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {name}\n", f"```text\n{usage}\n```\n", f"{description}\n"]
    if example:
        parts.append(f"Example:\n\n```sh\n{example}\n```\n")
    return "\n".join([*parts, _table(command, context)])


def _text(command: click.Command) -> tuple[str, str]:
    """Return the description of a command as Markdown paragraphs, and its example."""
    text = inspect.cleandoc(command.help or "")
    match = EXAMPLE.search(text)
    description = text[: match.start()] if match else text
    example = inspect.cleandoc(match[1]) if match else ""
    return _escaped(description.strip()), example


def _table(command: click.Command, context: click.Context) -> str:
    """Return the options of a command as a table."""
    lines = ["| option | meaning |", "|---|---|"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record and isinstance(parameter, click.Option):
            names, meaning = record
            lines.append(f"| {_code(names)} | {_escaped(meaning)} |")
    return "\n".join([*lines, ""])


def _code(text: str) -> str:
    """Return text as code for a table, with optional line breaks after | and /."""
    escaped = html.escape(text, quote=False).replace("|", "&#124;<wbr>").replace("/", "/<wbr>")
    return f"<code>{escaped}</code>"


def _escaped(text: str) -> str:
    """Return plain text as Markdown; text in backticks remains code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part
        if part.startswith("`")
        else re.sub(r"([\\*_\[\]{}])", r"\\\1", html.escape(part, quote=False)).replace(
            "|", "&#124;"
        )
        for part in parts
    )


MODELS = {
    "pre-training model": ("pretrain", {}),
    "pre-training model, rectangular": ("pretrain", {"image_size": (224, 448)}),
    "encoder": ("encoder", {}),
    "encoder, rectangular": ("encoder", {"image_size": (224, 448)}),
    "classifier, class token": ("classify", {}),
    "classifier, mean of patches": ("classify", {"global_pool": "avg"}),
}


def models_of_each_layout() -> str:
    """Return a table of the models that each layout supports.

    The last row and a sentence contain the number of pairs of a source layout and a target layout.
    """
    held = {title: _layouts_that_hold(*model) for title, model in MODELS.items()}
    lines = ["| layout | " + " | ".join(MODELS) + " |", "|---|" + "---|" * len(MODELS)]
    for name in LAYOUTS:
        cells = ["yes" if name in layouts else "no" for layouts in held.values()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    pairs = [len(layouts) ** 2 for layouts in held.values()]
    lines.append("| pairs | " + " | ".join(map(str, pairs)) + " |")
    return "\n".join(lines) + f"\n\nIn total there are {sum(pairs)} pairs of source and target.\n"


def _layouts_that_hold(task: str, fields: Mapping[str, Any]) -> list[str]:
    config = ViTMAEConfig(**fields)
    return [
        name
        for name, layout in LAYOUTS.items()
        if any(task in table.tasks for table in layout.tables)
        and layout.refusal(config, task) is None
    ]


def packages_and_modules() -> str:
    """Return a table of the packages and top-level modules, with the subject of each."""
    top = ROOT / "mae_convert"
    packages = [
        *sorted(top.glob("*/__init__.py")),
        *sorted(ROOT.glob("reference_models/*/__init__.py")),
    ]
    modules = [path for path in sorted(top.glob("*.py")) if not path.name.startswith("__")]
    lines = ["| where | subject |", "|---|---|"]
    for path in (*packages, *modules):
        name = path.parent if path.name == "__init__.py" else path
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = docstring.split("\n\n")[0].replace("\n", " ").replace("``", "`")
        slash = "/" if path.name == "__init__.py" else ""
        lines.append(f"| {_code(name.relative_to(ROOT).as_posix() + slash)} | {_escaped(first)} |")
    return "\n".join(lines) + "\n"


GENERATORS = {
    "commands": command_reference,
    "matrix": models_of_each_layout,
    "packages": packages_and_modules,
}


def generated(text: str) -> str:
    """Return the text of a page with its generated parts updated."""
    return MARKED.sub(lambda m: m[1] + GENERATORS[m["name"]]() + m[3], text)


def main() -> int:
    """Write the pages, or check them; return 1 if a check finds an outdated page, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="check the pages, and write nothing")
    check = parser.parse_args().check
    status = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fresh = generated(text)
        if fresh == text:
            continue
        if check:
            name = page.relative_to(ROOT)
            print(f"{name} is out of date: run `python scripts/generate_docs.py`", file=sys.stderr)
            status = 1
        else:
            page.write_text(fresh, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
