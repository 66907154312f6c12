"""No file is recognised as another family: every golden and case file, every family."""

import json

import pytest
from paths import DATA, GOLDEN

from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.checkpoint.recognition import recognise
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.errors import ConfigurationError, LayoutError
from mae_convert.families import families
from mae_convert.families.checkpoint_options import Flags
from mae_convert.formats import open_container

FILES = ("checkpoint.pth", "model.safetensors", "tf_model.h5")
VIDEOS = ("videomae", "mae_st", "prithvi")
HEADS = Flags(num_attention_heads=4, decoder_num_attention_heads=3)


def files():
    """Yield every golden and case file, with the family that its folder's name begins with."""
    for folder in sorted(path for path in GOLDEN.iterdir() if path.name != "keys"):
        name = next((f for f in VIDEOS if folder.name.startswith(f)), "mae")
        for file in FILES:
            if (folder / file).exists():
                whole = file != "checkpoint.pth" and (folder / "config.json").exists()
                yield pytest.param(folder if whole else folder / file, name, id=folder.name)
    for folder in sorted((DATA / "cases").iterdir()):
        for path in sorted(folder.iterdir()):
            if path.suffix in (".pth", ".ckpt"):
                yield pytest.param(path, "mae", id=f"{folder.name}/{path.name}")
        if (folder / "config.json").exists():
            yield pytest.param(folder, "mae", id=folder.name)


def accepting(shapes):
    """Return the families of which a layout fits names and shapes."""
    layouts = set()
    for name in families():
        try:
            recognise(shapes, explain=False, family=name)
        except (LayoutError, ConfigurationError):
            continue
        layouts.add(name)
    return layouts


@pytest.mark.parametrize(("path", "family"), list(files()))
def test_file_is_recognised_as_its_family_only(path, family):
    checkpoint = open_checkpoint(path, incomplete=True)
    assert checkpoint.family.name == family
    tensors = checkpoint.container.tensors
    used = {rule.external: tensors[rule.external].shape for rule in checkpoint.rules}
    assert accepting(used) == {family}
    stored = {name: tensor.shape for name, tensor in open_container(path).tensors.items()}
    assert accepting(stored) <= {family}


@pytest.mark.parametrize("path", sorted((GOLDEN / "keys").glob("*.json")), ids=lambda p: p.stem)
def test_official_files_of_the_image_mae_are_not_of_another_family(path):
    shapes = {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}
    assert accepting(shapes) == {"mae"}


@pytest.mark.parametrize("case", VIDEOS)
def test_written_files_are_recognised_as_their_family_only(tmp_path, case):
    folders = [p for p in GOLDEN.iterdir() if p.name.startswith(case)]
    for number, folder in enumerate(f for f in folders if (f / "checkpoint.pth").exists()):
        source = open_checkpoint(folder / "checkpoint.pth", HEADS, incomplete=True)
        for layout in source.family.layouts:
            if layout == "transformers" and source.task == "encoder":
                continue
            suffix = {"keras": ".weights.h5", "transformers": ""}.get(layout, ".safetensors")
            target = tmp_path / f"{number}-{layout}{suffix}"
            execute(plan_conversion(source, target, layout))
            written = {n: t.shape for n, t in open_container(target).tensors.items()}
            assert accepting(written) == {case}, (folder.name, layout)
