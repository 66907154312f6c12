"""A ViT-B is published and downloaded with little memory: slow, see scripts/test-slow."""

import os
import subprocess
import sys

import pytest
from full_size import write_random_checkpoint
from hub_state import Account

pytestmark = pytest.mark.slow

REPO = "someone/vit-b"
BUDGET = 250_000_000  # bytes; the weights are 447 MB


@pytest.fixture(scope="module")
def vit_b(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit-b")
    write_random_checkpoint("visualize_vit_base", folder / "source.pth")
    assert run("convert", folder / "source.pth", folder / "m", "--to", "transformers").status == 0
    (folder / "m" / "reconstruction.png").write_bytes(b"\x89PNG a picture")
    return folder / "m"


# Not ``ru_maxrss``: a child starts with the memory that this process had when it forked.
MEASURED = r"""
import re, sys
from pathlib import Path
from mae_convert.cli.main import main
try:
    main(sys.argv[2:])
finally:
    status = Path("/proc/self/status").read_text()
    Path(sys.argv[1]).write_text(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
"""


def run_measured(arguments, environment, peak):
    """Return exit status and the largest resident set of one process, in bytes.

    Args:
        arguments: the arguments of the command line.
        environment: additional environment variables.
        peak: the path of a file that is written with the size.
    """
    command = [sys.executable, "-c", MEASURED, *map(str, (peak, *arguments))]
    status = subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
    return status, int(peak.read_text()) * 1024


@pytest.mark.parametrize("way", ["one part", "several parts", "xet"])
def test_full_size_weights_are_published_and_downloaded_with_bounded_memory(
    hub, vit_b, tmp_path, way, capsys
):
    hub.state.accounts["hf_x"] = Account("someone")
    hub.part_size = 64_000_000 if way == "several parts" else None
    hub.xet = way == "xet"
    environment = {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path / "home"),
        "MAE_CONVERT_CACHE": str(tmp_path / "own"), "HF_HUB_DISABLE_XET": str(int(way != "xet")),
    }  # fmt: skip
    publish = ["publish", vit_b, REPO, "--license", "mit", "--unverified"]
    status, sent = run_measured(publish, environment, tmp_path / "peak")
    assert status == 0
    status, got = run_measured(["inspect", f"hf://{REPO}"], environment, tmp_path / "peak")
    assert status == 0
    with capsys.disabled():
        print(f"\n{way}: at most {sent / 1e6:.0f} MB to publish, {got / 1e6:.0f} MB to get")
    # hf_xet derives the size of its buffers from the machine's memory.
    assert way == "xet" or max(sent, got) < BUDGET
