"""Errors have fields, and options are named in the style of the interface that shows them."""

import ast
import pickle
import re
from pathlib import Path

import pytest
from paths import GOLDEN

import mae_convert
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.cli.main import cli
from mae_convert.errors import (
    ConfigurationError,
    LayoutError,
    MaeConvertError,
    Option,
    as_argument,
    as_field,
    as_option,
    from_json,
    join,
    render,
    to_json,
)
from mae_convert.families.checkpoint_options import CHECKPOINT_OPTIONS, Flags, flags_of_arguments
from mae_convert.models.transformers_errors import raising_as_transformers
from mae_convert.sweep.result import error_row

PACKAGE = Path(mae_convert.__file__).parent
STYLES = {
    Option("num_heads"): ("--num-heads", "num_heads=", "num_heads"),
    Option("num_heads", 12): ("--num-heads 12", "num_heads=12", "num_heads: 12"),
    Option("task", "encoder"): ("--task encoder", 'task="encoder"', "task: encoder"),
    Option("state_key", "my ema"): ("--state-key 'my ema'", 'state_key="my ema"',
                                    "state_key: my ema"),
    Option("overwrite", True): ("--overwrite", "overwrite=True", "overwrite: true"),
    Option("norm_pix_loss", False): ("--no-norm-pix-loss", "norm_pix_loss=False",
                                     "norm_pix_loss: false"),
    Option("source_image_size", placeholder="HxW"): ("--source-image-size HxW",
                                                     "source_image_size=HxW",
                                                     "source_image_size: HxW"),
    Option("run_dtype", "tf32"): ("--dtype tf32", 'dtypes="tf32"', "run_dtype: tf32"),
    Option("run_mask_ratio"): ("--mask-ratio", "mask_ratio=", "at_mask_ratio"),
}  # fmt: skip


@pytest.mark.parametrize("option", STYLES)
def test_option_is_named_in_the_style_of_the_interface(option):
    assert tuple(style(option) for style in (as_option, as_argument, as_field)) == STYLES[option]


def test_error_has_separate_message_hint_path_and_option():
    error = LayoutError("two dtypes", hint=("pass ", Option("dtype"), " too"), path=Path("x.pth"))
    assert (error.message, error.hint) == ("two dtypes", "pass dtype= too")
    assert (error.path, error.option) == (Path("x.pth"), "dtype")
    assert str(error) == "two dtypes; pass dtype= too"
    assert error.render(as_option) == "two dtypes; pass --dtype too"


def test_an_error_within_another_keeps_its_fields():
    inner = ConfigurationError("no heads", hint=("give ", Option("num_heads")), path="a.pth")
    outer = ConfigurationError("a.pth: ", inner)
    assert outer.render(as_field) == "a.pth: no heads; give num_heads"
    assert (outer.path, outer.option) == ("a.pth", "num_heads")
    assert (outer.message, outer.hint) == ("a.pth: no heads", "give num_heads=")
    outer = ConfigurationError("a.pth: ", inner, hint="or not")
    assert outer.render(as_field) == "a.pth: no heads; give num_heads; or not"
    assert (outer.path, outer.option) == ("a.pth", "num_heads")


def test_errors_are_complete_after_transfer_from_another_process():
    error = MaeConvertError("no ", Option("task", "encoder"), hint="choose another", path="x")
    again = pickle.loads(pickle.dumps(error))
    assert again.render(as_option) == "no --task encoder; choose another"
    assert (again.path, again.option, str(again)) == ("x", "task", str(error))
    assert render(from_json(to_json(error)), as_option) == error.render(as_option)
    with pytest.raises(ValueError, match="is not a string, a list or the fields of an Option"):
        from_json('{"nam": "task"}')


def test_texts_are_joined_with_a_separator_between_them():
    assert render(join([Option("seed"), "a", ("b", "c")], " or "), as_option) == "--seed or a or bc"


def test_no_part_of_a_message_can_flood_or_control_a_terminal():
    error = MaeConvertError("x", hint=("\x1b[2J", Option("state_key", "\x1b" * 2000)))
    for style in (as_option, as_argument, as_field):
        assert error.render(style).isprintable()
        assert len(error.render(style)) < 1300


