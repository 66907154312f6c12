"""Build a model and time it on request; run by `bench_forward.py`, in any environment.

python scripts/bench_worker.py LIBRARY FRAMEWORK SIZE PART
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

SIZES = {
    "tiny": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
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
TIMM = {"base": "vit_base_patch16_224", "large": "vit_large_patch16_224"}

Call = Callable[[], object]


def pytorch(library: str, size: str, part: str) -> Callable[[str, int], Call]:
    """Return a function that creates a call of a PyTorch model from mode and batch."""
    import torch

    if library == "timm":
        import timm

        model = timm.create_model(TIMM[size], num_classes=1000)
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
    model.eval()

    def call_of(mode: str, batch: int) -> Call:
        if mode == "training":
            return pytorch_step(model, part, batch)
        run = torch.compile(model, dynamic=False) if mode == "compiled" else model
        given = {} if part == "classifier" else {"noise": torch.rand(batch, 196)}
        pixels = torch.randn(batch, 3, 224, 224)

        @torch.no_grad()
        def call() -> object:
            return run(pixels, **given)

        return call

    return call_of


def pytorch_step(model: Any, part: str, batch: int) -> Call:
    """Return a training step: forward, backward, and AdamW."""
    import torch

    model.train()
    optimizer = torch.optim.AdamW(
        [value for value in model.parameters() if value.requires_grad], 1e-4
    )
    pixels, labels = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))

    def step() -> object:
        optimizer.zero_grad()
        output = model(pixels)
        if part == "classifier":
            loss = torch.nn.functional.cross_entropy(output.logits, labels)
        else:
            loss = output.loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def keras_step(model: Any, library: str, batch: int) -> Call:
    """Return one step of ``fit`` in pre-training."""
    import tensorflow as tf

    if library == "transformers":
        import tf_keras as keras
    else:
        import keras
    model.compile(optimizer=keras.optimizers.AdamW(1e-4))
    pixels = tf.random.normal((batch, 3, 224, 224)).numpy()
    given = {"pixel_values": pixels} if library == "transformers" else pixels
    return lambda: model.fit(given, batch_size=batch, epochs=1, verbose=0)


def tensorflow(library: str, size: str, part: str) -> Callable[[str, int], Call]:
    """Return a function that creates a call of a TensorFlow model from mode and batch."""
    import tensorflow as tf

    if library == "transformers":
        import transformers

        kind = transformers.ViTConfig if part == "classifier" else transformers.ViTMAEConfig
        config = kind(layer_norm_eps=1e-6, num_labels=1000, **SIZES[size])
        model = getattr(transformers, f"TF{CLASSES[part]}")(config)
    else:
        from mae_convert import models as ours

        model = getattr(ours, f"TF{CLASSES[part]}")(ours.ViTMAEConfig(**SIZES[size]))

    def call_of(mode: str, batch: int) -> Call:
        if mode == "training":
            return keras_step(model, library, batch)
        run = tf.function(model) if mode == "compiled" else model
        pixels = tf.random.normal((batch, 3, 224, 224))
        given = {} if part == "classifier" else {"noise": tf.random.uniform((batch, 196))}
        return lambda: run(pixels, **given)

    return call_of


def seconds(call: Call, calls: int) -> tuple[float, float]:
    """Return the seconds and the seconds of processor time of one call."""
    started = time.perf_counter(), time.process_time()
    for _ in range(calls):
        call()
    ended = time.perf_counter(), time.process_time()
    return (ended[0] - started[0]) / calls, (ended[1] - started[1]) / calls


def main() -> None:
    """Build the model; then read requests, lines of JSON, and print the seconds of each."""
    library, framework, size, part = sys.argv[1:]
    call_of = {"pytorch": pytorch, "tensorflow": tensorflow}[framework](library, size, part)
    made: dict[tuple[str, int], Call] = {}
    for line in sys.stdin:
        mode, batch, calls = json.loads(line)
        if (mode, batch) not in made:
            made = {(mode, batch): call_of(mode, batch)}
        print(*seconds(made[mode, batch], calls), flush=True)


if __name__ == "__main__":
    main()
