"""Declared steps: changes of dtype, channels and size by a conversion, and their verification."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from arrays import FLOAT32_LIMIT, FLOAT64_LIMIT, distance
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.changes import PATCH_EMBEDDING, Geometry, channel_statistics, with_channels
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError, LayoutError, MaeConvertError, OutputError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.formats import write_file
from mae_convert.formats.dtypes import DTYPES, all_finite, rounded, rounding_error
from mae_convert.formats.tensor import LazyTensor
from mae_convert.runtime.sides import Side
from mae_convert.verify.arithmetic import mixed_channels, round_half_even
from mae_convert.verify.declared_changes import apply_steps, declared_steps, steps_between
from mae_convert.verify.verification import Options, verify

pytestmark = pytest.mark.usefixtures("forked_children")

HEADS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)
TORCH = (Side("torch"), Side("torch"))


@pytest.fixture
def pretrain(case):
    return open_checkpoint(case("pretrain_tiny").checkpoint, HEADS)


@pytest.fixture
def encoder(case):
    return open_checkpoint(case("encoder_tiny").checkpoint, HEADS)


def converted(source, target, layout="facebook", *, task=None, dtype=None, **geometry):
    """Convert in this process and open what was written."""
    plan = plan_conversion(
        source, target, layout, task=task, dtype=dtype, geometry=Geometry(**geometry)
    )
    execute(plan)
    return open_checkpoint(target)


def in_dtype(checkpoint, path, dtype_of):
    """Write a checkpoint of the original layout whose tensors have the specified dtypes."""
    tensors = [
        # The factor results in values that only float64 can represent.
        LazyTensor.from_array(
            name, rounded(tensor.load().astype(np.float64) * (1 + 1e-12), DTYPES[dtype_of(name)])
        )
        for name, tensor in checkpoint.container.tensors.items()
    ]
    write_file(path, "pth", tensors)
    return open_checkpoint(path, HEADS)


class TestRounding:
    """Rounding is compared with exact rational arithmetic: to the nearest value, ties to even."""

    @settings(max_examples=300, deadline=None)
    @given(
        value=st.floats(allow_nan=False, allow_infinity=False),
        dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
        location=st.sampled_from(["here", "on a tie", "above a tie", "below a tie"]),
    )
    def test_is_to_the_nearest_and_ties_to_even(self, value, dtype, location):
        kind = DTYPES[dtype]
        with np.errstate(over="ignore", under="ignore"):
            value = value if location == "here" else near_tie(value, kind, location)
            ours = rounded(np.array([value]), kind)
            judges = round_half_even(np.array([value]), kind)
        assert ours.tobytes() == judges.tobytes()
        if np.isfinite(ours[0]):
            assert_nearest(value, ours[0], kind)

    def test_is_applied_once_where_ml_dtypes_applies_it_twice(self):
        above_tie = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, 1 + 3 * 2.0**-8 - 2.0**-40])
        assert rounded(above_tie, DTYPES["bfloat16"]).tolist() == [1 + 2.0**-7, 1.0, 1 + 2.0**-7]

    def test_overflows_to_infinity_beyond_the_range(self):
        ends = {"float16": 65520.0, "bfloat16": 2.0**128 - 2.0**119, "float32": 2.0**128 - 2.0**103}
        for dtype, end in ends.items():
            values = np.array([end, np.nextafter(end, 0)])
            for function in (rounded, round_half_even):
                finite = np.isfinite(function(values, DTYPES[dtype]))
                assert finite.tolist() == [False, True], dtype

    def test_error_is_the_largest_of_each_kind(self):
        array = np.array([1 + 2.0**-11, 1e-9, 3.0, 0.0], np.float32)
        error = error_of_rounding(array, "float16")
        assert error == {"absolute": 2.0**-11, "relative": 1.0}  # 1e-9 becomes zero
        assert error_of_rounding(array, "float64") == {"absolute": 0.0, "relative": 0.0}
        assert error_of_rounding(np.zeros((0,)), "float16")["absolute"] == 0.0


def error_of_rounding(array, dtype):
    return rounding_error(array, rounded(array, DTYPES[dtype]))


def near_tie(value, dtype, offset):
    low = rounded(np.array([value]), dtype)
    high = np.nextafter(low, np.array(np.inf, dtype))
    middle = (low.astype(np.float64)[0] + high.astype(np.float64)[0]) / 2
    toward = {"on a tie": middle, "above a tie": math.inf, "below a tie": -math.inf}[offset]
    return float(np.nextafter(middle, toward)) if math.isfinite(middle) else value


def assert_nearest(value, results, dtype):
    infinity = np.array(np.inf, dtype)
    with np.errstate(over="ignore"):
        neighbours = [np.nextafter(results, infinity), np.nextafter(results, -infinity)]
    away = abs(Fraction(float(results)) - Fraction(value))
    for neighbour in neighbours:
        if not np.isfinite(neighbour):
            continue
        other = abs(Fraction(float(neighbour)) - Fraction(value))
        assert away <= other
        is_even = int(results.tobytes()[0]) % 2 == 0
        assert away < other or is_even


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_bits_of_16_bit_floats_show_which_values_are_finite(dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    with np.errstate(invalid="ignore"):  # of signalling NaN
        finite = np.isfinite(every)
    assert all_finite(every[finite].reshape(2, -1)[:, ::2])
    assert all_finite(every[:0])
    assert not any(all_finite(every[at : at + 1]) for at in np.flatnonzero(~finite))


class TestDtypes:
    @pytest.mark.parametrize("given_", DTYPES)
    @pytest.mark.parametrize("expected", DTYPES)
    def test_every_dtype_becomes_every_other(self, pretrain, tmp_path, given_, expected):
        source = in_dtype(pretrain, tmp_path / "source.pth", lambda name: given_)
        report = execute(plan_conversion(source, tmp_path / "out", "transformers", dtype=expected))
        step = {"step": "dtype", "from": [given_], "to": expected}
        assert report["steps"] == ([] if given_ == expected else [step])
        target = open_checkpoint(tmp_path / "out")
        for name, tensor in target.tensors.items():
            before = source.tensors[name].load().astype(np.float64)
            assert tensor.dtype == DTYPES[expected]
            assert tensor.load().tobytes() == round_half_even(before, tensor.dtype).tobytes(), name
        errors = [t["rounding"] for t in report["tensors"].values() if "rounding" in t]
        narrower = not np.can_cast(DTYPES[given_], DTYPES[expected])
        assert len(errors) == (0 if given_ == expected else len(target.tensors))
        assert any(error["absolute"] > 0 for error in errors) == narrower
        stored = json.loads((tmp_path / "out" / "conversion.json").read_text())
        assert stored["tensors"] == report["tensors"]

    def test_fused_tensor_reports_the_largest_error_of_its_parts(self, case, tmp_path):
        golden = open_checkpoint(case("pretrain_tiny").checkpoint, HEADS)
        apart = converted(golden, tmp_path / "apart", "transformers")
        half = plan_conversion(apart, tmp_path / "half.pth", "facebook", dtype="float16")
        errors = execute(half)["tensors"]["blocks.0.attn.qkv.weight"]["rounding"]
        parts = [
            error_of_rounding(
                golden.tensors[f"encoder.blocks.0.attention.{p}.weight"].load(), "float16"
            )
            for p in "qkv"
        ]
        assert errors == {k: max(part[k] for part in parts) for k in ("absolute", "relative")}

    def test_mixed_dtypes_pass_unchanged_and_can_be_made_one(self, pretrain, tmp_path):
        kinds = list(DTYPES)
        mixed = in_dtype(pretrain, tmp_path / "mixed.pth", lambda name: kinds[len(name) % 4])
        back = converted(converted(mixed, tmp_path / "there", "transformers"), tmp_path / "b.pth")
        for name, tensor in mixed.tensors.items():
            assert tensor.dtype == back.tensors[name].dtype
            assert tensor.load().tobytes() == back.tensors[name].load().tobytes(), name
        report = execute(plan_conversion(mixed, tmp_path / "one.npz", "facebook", dtype="float32"))
        others = sorted(set(kinds) - {"float32"})
        assert report["steps"] == [{"step": "dtype", "from": others, "to": "float32"}]
        same = [n for n, t in mixed.container.tensors.items() if t.dtype == np.float32]
        assert same
        assert not any("rounding" in report["tensors"][name] for name in same)

    def test_tensors_of_different_dtypes_are_not_fused_without_the_option(self, pretrain, tmp_path):
        there = tmp_path / "there"
        converted(pretrain, there, "transformers")
        tensors = load_file(there / "model.safetensors")
        query = "vit.encoder.layer.1.attention.attention.query.weight"
        tensors[query] = tensors[query].astype(np.float64)
        save_file(tensors, there / "model.safetensors", metadata={"format": "pt"})
        odd = open_checkpoint(there)
        with pytest.raises(
            LayoutError, match=r"blocks\.1\.attn\.qkv.*float32, float64.*pass dtype="
        ):
            plan_conversion(odd, tmp_path / "m.pth", "facebook")
        assert converted(odd, tmp_path / "m.pth", dtype="float64").task == "pretrain"

    def test_hdf5_refuses_bfloat16_and_suggests_another_dtype(self, pretrain, tmp_path):
        source = in_dtype(pretrain, tmp_path / "source.pth", lambda name: "bfloat16")
        with pytest.raises(OutputError, match='dtype="float32"'):
            converted(source, tmp_path / "tf", "transformers-tf")
        converted(source, tmp_path / "tf", "transformers-tf", dtype="float32")

    def test_overflow_names_the_tensor_and_leaves_no_file(self, pretrain, tmp_path):
        tensors = {n: t.load().copy() for n, t in pretrain.container.tensors.items()}
        tensors["decoder_norm.bias"][2] = 65520
        save_file(tensors, tmp_path / "large.safetensors")
        source = open_checkpoint(tmp_path / "large.safetensors", HEADS)
        with pytest.raises(MaeConvertError, match=r"decoder_norm\.bias .* dtype= overflows"):
            converted(source, tmp_path / "half", "transformers", dtype="float16")
        assert not (tmp_path / "half").exists()
        converted(source, tmp_path / "half", "transformers", dtype="bfloat16")

    def test_command_reports_the_tensor_with_the_largest_error(self, command, case, tmp_path):
        golden = case("pretrain_tiny")
        expected = ["convert", golden.checkpoint, tmp_path / "half.pth", "--to", "facebook"]
        result = command(*expected, "--dtype", "bfloat16", *golden.heads)
        assert "largest relative error" in result.out
        stored = open_checkpoint(golden.checkpoint, HEADS).container.tensors
        errors = {n: error_of_rounding(t.load(), "bfloat16") for n, t in stored.items()}
        worst = max(errors, key=lambda name: errors[name]["absolute"])
        assert f"in {worst}" in result.out
        back = command(
            "convert", tmp_path / "half.pth", tmp_path / "m", "--to", "transformers",
            "--dtype", "float32",
        )  # fmt: skip
        assert "every value is exact" in back.out
        assert "can be undone" in back.out


class TestChannels:
    @pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 2), (3, 4), (3, 7), (1, 3), (4, 6)])
    def test_follow_the_convention(self, old, new):
        weight = np.random.default_rng(1).standard_normal((5, old, 2, 3)).astype(np.float32)
        tensor = with_channels(LazyTensor.from_array("w", weight), new)
        if new == 1:
            expected = weight.astype(np.float64).sum(1, keepdims=True)
        else:
            copies = [weight[:, index % old].astype(np.float64) for index in range(new)]
            expected = np.stack(copies, axis=1) * old / new
        assert tensor.shape == expected.shape
        assert np.array_equal(tensor.load(), expected.astype(np.float32))
        assert distance(mixed_channels(weight.astype(np.float64), new), expected) < FLOAT64_LIMIT

    def test_means_and_deviations_follow_their_channels(self):
        mean = (0.485, 0.456, 0.406)
        assert channel_statistics(mean, 5) == (0.485, 0.456, 0.406, 0.485, 0.456)
        assert channel_statistics(mean, 1) == pytest.approx((0.449,))
        assert channel_statistics((0.5,), 3) == (0.5, 0.5, 0.5)

    def test_gray_image_gives_the_same_result_as_three_equal_channels(self, encoder, tmp_path):
        """Weights are summed over channels, so an image with equal channels has the same tokens."""
        grey = converted(encoder, tmp_path / "grey.pth", in_channels=1)
        assert grey.configuration.model.num_channels == 1
        image = torch.randn(2, 1, 32, 32, dtype=torch.float64)
        weights = [
            torch.from_numpy(c.tensors[PATCH_EMBEDDING].load().astype(np.float64))
            for c in (encoder, grey)
        ]
        tokens = torch.nn.functional.conv2d(image.expand(-1, 3, -1, -1), weights[0], stride=8)
        same = torch.nn.functional.conv2d(image, weights[1], stride=8)
        assert distance(same, tokens) < FLOAT32_LIMIT

    def test_channels_and_statistics_are_stored_in_the_target(self, pretrain, tmp_path):
        target = converted(pretrain, tmp_path / "m", "transformers", task="encoder", in_channels=4)
        assert declared_steps(target) == [
            {"step": "task", "from": "pretrain", "to": "encoder"},
            {"step": "in_channels", "from": 3, "to": 4},
        ]
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        images = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
        assert config["num_channels"] == 4
        assert images["image_mean"] == [0.485, 0.456, 0.406, 0.485]
        assert images["image_std"] == [0.229, 0.224, 0.225, 0.229]

    def test_unchanged_number_of_channels_is_not_a_step(self, pretrain, tmp_path):
        target = converted(pretrain, tmp_path / "m.pth", in_channels=3)
        assert declared_steps(target) == []

    def test_decoder_and_selection_of_channels_are_refused(self, pretrain, tmp_path):
        with pytest.raises(ConfigurationError, match='task="encoder"'):
            converted(pretrain, tmp_path / "m.pth", in_channels=1)
        six = converted(pretrain, tmp_path / "six.pth", task="encoder", in_channels=6)
        with pytest.raises(ConfigurationError, match="which of the 6 channels"):
            converted(six, tmp_path / "m.pth", in_channels=4)
        assert not (tmp_path / "m.pth").exists()


class TestHistory:
    def test_chain_of_conversions_records_every_step(self, pretrain, tmp_path):
        one = converted(pretrain, tmp_path / "1", "transformers", image_size=(48, 48))
        two = converted(one, tmp_path / "2.weights.h5", "keras", dtype="float16")
        three = converted(two, tmp_path / "3", "transformers-tf", task="encoder")
        four = converted(three, tmp_path / "4.pth", in_channels=1, image_size=(32, 32))
        kinds = ["image_size", "dtype", "task", "image_size", "in_channels"]
        assert [step["step"] for step in declared_steps(four)] == kinds
        assert steps_between(pretrain, four) == declared_steps(four)
        assert [step["step"] for step in steps_between(two, four)] == kinds[2:]
        assert steps_between(four, four) == []
        for source in (pretrain, one, two, three):
            after = apply_steps(source, steps_between(source, four), four)
            assert after.configuration.model.image_hw == (32, 32)
            for name, tensor in four.tensors.items():
                assert after.tensors[name].load().tobytes() == tensor.load().tobytes(), name

    def test_step_before_a_lost_record_is_not_applied_twice(self, pretrain, tmp_path):
        one = converted(pretrain, tmp_path / "1", "transformers", image_size=(48, 48))
        two = converted(one, tmp_path / "2.pth", image_size=(64, 64))
        (tmp_path / "1" / "conversion.json").unlink()
        one = open_checkpoint(tmp_path / "1")
        assert declared_steps(one) == []
        after = apply_steps(one, steps_between(one, two), two)
        assert after.configuration.model.image_hw == (64, 64)

    @pytest.mark.parametrize(
        "step",
        [
            {"step": "distilled"},
            {"step": "dtype", "from": ["float32"], "to": "float8"},
            {"step": "image_size", "from": [32, 32], "to": 48, "positions": "bicubic"},
            {"step": "image_size", "from": [32, 32], "to": [48, 50], "positions": "bicubic"},
            {"step": "image_size", "from": [32, 32], "to": [48, 48], "positions": "linear"},
            {"step": "in_channels", "from": 3},
        ],
    )
    def test_invalid_record_is_refused_in_one_sentence(self, pretrain, tmp_path, step):
        converted(pretrain, tmp_path / "m", "transformers")
        record = json.loads((tmp_path / "m" / "conversion.json").read_text())
        (tmp_path / "m" / "conversion.json").write_text(json.dumps({**record, "steps": [step]}))

        def judged():
            target = open_checkpoint(tmp_path / "m")
            return apply_steps(pretrain, steps_between(pretrain, target), target)

        with pytest.raises(MaeConvertError):
            judged()


FAULTS = {
    "another kernel": (
        "mae_convert.families.position_embeddings.SHARPNESS",
        -0.5,
        {"image_size": (48, 48)},
    ),
    "channels not scaled": (
        "mae_convert.convert.changes.with_channels",
        lambda weight, count: LazyTensor.from_array(
            weight.name, np.tile(weight.load(), (1, 2, 1, 1))[:, :count]
        ),
        {"in_channels": 4},
    ),
    "cut off instead of rounded": (
        "mae_convert.formats.dtypes.rounded",
        lambda array, dtype: (array.view(np.uint32) & 0xFFFF0000).view(np.float32).astype(dtype),
        {"dtype": "bfloat16"},
    ),
}


class TestVerdict:
    def verdict(self, a, b, sides=TORCH):
        return verify(a, b, *sides, Options(dtypes=("float64",)))

    def test_sizes_channels_and_dtype_together_are_proven(self, case, tmp_path):
        source = open_checkpoint(case("finetune_gap_tiny").checkpoint, HEADS)
        target = converted(
            source, tmp_path / "m.weights.h5", "keras",
            image_size=(24, 40), in_channels=5, dtype="float16",
        )  # fmt: skip
        verdict = verify(source, target, Side("torch"), Side("tensorflow"))
        assert verdict.passed, verdict.failed()
        assert verdict.proven
        assert [step["step"] for step in verdict.steps] == ["image_size", "in_channels", "dtype"]
        # The reported effect is that of rounding, because models of other sizes have no common
        # results.
        assert 1e-6 < verdict.effects["logits"] < 1e-2

    def test_different_random_images_are_not_reported_as_a_change(self, pretrain, tmp_path):
        target = converted(pretrain, tmp_path / "m.pth", image_size=(16, 64))
        verdict = self.verdict(pretrain, target)
        assert verdict.passed, verdict.failed()
        assert verdict.effects == {}

    def test_bfloat16_is_compared_with_a_source_in_hdf5(self, pretrain, tmp_path):
        source = converted(pretrain, tmp_path / "m.weights.h5", "keras")
        target = converted(source, tmp_path / "m.pth", dtype="bfloat16")
        verdict = self.verdict(source, target, (Side("tensorflow"), Side("torch")))
        assert verdict.passed, verdict.failed()
        assert verdict.proven

    @pytest.mark.parametrize("fault", ["antialias", "shifted", "class token", "transposed grid"])
    def test_differently_resampled_positions_are_detected(self, pretrain, tmp_path, fault):
        target = converted(pretrain, tmp_path / "m.npz", image_size=(16, 24))
        tensors = {n: t.load().copy() for n, t in target.container.tensors.items()}
        wrong = otherwise(pretrain.tensors["encoder.position_embedding"].load(), fault)
        assert wrong.shape == tensors["pos_embed"].shape
        tensors["pos_embed"] = wrong.astype(np.float32)
        stored = [LazyTensor.from_array(name, array) for name, array in tensors.items()]
        container = target.container
        write_file(
            tmp_path / "wrong.npz", "npz", stored,
            config=dict(container.config), conversion=dict(container.conversion),
        )  # fmt: skip
        target = open_checkpoint(tmp_path / "wrong.npz")
        after = apply_steps(pretrain, steps_between(pretrain, target), target)
        differing = [
            name
            for name, tensor in after.tensors.items()
            if tensor.load().tobytes() != target.tensors[name].load().tobytes()
        ]
        assert differing == ["encoder.position_embedding"]
        if fault == "antialias":  # the smallest of them, through the forward pass too
            verdict = self.verdict(pretrain, target)
            assert not verdict.passed
            assert verdict.suspects[0] == "encoder.position_embedding"
            assert verdict.first_divergence == "encoder.embedding"

    @pytest.mark.parametrize("fault", FAULTS)
    def test_fault_of_the_converter_is_not_repeated_by_the_verification(
        self, encoder, tmp_path, monkeypatch, fault
    ):
        position, wrong, expected = FAULTS[fault]
        changed = {}
        for name in ("right", "wrong"):
            if name == "wrong":
                monkeypatch.setattr(position, wrong)
            target = converted(encoder, tmp_path / f"{name}.pth", **expected)
            after = apply_steps(encoder, steps_between(encoder, target), target)
            changed[name] = sum(
                tensor.load().tobytes() != target.tensors[key].load().tobytes()
                for key, tensor in after.tensors.items()
            )
        assert changed["right"] == 0
        assert changed["wrong"] > 0

    def test_discarded_learned_positions_are_detected(self, case, tmp_path):
        source = open_checkpoint(case("finetune_cls_tiny").checkpoint, HEADS)
        target = converted(source, tmp_path / "m", "transformers", image_size=(48, 48))
        tensors = load_file(tmp_path / "m" / "model.safetensors")
        from reference_models.positions import sincos_position_embedding

        fixed = sincos_position_embedding(32, (6, 6)).astype(np.float32)
        tensors["vit.embeddings.position_embeddings"] = fixed
        save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
        record = (tmp_path / "m" / "conversion.json").read_text()
        (tmp_path / "m" / "conversion.json").write_text(record.replace("bicubic", "sincos"))
        target = open_checkpoint(tmp_path / "m")
        after = apply_steps(source, steps_between(source, target), target)
        name = "encoder.position_embedding"
        assert not np.array_equal(after.tensors[name].load(), target.tensors[name].load())

    def test_a_size_that_is_not_declared_differs_by_shape(self, pretrain, tmp_path):
        target = converted(pretrain, tmp_path / "m", "transformers", image_size=(48, 48))
        (tmp_path / "m" / "conversion.json").unlink()
        verdict = self.verdict(pretrain, target := open_checkpoint(tmp_path / "m"))
        assert not verdict.passed
        assert declared_steps(target) == []
        failed = {check.name for check in verdict.failed()}
        assert {"shape/encoder.position_embedding", "configuration/image_size"} <= failed


def otherwise(embedding, fault):
    """Resample a position embedding of 4 x 4 patches to 2 x 3 in a common way."""
    if fault == "class token":
        return torch.nn.functional.interpolate(
            torch.tensor(embedding).transpose(1, 2), size=7, mode="linear"
        ).transpose(1, 2).numpy()  # fmt: skip
    image = torch.tensor(embedding[:, 1:]).reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    options = {"antialias": {"antialias": True}, "shifted": {"align_corners": True}}
    size = (3, 2) if fault == "transposed grid" else (2, 3)
    image = torch.nn.functional.interpolate(
        image, size=size, mode="bicubic", **options.get(fault, {})
    )
    tokens = image.permute(0, 2, 3, 1).flatten(1, 2).numpy()
    return np.concatenate([embedding[:, :1], tokens], axis=1)


class TestWideGrid:
    """Models with positions of 2 x 8 patches; the number of patches does not determine the grid."""

    @pytest.fixture
    def wide(self, pretrain, tmp_path):
        converted(pretrain, tmp_path / "wide.pth", image_size=(16, 64))
        tensors = open_checkpoint(tmp_path / "wide.pth").container.tensors.values()
        write_file(tmp_path / "bare.pth", "pth", tensors)
        return tmp_path / "bare.pth"

    def test_is_inspected_converted_and_compared(self, command, wide, case, tmp_path):
        size = ["--source-image-size", "16x64"]
        heads = case("pretrain_tiny").heads
        seen = command("inspect", wide, "--json", *heads, *size).json
        assert seen["config"]["image_size"] == [16, 64]
        steps = [
            ["convert", wide, tmp_path / "k.weights.h5", "--to", "keras", *heads, *size],
            ["convert", tmp_path / "k.weights.h5", tmp_path / "back.pth", "--to", "facebook"],
            ["diff", wide, tmp_path / "back.pth", *heads, *size],
            ["convert", wide, tmp_path / "b.pth", "--to", "facebook", "--image-size", "32", *heads,
             *size],
            # The target stores its own size; the flag applies to the source.
            ["verify", wide, tmp_path / "b.pth", *heads, *size],
        ]  # fmt: skip
        for step in steps:
            result = command(*step)
            assert result.status == 0, (step, result.out, result.err)
        refused = command("convert", wide, tmp_path / "m", "--to", "transformers", *heads, *size)
        assert (refused.status, "only square images" in refused.err) == (2, True)

    def test_is_not_read_as_square_if_the_size_is_specified(self, command, wide, case, tmp_path):
        size = ["--source-image-size", "16x64"]
        heads = case("pretrain_tiny").heads
        command("convert", wide, tmp_path / "k.weights.h5", "--to", "keras", *heads, *size)
        wrong, stating = ["--source-image-size", "32"], tmp_path / "k.weights.h5"
        assert command("diff", stating, stating, *wrong).status == 2
        assert command("diff", wide, stating, *heads, *wrong).status == 1  # it applies to the first
        result = command("diff", wide, tmp_path / "k.weights.h5", *heads)
        assert result.status == 1
        assert "image_size is 32 in A and (16, 64) in B" in result.out
