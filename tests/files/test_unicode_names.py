"""Names of files that are not UTF-8, and text in pickles that is not Unicode."""

import json
import os

import pytest

from mae_convert.files.strict_json import in_unicode, parse_json, plain
from mae_convert.sweep.plan_fields import Job
from mae_convert.sweep.result import error_row
from mae_convert.sweep.results import Results, read_results

NAME = os.fsdecode(b"checkpoint-\xff.pth")
SHOWN = r"checkpoint-\udcff.pth"


@pytest.fixture
def checkpoint(tmp_path, golden):
    path = tmp_path / NAME
    try:
        path.write_bytes((golden / "pretrain_tiny" / "checkpoint.pth").read_bytes())
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    return path


def test_unpaired_surrogates_are_escaped_in_plain_data():
    value = {"na\udcffme": ["a\ud800", ("\U0001f642", 1)]}
    expected = {r"na\udcffme": [r"a\ud800", ["\U0001f642", 1]]}
    assert plain(value) == in_unicode(value) == parse_json(json.dumps(expected)) == expected


@pytest.mark.parametrize(
    ("layout", "target"),
    [("transformers", "out"), ("facebook", "out.pth"), ("facebook", "out.npz"),
     ("facebook", "out.safetensors"), ("keras", "out.weights.h5")],
)  # fmt: skip
def test_a_file_whose_name_is_not_utf8_is_converted(checkpoint, tmp_path, command, layout, target):
    flags = ("--num-heads", 4, "--decoder-num-heads", 3)
    result = command("convert", checkpoint, tmp_path / target, "--to", layout, *flags)
    assert (result.status, result.err) == (0, "")
    assert SHOWN in result.out
    if target == "out":
        record = json.loads((tmp_path / target / "conversion.json").read_text())
        assert record["source"]["name"] == SHOWN


def test_a_sweep_keeps_results_of_a_file_whose_name_is_not_utf8(tmp_path):
    job = Job(f"runs/{NAME}", f"out/{NAME}", {"to": "transformers"})
    with Results(tmp_path / "results.sqlite") as results:
        results.begin([job])
        assert job.identity()["target"] in results.begun()
        results.write(error_row(job.identity(), {}, ValueError(f"{NAME} is damaged")))
    (row,) = read_results(tmp_path / "results.sqlite")
    assert (row.source, row.target) == (f"runs/{SHOWN}", f"out/{SHOWN}")
