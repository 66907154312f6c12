#!/usr/bin/env python3
"""Pre-train a masked autoencoder on a folder of images, or continue to train an existing model.

The method follows He et al. 2021 (arXiv:2111.06377, table 8): AdamW with betas (0.9, 0.95) and
weight decay 0.05, a cosine schedule after a warm-up, random resized crops and flips, 75 % of the
patches removed. The learning rate is --blr x images per step / 256.

One process:     python scripts/pretrain.py IMAGES OUTPUT --model mae_vit_base_patch16
Several:         torchrun --nproc_per_node 8 scripts/pretrain.py IMAGES OUTPUT ...
Interrupted:     the same command with --resume
From weights:    python scripts/pretrain.py IMAGES OUTPUT --init-from mae_visualize_vit_base.pth

OUTPUT/checkpoint.pth has the keys of facebookresearch/mae (model, optimizer, epoch, scaler, args)
and the key config (the model's configuration). With --keep-every N, OUTPUT/checkpoint-E.pth is also
written every N epochs, for `mae-convert timeline`; E is the epoch. OUTPUT/weights.pth, written at
the end, contains only model and config. OUTPUT/log.jsonl has a line for each epoch.

No random state is kept between steps: the order of the images depends on seed and epoch, and the
crop, flip and mask of an image depend on seed, epoch and the index of the image in the epoch. So a
resumed run gives the same result as an uninterrupted run, and several processes give the same
result as one process.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

# If DistributedDataParallel imports this module later, the module keeps the process group as a
# default argument, and thereby gloo's threads, which sometimes abort the process at its end (torch
# 2.13).
import torch.distributed.nn
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without an installation

from reference_models.configuration import ViTMAEConfig
from reference_models.pytorch import ViTMAEForPreTraining

IMAGE_MEAN = (0.485, 0.456, 0.406)  # mean of ImageNet, as in the original
IMAGE_STD = (0.229, 0.224, 0.225)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# He et al. 2021, section 4; the decoder is always 8 blocks of width 512 with 16 heads.
PRESETS = {
    "mae_vit_base_patch16": ViTMAEConfig(),
    "mae_vit_large_patch16": ViTMAEConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    ),
    "mae_vit_huge_patch14": ViTMAEConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
    ),
}
WIDTHS = (
    "patch_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
)


# ---------------------------------------------------------------------------------- arguments


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; option names of facebookresearch/mae have the same meaning here.

    Args:
        argv: the arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(
        usage="%(prog)s IMAGES OUTPUT [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "data_path", metavar="IMAGES", help="folder of images, searched recursively"
    )
    parser.add_argument("output_dir", metavar="OUTPUT", help="folder for checkpoint and log")
    add_model_arguments(parser.add_argument_group("model"))
    add_recipe_arguments(parser.add_argument_group("recipe"))
    add_running_arguments(parser.add_argument_group("running"))
    args = parser.parse_args(argv)
    if args.warmup_epochs >= args.epochs:
        parser.error("--warmup-epochs must be less than --epochs")
    return args


def add_model_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the options for the model."""
    add = group.add_argument
    add(
        "--model",
        choices=PRESETS,
        help="model of one of the sizes in the MAE paper (default: mae_vit_base_patch16)",
    )
    add("--init-from", metavar="FILE", help="start from the weights (and config) in this .pth")
    add("--input-size", type=int, metavar="PIXELS", help="side of the input image (default: 224)")
    for name in WIDTHS:
        add(
            f"--{name.replace('_', '-')}",
            type=int,
            metavar="N",
            help="override this field of the model's configuration",
        )
    add(
        "--mask-ratio",
        type=float,
        metavar="SHARE",
        help="fraction of removed patches (default: 0.75)",
    )
    add(
        "--norm-pix-loss",
        action=argparse.BooleanOptionalAction,
        help="predict pixels normalized per patch: better features, but predictions are not images",
    )


def add_recipe_arguments(group: argparse._ArgumentGroup) -> None:
    """Add the options for the training."""
    add_number(group, "--epochs", 800, "passes over the images")
    add_number(group, "--warmup-epochs", 40.0, "epochs with a linearly increasing learning rate")
    add_number(group, "--batch-size", 64, "crops in a batch of each process")
    add_number(group, "--accum-iter", 1, "accumulated batches per step")
    add_number(
        group,
        "--blr",
        1.5e-4,
        "learning rate for 256 crops per step; for other numbers it is scaled in proportion",
    )
    group.add_argument("--lr", type=float, metavar="X", help="learning rate, instead of --blr")
    add_number(group, "--min-lr", 0.0, "final learning rate of the cosine schedule")
    add_number(
        group,
        "--weight-decay",
        0.05,
        "weight decay; not for biases, norms, tokens and position embeddings",
    )
    add_number(group, "--crop-scale", 0.2, "smallest crop area, relative to the image")
    add_number(group, "--repeats", 1, "crops of each image per epoch")
    add_number(group, "--seed", 0, "seed of weights, order, crops and masks")


