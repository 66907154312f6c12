"""Plans: valid fields, and invalid plans are refused by line and field before any work."""

import pytest

from mae_convert.errors import OutputError
from mae_convert.sweep.jobs_from_plan import read_plan
from mae_convert.sweep.plan_file import PlanError
from mae_convert.sweep.results import Results
from mae_convert.text import natural_sort_key


@pytest.fixture
def runs(tmp_path):
    """A folder with three checkpoints that are not opened."""
    folder = tmp_path / "runs"
    folder.mkdir()
    for epoch in (0, 20, 100):
        (folder / f"checkpoint-{epoch}.pth").write_bytes(b"")
    return tmp_path


def plan(folder, text, name="plan.yaml", **specified):
    path = folder / name
    path.write_text(text)
    return read_plan([str(path)], specified)


def error_of(folder, text, name="plan.yaml"):
    with pytest.raises(PlanError) as refused:
        plan(folder, text, name)
    return str(refused.value).removeprefix(f"{folder / name}")


def test_a_plan_runs_external_code_and_interpreters_only_if_the_command_line_allows_it(runs):
    (runs / "own.py").write_text("def build(config): ...")
    text = """
- source: runs/checkpoint-0.pth
  to: timm
  verify: true
  framework_b: own.py:build
  against: [timm, "original=mae"]
"""
    assert "framework_b: own.py:build is external code, which" in error_of(runs, text)
    path = runs / "plan.yaml"
    (job,) = read_plan([str(path)], {}, allow_code=True)
    assert job.settings["framework_b"] == f"{runs}/own.py:build"
    assert job.settings["against"] == ["timm", f"original={runs}/mae"]
    named = {"verify": [True], "to": ["timm"], "against": ["own.py:build"]}
    (job,) = read_plan([str(runs / "runs/checkpoint-0.pth")], named)  # on the command line itself
    assert job.settings["against"][0].endswith("/own.py:build")
    wrong = text.replace("own.py:build", "nonsense").replace("original=mae", "torch")
    assert "'nonsense' is neither a framework" in error_of(runs, wrong)
    for field in ("python_b: other/python", "against: timm=other/python"):
        interpreter = f"- {{source: runs/checkpoint-0.pth, to: timm, verify: true, {field}}}"
        assert "other/python is a Python interpreter, which is run" in error_of(runs, interpreter)
        assert read_plan([str(path)], {}, allow_code=True)


def test_a_pattern_and_lists_make_a_job_of_each_combination_in_natural_order(runs):
    text = """
defaults:
  target: out/{stem}-{to}-{dtype}
jobs:
  - source: runs/*.pth
    to: [transformers, keras]
    dtype: [float32, float16]
    target: out/{stem}-{dtype}-{to}.keras
    verify: true
"""
    text = text.replace("[transformers, keras]", "[keras]")
    jobs = plan(runs, text)
    assert [job.target for job in jobs[1:3]] == [
        f"{runs}/out/checkpoint-0-float16-keras.keras",
        f"{runs}/out/checkpoint-20-float32-keras.keras",
    ]
    assert len(jobs) == len({job.key for job in jobs}) == 6


def test_csv_plan_is_equivalent_to_yaml(runs):
    yaml = plan(runs, "- {source: 'runs/*-20.pth', to: [timm, facebook], verify: yes, seed: 3}")
    table = "source,to,verify,seed,dtype\nruns/*-20.pth,timm;facebook,true,3,\n"
    assert [j.key for j in plan(runs, table, "plan.csv")] == [j.key for j in yaml]


def test_command_line_overrides_the_plan(runs):
    text = "- {source: runs/checkpoint-0.pth, to: keras, verify: true}"
    jobs = plan(runs, text, to=["timm", "transformers"], num_heads=["12"])
    assert [job.settings["to"] for job in jobs] == ["timm", "transformers"]
    assert jobs[0].settings["num_heads"] == 12


def test_checkpoints_can_be_named_without_a_plan(runs, monkeypatch):
    monkeypatch.chdir(runs)
    jobs = read_plan(["runs/*-0.pth", "runs/checkpoint-20.pth"], {"to": ["timm"], "verify": [True]})
    assert [job.source for job in jobs] == [
        str(runs / "runs" / f"checkpoint-{n}.pth") for n in ("0", "20")
    ]


