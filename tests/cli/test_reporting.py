"""A run in CI without a result is an error in the requested report."""

import xml.etree.ElementTree as ET

import pytest
from paths import DEMO

from mae_convert.runtime import sides

CHECKPOINT = DEMO / "checkpoint.pth"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("verify", "nope.pth", CHECKPOINT), 2, "nope.pth does not exist"),
        (("verify", CHECKPOINT), 2, "specify the checkpoint to compare it with"),
        (("verify", CHECKPOINT, CHECKPOINT, "--framework-a", "caffe"), 2, "'caffe' is not one of"),
        (("verify", CHECKPOINT, CHECKPOINT, "--framework-a", "torch"), 3, "not installed"),
        (("verify", CHECKPOINT, CHECKPOINT, "--nonsense"), 2, "--nonsense"),
        (("verify", CHECKPOINT, CHECKPOINT, "--inputs", "a", "--seed", "3"), 2, "cannot be given"),
        (("sweep", "plan.yaml"), 2, "plan.yaml does not exist"),
    ],
)
def test_run_without_a_result_is_an_error_in_the_junit_report(
    command, tmp_path, monkeypatch, words, status, message
):
    report = tmp_path / "report.xml"
    report.write_text("of an earlier run")
    if status == 3:
        monkeypatch.setattr(sides, "missing", list)
    result = command(*words, "--report", report)
    assert result.status == status
    suite = ET.parse(report).getroot()
    assert (suite.get("errors"), suite.get("failures")) == ("1", "0")
    error = suite.find("testcase/error")
    assert message in error.get("message")
    assert error.get("type") == f"exit status {status}"
    assert message in result.err


def test_report_does_not_replace_a_file_of_the_model(command, tmp_path):
    own = tmp_path / "model" / "mine.xml"
    own.parent.mkdir()
    own.write_text("mine")
    (own.parent / "model.safetensors").write_text("not a checkpoint")
    for more in ((), ("--framework-a", "caffe")):
        result = command("verify", own.parent, CHECKPOINT, "--report", own, *more)
        assert result.status == 2
        assert own.read_text() == "mine"
    assert command("verify", "--help", "--report", tmp_path / "x.xml").status == 0
    assert not (tmp_path / "x.xml").exists()
