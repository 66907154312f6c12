"""The catalog of official checkpoints, their download, and published reference results."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from mae_convert.checkpoint.official_match import file_md5
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.families import official_named
from mae_convert.families.mae import official
from mae_convert.families.mae.family import ImageMAE
from mae_convert.families.mae.official import OFFICIAL, Official, candidates
from mae_convert.verify import reference_results as published
from mae_convert.verify.reference_results import REFERENCE_RESULTS, ReferenceResult, reference_noise

pytestmark = pytest.mark.usefixtures("forked_children")

NAME = "mae_stand_in"


@pytest.fixture
def stand_in(hub, case, monkeypatch):
    """A small file in place of the official ones, at a local server."""
    pretrain = case("pretrain_tiny")
    data = pretrain.checkpoint.read_bytes()
    hub.static["mae/visualize/mae_stand_in.pth"] = data
    facts = pretrain.facts
    from mae_convert.families.checkpoint_options import Flags

    flags = Flags(num_attention_heads=facts["num_heads"],
                  decoder_num_attention_heads=facts["decoder_num_heads"])  # fmt: skip
    model = open_checkpoint(pretrain.checkpoint, flags).configuration.model
    values = {"norm_pix_loss": True, "num_attention_heads": model.num_attention_heads,
             "decoder_num_attention_heads": model.decoder_num_attention_heads}  # fmt: skip
    entry = Official(NAME, "visualize", "pretrain", model, True, "for tests", config=values)
    with_catalog(monkeypatch, entry)
    monkeypatch.setenv("MAE_CONVERT_MIRROR", f"{hub.url}/static/mae")
    return entry


def with_catalog(monkeypatch, entry):
    monkeypatch.setattr(official, "OFFICIAL", (entry,))
    monkeypatch.setattr(ImageMAE, "official", (entry,))


def replaced(monkeypatch, entry, **fields):
    with_catalog(monkeypatch, dataclasses.replace(entry, **fields))


def test_the_catalog_has_the_sizes_of_the_files(golden):
    for path in (golden / "keys").glob("facebook_mae_*.json"):
        name = path.stem.removeprefix("facebook_")
        entry = official_named(name)
        shapes = json.loads(path.read_text()).values()
        assert entry.parameters == sum(math.prod(shape) for shape in shapes)
        assert entry in candidates(entry.model, entry.task)


def test_catalog_shows_which_files_have_a_decoder_and_normalized_pixels(command):
    text = command("catalog").out
    assert "Which one?" in text
    assert all(entry.name in text for entry in OFFICIAL)
    rows = {row["name"]: row for row in command("catalog", "--json").json["official"]}
    assert len(rows) == 12
    assert rows["mae_visualize_vit_base"]["has_decoder"]
    assert rows["mae_visualize_vit_base"]["normalized_pixels"] is False
    assert rows["mae_pretrain_vit_base_full"]["normalized_pixels"] is True
    assert not rows["mae_pretrain_vit_base"]["has_decoder"]
    assert {row["license"] for row in rows.values()} == {"cc-by-nc-4.0"}
    assert rows["mae_finetuned_vit_huge"]["md5_begins_with"] == "2541f2"


def test_an_official_checkpoint_is_downloaded_once_and_its_hash_recorded(
    command, hub, stand_in, case, tmp_path
):
    result = command("download", NAME, "--output", tmp_path / "copy.pth", "--json")
    assert result.status == 0, result.err
    data = case("pretrain_tiny").checkpoint.read_bytes()
    assert (tmp_path / "copy.pth").read_bytes() == data
    assert "on first use" in result.json["trusted"]
    assert result.json["license"] == "cc-by-nc-4.0"
    records = json.loads((tmp_path / "cache" / "downloads.json").read_text())
    assert records[f"{NAME}.pth"]["sha256"] == result.json["sha256"]
    fingerprint = records[f"{NAME}.pth"]["fingerprint"]
    assert fingerprint == result.json["fingerprint"]
    rows = {row["name"]: row for row in command("catalog", "--json").json["official"]}
    assert rows[NAME]["fingerprint"] == {
        "fingerprint": fingerprint,
        "confirmed": result.json["trusted"],
    }
    assert [name for name in rows if rows[name]["fingerprint"]] == [NAME]
    assert fingerprint in command("catalog").out
    assert fingerprint == command("fingerprint", NAME, "--json").json["fingerprint"]
    before = len(hub.seen)
    assert command("download", NAME).out.strip() == str(tmp_path / "cache" / f"{NAME}.pth")
    assert len(hub.seen) == before


def test_official_name_is_a_source_with_configuration_from_the_catalog(command, stand_in, tmp_path):
    result = command("convert", NAME, tmp_path / "model", "--to", "transformers", "--json")
    assert result.status == 0, result.err
    source = result.json["source"]
    assert (source["official"], source["license"]) == (NAME, "cc-by-nc-4.0")
    assert result.json["assumed"]["norm_pix_loss"] == {
        "value": True, "source": "the catalog of official checkpoints",
    }  # fmt: skip
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["norm_pix_loss"] is True


def test_file_with_the_official_md5_keeps_its_licence(
    command, stand_in, case, monkeypatch, tmp_path
):
    pretrain = case("pretrain_tiny")
    shutil.copy(pretrain.checkpoint, tmp_path / "renamed.pth")
    digits = file_md5(tmp_path / "renamed.pth")[:6]
    convert = ["convert", tmp_path / "renamed.pth", tmp_path / "a.pth", "--to", "facebook",
               "--json", "--overwrite", *pretrain.heads]  # fmt: skip
    assert "license" not in command(*convert).json["source"]
    replaced(monkeypatch, stand_in, md5=digits)
    source = command(*convert).json["source"]
    assert (source["official"], source["license"]) == (NAME, "cc-by-nc-4.0")


def test_downloaded_path_is_equivalent_to_the_official_name(command, stand_in, tmp_path):
    path = command("download", NAME).out.strip()
    result = command("convert", path, tmp_path / "a.pth", "--to", "facebook", "--json")
    assert result.status == 0, result.err
    assert result.json["source"]["license"] == "cc-by-nc-4.0"


def test_second_conversion_records_the_first_source(command, stand_in, tmp_path):
    assert command("convert", NAME, tmp_path / "a", "--to", "transformers").status == 0
    second = ["convert", tmp_path / "a", tmp_path / "b.pth", "--to", "facebook", "--json"]
    source = command(*second).json["source"]
    assert source["layout"] == "transformers"
    assert source["made_from"]["official"] == NAME


def test_existing_path_takes_precedence_over_an_official_name(
    command, stand_in, hub, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).write_bytes(b"mine")
    result = command("inspect", NAME)
    assert (result.status, "not a checkpoint" in result.err) == (2, True)
    assert not hub.seen


def test_file_with_another_hash_than_the_official_one_is_refused(
    command, stand_in, monkeypatch, tmp_path
):
    replaced(monkeypatch, stand_in, md5="000000")
    result = command("download", NAME)
    assert result.status == 2
    assert "should begin with 000000" in result.err
    assert not list((tmp_path / "cache").glob("mae*"))


def test_file_that_changed_since_the_first_download_is_refused(
    command, hub, stand_in, case, tmp_path
):
    path = tmp_path / "cache" / f"{NAME}.pth"
    assert command("download", NAME).status == 0
    first = path.read_bytes()
    path.unlink()
    position = "mae/visualize/mae_stand_in.pth"
    hub.static[position] = first[:-1] + b"\x01"
    result = command("inspect", NAME)
    assert result.status == 2
    assert "is not the file that was downloaded on" in result.err
    assert not path.exists()
    hub.static[position] = first
    assert command("inspect", NAME).status == 0


def test_changed_file_in_the_cache_is_detected(command, stand_in, tmp_path):
    assert command("download", NAME).status == 0
    path = tmp_path / "cache" / f"{NAME}.pth"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    result = command("inspect", NAME)
    assert result.status == 2
    assert "is not the file" in result.err


def test_a_web_page_in_place_of_the_file_is_not_trusted(command, hub, stand_in, tmp_path):
    hub.static["mae/visualize/mae_stand_in.pth"] = b"<!DOCTYPE html><html>log in first</html>"
    result = command("download", NAME)
    assert result.status == 2
    assert "web page" in result.err
    assert not (tmp_path / "cache" / "downloads.json").exists()


def test_another_checkpoint_in_place_of_the_file_is_not_trusted(command, hub, stand_in, case):
    hub.static["mae/visualize/mae_stand_in.pth"] = case("encoder_tiny").checkpoint.read_bytes()
    result = command("download", NAME)
    assert result.status == 2


@pytest.mark.parametrize("kind", ["truncate", "drop", "status"])
def test_a_download_that_breaks_is_resumed(command, hub, stand_in, monkeypatch, tmp_path, kind):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.fail("GET /static", kind, after=50_000, status=503)
    assert command("download", NAME).status == 0
    ranges = [seen.headers.get("Range") for seen in hub.seen if "GET /static" in seen.line]
    assert ranges == [None, "bytes=50000-" if kind == "truncate" else None]


def test_a_download_that_was_killed_is_resumed_by_the_next_run(
    command, hub, stand_in, monkeypatch, tmp_path
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.fail("GET /static", "truncate", after=50_000)
    hub.fail("GET /static", "drop", times=100)
    result = command("download", NAME)
    assert result.status == 3
    assert "cannot be reached" in result.err.splitlines()[-1]
    hub.faults.clear()
    before = len(hub.seen)
    assert command("download", NAME).status == 0
    asked = [seen.headers for seen in hub.seen[before:] if "GET /static" in seen.line]
    assert [headers.get("Range") for headers in asked] == ["bytes=50000-"]
    # If the file had changed, the whole file would have been sent.
    assert "If-Range" in asked[0]


def test_a_part_of_an_older_version_is_not_continued(
    command, hub, stand_in, case, monkeypatch, tmp_path
):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / f"{NAME}.pth.partial").write_bytes(b"of an older version")
    (cache / f"{NAME}.pth.partial.etag").write_text('"older"')
    assert command("download", NAME).status == 0
    data = case("pretrain_tiny").checkpoint.read_bytes()
    assert (cache / f"{NAME}.pth").read_bytes() == data


def test_a_download_that_was_killed_at_its_end_is_complete(command, hub, stand_in, case, tmp_path):
    cache = tmp_path / "cache"
    assert command("download", NAME).status == 0
    (cache / f"{NAME}.pth").rename(cache / f"{NAME}.pth.partial")
    tag = next(iter([s for s in hub.seen if "HEAD /static" in s.line]))
    assert tag
    import hashlib

    data = case("pretrain_tiny").checkpoint.read_bytes()
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    (cache / f"{NAME}.pth.partial.etag").write_text(f'"{digest}"')
    before = len(hub.seen)
    assert command("download", NAME).status == 0
    assert not [seen for seen in hub.seen[before:] if seen.line.startswith("GET")]


def test_file_missing_on_the_server_is_reported(command, hub, stand_in):
    hub.static.clear()
    result = command("download", NAME)
    assert result.status == 2
    assert result.err.count("\n") == 1
    assert command("download", "mae_none").status == 2


def test_noise_of_a_published_result_is_generated_as_by_pytorch():
    import torch

    reference = REFERENCE_RESULTS["mae_visualize_vit_base"]
    for patches in (196, 256):
        torch.manual_seed(published.SEED)
        theirs = torch.rand(1, patches).numpy()
        ours = reference_noise(reference, patches)
        assert np.array_equal(np.argsort(ours), np.argsort(theirs))
        assert len(np.unique(ours)) == patches


def test_noise_of_a_published_result_is_generated_as_by_numpy():
    np.random.seed(published.SEED)
    theirs = np.random.uniform(size=(1, 196))
    ours = reference_noise(REFERENCE_RESULTS["facebook/vit-mae-base"], 196)
    assert np.array_equal(np.argsort(ours), np.argsort(theirs))
    assert ours.dtype == np.float32


@pytest.fixture
def published_result(hub, stand_in, case, monkeypatch):
    """A published result for the stand-in, computed by the original model on an image."""
    import io

    import torch
    from PIL import Image

    from reference_models.pytorch import ViTMAEForPreTraining

    colours = np.random.default_rng(5).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(colours).save(stream, "PNG")
    hub.static["picture.png"] = stream.getvalue()
    small = Image.fromarray(colours).resize((32, 32), Image.Resampling.BILINEAR)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = ((np.asarray(small) / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    config = dataclasses.replace(stand_in.model, layer_norm_eps=1e-12)
    model = ViTMAEForPreTraining(config).eval()
    state = torch.load(case("pretrain_tiny").checkpoint, weights_only=False)["model"]
    model.load_state_dict(state)
    torch.manual_seed(published.SEED)
    noise = torch.rand(1, config.num_patches)
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels), noise).logits[0, :3, :3].numpy()
    corner = tuple(tuple(round(float(x), 4) for x in row) for row in logits)
    reference = ReferenceResult(NAME, f"{hub.url}/static/picture.png", "torch", corner, 1e-4, 0.0,
                           1e-12, "this test", image_size=32)  # fmt: skip
    monkeypatch.setattr(published, "REFERENCE_RESULTS", {NAME: reference})
    return reference


def test_checkpoint_is_compared_with_a_published_result(
    command, stand_in, published_result, tmp_path
):
    assert command("convert", NAME, tmp_path / "mine", "--to", "transformers").status == 0
    result = command(
        "verify", tmp_path / "mine", "--published", NAME, "--framework-a", "torch", "--json"
    )
    assert result.status == 0, result.err
    assert 0 < result.json["share_of_allowed"]["float64"] <= 1


def result_with(reference, value):
    """The result of a run whose first value differs."""
    corner = np.array(reference.corner)
    corner[0, 0] = value
    share = {"float64": published.share_of_allowed(corner, reference)}
    return published.ReferenceComparison(reference, NAME, "torch", {"float64": corner}, share)


def test_result_beyond_the_limit_is_not_as_published():
    reference = REFERENCE_RESULTS["facebook/vit-mae-base"]
    near = abs(reference.corner[0][0]) * reference.relative + reference.absolute
    for value, passed in (
        (reference.corner[0][0] + 0.9 * near, True),
        (reference.corner[0][0] - 1.1 * near, False),
        (math.nan, False),
        (math.inf, False),
    ):
        assert result_with(reference, value).passed is passed


def test_other_checkpoint_does_not_have_the_published_result(command, stand_in, monkeypatch, capfd):
    from mae_convert.cli.output.verdict import reference_results as show

    reference = dataclasses.replace(REFERENCE_RESULTS["mae_visualize_vit_base"], source=NAME)
    show(result_with(reference, 0.5))
    assert "NOT AS PUBLISHED" in capfd.readouterr().out
    monkeypatch.setattr(published, "REFERENCE_RESULTS", {NAME: reference})
    monkeypatch.setattr("mae_convert.sources.official_download.get_image", lambda _: None)
    monkeypatch.setattr(published, "compare_with_reference", lambda *_: result_with(reference, 0.5))
    assert command("verify", "--published", NAME).status == 1


def test_model_of_another_task_than_the_published_result_is_refused(command, stand_in, case):
    encoder = case("encoder_tiny")
    result = command("verify", encoder.checkpoint, "--published", "facebook/vit-mae-base",
                     *encoder.heads)  # fmt: skip
    assert result.status in (2, 3)
    assert result.err.count("\n") == 1
    assert command("verify", "--published", "nothing").status == 2