def add_running_arguments(group: argparse._ArgumentGroup) -> None:
    """Add options that do not affect the result, except for its rounding errors."""
    add = group.add_argument
    add("--resume", action="store_true", help="continue from OUTPUT/checkpoint.pth if it exists")
    add_number(group, "--save-every", 1, "epochs between checkpoints")
    add_number(
        group, "--keep-every", 0, "epochs between files OUTPUT/checkpoint-N.pth; 0: write none"
    )
    add("--device", default="auto", help="cpu or cuda (default: cuda if there is one)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="dtype of autocast (default: float32)",
    )
    add_number(group, "--num-workers", 0, "data loading processes for each training process")
    add("--in-memory", action="store_true", help="keep all decoded images in memory")


def add_number(group: argparse._ArgumentGroup, flag: str, default: float, text: str) -> None:
    """Add an option with the type of its default value; the help text shows the default value."""
    kind = type(default)
    text = f"{text} (default: {default:g})"
    group.add_argument(flag, type=kind, default=default, metavar="NX"[kind is float], help=text)


def build_config(args: argparse.Namespace, initial: dict[str, Any] | None) -> ViTMAEConfig:
    """Return the configuration of the model to train.

    It is the preset of ``--model``; without this option, the configuration in the initial
    checkpoint; without both, the preset ``mae_vit_base_patch16``. Other options replace fields.
    """
    if args.model is None and initial and "config" in initial:
        base = ViTMAEConfig.from_dict(initial["config"])
    else:
        base = PRESETS[args.model or "mae_vit_base_patch16"]
    given = {name: getattr(args, name) for name in (*WIDTHS, "mask_ratio", "norm_pix_loss")}
    given |= {"image_size": args.input_size}
    for prefix in ("", "decoder_"):
        width = given[f"{prefix}hidden_size"]
        given[f"{prefix}intermediate_size"] = width and 4 * width
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def complete_arguments(
    args: argparse.Namespace, config: ViTMAEConfig, crops_per_step: int
) -> argparse.Namespace:
    """Return the arguments with all defaults resolved, as a checkpoint stores them.

    In the result, ``model`` is the name of the preset that has the sizes in `config`, or "custom"
    if no preset has these sizes. Without ``--lr``, the learning rate ``lr`` is computed from
    ``--blr`` and `crops_per_step`, the number of crops per training step in all processes.
    """
    arguments = {name: getattr(config, name) for name in (*WIDTHS, "mask_ratio", "norm_pix_loss")}
    names = (name for name, preset in PRESETS.items() if same_widths(preset, config))
    arguments |= {"model": next(names, "custom"), "input_size": config.image_size}
    arguments |= {"lr": args.lr if args.lr is not None else args.blr * crops_per_step / 256}
    return argparse.Namespace(**vars(args) | arguments)


def same_widths(a: ViTMAEConfig, b: ViTMAEConfig) -> bool:
    """Return whether two configurations have the same widths, depths and numbers of heads."""
    return all(getattr(a, name) == getattr(b, name) for name in WIDTHS)


# ------------------------------------------------------------------------------------ images