def test_hub_target_is_published_with_its_certificate(runs):
    text = "- {source: runs/checkpoint-0.pth, to: transformers, target: 'hf://me/{stem}'}"
    (job,) = plan(runs, text)
    assert job.target is None
    assert job.settings["publish"] == "me/checkpoint-0"
    assert job.settings["verify"]
    assert job.settings["certify"]


def test_numbers_sort_as_numbers():
    assert sorted(["c-10", "c-9", "c"], key=natural_sort_key) == ["c", "c-9", "c-10"]


JOB = "- source: runs/checkpoint-0.pth\n  verify: true\n"
WRONG = {
    JOB + "  to: kears\n": ", line 3, to: 'kears' is not one of",
    JOB + "  too: keras\n": ", line 3, too: there is no such field; did you mean 'to'?",
    JOB + "  to: keras\n  seed: many\n": ", line 4, seed: 'many' is not a whole number",
    JOB + "  to: keras\n  gradients: 3\n": ", line 4, gradients: 3 is not a valid value;",
    JOB + "  to: keras\n  target: x\n": ", line 4, target: keras is written as a file",
    JOB + "  to: original\n  target: x\n": ", line 4, target: original is written as a file",
    JOB + "  to: transformers\n  target: x.h5\n": ", line 4, target: transformers is written as a"
    " directory, and x.h5 has the suffix of another file format",
    JOB + "  to: keras\n  target: x-{epoch}.keras\n": ", line 4, target: {epoch} is not defined",
    JOB + "  to: keras\n  target: 'x-{stem:9}.keras'\n": ", line 4, target: x-{stem:9}.keras: a",
    JOB + "  to: timm\n  images: none\n": ", line 4, images: ",
    JOB + "  to: timm\n  to: keras\n": ", line 4, to: this field occurs twice",
    JOB
    + "  to: timm\n  license: mit\n": ", line 4, license: this field applies to publishing only",
    JOB: ", line 1, to: specify the layout of the output",
    JOB + "  target: nothing-there\n": ", line 3, target: ",
    "- source: runs/checkpoint-0.pth\n  to: timm\n": ", line 1, target: specify `target`",
    "- source: runs/none.pth\n": ", line 1, source: ",
    "- source: 'runs/*.npz'\n": ", line 1, source: no file matches",
    "- to: timm\n": ", line 1, source: every job needs a source",
    "- source: 'runs/*.pth'\n  to: timm\n  target: out\n": ", line 1, target: two jobs write",
    JOB + "  to: timm\n" + JOB + "  to: timm\n": ", line 4, source: this job is a duplicate of",
    "jobs:\n  source: x\n": ", line 2, jobs: this is not a list",
    JOB + "  to: timm\n  target: ''\n": ", line 4, target: '' is not a valid value; write a text",
    JOB + "  to: timm\n  num_heads: 4.5\n": ", line 4, num_heads: '4.5' is not a whole",
    JOB + "  to: timm\n  mask_ratio: .nan\n": ", line 4, mask_ratio: 'nan' is not a number",
    JOB + "  to: timm\n  against: keras\n": ", line 4, against: 'keras' is neither a framework nor",
    JOB + "  to: timm\n  [a, b]: 3\n": ", line 4: this is not a field name",
    JOB
    + "  to: timm\n  target: hf://me\n": ", line 4, target: hf://me is not a valid Hub reference",
    JOB + "  to: timm\n  publish: me/x@dev\n": ", line 4, publish: me/x@dev is not of the form",
    JOB + "  to: keras\n  target: hf://me/x\n": ", line 4, target: only model directories",
    JOB + "  to: timm\n  target: nope://b/x\n": ", line 4, target: nope://b/x is not a valid URL",
    JOB + "  to: timm\n  target: runs\n": ", line 1, target: {}/runs contains {}/runs/check",
    "- source:\n  to: timm\n": ", line 1, source: every job needs a source",
    "- source: nope://b/x.pth\n  to: timm\n": ", line 1, source: nope://b/x.pth is not a valid URL",
    "- source: 'runs/**x'\n  to: timm\n": ", line 1, source: runs/**x is not a valid pattern",
    "works: []\n": ", line 1, works: there is no such section",
    "- a: [\n": ", line 2: this is not YAML",
    "": " contains no jobs",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_plan_is_refused_by_line_and_field(runs, text):
    assert error_of(runs, text).startswith(WRONG[text].replace("{}", str(runs)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("source,to\nruns/checkpoint-0.pth,kears\n", ", line 2, to: 'kears'"),
        ("source,to,to\n", ", line 1, to: two columns"),
        ("source;to\nruns/checkpoint-0.pth;timm\n", ", line 1, source;to: there is no such field"),
        ("source,to\nruns/checkpoint-0.pth,;\n", ", line 2, to: the list is empty"),
        ("source,\nruns/checkpoint-0.pth,timm\n", ", line 2: 'timm' is in a column without"),
        ("source,to\nruns/checkpoint-0.pth\n", ", line 2: 1 cells, but the header has 2 columns"),
    ],
)
def test_a_wrong_table_is_refused_by_line_and_field(runs, text, message):
    assert error_of(runs, text, "plan.csv").startswith(message)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("a", "a/b", "a/b is inside {}/a, which is also a target"),
        ("a/b", "a", "a/b is inside {}/a, which is also a target"),
        ("runs/checkpoint-0.pth/a", "b", "runs/checkpoint-0.pth/a is, or is inside, {}/runs/"),
    ],
)
def test_conflicting_jobs_are_refused(runs, first, second, message):
    text = "".join(
        f"- {{source: runs/checkpoint-{n}.pth, to: transformers, target: {target}}}\n"
        for n, target in ((0, first), (20, second))
    )
    assert f", target: {runs}/{message.format(runs)}" in error_of(runs, text)


