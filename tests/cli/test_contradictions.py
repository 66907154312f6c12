"""Options that contradict each other are refused in one sentence before any work."""

import click
import pytest
from click.testing import CliRunner

from mae_convert.cli.contradictions import CONFLICTS
from mae_convert.cli.main import cli
from mae_convert.convert.changes import with_new_head
from mae_convert.errors import ConfigurationError

CALLS = {
    ("inspect", "images", None): "a --images d",
    ("convert", "images", None): "a b --to keras --images d",
    ("verify", "published", "use_infer"): "a --published p --infer",
    ("convert", "num_labels", "task"): "a b --to keras --task encoder --num-labels 10",
    ("convert", "sincos_positions", None): "a b --to keras --sincos-positions",
    ("trace", "inputs", "images"): "a b --inputs i.npz --images d",
    ("trace", "inputs", "seed"): "a b --inputs i.npz --seed 0",
    ("trace", "inputs", "batch"): "a b --inputs i.npz --batch 4",
    ("trace", "unmasked", "mask_ratio"): "a b --unmasked --mask-ratio 0.5",
    ("trace", "framework", "mode"): "a b --framework torch --mode xla",
    ("verify", "framework_a", "mode_a"): "a b --framework-a timm --mode-a xla",
    ("verify", "framework_b", "mode_b"): "a b --framework-b transformers --mode-b xla",
    ("verify", "inputs", "images"): "a b --inputs i.npz --images d",
    ("verify", "inputs", "seed"): "a b --inputs i.npz --seed 0",
    ("verify", "inputs", "batch"): "a b --inputs i.npz --batch 4",
    ("verify", "unmasked", "mask_ratio_of_run"): "a b --unmasked --at-mask-ratio 0.5",
    ("verify", "task", None): "a --task encoder",
    ("verify", "use_infer", None): "a --infer",
    ("verify", "state_key", None): "a --state-key model",
    ("verify", "published", "task"): "a --published p --task encoder",
    ("verify", "published", "b"): "a b --published p",
    ("verify", "published", "certify"): "a --published p --certify",
    ("verify", "published", "reports"): "a --published p --report r.html",
    ("verify", "published", "against"): "a --published p --against timm",
    ("verify", "published", "dtypes"): "a --published p --dtype float32",
    ("verify", "published", "mask_ratio_of_run"): "a --published p --at-mask-ratio 0.5",
    ("verify", "published", "inputs"): "a --published p --inputs i.npz",
    ("verify", "published", "images"): "a --published p --images d",
    ("verify", "published", "seed"): "a --published p --seed 3",
    ("verify", "published", "batch"): "a --published p --batch 3",
    ("verify", "published", "unmasked"): "a --published p --unmasked",
    ("verify", "published", "gradients"): "a --published p --gradients",
    ("verify", "published", "require_proof"): "a --published p --require-proof",
    ("verify", "published", "state_key"): "a --published p --state-key model",
    ("verify", "published", "framework_b"): "a --published p --framework-b torch",
    ("verify", "published", "device_b"): "a --published p --device-b cpu",
    ("verify", "published", "python_b"): "a --published p --python-b python",
    ("verify", "published", "mode_b"): "a --published p --mode-b train",
    ("verify", "published", "isolate"): "a --published p --isolate",
    ("verify", "published", "quick"): "a --published p --quick",
    ("verify", "quick", "isolate"): "a b --quick --isolate",
    ("verify", "quick", "certify"): "a b --quick --certify",
    ("verify", "quick", "dtypes"): "a b --quick --dtype float32",
    ("reconstruct", "mask", "mask_ratio"): "a i.png -o o.png --mask m.png --mask-ratio 0.5",
    ("reconstruct", "mask", "seed"): "a i.png -o o.png --mask grid --seed 1",
    ("reconstruct", "inputs", "images"): "a i.png -o o.png --inputs i.npz",
    ("reconstruct", "inputs", "fit"): "a -o o.png --inputs i.npz --fit stretch",
    ("timeline", "inputs", "images"): "a -o o.png --inputs i.npz --images d",
    ("features", "inputs", "folder"): "a d -o o.npz --inputs i.npz",
    ("features", "mask_ratio", None): "a d -o o.npz --mask-ratio 0.5",
    ("sweep", "dry_run", "reports"): "p.yaml --dry-run --report r.html",
    ("sweep", "dry_run", "fail_fast"): "p.yaml --dry-run --fail-fast",
    ("sweep", "to", "assignments"): "p.yaml --to timm --set to=keras",
    ("sweep", "target", "assignments"): "p.yaml --target x --set target=y",
    ("sweep", "verify", "assignments"): "p.yaml --no-verify --set verify=true",
    ("sweep", "workers", "engine"): "p.yaml --engine ray --workers 2",
    ("sweep", "address", None): "p.yaml --address head:6379",
    ("download", "overwrite", None): "mae_pretrain_vit_base --overwrite",
    ("publish", "create_pr", "branch"): "d o/n --create-pr --branch next",
    ("publish", "license_name", None): "d o/n --license mit --license-name x",
    ("publish", "license_link", None): "d o/n --license-link https://x",
}
ALLOWED = {
    "convert": "a b --to keras --task classify --num-labels 10",
    "verify": "a b --framework-a jax --mode-a xla --framework-b torch --mode-b compiled",
    "trace": "a b --images d --seed 3 --batch 4 --mask-ratio 0.5",
    "reconstruct": "a i.png -o o.png -o o.gif --mask block --seed 1 --mask-ratio 0.5",
    "sweep": "p.yaml --to timm --set dtype=float16 --engine ray --address head:6379",
    "publish": "d o/n --create-pr --license other --license-name x",
}


def conflicts_of(command, line):
    """Parse a line and return the outcome of the command's own code, which is replaced."""
    checked = cli.commands[command]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checked, "callback", lambda **_: None)
        return CliRunner().invoke(cli, [command, *line.split()])


def test_every_conflict_in_the_table_has_a_test_call():
    rows = {(name, c.one, c.other) for name, rows in CONFLICTS.items() for c in rows}
    assert rows == set(CALLS)


@pytest.mark.parametrize("row", CALLS, ids=lambda row: " ".join(map(str, row)))
def test_contradicting_options_are_refused_in_one_sentence(row):
    result = conflicts_of(row[0], CALLS[row])
    assert result.exit_code == 2
    (sentence,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    why = next(c.why for c in CONFLICTS[row[0]] if (c.one, c.other) == row[1:])
    assert sentence.endswith(why)
    parameters = {p.name: p for p in cli.commands[row[0]].params}
    for name in filter(None, row[1:]):
        parameter = parameters[name]
        if isinstance(parameter, click.Option):
            names = {*parameter.opts, *parameter.secondary_opts}
            assert any(word in names for word in sentence.replace(":", "").split()), name


@pytest.mark.parametrize("command", ALLOWED)
def test_compatible_options_are_accepted(command):
    result = conflicts_of(command, ALLOWED[command])
    assert (result.exit_code, result.output) == (0, "")


def test_new_head_is_refused_for_a_task_without_a_head(case):
    for task in ("encoder", "pretrain"):
        with pytest.raises(ConfigurationError, match=f"needs the task classify, not {task}"):
            with_new_head(None, 10, task)
