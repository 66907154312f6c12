"""Build a model and time its calls; started by `bench_forward.py` and `bench_training.py`.

python scripts/bench_worker.py LIBRARY FRAMEWORK SIZE PART

LIBRARY is reference (this project), transformers or timm; FRAMEWORK is pytorch or tensorflow; SIZE
is tiny, base or large; PART is encoder, full (encoder and decoder) or classifier.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

SIZES = {
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 64,
    },
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
}
CLASSES = {
    "encoder": "ViTMAEModel",
    "full": "ViTMAEForPreTraining",
    "classifier": "ViTForImageClassification",
}
TIMM = {
    "tiny": ("vit_base_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}),
    "base": ("vit_base_patch16_224", {}),
    "large": ("vit_large_patch16_224", {}),
}

Call = Callable[[], object]


def pytorch(
    library: str, size: str, part: str, device: str = "cpu", dtype: str = "float32"
) -> Callable[[str, int], Call]:
    """Create a model; return a function that makes a `Call` for a mode and a batch size.

    The `Call` runs the model once: a forward pass or, for a mode that trains, a training step.

    Args:
        library: "transformers", "timm", or "reference" for this project.
        size: the size of the ViT, a key of `SIZES`.
        part: "encoder", "full" (encoder and decoder) or "classifier".
        device: the device of PyTorch.
        dtype: "float32", or "bfloat16" for autocast.
    """
    import torch

    if library == "timm":
        import timm

        name, fields = TIMM[size]
        model = timm.create_model(name, num_classes=1000, **fields)
    elif library == "transformers":
        import transformers

        kind = transformers.ViTConfig if part == "classifier" else transformers.ViTMAEConfig
        config = kind(layer_norm_eps=1e-6, num_labels=1000, **SIZES[size])
        model = getattr(transformers, CLASSES[part])(config)
    else:
        from reference_models import pytorch as ours

        labels = {"num_labels": 1000} if part == "classifier" else {}
        config = ours.ViTMAEConfig(**SIZES[size], **labels)
        model = getattr(ours, CLASSES[part])(config)
    model.eval().to(device)
    autocast = partial(torch.autocast, device, torch.bfloat16, enabled=dtype == "bfloat16")

    def call_of(mode: str, batch: int) -> Call:
        if mode in ("training", "training, compiled"):
            run = torch.compile(model, dynamic=False) if "compiled" in mode else model
            return pytorch_step(run, library, part, batch, device, autocast)
        if mode == "recipe":
            return (original_recipe if library == "transformers" else our_recipe)(model, batch)
        run = torch.compile(model, dynamic=False) if mode == "compiled" else model
        given = {} if part == "classifier" else {"noise": torch.rand(batch, 196, device=device)}
        pixels = torch.randn(batch, 3, 224, 224, device=device)

        @torch.no_grad()
        def call() -> object:
            with autocast():
                return run(pixels, **given)

        return call

    return call_of


def pytorch_step(
    model: Any, library: str, part: str, batch: int, device: str, autocast: Callable[[], Any]
) -> Call:
    """Return a function that runs a training step: forward pass, backward pass and AdamW.

    Args:
        model: the model, on the device.
        library: the library of the model.
        part: the kind of model: "full" (encoder and decoder) or "classifier".
        batch: the batch size.
        device: the device of the inputs.
        autocast: returns the context of the forward pass.
    """
    import torch

    model.train()
    optimizer = torch.optim.AdamW(
        [value for value in model.parameters() if value.requires_grad], 1e-4
    )
    pixels = torch.randn(batch, 3, 224, 224, device=device)
    labels = torch.randint(1000, (batch,), device=device)

    def step() -> object:
        optimizer.zero_grad()
        with autocast():
            output = model(pixels)
            if part == "classifier":
                logits = output if library == "timm" else output.logits
                loss = torch.nn.functional.cross_entropy(logits, labels)
            else:
                loss = output.loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_recipe(model: Any, batch: int) -> Call:
    """Return a function that runs a step of `scripts/pretrain.py` in float32 on random pixels."""
    import pretrain
    import torch

    args = pretrain.parse_arguments(["IMAGES", "OUTPUT", "--lr", "1e-4"])
    process = pretrain.Process(0, 1, torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    training = pretrain.Training(model.train(), pretrain.make_optimizer(model, args), scaler)
    batches = [(torch.randn(batch, 3, 224, 224), torch.rand(batch, 196))]

    def step() -> object:
        pretrain.set_rate(training.optimizer, args.warmup_epochs, args)
        return list(pretrain.take_steps(training, model, batches, args, process))

    return step


def original_recipe(model: Any, batch: int) -> Call:
    """Return a function that runs a training step as in facebookresearch/mae on CPU, in float32.

    The step sets the learning rate, checks that the loss is finite, and computes the norm of the
    gradients; biases and other parameters with one dimension have no weight decay.
    """
    import torch

    model.train()
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    spared = {n for n, value in trained.items() if value.ndim == 1 or n.endswith(".bias")}
    groups = [
        {"params": [trained[n] for n in trained if n in spared], "weight_decay": 0.0},
        {"params": [trained[n] for n in trained if n not in spared], "weight_decay": 0.05},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))
    pixels = torch.randn(batch, 3, 224, 224)

    def step() -> object:
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
        loss = model(pixels).loss
        if not math.isfinite(value := loss.item()):
            raise SystemExit(f"the loss is {value}")
        loss.backward()
        gradients = [each.grad for each in trained.values() if each.grad is not None]
        torch.nn.utils.get_total_norm(gradients, foreach=False)
        optimizer.step()
        optimizer.zero_grad()
        return value

    return step


def keras_step(model: Any, library: str, part: str, batch: int) -> Call:
    """Return a function that runs a training step: ``fit`` on one batch.

    Args:
        model: the model.
        library: the library of the model; for "transformers", the optimizer is from Keras 2.
        part: the kind of model: "full" (encoder and decoder) or "classifier".
        batch: the batch size.
    """
    import tensorflow as tf

    if library == "transformers":
        import tf_keras as keras
    else:
        import keras
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    given = {"loss": loss} if part == "classifier" else {}
    model.compile(optimizer=keras.optimizers.AdamW(1e-4), **given)
    pixels = tf.random.normal((batch, 3, 224, 224)).numpy()
    inputs = {"pixel_values": pixels} if library == "transformers" else pixels
    labels = (np.arange(batch) % 1000,) if part == "classifier" else ()
    return lambda: model.fit(inputs, *labels, batch_size=batch, epochs=1, verbose=0)


def tensorflow(library: str, size: str, part: str) -> Callable[[str, int], Call]:
    """Create a model; return a function that makes a `Call` for a mode and a batch size.

    The `Call` runs the model once: a forward pass or, for the mode "training", a training step.

    Args:
        library: "transformers", or "reference" for this project.
        size: the size of the ViT, a key of `SIZES`.
        part: "encoder", "full" (encoder and decoder) or "classifier".
    """
    import tensorflow as tf

    if library == "transformers":
        import transformers

        kind = transformers.ViTConfig if part == "classifier" else transformers.ViTMAEConfig
        config = kind(layer_norm_eps=1e-6, num_labels=1000, **SIZES[size])
        model = getattr(transformers, f"TF{CLASSES[part]}")(config)
    else:
        from mae_convert import models as ours

        labels = {"num_labels": 1000} if part == "classifier" else {}
        model = getattr(ours, f"TF{CLASSES[part]}")(ours.ViTMAEConfig(**SIZES[size], **labels))

    def call_of(mode: str, batch: int) -> Call:
        if mode == "training":
            return keras_step(model, library, part, batch)
        run = tf.function(model) if mode == "compiled" else model
        pixels = tf.random.normal((batch, 3, 224, 224))
        given = {} if part == "classifier" else {"noise": tf.random.uniform((batch, 196))}
        return lambda: run(pixels, **given)

    return call_of


def seconds(call: Call, calls: int) -> tuple[float, float]:
    """Return the mean time and the mean processor time of `calls` calls, in seconds."""
    started = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call()
    ended = time.perf_counter(), time.process_time()
    return (ended[0] - started[0]) / calls, (ended[1] - started[1]) / calls


def main() -> None:
    """Build the model; then read lines of JSON, each a request, and print the measured times."""
    builders = {"pytorch": pytorch, "tensorflow": tensorflow}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library")
    parser.add_argument("framework", choices=builders)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("part")
    given = parser.parse_args()
    call_of = builders[given.framework](given.library, given.size, given.part)
    made: dict[tuple[str, int], Call] = {}
    for line in sys.stdin:
        mode, batch, calls = json.loads(line)
        if (mode, batch) not in made:
            made = {(mode, batch): call_of(mode, batch)}
        print(*seconds(made[mode, batch], calls), flush=True)


if __name__ == "__main__":
    main()
