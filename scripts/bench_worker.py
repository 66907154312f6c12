"""Build a model and time it on request; run by `bench_forward.py`, in any environment.

python scripts/bench_worker.py LIBRARY FRAMEWORK SIZE PART
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

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

        config = transformers.ViTMAEConfig(layer_norm_eps=1e-6, **SIZES[size])
        model = getattr(transformers, CLASSES[part])(config)
    else:
        from reference_models import pytorch as ours

        config = ours.ViTMAEConfig(**SIZES[size])
        model = getattr(ours, CLASSES[part])(config)
    model.eval()

    def call_of(mode: str, batch: int) -> Call:
        run = torch.compile(model, dynamic=False) if mode == "compiled" else model
        given = {} if part == "classifier" else {"noise": torch.rand(batch, 196)}
        pixels = torch.randn(batch, 3, 224, 224)

        @torch.no_grad()
        def call() -> object:
            return run(pixels, **given)

        return call

    return call_of


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
        run = tf.function(model) if mode == "compiled" else model
        pixels = tf.random.normal((batch, 3, 224, 224))
        given = {} if part == "classifier" else {"noise": tf.random.uniform((batch, 196))}
        return lambda: run(pixels, **given)

    return call_of


def seconds(call: Call, calls: int) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def main() -> None:
    """Build the model; then read requests, lines of JSON, and print the seconds of each."""
    library, framework, size, part = sys.argv[1:]
    call_of = {"pytorch": pytorch, "tensorflow": tensorflow}[framework](library, size, part)
    made: dict[tuple[str, int], Call] = {}
    for line in sys.stdin:
        mode, batch, calls = json.loads(line)
        if (mode, batch) not in made:
            made = {(mode, batch): call_of(mode, batch)}
        print(seconds(made[mode, batch], calls), flush=True)


if __name__ == "__main__":
    main()