def test_a_source_is_never_a_target(run, runs):
    (runs / "a.pth").write_bytes(b"weights")
    result = run(
        "sweep", "a.pth", "--to", "facebook", "--target", "{stem}.pth", "--overwrite", cwd=runs
    )
    assert (result.status, "which is a source; choose another name" in result.err) == (2, True)
    assert (runs / "a.pth").read_bytes() == b"weights"


def test_defaults_of_a_step_apply_to_jobs_with_that_step(runs):
    jobs = plan(
        runs,
        "defaults: {source: runs/checkpoint-0.pth, to: timm, framework_a: torch, license: mit}\n"
        "jobs:\n- target: a\n- target: b\n  verify: true\n- target: hf://me/c\n",
    )
    assert [{"framework_a", "license"} & {*job.settings} for job in jobs] == [
        set(), {"framework_a"}, {"framework_a", "license"},
    ]  # fmt: skip


def test_a_job_can_take_fields_from_another_by_a_merge_key_of_yaml(runs):
    first, second = plan(
        runs,
        "- &first {source: runs/checkpoint-0.pth, to: timm, target: a, num_heads: 4}\n"
        "- {<<: *first, target: b}\n",
    )
    assert (first.target, second.target) == (f"{runs}/a", f"{runs}/b")
    assert first.settings == second.settings
    message = error_of(runs, "- {<<: 5, source: runs/checkpoint-0.pth}")
    assert "line 1: the value of a merge key (<<) is not a mapping; write <<: *NAME" in message


def test_default_of_a_field_can_be_unset_by_an_empty_value(runs):
    text = "defaults: {inputs: plan.yaml, against: timm}\njobs:\n- {source: runs/checkpoint-0.pth,"
    (job,) = plan(runs, text + " to: timm, verify: true, inputs: null, against: null}")
    assert job.settings == {"to": "timm", "verify": True}


def test_invalid_plan_leaves_no_files(run, runs):
    (runs / "plan.yaml").write_text("- {source: runs/checkpoint-0.pth, to: kears, target: out}")
    result = run("sweep", "plan.yaml", cwd=runs)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("mae-convert: plan.yaml, line 1, to: 'kears' is not one of")
    assert sorted(path.name for path in runs.iterdir()) == ["plan.yaml", "runs"]


