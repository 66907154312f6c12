"""Video models for other image sizes and numbers of frames: converted, loaded and verified."""

import numpy as np
import pytest
from paths import GOLDEN

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.changes import Geometry
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError
from mae_convert.families.checkpoint_options import Flags
from mae_convert.formats.tensor import LazyTensor
from mae_convert.formats.write import write_file
from mae_convert.layouts.table import external_shapes
from mae_convert.runtime import load_model
from mae_convert.runtime.sides import Side
from mae_convert.verify.verification import verify
from reference_models.positions import spacetime_position_embedding

PRITHVI, MAE_ST, VIDEOMAE = "prithvi_v2_tl_tiny", "mae_st_pretrain_tiny", "videomae_pretrain_tiny"
FLAGS = {
    PRITHVI: Flags(num_attention_heads=4, decoder_num_attention_heads=3),
    MAE_ST: Flags(num_attention_heads=4, decoder_num_attention_heads=3),
    VIDEOMAE: Flags(num_attention_heads=4, decoder_num_attention_heads=3, image_size=32),
}
ARGUMENTS = {"num_heads": 4, "decoder_num_heads": 3}
TORCH = Side("torch")


def original(case):
    return open_checkpoint(GOLDEN / case / "checkpoint.pth", FLAGS[case])


def converted(source, path, geometry, **options):
    report = execute(plan_conversion(source, path, "original", geometry=geometry, **options))
    return open_checkpoint(path), report


CHANGES = {
    "size": (Geometry((48, 24)), ["image_size"]),
    "frames": (Geometry(num_frames=6), ["num_frames"]),
    "both": (Geometry((24, 40), num_frames=2), ["num_frames", "image_size"]),
    "fixed": (Geometry((48, 24), sincos_positions=True), ["image_size"]),
}
RUNS = [
    *((PRITHVI, change) for change in CHANGES),
    (MAE_ST, "size"),
    *((VIDEOMAE, change) for change in ("size", "frames", "both")),
]


@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize(("case", "change"), RUNS)
def test_a_declared_change_is_verified(tmp_path, case, change):
    source, (geometry, steps) = original(case), CHANGES[change]
    target, report = converted(source, tmp_path / "a.pth", geometry)
    assert [step["step"] for step in report["steps"]] == steps
    verdict = verify(source, target, TORCH, TORCH)
    assert verdict.passed, verdict.failed()
    model = target.configuration.model
    assert model.image_hw == (geometry.image_size or (32, 32))
    assert model.num_frames == (geometry.num_frames or source.configuration.model.num_frames)


@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize("options", [{"cls_embed": True}, {"cls_embed": False}])
def test_joint_positions_are_resampled_per_time_step(tmp_path, options):
    path = tmp_path / "joint.pth"
    source = original(MAE_ST)
    family, layout = source.family, source.family.layout("original")
    fields = {**source.configuration.model.to_dict(), "sep_pos_embed": False, **options}
    config = family.configuration_class.from_dict(fields)
    shapes = family.schema(config, "pretrain")
    rules = layout.table_for("pretrain").expand(shapes)
    random = np.random.default_rng(0)
    tensors = [
        LazyTensor.from_array(name, random.standard_normal(shape, np.float32))
        for name, shape in external_shapes(rules, shapes).items()
    ]
    write_file(path, "pth", tensors, config={**config.to_dict(), "task": "pretrain"})
    source = open_checkpoint(path, FLAGS[MAE_ST])
    target, _ = converted(source, tmp_path / "a.pth", Geometry((48, 24)))
    assert verify(source, target, TORCH, TORCH).passed
    first = int(options["cls_embed"])
    before, after = (
        checkpoint.tensors["encoder.joint_position_embedding"].load()[0]
        for checkpoint in (source, target)
    )
    assert np.array_equal(before[:first], after[:first])
    assert after.shape == (first + 4 * 6 * 3, 32)


