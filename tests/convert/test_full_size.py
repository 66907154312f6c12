"""Random checkpoints of official sizes are converted and verified: slow, see scripts/test-slow."""

import resource

import pytest
from full_size import write_random_checkpoint

pytestmark = pytest.mark.slow


# The official models of these shapes have these heads, but a random file is not one of them.
HEADS = {
    "visualize_vit_base": ["--num-heads", "12", "--decoder-num-heads", "16"],
    "pretrain_vit_base": ["--num-heads", "12"],
    "visualize_vit_large": ["--num-heads", "16", "--decoder-num-heads", "16"],
}


@pytest.mark.parametrize("which", HEADS)
def test_a_full_size_checkpoint_is_converted_and_proven(run, tmp_path, which):
    source = tmp_path / "source.pth"
    write_random_checkpoint(which, source)
    for layout in ("transformers", "transformers-tf"):
        target = tmp_path / layout
        assert run("convert", source, target, "--to", layout, *HEADS[which]).status == 0
        result = run("verify", source, target, *HEADS[which], "--require-proof", "--json")
        assert result.status == 0, result.out[-2000:] + result.err
        assert run("convert", target, tmp_path / "back.pth", "--to", "facebook").status == 0
        assert run("diff", source, tmp_path / "back.pth", *HEADS[which]).status == 0
        (tmp_path / "back.pth").unlink()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"{which}: peak memory of the largest child {peak:.1f} GB")
