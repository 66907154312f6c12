"""Pairs of the same function in PyTorch and TensorFlow, whose verification must not fail."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.checkpoint.open import open_checkpoint
from mae_convert.convert.execute import execute
from mae_convert.convert.plan import plan_conversion
from mae_convert.families.mae.layouts import LAYOUTS
from mae_convert.runtime.trace import Trace
from mae_convert.verify.judge import judge
from mae_convert.verify.verification import InputChoice, Options, common_request
from mutation.models import random_tensors, write_original
from mutation.running import Run, run_all
from reference_models.configuration import ACTIVATIONS, ViTMAEConfig

DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16,
          "bfloat16": ml_dtypes.bfloat16}  # fmt: skip
# Attention logits grow with the square of the factor, to some hundreds. With larger factors,
# float32 attention is ill-conditioned: two nearly equal keys change order in any implementation.
SHARPEST = 8
TARGETS = ("transformers", "transformers-tf", "keras")


@dataclass(frozen=True)
class Design:
    """The specification of a pair.

    Attributes:
        config: the model's configuration.
        task: "pretrain", "encoder" or "classify".
        dtype: the dtype of the weights.
        sharp: factor on q and k, which makes the attention weights nearly one-hot.
        positions: factor on the position embeddings.
        pixels: the images: "normal", "constant" (each patch of one colour), "large" or "zero".
        layout: the layout of the target.
        seed: the seed of weights and images.
    """

    config: ViTMAEConfig
    task: str
    dtype: str
    sharp: float
    positions: float
    pixels: str
    layout: str
    seed: int

    def __str__(self) -> str:
        c = self.config
        return (
            f"{self.task} {c.hidden_size}/{c.num_attention_heads}x{c.num_hidden_layers} "
            f"{c.image_size}/{c.patch_size}x{c.num_channels} {self.dtype} q,k x{self.sharp} "
            f"positions x{self.positions} {self.pixels} images, to {self.layout}, seed "
            f"{self.seed}"
        )


def designs(number: int, seed: int) -> Iterator[Design]:
    """Yield random designs."""
    rng = np.random.default_rng(seed)
    for index in range(number):
        task = str(rng.choice(["pretrain", "pretrain", "encoder", "classify"]))
        config = random_config(rng)
        layout = str(rng.choice(TARGETS))
        dtype = str(rng.choice(["float32", "float32", "float64", "float16", "bfloat16"]))
        plain = rng.random() < 0.4
        yield Design(
            config,
            task,
            dtype,
            sharp=1.0 if plain else float(rng.choice([1, 2, 4, SHARPEST])),
            positions=1.0 if plain else float(rng.choice([1, 10, 100])),
            pixels="normal" if plain else str(rng.choice(["normal", "constant", "large", "zero"])),
            layout=layout,
            seed=seed * 100_000 + index,
        )


def random_config(rng: np.random.Generator) -> ViTMAEConfig:
    heads, size = int(rng.choice([1, 2, 3, 4, 6])), int(rng.choice([4, 8, 12, 16, 32]))
    decoder_heads, decoder_size = int(rng.choice([1, 2, 3, 4])), int(rng.choice([4, 8, 16]))
    patch = int(rng.choice([4, 8, 16]))
    rows, columns = (int(n) for n in rng.integers(2, 7, 2))
    square = rng.random() < 0.6
    return ViTMAEConfig(
        hidden_size=heads * size,
        num_attention_heads=heads,
        num_hidden_layers=int(rng.integers(1, 7)),
        intermediate_size=int(rng.integers(8, 200)),
        hidden_act=str(rng.choice(["gelu", "gelu", *ACTIVATIONS])),
        layer_norm_eps=float(rng.choice([1e-6, 1e-6, 1e-12, 1e-5])),
        image_size=(patch * rows, patch * (rows if square else columns)),
        patch_size=patch,
        num_channels=int(rng.choice([1, 3, 3, 4, 10])),
        qkv_bias=bool(rng.random() < 0.9),
        decoder_hidden_size=decoder_heads * decoder_size,
        decoder_num_attention_heads=decoder_heads,
        decoder_num_hidden_layers=int(rng.integers(1, 5)),
        decoder_intermediate_size=int(rng.integers(8, 100)),
        mask_ratio=float(rng.choice([0.75, 0.5, 0.9, 0.3])),
        norm_pix_loss=bool(rng.random() < 0.5),
        global_pool=str(rng.choice(["token", "avg"])),
        num_labels=int(rng.integers(2, 30)),
    )


def tensors_of(design: Design) -> dict[str, np.ndarray]:
    """Return the weights of a design."""
    learned = design.seed % 2 == 0
    tensors = random_tensors(design.config, design.task, design.seed, learned=learned)
    for name in tensors:
        if ".attention.q." in name or ".attention.k." in name:
            tensors[name] = tensors[name] * np.float32(design.sharp)
        elif name.endswith("position_embedding"):
            tensors[name] = tensors[name] * np.float32(design.positions)
    return {name: array.astype(DTYPES[design.dtype]) for name, array in tensors.items()}


def pixels_of(design: Design, pixels: np.ndarray) -> np.ndarray:
    """Return images (N, C, H, W) of the kind specified in the design."""
    if design.pixels == "constant":
        height, width = design.config.patch_hw
        corner = pixels[:, :, ::height, ::width]
        return corner.repeat(height, axis=2).repeat(width, axis=3)
    factor = {"normal": 1, "large": 300, "zero": 0}[design.pixels]
    return pixels * np.float32(factor)


def layout_of(design: Design, source: Checkpoint) -> str:
    """Return the layout of the target: that of the design if possible, else keras."""
    layout = LAYOUTS[design.layout]
    fits = layout.refusal(source.configuration.model, source.task) is None
    half = design.dtype == "bfloat16" and design.layout != "transformers"
    return design.layout if fits and not half else "keras"


def runs_of(design: Design, folder: Path) -> tuple[Run, Run]:
    """Return the run of the source by PyTorch and of the target by TensorFlow."""
    folder.mkdir(parents=True)
    source = write_original(folder / "a.safetensors", design.config, design.task,
                            tensors_of(design))  # fmt: skip
    layout = layout_of(design, source)
    dtype = "float32" if design.dtype == "bfloat16" and layout == "keras" else None
    if dtype:  # HDF5 has no bfloat16; float32 has all its values
        wide = {n: a.astype(np.float32) for n, a in tensors_of(design).items()}
        path = folder / "wide.safetensors"
        source = write_original(path, design.config, design.task, wide)
    target = folder / ("b.weights.h5" if layout == "keras" else "b")
    execute(plan_conversion(source, target, layout))
    options = Options(inputs=InputChoice(seed=design.seed, batch=1 + design.seed % 3))
    inputs, request = common_request(source, options, unmasked=design.task == "classify")
    inputs = {**inputs, "pixel_values": pixels_of(design, inputs["pixel_values"])}
    a = Run(source, "torch", inputs, request.mask_ratio or 0.0)
    return a, replace(a, checkpoint=open_checkpoint(target), framework="tensorflow")


def verify_pairs(number: int, seed: int, folder: Path) -> dict[str, str]:
    """Verify pairs that are the same function; return design → failed checks of those that fail."""
    chosen = list(designs(number, seed))
    return failed_pairs(chosen, run_all(runs_of_pairs(chosen, folder), folder / "runs"))


def runs_of_pairs(chosen: Sequence[Design], folder: Path) -> list[Run]:
    """Return the two runs of each pair."""
    return [run for i, design in enumerate(chosen) for run in runs_of(design, folder / f"pair{i}")]


def failed_pairs(chosen: Sequence[Design], traces: Sequence[Trace | str]) -> dict[str, str]:
    """Return design → failed checks or error, for the pairs that do not pass.

    Args:
        chosen: the designs of the pairs.
        traces: the traces of their runs, in the order of `runs_of_pairs`; an error as text.
    """
    failed = {}
    for design, a, b in zip(chosen, traces[::2], traces[1::2], strict=True):
        if not isinstance(a, Trace) or not isinstance(b, Trace):
            failed[str(design)] = f"{a if isinstance(a, str) else b}"
            continue
        verdict = judge(a, b)
        if not verdict.passed:
            failed[str(design)] = "; ".join(
                f"{c.name} {c.measured} > {c.limit}" for c in verdict.failed()[:4]
            )
    return failed
