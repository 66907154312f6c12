"""Reports: JSON by its schema, JUnit, Markdown, one HTML page; the same inputs, the same bytes."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib import resources
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner

from mae_convert.cli.main import cli
from mae_convert.reports.junit import sweep_junit, verdict_junit
from mae_convert.reports.verdict_html import depth_plot
from mae_convert.sweep.result import Row
from mae_convert.verify.judge import Check, Verdict
from mae_convert.verify.summary import by_depth, summary, verdict_in_words
from mae_convert.visualize.pixels import amplified_difference

SUFFIXES = ("json", "xml", "html", "md")


@pytest.fixture(scope="module")
def schema():
    text = (resources.files("mae_convert") / "verify" / "verdict.schema.json").read_text()
    jsonschema.Draft202012Validator.check_schema(json.loads(text))
    return json.loads(text)


@pytest.fixture(scope="module")
def reports(run, fork_servers, case, tmp_path_factory):
    """Reports of a pair that passes, made twice, and of one that does not pass."""
    folder, pretrain = tmp_path_factory.mktemp("reports"), case("pretrain_tiny")
    run("convert", pretrain.checkpoint, folder / "pt", "--to", "transformers", *pretrain.heads)
    sides = ["--framework-a", "torch", "--framework-b", "torch", *pretrain.heads]
    made = {}
    for name, more in (("good", []), ("again", []), ("bad", ["--require-proof"])):
        options = [w for s in SUFFIXES for w in ("--report", folder / f"{name}.{s}")]
        arguments = [pretrain.checkpoint, folder / "pt", *sides, *options, *more]
        with fork_servers.used():
            CliRunner().invoke(cli, ["verify", *map(str, arguments)])
        made[name] = {s: (folder / f"{name}.{s}").read_text() for s in SUFFIXES}
    return made


def test_json_report_matches_its_schema(reports, schema):
    for report in reports.values():
        jsonschema.validate(json.loads(report["json"]), schema)


def test_the_same_inputs_give_the_same_bytes(reports):
    assert reports["good"] == reports["again"]


def test_junit_has_a_case_for_every_group_that_passed_and_names_the_checkpoints(reports):
    for name in ("good", "bad"):
        suite, verdict = ET.fromstring(reports[name]["xml"]), json.loads(reports[name]["json"])
        groups = summary(Check(**check) for check in verdict["checks"])
        passed = [line.title for line in groups if line.passed]
        cases = suite.findall("testcase")
        assert [case.get("name") for case in cases] == ["verdict", *passed]
        assert len(cases) == int(suite.get("tests"))
        assert len(suite.findall(".//failure")) == int(suite.get("failures")) == (name == "bad")
        assert {case.get("classname") for case in cases} == {
            "mae_convert.verify.checkpoint_pth vs pt"
        }
        assert suite.get("name") == "mae-convert verify checkpoint.pth pt"
        facts = {p.get("name"): p.get("value") for p in suite.findall("properties/property")}
        assert facts["A sha256"] == verdict["witnesses"][0]["checkpoint"]["sha256"]
        assert facts["B run by"].split()[::2] == ["torch", "on"]
        assert {"mae-convert", "python", "torch", "verdict"} <= set(facts)
        assert any("assumed by A" in fact for fact in facts)


def test_junit_counts_a_cause_once_whatever_number_of_checks_it_makes_fail():
    checks = [Check(f"function/encoder.blocks.{n}.output", False, 1.0, 1e-10) for n in range(32)]
    weight = "encoder.blocks.1.attention.v.weight"
    same = (f"A with B's {weight} computes what B does", f"{weight}: is transposed")
    for causes, failures in (
        ((), 1), (same, 1), ((*same, "layer_norm_eps is 1e-06 in A and 1e-12 in B"), 2),
    ):  # fmt: skip
        verdict = replace(made_up(*checks), causes=causes, suspects=(weight,))
        suite = ET.fromstring(verdict_junit(SimpleNamespace(verdict=verdict)))
        result = suite.findall(".//failure")
        assert len(result) == int(suite.get("failures")) == failures
        assert result[0].get("message").startswith("DIFFERENT: ")
        assert "intermediate activations (32): 1.0e+00, limit 1.0e-10" in result[0].text
        assert (f"{weight}: is transposed" in result[0].text) == bool(causes)


def test_junit_of_a_sweep_distinguishes_failures_from_jobs_without_a_result():
    result = Row("a1", "/data/run1/checkpoint.pth", layout="timm", seconds=1.5)
    failed = replace(
        result, key="b2", outcome="failed", verdict="DIFFERENT", cause="x is transposed"
    )
    error = replace(result, key="c3", outcome="error", error="it is damaged", exit_status=2)
    suite = ET.fromstring(sweep_junit([result, failed, error], not_run=1))
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"}
    names = [case.get("name") for case in suite.findall("testcase")]
    assert names[0] == "run1/checkpoint.pth to timm"
    assert len(set(names)) == len(names)
    assert suite.find(".//failure").get("message") == "DIFFERENT: x is transposed"
    assert suite.find(".//error").get("type") == "exit status 2"
    assert suite.find(".//error").get("message") == "it is damaged"


def test_the_page_is_one_file_with_verdict_and_plot_and_shows_no_noise(reports):
    page = reports["good"]["html"]
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("<svg") == 1
    assert "PASSED" in page
    assert page.count("<img") == 0  # the inputs of these runs are random
    assert "Verify with a folder of your own images" in " ".join(page.split())
    assert "NOT PROVEN" in reports["bad"]["html"]


def test_markdown_begins_with_the_verdict(reports):
    assert reports["good"]["md"].startswith("## ✅ PASSED")
    assert reports["bad"]["md"].startswith("## ❌ NOT PROVEN")
    assert "| float64: logits |" in reports["good"]["md"]


def made_up(*checks, **fields):
    passed = all(check.passed for check in checks)
    values = {"first_divergence": None, "suspects": (), "causes": (), "witnesses": (), **fields}
    return Verdict(passed, True, checks, **values)


def test_nan_is_the_worst_result_of_its_group():
    lines = summary(
        [
            Check("function/encoder.blocks.0.q", True, 1e-16, 1e-10),
            Check("function/encoder.blocks.0.k", False, float("nan"), 1e-10),
        ]
    )
    assert [(line.measured, line.passed) for line in lines] == [("nan", False)]


@pytest.mark.parametrize(
    ("measured", "shown"),
    [
        ((2e-10, 0.8, 3e-10), "8.0e-01"),
        ((0.8, float("nan"), 2e-10), "nan"),
        ((2e-10, float("inf")), "inf"),
        ((1e-12, 3e-11, 2e-13), "3.0e-11"),
    ],
)
def test_the_worst_of_a_group_is_shown(measured, shown):
    names = (f"function/encoder.blocks.{number}.q" for number in range(9))
    checks = [Check(n, m <= 1e-10, m, 1e-10) for n, m in zip(names, measured, strict=False)]
    assert [line.measured for line in summary(checks)] == [shown]


def test_the_worst_is_the_one_furthest_beyond_its_own_limit():
    checks = [
        Check("float32/B/logits", False, 9e-5, 8e-5),
        Check("float32/B/loss", False, 5e-6, 1e-6),
    ]
    assert [(line.measured, line.limit) for line in summary(checks)] == [("5.0e-06", "1.0e-06")]


def test_verdict_names_the_declared_changes():
    steps = ({"step": "image_size"}, {"step": "image_size"}, {"step": "dtype"})
    check = Check("function/logits", True, 0.0, 1e-10)
    assert verdict_in_words(made_up(check, steps=steps))[1] == (
        "the same function and the same weights as the source after the declared changes"
        " (image size, dtype)"
    )


def test_errors_by_depth_are_in_the_order_of_the_computation():
    names = ["logits", "decoder.norm", "encoder.blocks.10.output", "encoder.blocks.9.output",
             "encoder.embedding", "encoder.blocks.9.q"]  # fmt: skip
    verdict = made_up(*(Check(f"function/{n}", False, float("nan"), 1e-10) for n in names))
    assert [name for name, _ in by_depth(verdict)] == [
        "encoder.embedding", "encoder.blocks.9.output", "encoder.blocks.10.output",
        "decoder.norm", "logits",
    ]  # fmt: skip
    assert "logits: nan" in depth_plot(by_depth(verdict))


def test_verdict_corresponds_to_the_failed_check():
    failed = {
        "IMPRECISE": "float32/B/logits",
        "NOT PROVEN": "proof/both sides read natively",
        "DIFFERENT": "function/logits",
    }
    nan = (Check(name, False, float("nan"), 1e-10) for name in failed.values())
    assert verdict_in_words(made_up(*nan))[0] == "NOT FINITE"
    for word, name in failed.items():
        assert verdict_in_words(made_up(Check(name, False, 1.0, 0.0)))[0] == word
    for names, of in (
        (["against timm/float32/B/logits"], "timm"),
        (["against timm/float32/A/logits", "float32/A/grad/head.bias"], "A"),
        (["isolated/float32/B/logits", "against r.py:build/tf32/B/logits"], "B and r.py:build"),
    ):
        word, sentence = verdict_in_words(made_up(*(Check(n, False, 1.0, 0.0) for n in names)))
        assert (word, f"the rounding errors of {of} are too large" in sentence) == (
            "IMPRECISE", True
        )  # fmt: skip
    nan = Check("against own.py:build/function/logits", False, float("nan"), 1e-10)
    assert verdict_in_words(made_up(nan)) == (
        "NOT FINITE",
        "A and B agree in everything that was compared, but outputs of own.py:build are NaN",
    )
    of_runner = made_up(Check("against own.py:build/function/logits", False, 1.0, 0.0))
    assert verdict_in_words(of_runner) == (
        "DIFFERENT",
        "A and B agree in everything that was compared, but own.py:build computes another function",
    )


def test_difference_is_amplified_and_nan_is_highlighted():
    a = np.zeros((1, 3, 2, 2))
    b = a.copy()
    b[0, 0, 0, 0], b[0, 1, 1, 1] = 1e-12, np.nan
    shown, factor = amplified_difference(a, b)
    assert factor == pytest.approx(5e11)
    assert (shown[0, 0, 0, 0], shown[0, 1, 1, 1], shown[0, 0, 1, 0]) == (1.0, 1.0, 0.5)
    same, factor = amplified_difference(a, a)
    assert np.isinf(factor)
    assert (same == 0.5).all()