@pytest.mark.usefixtures("forked_children")
def test_another_resampling_than_the_declared_one_fails(tmp_path):
    """TerraTorch aligns corners; the image MAE's resampling is another function."""
    source = original(PRITHVI)
    target, _ = converted(source, tmp_path / "a.pth", Geometry((48, 48)))
    grids, name = ((4, 4), (6, 6)), "encoder.position_embedding"
    from mae_convert.families.position_embeddings import PositionTable, resampled

    other = resampled(source.tensors[name], *grids, PositionTable(times=4)).load()
    stored = {n: t.load() for n, t in target.container.tensors.items()}
    stored["encoder.pos_embed"] = other
    path = tmp_path / "wrong.pth"
    tensors = [LazyTensor.from_array(n, array) for n, array in stored.items()]
    container = target.container
    write_file(path, "pth", tensors, config=container.config, conversion=container.conversion)
    verdict = verify(source, open_checkpoint(path), TORCH, TORCH)
    assert not verdict.passed
    assert name in verdict.suspects


def test_positions_of_new_frames_equal_the_original(tmp_path):
    target, _ = converted(original(PRITHVI), tmp_path / "a.pth", Geometry(num_frames=7))
    for name, width in (("encoder", 32), ("decoder", 48)):
        fixed = spacetime_position_embedding(width, (7, 4, 4)).astype(np.float32)
        assert np.array_equal(target.tensors[f"{name}.position_embedding"].load(), fixed)


def test_load_model_takes_other_sizes_and_frames():
    torch = pytest.importorskip("torch")
    path = GOLDEN / PRITHVI / "checkpoint.pth"
    model = load_model(path, image_size=48, num_frames=2, **ARGUMENTS)
    pixels = torch.zeros(1, 6, 2, 48, 48)
    assert model(pixels).logits.shape == (1, 2 * 6 * 6, 384)
    model = load_model(
        GOLDEN / VIDEOMAE / "checkpoint.pth", num_frames=4, source_image_size=32, **ARGUMENTS
    )
    assert model(torch.zeros(1, 3, 4, 32, 32)).mask.shape == (1, 32)
    assert model.config.num_frames == 4


def test_invalid_geometry_is_refused_in_one_sentence(command, tmp_path):
    flags = ("--num-heads", 4, "--decoder-num-heads", 3)
    for case, options, message in (
        (MAE_ST, ("--num-frames", 16), "learned temporal positions"),
        (
            MAE_ST,
            ("--image-size", 48, "--sincos-positions"),
            "the position embeddings of the family mae_st are learned",
        ),
        (VIDEOMAE, ("--num-frames", 5), "patches are 2 frames long; choose 4 or 6"),
        (PRITHVI, ("--image-size", 50), "do not divide"),
        ("pretrain_tiny", ("--num-frames", 4), "take images, not videos"),
    ):
        path = GOLDEN / case / "checkpoint.pth"
        size = ("--source-image-size", 32) if case == VIDEOMAE else ()
        target = tmp_path / "a.pth"
        result = command("convert", path, target, "--to", "original", *flags, *size, *options)
        assert (result.status, result.err.count("\n")) == (2, 1), result.err
        assert message in result.err
        assert not target.exists()


def test_a_trained_table_is_not_replaced_for_other_frames(tmp_path):
    source = original(PRITHVI)
    stored = {n: t.load() for n, t in source.container.tensors.items()}
    stored["encoder.pos_embed"] = np.ones((1, 65, 32), np.float32)
    path = tmp_path / "trained.pth"
    write_file(path, "pth", [LazyTensor.from_array(n, a) for n, a in stored.items()])
    flags = Flags(4, 3, num_frames=4, image_size=32)
    with pytest.raises(ConfigurationError, match="num_frames=2 would discard trained values"):
        converted(open_checkpoint(path, flags), tmp_path / "a.pth", Geometry(num_frames=2))


@pytest.mark.slow
@pytest.mark.usefixtures("forked_children")
@pytest.mark.parametrize(("case", "change"), RUNS)
def test_keras_computes_the_same_after_the_change(tmp_path, case, change):
    source, (geometry, _) = original(case), CHANGES[change]
    path = tmp_path / "a.weights.h5"
    execute(plan_conversion(source, path, "keras", geometry=geometry))
    verdict = verify(source, open_checkpoint(path), TORCH, Side("tensorflow"))
    assert verdict.passed, verdict.failed()
