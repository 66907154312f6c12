"""Run the PyTorch reference model for a job."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from mae_convert.verify.job import Job
from mae_convert.verify.loaders import LoadError, pytorch_state_dict
from reference_models.configuration import ViTMAEConfig
from reference_models.pytorch import (
    ViTForImageClassification,
    ViTMAEForPreTraining,
    ViTMAEModel,
)

MODELS = {
    "pretrain": ViTMAEForPreTraining,
    "encoder": ViTMAEModel,
    "classify": ViTForImageClassification,
}


def versions() -> dict[str, str]:
    """Return the versions that matter for a result of this framework."""
    return {"torch": torch.__version__, "numpy": np.__version__}


def runs(job: Job, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Raises:
        LoadError: the file's tensors are not exactly the model's.
    """
    # Both would make float32 on a GPU something else than float32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    model = build(job)
    for dtype in job.dtypes:
        device = "cpu" if dtype == "float64" else job.device
        run = model.to(device=device, dtype=getattr(torch, dtype))
        with torch.inference_mode():
            results = forward(run, job, inputs, device)
        yield dtype, {name: _as_numpy(name, value, dtype) for name, value in results.items()}
        # Rounded weights must not become another run's weights.
        model = model if dtype == "float64" else build(job)


def build(job: Job) -> torch.nn.Module:
    """Return the reference model with the job's weights."""
    config = ViTMAEConfig.from_dict(job.config)
    with torch.device("meta"):
        model = MODELS[job.task](config)
    state = pytorch_state_dict(job.weights)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise LoadError(f"{job.weights}: {error}") from error
    return model.eval()


def forward(
    model: Any, job: Job, inputs: Mapping[str, np.ndarray], device: str
) -> dict[str, torch.Tensor]:
    """Return the outputs that the job's task has, and the taps if they are asked for."""
    dtype = next(model.parameters()).dtype
    pixels = torch.from_numpy(inputs["pixel_values"]).to(device=device, dtype=dtype)
    if job.task == "classify":
        outputs = model(pixels, output_taps=True)
        results = {"logits": outputs.logits}
        if "encoder.norm" in outputs.taps:
            results["last_hidden_state"] = outputs.taps["encoder.norm"]
    else:
        noise = torch.from_numpy(inputs["noise"]).to(device)
        outputs = model(pixels, noise, output_taps=True)
        results = {"mask": outputs.mask, "ids_restore": outputs.ids_restore}
        results["last_hidden_state"] = outputs.taps["encoder.norm"]
    if job.task == "pretrain":
        results |= pretraining_results(model, pixels, outputs)
    taps = outputs.taps if job.taps else {}
    return results | {f"tap/{name}": value for name, value in taps.items()}


def pretraining_results(model: Any, pixels: torch.Tensor, outputs: Any) -> dict[str, torch.Tensor]:
    """Return logits, reconstruction and both losses (neither where nothing is removed)."""
    results = {
        "logits": outputs.logits,
        "reconstruction": model.unpatchify(outputs.logits),
    }
    if outputs.mask.any():
        for name, normalised in (("loss", False), ("loss_norm_pix", True)):
            results[name] = model.forward_loss(
                pixels, outputs.logits, outputs.mask, norm_pix_loss=normalised
            )
    return results


def _as_numpy(name: str, value: torch.Tensor, dtype: str) -> np.ndarray:
    if name in ("mask", "ids_restore"):
        return value.cpu().numpy()
    # A loss over a float32 mask is summed in float32 at least.
    wide = name in ("loss", "loss_norm_pix") and value.dtype == torch.float32
    if str(value.dtype) != f"torch.{dtype}" and not (wide and dtype != "float64"):
        raise LoadError(f"{name} came out as {value.dtype}, though {dtype} was asked for")
    exact = value.float() if dtype == "bfloat16" else value  # NumPy has no bfloat16
    return exact.cpu().numpy()