def find_images(folder: str) -> list[Path]:
    """Return the images in a folder and its subfolders, in the same order on every system."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        sys.exit(f"no images under {folder}: there must be files that end in {sorted(SUFFIXES)}")
    return paths


def load_image(path: Path) -> Image.Image:
    """Decode an image to RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def random_crop_box(
    width: int, height: int, least_scale: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Draw a box (left, upper, right, lower) of random area and aspect ratio inside an image.

    The area is uniform between `least_scale` times the area of the image and the area of the image.
    The aspect ratio, width / height, is log-uniform in [3/4, 4/3]. If none of ten drawn boxes fits
    into the image, the result is the largest centred box with an allowed aspect ratio (Szegedy et
    al. 2014, arXiv:1409.4842).
    """
    for _ in range(10):
        area = width * height * rng.uniform(least_scale, 1)
        shape = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = math.sqrt(area * shape), math.sqrt(area / shape)
        if w <= width and h <= height:
            left, upper = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, upper, left + w, upper + h
    w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
    left, upper = (width - w) / 2, (height - h) / 2
    return left, upper, left + w, upper + h


def to_pixels(image: Image.Image) -> Tensor:
    """Return an image as (3, H, W) float32, normalized with ImageNet's mean and std."""
    values = np.asarray(image, dtype=np.float32) / 255  # (H, W, 3)
    mean, std = (np.array(three, dtype=np.float32) for three in (IMAGE_MEAN, IMAGE_STD))
    return torch.from_numpy(((values - mean) / std).transpose(2, 0, 1).copy())


@dataclass(frozen=True)
class RandomCrops(Dataset[tuple[Tensor, Tensor]]):
    """A dataset of the crops of one epoch: pixels (3, H, W) and the noise (L,) of the mask."""

    images: list[Path] | list[Image.Image]
    config: ViTMAEConfig
    args: argparse.Namespace
    epoch: int

    def __len__(self) -> int:
        return len(self.images) * self.args.repeats

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        # 1 + index, because NumPy treats [seed, epoch, 0] as [seed, epoch], the seed of the order.
        rng = np.random.default_rng([self.args.seed, self.epoch, 1 + index])
        source = self.images[index % len(self.images)]
        image = source if isinstance(source, Image.Image) else load_image(source)
        box = random_crop_box(*image.size, self.args.crop_scale, rng)
        height, width = self.config.image_hw
        crop = image.resize((width, height), Image.Resampling.BICUBIC, box)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        noise = rng.random(self.config.num_patches, dtype=np.float32)
        return to_pixels(crop), torch.from_numpy(noise)


# -------------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Process:
    """The rank of this process among all processes of the training, and its device."""

    rank: int
    world_size: int
    device: torch.device


def start_process(device: str) -> Process:
    """Return the rank and the device of this process in the training.

    If torchrun started the process, the process group of ``torch.distributed`` is initialized;
    otherwise this process is the only process.

    Args:
        device: a device of PyTorch; "auto" for cuda if it is available, otherwise cpu.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if "RANK" not in os.environ:
        return Process(0, 1, torch.device(device))
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Process(dist.get_rank(), dist.get_world_size(), torch.device(device))


def load_epoch(crops: RandomCrops, process: Process) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader of the batches with which this process trains in one epoch.

    A batch contains pixels (N, 3, H, W) and the noise (N, L) of the masks.
    """
    return DataLoader(
        crops,
        batch_sampler=epoch_batches(crops, process),
        num_workers=crops.args.num_workers,
        pin_memory=process.device.type == "cuda",
    )


def epoch_batches(crops: RandomCrops, process: Process) -> list[list[int]]:
    """Return this process's batches of one epoch, each a list of image indices.

    Images that are left over after the last complete step are dropped.

    In each step, all processes together use the same crops as a single process with their total
    batch size.
    """
    args = crops.args
    order = np.random.default_rng([args.seed, crops.epoch]).permutation(len(crops))
    shape = (-1, args.accum_iter, process.world_size, args.batch_size)
    whole_steps = order[: len(order) // math.prod(shape[1:]) * math.prod(shape[1:])]
    mine = whole_steps.reshape(shape)[:, :, process.rank]  # (steps, accum_iter, batch_size)
    batches: list[list[int]] = mine.reshape(-1, args.batch_size).tolist()
    return batches


# ----------------------------------------------------------------------------- model, optimizer


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a .pth file without running code in it; the result has the key "model"."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises errors of any type for a damaged file
        sys.exit(f"{path} can't be read as a checkpoint: {error}")
    if not isinstance(content, dict):
        sys.exit(
            f"{path} is not a checkpoint: it contains a {type(content).__name__}, not named tensors"
        )
    return content if "model" in content else {"model": content}


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: str) -> None:
    """Load initial weights; without weights of a decoder, the decoder keeps its random values.

    Args:
        model: the model.
        weights: the initial weights by parameter name.
        path: the path of the checkpoint, for messages.
    """
    has_decoder = "mask_token" in weights
    try:
        missing, surplus = model.load_state_dict(weights, strict=has_decoder)
    except RuntimeError as error:
        sys.exit(f"{path} does not fit the requested model: {error}")
    if surplus or any(not name.startswith(("decoder", "mask_token")) for name in missing):
        sys.exit(
            f"{path} is not a masked autoencoder: missing parameters {missing[:3]}, "
            f"unknown parameters {surplus[:3]}"
        )
    if not has_decoder:
        print(f"{path} contains only an encoder: the decoder starts from random weights")


def make_optimizer(model: nn.Module, args: argparse.Namespace) -> torch.optim.AdamW:
    """Return AdamW without weight decay for biases, norms, tokens and position embeddings."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    spared = {n for n, p in trained.items() if p.ndim == 1 or n.endswith(("_token", "pos_embed"))}
    groups = [
        {"params": [trained[n] for n in trained if n in spared], "weight_decay": 0.0},
        {"params": [trained[n] for n in trained if n not in spared]},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), weight_decay=args.weight_decay)


def learning_rate(epoch: float, args: argparse.Namespace) -> float:
    """Return the learning rate at a fractional epoch: linear warm-up, then half a cosine."""
    if epoch < args.warmup_epochs:
        return float(args.lr * epoch / args.warmup_epochs)
    progress = (epoch - args.warmup_epochs) / (args.epochs - args.warmup_epochs)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return float(args.min_lr + (args.lr - args.min_lr) * cosine)


# ------------------------------------------------------------------------------------ training


@dataclass
class Training:
    """The state of the training."""

    model: ViTMAEForPreTraining
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    next_epoch: int = 0

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Load model, optimizer, scaler and number of the next epoch from a checkpoint."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.next_epoch = checkpoint["epoch"] + 1


def prepare(args: argparse.Namespace, process: Process) -> tuple[Training, ViTMAEConfig]:
    """Build model and optimizer, and load the initial weights or the checkpoint to resume."""
    initial = read_checkpoint(args.init_from) if args.init_from else None
    try:
        config = build_config(args, initial)
    except ValueError as error:
        sys.exit(f"invalid model: {error}")
    torch.manual_seed(args.seed)
    model = ViTMAEForPreTraining(config)
    if initial:
        load_weights(model, initial["model"], args.init_from)
    model.to(process.device)
    scaler = torch.amp.GradScaler(process.device.type, enabled=args.precision == "float16")
    training = Training(model, make_optimizer(model, args), scaler)
    latest = Path(args.output_dir, "checkpoint.pth")
    if latest.exists() and not args.resume:
        sys.exit(f"{latest} already exists: continue it with --resume, or specify another folder")
    if latest.exists():
        checkpoint = read_checkpoint(latest)
        if checkpoint.get("config") != stored_config(config):
            sys.exit(f"{latest} contains another model: pass the same options as for its training")
        training.restore(checkpoint)
    return training, config


def take_steps(
    training: Training,
    forward: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    args: argparse.Namespace,
    process: Process,
) -> Iterator[float]:
    """Take an optimizer step after every ``accum_iter`` batches; yield the loss of each step.

    A batch is a pair: the images (N, C, H, W), and the noise (N, L) that determines the mask.
    """
    losses: list[Tensor] = []
    for pixels, noise in batches:
        last_of_step = len(losses) + 1 == args.accum_iter
        # Processes exchange gradients only in the backward pass directly before a step.
        waits = process.world_size > 1 and not last_of_step
        with forward.no_sync() if waits else contextlib.nullcontext():
            loss = compute_loss(forward, pixels, noise, args, process.device)
            training.scaler.scale(loss / args.accum_iter).backward()
        losses.append(loss.detach())
        if last_of_step:
            training.scaler.step(training.optimizer)
            training.scaler.update()
            training.optimizer.zero_grad()
            yield mean_loss(losses, process)
            losses = []


def compute_loss(
    forward: nn.Module,
    pixels: Tensor,
    noise: Tensor,
    args: argparse.Namespace,
    device: torch.device,
) -> Tensor:
    """Return the loss of pixels (N, 3, H, W), masked by noise (N, L)."""
    pixels, noise = (t.to(device, non_blocking=True) for t in (pixels, noise))
    mixed = args.precision != "float32"
    with torch.autocast(device.type, PRECISIONS[args.precision], enabled=mixed):
        loss: Tensor = forward(pixels, noise).loss
    return loss


def mean_loss(losses: list[Tensor], process: Process) -> float:
    """Return the mean loss over batches and processes; end the program if it is not finite."""
    mean = torch.stack(losses).mean()
    if process.world_size > 1:
        dist.all_reduce(mean)
        mean /= process.world_size
    if not mean.isfinite():
        sys.exit(
            f"the loss is {mean:g}: use a lower learning rate, a longer warm-up, "
            "or --precision float32"
        )
    return float(mean)


def train(args: argparse.Namespace, process: Process) -> None:
    """Train from the first remaining epoch to the last epoch."""
    paths = find_images(args.data_path)
    crops_per_step = args.batch_size * args.accum_iter * process.world_size
    steps = len(paths) * args.repeats // crops_per_step
    if not steps:
        sys.exit(
            f"{len(paths)} images (--repeats {args.repeats}) do not fill one step of "
            f"{crops_per_step} crops: raise --repeats or lower --batch-size"
        )
    training, config = prepare(args, process)
    args = complete_arguments(args, config, crops_per_step)
    images = [load_image(path) for path in paths] if args.in_memory else paths
    forward: nn.Module = training.model
    if process.world_size > 1:
        forward = nn.parallel.DistributedDataParallel(training.model)
    with progress_bar(process) as bar:
        task = bar.add_task("", total=args.epochs * steps, completed=training.next_epoch * steps)
        for epoch in range(training.next_epoch, args.epochs):
            loader = load_epoch(RandomCrops(images, config, args, epoch), process)
            losses, start = [], time.monotonic()
            set_rate(training.optimizer, epoch, args)
            for loss in take_steps(training, forward, loader, args, process):
                losses.append(loss)
                set_rate(training.optimizer, epoch + len(losses) / steps, args)
                bar.update(task, advance=1, description=f"loss {loss:.4f}")
            if process.rank == 0:
                speed = steps * crops_per_step / (time.monotonic() - start)
                report(epoch, sum(losses) / steps, speed, args)
                store(training, config, epoch, args)


def set_rate(optimizer: torch.optim.Optimizer, epoch: float, args: argparse.Namespace) -> None:
    """Set the optimizer's learning rate; `epoch` may be fractional, such as 1.5."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(epoch, args)


# ------------------------------------------------------------------------- progress, checkpoints


def progress_bar(process: Process) -> Progress:
    """Return a progress bar, which is shown only on a terminal."""
    watched = sys.stdout.isatty() and process.rank == 0
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, disable=not watched)


