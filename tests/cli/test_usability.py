"""Summaries, names, completion and terminal width."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from paths import DEMO

from mae_convert.cli.main import COMPLETION, cli
from mae_convert.cli.options import RUNNER
from mae_convert.cli.output.console import PatientConsole, pairs, table, wrapped_columns
from mae_convert.cli.output.lines import print_columns
from mae_convert.errors import MaeConvertError
from mae_convert.families.mae.layouts import LAYOUTS, layout_named
from mae_convert.families.mae.official import OFFICIAL
from mae_convert.sources.reference import parse_source

LONGEST_SUMMARY = 60
PROGRAM = Path(sys.executable).with_name("mae-convert")


@pytest.mark.parametrize("name", cli.commands)
def test_a_summary_is_one_sentence_that_fits_beside_the_name(name):
    summary = cli.commands[name].get_short_help_str(limit=1000)
    assert len(summary) <= LONGEST_SUMMARY
    assert summary.endswith(".")
    assert summary == cli.commands[name].help.split("\n")[0].strip()


def test_the_help_lists_every_exit_status(run):
    text = run("--help").out
    assert "..." not in text.split("Commands:")[1]
    for status in ("0", "1", "2", "3", "130"):
        assert f"\n    {status} " in text.split("Exit status:")[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transfomers", "did you mean 'transformers'?"),
        ("pytorch", "choose facebook, transformers, timm or torchvision"),
        ("tf", "choose transformers-tf"),
        ("caffe", "the layouts are facebook, transformers"),
    ],
)
def test_unknown_layout_name_is_refused_with_suggestions(name, message):
    with pytest.raises(MaeConvertError, match=r"unknown layout|not the name of a layout") as caught:
        layout_named(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("facebook/vit-mae-base", "write hf://facebook/vit-mae-base"),
        ("timm/vit_base_patch16_224.mae", "write hf://timm/vit_base_patch16_224.mae"),
        ("mae_pretrain_vit_bas", "did you mean 'mae_pretrain_vit_base'?"),
    ],
)
def test_missing_path_is_refused_with_suggested_repository_or_official_name(text, message):
    with pytest.raises(MaeConvertError, match="does not exist") as caught:
        parse_source(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["runs/checkpoint-9.pth", "checkpoint.pth", "a/b/c", "tests/mae"])
def test_other_names_of_missing_files_are_paths(text, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert parse_source(text) == Path(text)


@pytest.mark.parametrize(("typed", "meant"), [("pytorch", "torch"), ("tf", "tensorflow")])
def test_common_names_of_frameworks_are_accepted(typed, meant):
    assert RUNNER.convert(typed, None, None) == meant
    with pytest.raises(click.BadParameter, match="pytorch2"):
        RUNNER.convert("pytorch2", None, None)


def completions(words: str, folder: Path, shell: str = "bash") -> list[str]:
    """Return the completions of the last of some words."""
    *before, last = words.split(" ")
    process = subprocess.run(
        [sys.executable, "-m", "mae_convert"], capture_output=True, text=True, check=False,
        cwd=folder,
        env={**os.environ, COMPLETION: f"{shell}_complete", "COMP_WORDS": words,
             "COMP_CWORD": str(len(before)) if shell != "fish" else last},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout.split()


def test_layouts_frameworks_and_official_names_complete(tmp_path):
    (tmp_path / "mae_mine.pth").touch()
    tr = [f"plain,{name}" for name in LAYOUTS if name.startswith("tr")]
    assert completions("mae-convert convert a b --to tr", tmp_path) == tr
    assert completions("mae-convert layouts tr", tmp_path, "fish") == tr
    zsh = completions("mae-convert layouts tr", tmp_path, "zsh")
    assert [name for name in zsh if name in LAYOUTS] == [
        name for name in LAYOUTS if "tr" in name[:2]
    ]
    names = [f"plain,{official.name}" for official in OFFICIAL]
    assert completions("mae-convert download mae_", tmp_path) == names
    assert completions("mae-convert inspect mae_", tmp_path) == ["plain,mae_mine.pth", *names]
    assert completions("mae-convert inspect ./m", tmp_path) == ["file,./m"]
    assert completions("mae-convert verify a b --framework-a ten", tmp_path) == ["plain,tensorflow"]
    assert "plain,mae_visualize_vit_base" in completions(
        "mae-convert verify a --published mae_v", tmp_path
    )


REAL = {
    "bash": 'eval "$(_MAE_CONVERT_COMPLETE=bash_source mae-convert)"; COMP_CWORD=2;'
    " COMP_WORDS=(mae-convert layouts transf); _mae_convert_completion mae-convert;"
    ' echo "${COMPREPLY[@]}"',
    "fish": "_MAE_CONVERT_COMPLETE=fish_source mae-convert | source;"
    ' complete -C "mae-convert layouts transf"',
    # Completion of zsh needs a terminal; this checks only that it accepts the script.
    "zsh": "autoload -Uz compinit && compinit -u -D;"
    ' eval "$(_MAE_CONVERT_COMPLETE=zsh_source mae-convert)"; echo $_comps[mae-convert]',
}


@pytest.mark.parametrize("shell", REAL)
def test_completion_scripts_work_in_the_real_shells(shell, tmp_path):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "mae-convert").write_text(f'#!/bin/sh\nexec {sys.executable} -m mae_convert "$@"\n')
    (tmp_path / "mae-convert").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    process = subprocess.run(
        [program, "-c", REAL[shell]], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**os.environ, "PATH": path, "HOME": str(tmp_path)},
    )  # fmt: skip
    words = "_mae_convert_completion" if shell == "zsh" else "transformers transformers-tf"
    assert process.stdout.split() == words.split(), process.stderr


def printed(renderable, width: int, capsys) -> list[str]:
    PatientConsole(width=width, highlight=False).print(renderable)
    return capsys.readouterr().out.splitlines()


def test_table_wraps_between_words(capsys):
    grid = table("name", "what")
    grid.add_row("mae_visualize_vit_base_" * 3, "a sentence that is wrapped where it has spaces")
    lines = printed(grid, 80, capsys)
    assert any("mae_visualize_vit_base_" * 3 in line for line in lines)
    assert len(lines) > 2
    assert not any(line.endswith(" ") for line in lines[1:])


def test_values_are_wrapped_and_digests_are_not_split(capsys):
    digest = "mae1:" + "87632d6d" * 8
    lines = printed(pairs([("fingerprint", digest), ("caveat", "word " * 30)]), 80, capsys)
    assert lines[0] == f"fingerprint  {digest}"
    assert len(lines) > 2
    assert all(len(line) <= 80 and not line.endswith(" ") for line in lines[1:])


@pytest.mark.parametrize("width", [51, 50])
def test_columns_are_aligned_and_wrapped_only_if_they_are_too_wide(width, monkeypatch, capsys):
    """Columns that fit are printed without rich, with the same result."""
    rows = [
        ("  ü\x1b🙂", "[bold]x[/bold]", "a few words in a cell"),
        ("  mask_ratio", "0.75", "convention"),
    ]
    monkeypatch.setattr("mae_convert.cli.output.lines.PIPE_WIDTH", width)
    print_columns(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines == printed(wrapped_columns(rows), width, capsys)
    assert len(lines) == (2 if width == 51 else 3)


@pytest.mark.parametrize("command", [["catalog"], ["inspect", DEMO, "--stats", "--hash"]])
def test_names_are_not_truncated_on_a_terminal_of_80_columns(command):
    """A console on a terminal has its width; tests have no terminal."""
    code = f"""
import sys
from mae_convert.cli.output import lines
lines.PIPE_WIDTH = 80
from mae_convert.cli.main import main
main({[str(word) for word in command]!r})
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    words = out.stdout.split()
    if command[0] == "catalog":
        assert {official.name for official in OFFICIAL} <= set(words)
    else:
        assert {"decoder.blocks.1.mlp.fc1.weight", "transformers-tf"} <= set(words)
        values = out.stdout.partition("Values")[2].partition("Warnings")[0].splitlines()
        assert len(values) > 100
        assert max(map(len, values)) <= 80
        assert any(word.startswith("mae1:") and len(word) == 5 + 64 for word in words)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_an_example_of_a_command_is_printed_as_it_is_typed(name):
    """Click wraps a paragraph as prose unless an empty line and a backspace precede it."""
    subcommand = cli.commands[name]
    with click.Context(subcommand, info_name=name, max_content_width=80) as context:
        lines = subcommand.get_help(context).splitlines()
    start = lines.index("  Example:")
    assert lines[start + 1] == ""
    assert lines[start + 2].startswith(f"      mae-convert {name}")
    example = lines[start + 2 : lines.index("", start + 2)]
    assert max(map(len, example)) <= 80
    assert all(line.endswith("\\") for line in example[:-1])
