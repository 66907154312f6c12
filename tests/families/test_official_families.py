"""The published models of the video families: in the catalog, and as a source of missing fields."""

import re
from dataclasses import replace

import numpy as np
import pytest
from paths import GOLDEN
from PIL import Image

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.errors import CheckpointError, MaeConvertError
from mae_convert.families import families
from mae_convert.families.checkpoint_options import Flags
from mae_convert.families.evidence import Evidence
from mae_convert.runtime import load_model
from mae_convert.runtime.sides import Side
from mae_convert.verify.reference_results_videos import (
    VIDEO_REFERENCE_RESULTS,
    VideoReferenceResult,
    compare_video_with_reference,
)

VIDEOS = ("videomae", "mae_st", "prithvi")
PUBLISHED = [(n, o) for n in VIDEOS for o in families()[n].official if o.where]
# As the table of the authors of MAE-ST has them.
MD5 = {"large": ("edf3a5", "9a9645", "cdbada"), "huge": ("3d7f64", "27495e", "4c4e3c")}


def test_every_published_model_has_a_licence_and_an_address():
    assert len(PUBLISHED) == 13 + 6 + 7
    for name, official in PUBLISHED:
        expected = "apache-2.0" if name == "prithvi" else "cc-by-nc-4.0"
        assert official.license == expected
        assert re.match(r"hf://[\w.-]+/[\w.-]+|https://dl\.fbaipublicfiles\.com/", official.where)
        assert official.md5 is None or re.fullmatch("[0-9a-f]{6}", official.md5)
    addresses = [official.where for _, official in PUBLISHED]
    assert len(set(addresses)) == len(addresses)
    checksums = {o.file: o.md5 for n, o in PUBLISHED if n == "mae_st"}
    assert checksums == {
        f"mae_pretrain_vit_{size}_k{data}.pth": md5
        for size, hashes in MD5.items()
        for data, md5 in zip((400, 600, 700), hashes, strict=True)
    }
    assert not [o.md5 for n, o in PUBLISHED if n != "mae_st" and o.md5]


@pytest.mark.parametrize(
    ("name", "official"), PUBLISHED, ids=[official.where for _, official in PUBLISHED]
)
def test_heads_come_from_the_published_model_of_the_same_shapes(name, official):
    family = families()[name]
    geometry = family.geometry(family.schema(official.model, official.task))
    evidence = Evidence(geometry, {}, {}, "", {}, {}, {}, "original")
    values = [f.value for f in family.of_official("num_attention_heads", official.task, evidence)]
    assert set(values) == {official.model.num_attention_heads}
    other = {**geometry, "num_hidden_layers": geometry["num_hidden_layers"] + 1}
    assert not family._has_geometry(official.model, official.task, other)


def test_files_with_the_shapes_of_a_published_one_are_candidates():
    family = families()["mae_st"]
    large = family.official[0].model
    assert [o.file for o in family.candidates(large, "pretrain")] == [
        f"mae_pretrain_vit_large_k{data}.pth" for data in (400, 600, 700)
    ]
    assert family.candidates(large, "encoder") == []


def test_the_catalog_lists_them(command):
    shown, document = command("catalog"), command("catalog", "--json")
    for _, official in PUBLISHED:
        assert official.where in shown.out
    rows = {row["where"]: row for row in document.json["further"]}
    assert rows.keys() == {official.where for _, official in PUBLISHED}
    base = rows["hf://MCG-NJU/videomae-base"]
    assert (base["parameters"], base["license"]) == (94_210_944, "cc-by-nc-4.0")


