"""Run the PyTorch reference model for a job."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from mae_convert.runtime.job import Job, class_named
from mae_convert.runtime.loaders import LoadError, confirm, pytorch_state_dict
from mae_convert.runtime.taps import Point, input_of, output_of
from mae_convert.runtime.torch_runs import Results, WithoutValues, settings, torch_runs, versions

__all__ = ["runs", "settings", "versions"]


def runs(job: Job, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield each dtype and its results, NumPy arrays by name.

    Raises:
        LoadError: the file's tensors are not exactly the model's.
    """
    confirm(job.confirmed, by_torch=True)
    return torch_runs(job, inputs, build, forward, points)


def build(job: Job) -> torch.nn.Module:
    """Return the reference model with the job's weights."""
    config = class_named(job.configuration).from_dict(job.config)
    kind = class_named(job.model)
    with WithoutValues():
        model = kind(config)
    state = pytorch_state_dict(job.weights)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise LoadError(job.weights.path, f": {error}") from error
    return model.eval()


def forward(
    model: Any,
    call: Any,
    pixels: torch.Tensor,
    noise: torch.Tensor | None,
    **additional: torch.Tensor,
) -> Results:
    """Return the model's outputs, and its intermediate activations as ``tap/NAME``.

    Args:
        model: the model.
        call: the function that is called: ``model``, or its compiled form.
        pixels: (N, C, H, W), or videos (N, C, T, H, W).
        noise: (N, L) for a model that masks, else None.
        additional: further inputs of the model.
    """
    if noise is None:
        outputs = call(pixels, output_taps=True, **additional)
        results = {"logits": outputs.logits}
        if "encoder.norm" in outputs.taps:
            results["last_hidden_state"] = outputs.taps["encoder.norm"]
    else:
        outputs = call(pixels, noise, output_taps=True, **additional)
        results = {"mask": outputs.mask, "ids_restore": outputs.ids_restore}
        results["last_hidden_state"] = _last_hidden_state(outputs)
    if hasattr(model, "forward_loss"):
        results |= _pretraining_results(model, pixels, outputs)
    return results | {f"tap/{name}": value for name, value in outputs.taps.items()}


def points(model: Any) -> dict[str, Point]:
    """Return where the activations of a reference model are found, by activation name.

    Each step of the model (the embedding, a block or a norm) has an activation. Its `Point` is a
    module, and a function that selects the module's input or output.
    """
    encoder, decoder = getattr(model, "encoder", model), getattr(model, "decoder", model)
    points_by_name = _points_of_stack("encoder", encoder.blocks, getattr(encoder, "norm", None))
    if hasattr(decoder, "decoder_blocks"):
        points_by_name |= _points_of_stack("decoder", decoder.decoder_blocks, decoder.decoder_norm)
    elif decoder is not model:
        points_by_name |= _points_of_stack("decoder", decoder.blocks, decoder.norm)
    if hasattr(model, "fc_norm"):
        points_by_name["head.norm"] = output_of(model.fc_norm)
    return points_by_name


def _points_of_stack(name: str, blocks: Any, norm: torch.nn.Module | None) -> dict[str, Point]:
    points = {f"{name}.embedding": input_of(blocks[0])}
    points |= {f"{name}.blocks.{i}.output": output_of(block) for i, block in enumerate(blocks)}
    return points if norm is None else {**points, f"{name}.norm": output_of(norm)}


def _last_hidden_state(outputs: Any) -> torch.Tensor:
    hidden = getattr(outputs, "last_hidden_state", None)  # a pre-training model has none
    return outputs.taps["encoder.norm"] if hidden is None else hidden


def _pretraining_results(model: Any, pixels: torch.Tensor, outputs: Any) -> Results:
    """Return the logits, the reconstruction and, if patches are removed, both losses.

    ``loss`` is the loss for pixels, and ``loss_norm_pix`` is the loss for pixels that are
    normalized in each patch.
    """
    results = {
        "logits": outputs.logits,
        "reconstruction": model.unpatchify(all_patches(outputs.logits, outputs.mask)),
    }
    if outputs.mask.any():
        for name, normalized in (("loss", False), ("loss_norm_pix", True)):
            results[name] = model.forward_loss(
                pixels, outputs.logits, outputs.mask, norm_pix_loss=normalized
            )
    return results


def all_patches(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return predictions (N, L, P) of all patches.

    If a model predicts only the removed patches, in the order of the image, the predictions of
    visible patches are zeros.

    Args:
        logits: (N, M, P), where M is L or the number of removed patches.
        mask: (N, L), 1 if a patch is removed.
    """
    if logits.shape[1] == mask.shape[1]:
        return logits
    padded = torch.nn.functional.pad(logits, (0, 0, mask.shape[1] - logits.shape[1], 0))
    positions = mask.argsort(dim=1, stable=True).argsort(dim=1)
    return padded.gather(1, positions.unsqueeze(-1).expand(-1, -1, logits.shape[2]))