def report(epoch: int, loss: float, speed: float, args: argparse.Namespace) -> None:
    """Print the results of an epoch, and append them to ``log.jsonl`` in the output folder.

    Args:
        epoch: the index of the epoch, from 0.
        loss: the mean loss.
        speed: images per second.
        args: the arguments of the training.
    """
    rate = learning_rate(epoch + 1, args)
    print(
        f"epoch {epoch + 1}/{args.epochs}  loss {loss:.4f}  rate {rate:.2e}  {speed:.0f} images/s",
        flush=True,
    )
    line = {"epoch": epoch, "train_loss": loss, "train_lr": rate, "images_per_second": speed}
    with Path(args.output_dir, "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def store(training: Training, config: ViTMAEConfig, epoch: int, args: argparse.Namespace) -> None:
    """Write the checkpoints of an epoch and, after the last epoch, ``weights.pth``."""
    last = epoch + 1 == args.epochs
    weights = {"model": training.model.state_dict(), "config": stored_config(config)}
    if last or (epoch + 1) % args.save_every == 0:
        state = {
            "optimizer": training.optimizer.state_dict(),
            "epoch": epoch,
            "scaler": training.scaler.state_dict(),
            "args": args,
        }
        save_atomically(weights | state, Path(args.output_dir, "checkpoint.pth"))
    if args.keep_every and (last or (epoch + 1) % args.keep_every == 0):
        stored = weights | {"epoch": epoch, "args": args}  # what `mae-convert timeline` reads
        save_atomically(stored, Path(args.output_dir, f"checkpoint-{epoch + 1}.pth"))
    if last:
        save_atomically(weights, Path(args.output_dir, "weights.pth"))


def stored_config(config: ViTMAEConfig) -> dict[str, Any]:
    """Return the configuration as plain data, with the mean and std of the pixels."""
    return config.to_dict() | {"image_mean": list(IMAGE_MEAN), "image_std": list(IMAGE_STD)}


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """Write a temporary file and rename it, so that a file at the path is always complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and train."""
    args = parse_arguments(argv)
    process = start_process(args.device)
    try:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        train(args, process)
        if dist.is_initialized():
            # torchrun ends all processes when the first process ends: no process may end before the
            # checkpoint is saved
            dist.barrier()
    except KeyboardInterrupt:
        print("interrupted; run the same command with --resume to continue", file=sys.stderr)
        sys.exit(130)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