@pytest.mark.usefixtures("forked_children")
def test_a_published_result_of_a_classifier_of_videos_is_compared(tmp_path):
    """The values are those of the PyTorch model on frames that are prepared here by other code."""
    torch = pytest.importorskip("torch")
    path = GOLDEN / "videomae_finetune_tiny" / "checkpoint.pth"
    checkpoint = open_checkpoint(path, Flags(num_attention_heads=4, image_size=32))
    frames = np.random.default_rng(0).integers(0, 256, (16, 40, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "clip.npy", frames)
    prepared = []
    for frame in frames:
        image = Image.fromarray(frame).resize((int(32 * 64 / 40), 32), Image.Resampling.BILINEAR)
        left = (image.width - 32) // 2
        pixels = np.asarray(image.crop((left, 0, left + 32, 32))).transpose(2, 0, 1)
        prepared.append((pixels / 255 - 0.5) / 0.5)
    model = load_model(path, num_heads=4, source_image_size=32, dtype="float64")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5 if name == "fc_norm" else 1e-12
    with torch.no_grad():
        logits = model(torch.from_numpy(np.stack(prepared, axis=1)[None])).logits[0, :3].tolist()
    reference = VideoReferenceResult("stand-in", (tuple(logits),), image_size=32)
    result = compare_video_with_reference(
        checkpoint, reference, tmp_path / "clip.npy", None, Side("torch")
    )
    assert result.passed, result.share
    wrong = replace(reference, corner=((logits[0] + 2e-4, *logits[1:]),))
    assert not compare_video_with_reference(
        checkpoint, wrong, tmp_path / "clip.npy", None, Side("torch")
    ).passed
    np.save(tmp_path / "clip.npy", frames[:4])
    with pytest.raises(CheckpointError, match="16 frames"):
        compare_video_with_reference(
            checkpoint, reference, tmp_path / "clip.npy", None, Side("torch")
        )
    other = open_checkpoint(GOLDEN / "mae_st_finetune_tiny" / "checkpoint.pth", Flags(4))
    with pytest.raises(MaeConvertError, match="family mae_st"):
        compare_video_with_reference(other, reference, tmp_path / "clip.npy", None, Side("torch"))


@pytest.mark.usefixtures("forked_children")
def test_a_published_result_of_a_pretraining_model_is_compared(tmp_path):
    torch = pytest.importorskip("torch")
    case = GOLDEN / "videomae_pretrain_tiny"
    flags = Flags(4, 3, image_size=32, mask_ratio=0.75)
    checkpoint = open_checkpoint(case / "checkpoint.pth", flags)
    frames = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "clip.npy", frames)
    mask = torch.from_numpy(np.load(case / "golden.npz")["mask"])[:1].clone()
    torch.save(mask, tmp_path / "mask.pt")
    model = load_model(checkpoint, dtype="float64")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5 if name == "decoder.norm" else 1e-12
    pixels = torch.from_numpy((frames.transpose(3, 0, 1, 2)[None] / 255 - 0.5) / 0.5)
    with torch.no_grad():
        corner = model(pixels, mask.float()).logits[0, :3, :3].tolist()
    reference = VideoReferenceResult(
        "stand-in", tuple(map(tuple, corner)), "pretrain", image_size=32
    )
    files = (tmp_path / "clip.npy", tmp_path / "mask.pt")
    result = compare_video_with_reference(checkpoint, reference, *files, Side("torch"))
    assert result.passed, result.share
    torch.save(~mask, tmp_path / "mask.pt")
    with pytest.raises(CheckpointError, match="128 patches that removes 96"):
        compare_video_with_reference(checkpoint, reference, *files, Side("torch"))


def test_published_results_are_of_models_of_the_catalog(command):
    addresses = {official.where for name, official in PUBLISHED if name == "videomae"}
    assert len(VIDEO_REFERENCE_RESULTS) == 13
    assert {reference.source for reference in VIDEO_REFERENCE_RESULTS.values()} <= addresses
    result = command("verify", "--published", "MCG-NJU/videomae-nothing")
    assert result.status == 2
    assert "MCG-NJU/videomae-base-finetuned-ssv2" in result.err


def test_published_results_are_found_by_the_url_of_the_model(command, monkeypatch):
    names = []

    def stop(checkpoint, video, *_):
        names.append(video.source)
        raise MaeConvertError("stopped")

    monkeypatch.setattr("mae_convert.sources.official_download.get_array", lambda _: None)
    monkeypatch.setattr(
        "mae_convert.verify.reference_results_videos.compare_video_with_reference", stop
    )
    model = GOLDEN / "videomae_pretrain_tiny_v4"
    for name in ("MCG-NJU/videomae-base", "hf://MCG-NJU/videomae-base"):
        assert command("verify", "--published", name, model).status == 2
    assert names == ["hf://MCG-NJU/videomae-base"] * 2
    output = command("catalog").out
    assert output.count("reference results (verify --published)") == 13
