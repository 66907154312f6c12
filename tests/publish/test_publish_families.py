"""Models of videos and of satellite images are published with cards of their own families."""

import contextlib
import io
import json
import re

import pytest
import yaml
from hub_state import Account
from paths import GOLDEN

pytestmark = pytest.mark.usefixtures("forked_children")

REPO, TOKEN = "someone/my-model", "hf_theTokenOfSomeone"
HEADS = ("--num-heads", 4, "--decoder-num-heads", 3, "--source-image-size", "32x32")
# case, layout, file or directory, licence
CASES = {
    "videomae": ("videomae_pretrain_tiny", "transformers", "model", "cc-by-nc-4.0"),
    "mae_st": ("mae_st_pretrain_tiny", "original", "model/model.safetensors", "cc-by-nc-4.0"),
    "prithvi": ("prithvi_v2_tiny", "keras", "model/model.weights.h5", "apache-2.0"),
}
SAID = {
    "videomae": ("VideoMAE, a masked autoencoder of videos", "@article{tong2022videomae",
                 "Clips of 16 frames of 32 x 32 pixels with 3 channels, patches of 2 x 8 x 8",
                 "from transformers import VideoMAEForPreTraining",
                 "# takes pixel_values (N, T, C, H, W)"),
    "mae_st": ("MAE-ST, a spatio-temporal masked", "@article{feichtenhofer2022masked",
               "Clips of 8 frames of 32 x 32 pixels with 3 channels, patches of 2 x 8 x 8",
               "torch.zeros(1, 3, 8, 32, 32)", "import reference_models.keras"),
    "prithvi": ("Prithvi-EO, a masked autoencoder of time series of satellite images",
                "@article{szwarcman2024prithvi",
                "Clips of 3 frames of 32 x 32 pixels with 6 channels, patches of 1 x 8 x 8",
                "torch.zeros(1, 6, 3, 32, 32)",
                "from reference_models.keras import PrithviForPreTraining"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def account(hub, monkeypatch):
    hub.state.accounts[TOKEN] = Account("someone")
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def model(command, tmp_path):
    """Return the directory of a converted model of a family, and its source."""

    def make(family):
        case, layout, position, _ = CASES[family]
        source = GOLDEN / case / "checkpoint.pth"
        (tmp_path / position).parent.mkdir(exist_ok=True)
        result = command("convert", source, tmp_path / position, "--to", layout, *HEADS)
        assert result.status == 0, result.err
        return tmp_path / "model", source

    return make


@pytest.mark.parametrize("family", CASES)
def test_card_is_specific_to_the_family(hub, command, model, family):
    folder, _ = model(family)
    asked = command("publish", folder, REPO, "--unverified")
    licence = CASES[family][3]
    assert (asked.status, f"pass --license {licence}" in asked.err) == (2, True)
    result = command("publish", folder, REPO, "--unverified", "--license", licence)
    assert result.status == 0, result.err
    card = hub.state.file(REPO, "README.md", "main").decode()
    metadata, text = yaml.safe_load(card.split("---\n")[1]), card.split("---\n", 2)[2]
    assert "pipeline_tag" not in metadata  # a widget of images would be wrong
    assert "vit_mae" not in metadata["tags"]
    assert metadata["license"] == licence
    for word in SAID[family]:
        assert word in text, word
    for wrong in ("he2021masked", "reconstruction.png", "ViTMAE", "timm", "mapped, bit for bit: 0"):
        assert wrong not in text, wrong
    if family == "videomae":
        return
    # The example runs unchanged.
    (code,) = re.findall(r"### PyTorch\n\n```python\n(.*?)```", text, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    shapes = {"mae_st": "torch.Size([1, 64, 192])", "prithvi": "torch.Size([1, 48, 384])"}
    assert printed.getvalue().strip() == shapes[family]


def test_frames_are_prepared_by_transformers_as_before_the_conversion(model):
    folder, _ = model("videomae")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    assert config["image_processor_type"] == "VideoMAEImageProcessor"
    assert (config["size"], config["do_center_crop"]) == ({"shortest_edge": 32}, True)


@pytest.mark.parametrize("task", ["encoder", "classify"])
def test_only_classifiers_have_the_video_classification_widget(command, tmp_path, task):
    case = "videomae_finetune_tiny" if task == "classify" else "videomae_pretrain_tiny"
    source = GOLDEN / case / "checkpoint.pth"
    result = command("convert", source, tmp_path / "m", "--to", "transformers", "--task", task,
                   *(HEADS[:2] + HEADS[4:]))  # fmt: skip
    assert result.status == 0, result.err
    shown = command(
        "publish", tmp_path / "m", REPO, "--unverified", "--license", "mit", "--dry-run"
    )
    assert shown.status == 0, shown.err
    assert ("pipeline_tag: video-classification" in shown.out) == (task == "classify")
    assert "image-" not in shown.out.split("---")[1]


def test_single_file_is_refused_with_instructions_to_publish_it(hub, command, model):
    folder, _ = model("prithvi")
    file = next(folder.glob("*.h5"))
    asked = command("publish", file, REPO, "--license", "apache-2.0")
    assert asked.status == 2
    assert "convert to a file in a new directory, such as model/model.weights.h5" in asked.err
    assert "verify SOURCE model --certify" in asked.err
