"""PyTorch models of the video families: of golden cases, and of random weights."""

import importlib

import torch
from family_cases import CASES, CLASSES, CONFIGS, configuration
from paths import GOLDEN

from reference_models import configuration as configurations

VIDEO = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": (8, 12),
    "patch_size": (4, 2),
    "num_channels": 2,
    "num_frames": 6,
    "tubelet_size": 3,
    "decoder_hidden_size": 10,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 14,
    "mask_ratio": 0.6,
    "num_labels": 5,
}


def model_of(family, task, fields):
    module = importlib.import_module(f"reference_models.pytorch.{family}")
    config = getattr(configurations, CONFIGS[family]).from_dict(fields)
    return getattr(module, CLASSES[family][task])(config)


def checkpoint(case):
    """Return the state dict of a case with the parameter names of the reference model."""
    content = torch.load(GOLDEN / case / "checkpoint.pth", weights_only=True)
    wrappers = ("model", "module", "model_state")
    state = next((content[key] for key in wrappers if key in content), content)
    if case != "prithvi_v1_tiny":
        return state
    decoder = ("decoder_", "mask_token")  # flat names
    return {
        f"{'decoder' if name.startswith(decoder) else 'encoder'}.{name}": value
        for name, value in state.items()
    }


def loaded(case):
    family, task = CASES[case]
    model = model_of(family, task, configuration(case))
    model.load_state_dict(checkpoint(case), strict=True)
    return model.double().eval()


def tensors(arrays):
    model_inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {**model_inputs, "pixel_values": model_inputs["pixel_values"].double()}


def random_model(family, task, fields, seed=0):
    """Return a float64 model, every parameter random, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    model = model_of(family, task, fields).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def random_inputs(config, videos=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn((videos, *config.pixel_shape), generator=generator, dtype=torch.float64)
    return pixels, torch.rand(videos, config.num_patches, generator=generator)


def results(model, model_inputs):
    """Return all results of a model by the names of the expected results."""
    output = model(**model_inputs, output_taps=True)
    result = {f"taps/{name}": value for name, value in output.taps.items()}
    result |= {name: value for name, value in output._asdict().items() if value is not None}
    if hasattr(model, "forward_loss"):
        shown = (model_inputs["pixel_values"], output.logits, output.mask)
        for name, flag in (("loss", False), ("loss_norm_pix", True)):
            result[name] = model.forward_loss(*shown, norm_pix_loss=flag)
        result["target"] = model.patchify(model_inputs["pixel_values"])
        whole = output.logits.shape[1] == model.config.num_patches
        result["reconstruction"] = (
            model.unpatchify(output.logits) if whole else model.reconstruct(*shown)
        )
    return result
