"""Output with closed streams, limited encodings and narrow terminals."""

import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import DEMO

from mae_convert.checkpoint.inspect import inspect
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import MaeConvertError

DEMO = DEMO / "checkpoint.pth"
PLAIN = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def shell(line, *arguments, **env):
    """Run a line of shell, in which "$@" are the program and its arguments."""
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "mae_convert", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **env},
                          timeout=120)  # fmt: skip
    return process.returncode, process.stdout, process.stderr


def test_closed_output_is_reported_before_any_work(tmp_path):
    target = tmp_path / "out"
    status, _, message = shell('"$@" >&-', "convert", DEMO, target, "--to", "transformers")
    assert (status, message.startswith(b"mae-convert: standard output is closed")) == (2, True)
    assert message.count(b"\n") == 1
    assert not target.exists()


@pytest.mark.parametrize("line", ['"$@" 2>&-', '"$@" 2>/dev/full'])
def test_error_that_cannot_be_printed_sets_the_exit_status(line):
    assert shell(line, "inspect", "nothing")[:2] == (2, b"")


def test_written_file_is_not_mistaken_for_a_closed_stream(tmp_path):
    """The first file that is opened gets the number of a stream that is closed."""
    target = tmp_path / "out.pth"
    status, _, _ = shell('"$@" 2>&- <&-', "convert", DEMO, target, "--to", "facebook")
    assert status == 0
    assert open_checkpoint(target).task == "pretrain"


@pytest.mark.parametrize("env", [PLAIN, {"PYTHONIOENCODING": "ascii"}], ids=["C", "ascii"])
def test_unencodable_name_is_printed_as_an_escape_sequence(tmp_path, env):
    path = tmp_path / "naïve-🙂.pth"
    path.write_bytes(DEMO.read_bytes())
    status, out, err = shell('"$@"', "inspect", path, **env)
    assert (status, err) == (0, b"")
    assert b"\\U0001f642" in out or b"\\udcf0" in out
    status, _, err = shell('"$@"', "inspect", tmp_path / "🙂", **env)
    assert (status, err.count(b"\n")) == (2, 1)
    assert b"does not exist" in err


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_columns_are_aligned_in_every_encoding(monkeypatch, encoding):
    from mae_convert.cli.output.console import console, markup, table

    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    grid = table("name", "value")
    for name in ("🙂", "a", "ü\x1b\u202e"):
        grid.add_row(markup(name), "end")
    console().print(grid)
    stream.flush()
    from rich.cells import cell_len

    lines = stream.buffer.getvalue().decode(encoding).splitlines()
    assert len({cell_len(line[: line.index("end")]) for line in lines[1:]}) == 1


def test_verdict_chart_has_bars_in_ascii(monkeypatch):
    from mae_convert.cli.output.verdict import depth_chart
    from mae_convert.verify.judge import Check, Verdict

    verdict = Verdict(
        False, False, (Check("function/encoder.norm", False, 0.5, 1e-10),), None, (), (), ()
    )
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    (line,) = depth_chart(verdict)
    assert "######" in line


def test_output_is_not_truncated_at_80_columns(monkeypatch, capsys):
    from mae_convert.cli.output import catalog, inspection
    from mae_convert.families.mae.official import OFFICIAL

    monkeypatch.setattr("mae_convert.cli.output.lines.PIPE_WIDTH", 80)
    catalog.catalog(OFFICIAL, {})
    out = capsys.readouterr().out
    assert all(any(line.startswith(f"{o.name} ") for line in out.splitlines()) for o in OFFICIAL)
    report = inspect(open_checkpoint(DEMO))  # the table of --stats is wider
    report["ignored"] = {"n" * 300: "v" * 300}
    inspection.inspection(report)
    shown = capsys.readouterr().out
    assert "n" * 300 in shown  # a name that users may type is not split
    assert "v" * 300 in shown
    whole = ("n" * 300, "v" * 300, "  https://")
    for line in (out + shown).splitlines():
        assert len(line) <= 80 or any(part in line for part in whole)
        assert "…" not in line


def test_internal_error_is_not_reported_as_a_verdict(command, monkeypatch):
    """Status 1 means that two checkpoints differ."""
    # Imported now, because a module that is first imported later would keep the patched function.
    importlib.import_module("mae_convert.cli.output.catalog")
    monkeypatch.setattr("mae_convert.families.families", lambda: None)
    result = command("layouts")
    assert result.status == 2
    assert "Traceback" in result.err
    assert "a bug in mae-convert" in result.err.splitlines()[-1]


NUL = "a\0b.html"


def _converted(name):
    from mae_convert.convert.execute import execute
    from mae_convert.convert.plan import plan_conversion

    execute(plan_conversion(open_checkpoint(DEMO), Path(name).with_suffix(".pth"), "facebook"))


def _planned(name):
    from mae_convert.sweep.jobs_from_plan import read_plan

    read_plan([str(DEMO)], {"to": ["timm"], "target": [name]})


USES = {
    "checkpoint": lambda name: open_checkpoint(Path(name)),
    "source": lambda name: importlib.import_module("mae_convert.sources").parse_source(name),
    "source on the Hub": lambda name: importlib.import_module("mae_convert.sources").parse_source(
        f"hf://owner/name@{name}/{name}"
    ),
    "pattern": lambda name: importlib.import_module("mae_convert.sources.patterns").sources_named(
        f"memory://bucket/{name}"
    ),
    "target": _converted,
    "target of a plan": _planned,
    "report": lambda name: importlib.import_module(
        "mae_convert.reports.verdict_files"
    ).check_report_names([Path(name)]),
    "timeline": lambda name: importlib.import_module(
        "mae_convert.reports.timeline_files"
    ).check_names([Path(name)], overwrite=True),
    "results": lambda name: importlib.import_module("mae_convert.sweep.results").Results(
        Path(name)
    ),
}


@pytest.mark.parametrize("use", USES)
def test_name_with_nul_is_refused_in_one_sentence_by_the_python_api(use):
    with pytest.raises(MaeConvertError, match=r"\\x00"):
        USES[use](NUL)