def test_the_same_refusal_on_the_command_line_in_python_and_in_a_sweep(command, tmp_path):
    path = GOLDEN / "pretrain_tiny" / "checkpoint.pth"
    with pytest.raises(ConfigurationError) as refused:
        open_checkpoint(path)
    assert "specify them with num_heads= and decoder_num_heads=, or" in str(refused.value)
    assert (refused.value.option, refused.value.path) == ("num_heads", path)
    assert refused.value.hint.startswith("specify them with num_heads= and")
    row = error_row({"key": "", "source": str(path), "target": None, "layout": None,
                     "settings": {}}, {}, refused.value)  # fmt: skip
    assert "specify them with num_heads and decoder_num_heads, or" in row.error
    shown = command("convert", path, tmp_path / "x.pth", "--to", "facebook").err
    assert "specify them with --num-heads and --decoder-num-heads, or" in shown


def test_errors_of_transformers_kinds_keep_the_fields():
    with pytest.raises(ValueError, match="no heads") as refused, raising_as_transformers():
        raise ConfigurationError("no heads", hint=("give ", Option("num_heads")), path="a.pth")
    assert (refused.value.option, refused.value.path) == ("num_heads", "a.pth")
    assert refused.value.render(as_option) == "no heads; give --num-heads"


def test_options_of_a_checkpoint_are_given_by_either_of_their_names():
    flags = flags_of_arguments({"num_heads": 4, "source_image_size": "32x32"}, "f")
    assert flags == Flags(num_attention_heads=4, image_size=32)
    assert flags_of_arguments({"num_attention_heads": 4}, "f") == Flags(num_attention_heads=4)
    with pytest.raises(TypeError, match="f got num_heads twice"):
        flags_of_arguments({"num_heads": 4, "num_attention_heads": 4}, "f")
    assert [option.name for option in CHECKPOINT_OPTIONS][:2] == ["state_key", "num_heads"]


# What writes options, or commands for a shell: the front end, a child's own arguments, a card's
# examples.
WRITES_OPTIONS = ("cli", "errors/__init__.py", "runtime/worker.py", "runtime/sides.py",
                  "publish/card_usage.py")  # fmt: skip
AN_OPTION = re.compile(r"(?<![\w-])(?<!var\()--[a-z][a-z-]+(?![\w:-])")  # not those of CSS


def texts_of(node):
    """Yield every string of a module, also f-strings, without the commands in backticks."""
    inside = {id(v) for n in ast.walk(node) if isinstance(n, ast.JoinedStr) for v in n.values}
    for part in ast.walk(node):
        if isinstance(part, ast.JoinedStr):
            text = "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in part.values)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            text = "" if id(part) in inside else part.value
        else:
            continue
        yield re.sub(r"`[^`]+`", "", text)


def test_only_the_command_line_writes_options_with_dashes():
    files_with_options = {
        str(path.relative_to(PACKAGE)): option[0]
        for path in sorted(PACKAGE.rglob("*.py"))
        if not str(path.relative_to(PACKAGE)).startswith(WRITES_OPTIONS)
        for text in texts_of(ast.parse(path.read_text()))
        if (option := AN_OPTION.search(text))
    }
    assert files_with_options == {
        "families/mae/relatives/refused.py": "--finetune",  # an option of AdaptFormer
        "sweep/process_pool.py": "--serve",  # an argument of the child process
    }


def test_file_has_the_name_used_by_the_user_in_every_part_of_a_message(tmp_path):
    inner = MaeConvertError(tmp_path / "x.pth", " is empty", hint=("look into ", tmp_path))
    error = LayoutError("no model: ", inner).renamed(tmp_path, "hf://me/mae")
    assert str(error) == "no model: hf://me/mae/x.pth is empty; look into hf://me/mae"
    assert (type(error), inner.path) == (LayoutError, tmp_path / "x.pth")
    assert str(inner).startswith(str(tmp_path))


def test_every_option_that_a_message_names_is_one_of_the_command_line():
    option_names = {name for command in cli.commands.values() for option in command.params
             for name in (*option.opts, *option.secondary_opts)}  # fmt: skip
    named = {
        ast.literal_eval(call.args[0])
        for path in PACKAGE.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Option"
        if call.args and isinstance(call.args[0], ast.Constant)
    }
    assert len(named) > 20
    assert {as_option(Option(name)) for name in named} <= option_names


def test_one_table_maps_tasks_to_classes():
    tables = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for table in ast.walk(ast.parse(path.read_text()))
        if isinstance(table, ast.Dict) and "ViTMAEForPreTraining" in ast.unparse(table)
        if any(isinstance(key, ast.Constant) and key.value == "pretrain" for key in table.keys)
    }
    assert tables == {"families/mae/model_classes.py"}
