"""Features of a folder of images, against a loop over a DataLoader with transformers' class."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench_conversions import checkpoint
from bench_measure import Run, median, ratio, run

SIZE = (500, 375)
"""Width and height of the images, which are those of many photographs in ImageNet."""

LOOP = """
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
        image = image.resize((224, 224), Image.Resampling.BICUBIC)
        pixels = np.asarray(image, np.float32) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)

checkpoint, folder, workers = sys.argv[1:]
model = ViTMAEModel.from_pretrained(checkpoint, mask_ratio=0.0).eval()
noise = torch.arange(196.0)[None]
tokens, means = [], []
with torch.inference_mode():
    for pixels in DataLoader(Images(folder), batch_size=32, num_workers=int(workers)):
        hidden = model(pixels, noise=noise.expand(len(pixels), -1)).last_hidden_state
        tokens.append(hidden[:, 0].numpy())
        means.append(hidden[:, 1:].double().mean(1).float().numpy())
np.savez("features.npz", cls=np.concatenate(tokens), mean=np.concatenate(means))
"""


def rows(folder: Path, count: int, pairs: int) -> Iterator[dict[str, object]]:
    """Yield the row of the table: a random ViT-B and `count` images, in changing order."""
    directory, images = model_directory(folder), _images(folder / "images", count)
    ours = [sys.executable, "-m", "mae_convert", "features", directory, images]
    ours += ["-o", folder / "ours.npz", "--overwrite"]
    theirs = [sys.executable, "-c", LOOP, directory, images, "2"]
    runs: tuple[list[Run], list[Run]] = ([], [])
    for number in range(pairs):
        for which in (0, 1) if number % 2 else (1, 0):
            runs[which].append(run((ours, theirs)[which]))
    a, b = ([each.seconds for each in these] for these in runs)
    cpu_a, cpu_b = ([each.processor for each in these] for these in runs)
    yield {
        "images": count,
        "features, s": f"{median(a):.1f}",
        "DataLoader, s": f"{median(b):.1f}",
        "theirs / ours": f"{ratio(b, a):.2f}",
        "of processor time": f"{ratio(cpu_b, cpu_a):.2f}",
    }


def model_directory(folder: Path) -> Path:
    """Return a directory with a random ViT-B, as transformers loads it, and create it if needed."""
    directory = folder / "base_transformers"
    if not directory.exists():
        source = checkpoint("base", folder)
        convert = [sys.executable, "-m", "mae_convert", "convert", source, directory]
        convert += ["--to", "transformers", "--num-heads", "12", "--decoder-num-heads", "16"]
        subprocess.run(convert, check=True, capture_output=True)
    return directory


def _images(folder: Path, count: int) -> Path:
    """Return a folder of JPEGs: smooth random colours with noise."""
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
