"""The guide's blocks, run one after the other as its reader would."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_state import Account

ROOT = Path(__file__).parents[1]
DATA = ROOT / "mae_convert/data/demo"
TOKEN = "hf_theTokenOfSomeone"
SECTION = re.compile(r"^## (.*)$", re.MULTILINE)
BLOCK = re.compile(r"^```(sh|python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXPECTED = {
    "1": ["facebook", "PASSED and proven", "PUBLISHED: 8 files"],
    "2": ["(1, 144, 192)", "PASSED"],
    "3": ["accuracy on digits"],
    "4": ["PASSED and proven"],
    "5": ["both.png", "400 pictures, 160 features each, 10 labels", "nearest neighbours name"],
}


def sections():
    """The text of each numbered section, by its number."""
    _, *parts = SECTION.split((ROOT / "docs/guide.md").read_text(encoding="utf-8"))
    return {title[0]: text for title, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    shutil.copy(DATA / "checkpoint.pth", folder / "mae.pth")
    (folder / "photos").mkdir()
    for path in DATA.glob("*.jpg"):
        shutil.copy(path, folder / "photos")
    return folder


@pytest.fixture
def environment(hub, tmp_path):
    hub.state.accounts[TOKEN] = Account("someone")
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_XET": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


@pytest.mark.slow
@pytest.mark.parametrize("number", sorted(EXPECTED))
def test_every_block_does_what_it_says(number, folder, environment):
    printed = ""
    for language, block in BLOCK.findall(sections()[number]):
        if language == "yaml":
            step = yaml.safe_load(block)["jobs"]["parity"]["steps"][-1]
            action = step["uses"].partition("/.github/")[2].partition("@")[0]
            inputs = yaml.safe_load((ROOT / ".github" / action / "action.yml").read_text())
            assert step["with"].keys() <= inputs["inputs"].keys()
            continue
        program = ["sh", "-euc", block] if language == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(
            program, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        printed += done.stdout
    for words in EXPECTED[number]:
        assert words in printed, printed
