"""Compare the time of ``mae-convert features`` with DataLoader loops of other libraries."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench_conversions import PROGRAM, converted
from bench_measure import Run, by_turns, median, ratio, require, run

SIZE = (500, 375)
"""Width and height of the images; many photographs in ImageNet have this size."""

TRANSFORMERS = """
import sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import ViTMAEModel

class Images(Dataset):
    def __init__(self, folder):
        self.paths = sorted(Path(folder).glob("*.jpg"))
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        image = Image.open(self.paths[index]).convert("RGB")
        image = image.resize((side, side), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, np.float32) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)

checkpoint, folder, workers, output = sys.argv[1:]
model = ViTMAEModel.from_pretrained(checkpoint, mask_ratio=0.0).eval()
side = model.config.image_size
noise = torch.arange((side / model.config.patch_size) ** 2)[None]
tokens, means = [], []
with torch.inference_mode():
    for pixels in DataLoader(Images(folder), batch_size=32, num_workers=int(workers)):
        hidden = model(pixels, noise=noise.expand(len(pixels), -1)).last_hidden_state
        tokens.append(hidden[:, 0].numpy())
        means.append(hidden[:, 1:].double().mean(1).float().numpy())
np.savez(output, cls=np.concatenate(tokens), mean=np.concatenate(means))
"""
TIMM = """
import sys
import numpy as np
import timm
import torch
from timm.data import ImageDataset, create_transform, resolve_model_data_config
from torch.utils.data import DataLoader

checkpoint, folder, workers, output = sys.argv[1:]
model = timm.create_model(f"local-dir:{checkpoint}", pretrained=True).eval()
transform = create_transform(**resolve_model_data_config(model), is_training=False)
images = ImageDataset(folder, transform=transform)
tokens, means = [], []
with torch.inference_mode():
    for pixels, _ in DataLoader(images, batch_size=32, num_workers=int(workers)):
        hidden = model.forward_features(pixels)
        tokens.append(hidden[:, 0].numpy())
        means.append(hidden[:, 1:].double().mean(1).float().numpy())
np.savez(output, cls=np.concatenate(tokens), mean=np.concatenate(means))
"""
MOST = 1e-3
"""The largest accepted difference between the features that two programs compute."""


def rows(
    size: str, folder: Path, count: int, pairs: int, pythons: dict[str, Path]
) -> Iterator[dict[str, object]]:
    """Compare ``mae-convert features`` with each library of `pythons`; yield a table row for each.

    All programs run a random ViT on the same images, in alternating order.

    Args:
        size: the size of the ViT.
        folder: the folder for the images, the checkpoints and the features.
        count: the number of images.
        pairs: how often each program is run.
        pythons: a Python interpreter for each library.
    """
    images = made_images(folder / "images", count)
    directory = converted(size, folder, "transformers")
    ours = [*PROGRAM, "features", directory, images, "-o", folder / "ours.npz", "--overwrite"]
    commands: dict[str, list[str | Path]] = {"ours": ours}
    if python := pythons.get("transformers"):
        require(python, "torch", "transformers")
        commands["transformers"] = [python, "-c", TRANSFORMERS, directory]
    if python := pythons.get("timm"):
        require(python, "torch", "torchvision", "timm")
        directory = converted(size, folder, "timm", "--task", "encoder")
        commands["timm"] = [python, "-c", TIMM, directory]
    for library in commands.keys() - {"ours"}:
        commands[library] += [images, "2", folder / f"{library}.npz"]
    runs = by_turns({name: partial(run, command) for name, command in commands.items()}, pairs)
    for library in list(commands)[1:]:
        _check_equal(folder / "ours.npz", folder / f"{library}.npz")
        yield _row(count, library, runs["ours"], runs[library])


def _check_equal(ours: Path, theirs: Path) -> None:
    """End the program if the class tokens or the mean features in two files differ."""
    import numpy as np

    with np.load(ours) as a, np.load(theirs) as b:
        if any(not np.abs(a[name] - b[name]).max() < MOST for name in ("cls", "mean")):
            raise SystemExit(f"the features in {ours} and {theirs} differ by more than {MOST}")


def _row(count: int, library: str, ours: list[Run], theirs: list[Run]) -> dict[str, object]:
    a, b = ([each.seconds for each in runs] for runs in (ours, theirs))
    cpu_a, cpu_b = ([each.processor for each in runs] for runs in (ours, theirs))
    return {
        "images": count,
        "DataLoader and": library,
        "features, s": f"{median(a):.1f}",
        "DataLoader, s": f"{median(b):.1f}",
        "theirs / ours": f"{ratio(b, a):.2f}",
        "of processor time": f"{ratio(cpu_b, cpu_a):.2f}",
        "memory, GB": f"{median(each.anonymous for each in ours) / 1e9:.1f}",
        "theirs, GB": f"{median(each.anonymous for each in theirs) / 1e9:.1f}",
    }


def made_images(folder: Path, count: int) -> Path:
    """Write `count` JPEG images of smooth random colours with noise; return their folder."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), np.int16)
        noisy = (smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number:05}.jpg", quality=90)
    for extra in sorted(folder.glob("*.jpg"))[count:]:
        extra.unlink()
    return folder
