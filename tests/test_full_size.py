"""Random checkpoints of the official sizes go the whole way: slow, see scripts/test-slow."""

import resource

import pytest
from full_size import write_random_checkpoint

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "which", ["visualize_vit_base", "pretrain_vit_base", "visualize_vit_large"]
)
def test_a_full_size_checkpoint_is_converted_and_proven(run, tmp_path, which):
    source = tmp_path / "source.pth"
    write_random_checkpoint(which, source)
    for layout in ("transformers", "transformers-tf"):
        target = tmp_path / layout
        assert run("convert", source, target, "--to", layout).status == 0
        result = run("verify", source, target, "--require-proof", "--json")
        assert result.status == 0, result.out[-2000:] + result.err
        assert run("convert", target, tmp_path / "back.pth", "--to", "facebook").status == 0
        assert run("diff", source, tmp_path / "back.pth").status == 0
        (tmp_path / "back.pth").unlink()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"{which}: peak memory of the largest child {peak:.1f} GB")