def doubling(levels):
    """Return a plan in which each mapping merges the previous mapping twice."""
    lines = ["- &a0 {source: runs/checkpoint-0.pth, to: keras, verify: true}"]
    lines += [f"- &a{n} {{<<: [*a{n - 1}, *a{n - 1}], seed: {n}}}" for n in range(1, levels)]
    return "\n".join(lines)


JOB = "source: runs/checkpoint-0.pth, to: keras, verify: true"
HOSTILE = {
    "nested lists": "[" * 1500 + "]" * 1500,
    "nested mappings": "{a: " * 1500,
    "a nested value": f"- {{{JOB}, seed: [[[1]]]}}",
    "a mapping as value": f"- {{{JOB}, seed: {{a: 1}}}}",
    "a long number": f"- {{{JOB}, seed: {'9' * 5000}}}",
    "a long hexadecimal number": f"- {{{JOB}, seed: 0x{'f' * 5000}}}",
    "a long sexagesimal number": f"- {{{JOB}, seed: {'1' + ':59' * 3000}}}",
    "a long number as text": f"- {{{JOB}, seed: '{'9' * 5000}'}}",
    "a long size": f"- {{{JOB}, image_size: '{'9' * 5000}'}}",
    "a large number": f"- {{{JOB}, seed: {1 << 80}}}",
    "an invalid date": f"- {{{JOB}, branch: 2026-02-31}}",
    "NUL": "- {source: 'runs/\0', to: keras, verify: true}",
    "NUL that is written out": '- {source: "runs/\\0.pth", to: keras, verify: true}',
    "NUL on the Hub": '- {source: "hf://a/b@c\\0", to: keras, verify: true}',
    "NUL in storage": '- {source: "memory://a\\0b", to: keras, verify: true}',
    "a lone surrogate": '- {source: "hf://a/b/\\ud800", to: keras, verify: true}',
    "binary data": f"- {{{JOB}, seed: !!binary aGVsbG8=}}",
    "an object": f"- {{{JOB}, seed: !!python/object/apply:os.getcwd []}}",
    "a set": f"- {{{JOB}, seed: !!set {{a, b}}}}",
    "doubling by values": "- &a0 [x, x]\n"
    + "\n".join(f"- &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)),
    "a chain of merges": doubling(60),
    "a mapping that merges itself": "- &a {<<: *a, source: x}",
    "a merge of text": "- {<<: text, source: x}",
    "a key that is a list": "- {? [a] : b, source: x}",
    "too many jobs": f"- {{{JOB}, " + ", ".join(
        f"{name}: {list(range(1, 100))}" for name in ("seed", "batch", "num_heads", "num_labels")
    ) + "}",
    "too much text": "#" * 5_000_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_malicious_plan_is_refused_in_one_short_sentence(runs, name):
    message = error_of(runs, HOSTILE[name])
    assert message.isprintable()
    assert len(message) < 1300


@pytest.mark.parametrize("text", ["source,to\nruns/\0,keras", "source,to\n" + '"' * 99,
                                  "source,seed\nruns/checkpoint-0.pth," + "9" * 5000,
                                  "source\n" + "x" * 200_000])  # fmt: skip
def test_malicious_table_is_refused_in_one_short_sentence(runs, text):
    message = error_of(runs, text, "plan.csv")
    assert message.isprintable()
    assert len(message) < 1300


def test_fields_merged_twice_are_applied_once(runs):
    """Fifteen levels of doubling would be 32,768 copies."""
    jobs = plan(runs, doubling(15))
    assert len(jobs) == 15
    assert jobs[14].settings["seed"] == 14


def test_numbers_of_any_length_sort():
    names = ["a9" * 3, "a" + "9" * 5000, "a1" + "0" * 5000, "a007", "a10", "b"]
    assert sorted(names, key=natural_sort_key) == ["a007", "a9a9a9", "a10", names[1], names[2], "b"]


def test_directory_as_results_file_is_refused(tmp_path):
    with pytest.raises(OutputError, match="is a directory"):
        Results(tmp_path)
