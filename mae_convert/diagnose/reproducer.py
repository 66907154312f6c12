"""The script of a reproducer, which needs only NumPy and one framework."""

SCRIPT = '''"""One step of a model that two programs compute differently, in plain operations.

python reproduce.py FRAMEWORK        torch, tensorflow or jax; here: USUAL

reproduce.npz contains the input of the step, its tensors in A and in B, and the results of A and B,
in float64. The exit status is 1 if A and B differ, as they did when this file was written.
"""

import json
import sys
from pathlib import Path

import numpy as np

FACTS = json.loads(r"""FACTS_HERE""")


def torch_functions():
    import torch
    import torch.nn.functional as F

    acts = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "swish": F.silu,
            "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
            "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
            "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}
    norm = lambda x, w, b, eps: F.layer_norm(x, w.shape, w, b, eps)
    return torch.from_numpy, F.linear, norm, lambda x: x.softmax(-1), lambda x: x.mT, acts


def tensorflow_functions():
    import tensorflow as tf

    def norm(x, w, b, eps):
        x = x - tf.reduce_mean(x, -1, keepdims=True)
        return x / tf.sqrt(tf.reduce_mean(x * x, -1, keepdims=True) + eps) * w + b

    tanh = lambda x: 0.5 * x * (1 + tf.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    acts = {"gelu": lambda x: 0.5 * x * (1 + tf.math.erf(x * 0.5**0.5)), "relu": tf.nn.relu,
            "silu": tf.nn.silu, "swish": tf.nn.silu, "gelu_new": tanh, "gelu_pytorch_tanh": tanh,
            "quick_gelu": lambda x: x * tf.sigmoid(1.702 * x)}
    linear = lambda x, w, b=None: x @ tf.transpose(w) + (0 if b is None else b)
    return tf.constant, linear, norm, tf.nn.softmax, tf.linalg.matrix_transpose, acts


def jax_functions():
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def norm(x, w, b, eps):
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps) * w + b

    tanh = lambda x: jax.nn.gelu(x, approximate=True)
    acts = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "relu": jax.nn.relu,
            "silu": jax.nn.silu, "swish": jax.nn.silu, "gelu_new": tanh, "gelu_pytorch_tanh": tanh,
            "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x)}
    linear = lambda x, w, b=None: x @ w.T + (0 if b is None else b)
    return jnp.asarray, linear, norm, jax.nn.softmax, lambda x: jnp.swapaxes(x, -1, -2), acts


def compute(functions, inputs, tensors, eps, activation, heads):
    """Return the result of the step, an array, for the tensors and settings of one side."""
    tensor, linear, normalise, softmax, transposed, acts = functions
    i = {name: tensor(value) for name, value in inputs.items()}
    t = {name: tensor(value) for name, value in tensors.items()}
    layer = lambda x, name: linear(x, t[f"{name}.weight"], t.get(f"{name}.bias"))
    norm = lambda x: normalise(x, t["norm.weight"], t["norm.bias"], eps)
    kind = FACTS["kind"]
    if kind == "projection":
        result = layer(norm(i["x"]), "linear")
    elif kind == "attention":
        n, tokens, width = inputs["q"].shape
        split = lambda x: tensor(np.asarray(x).reshape(n, tokens, heads, -1).swapaxes(1, 2).copy())
        q, k, v = (split(inputs[name]) for name in "qkv")
        mixed = softmax(q @ transposed(k) * (width // heads) ** -0.5) @ v
        mixed = np.asarray(mixed).swapaxes(1, 2).reshape(n, tokens, width)
        result = layer(tensor(mixed.copy()), "linear")
    elif kind == "mlp":
        hidden = acts[activation](layer(norm(i["x"] + i["attention"]), "fc1"))
        result = layer(hidden, "fc2")
    elif kind == "sum":
        result = i["x"] + i["attention"] + i["mlp"]
    elif kind == "class":
        result = layer(i["x"][:, 0], "linear")
    else:
        result = norm(i["x"]) if kind == "norm" else layer(i["x"], "linear")
    return np.asarray(result)


def distance(x, y):
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


def main():
    framework = sys.argv[1] if len(sys.argv) > 1 else "USUAL".split()[0]
    functions = globals()[f"{framework}_functions"]()
    arrays = dict(np.load(Path(__file__).with_name("reproduce.npz")))
    named = lambda prefix: {n[len(prefix):]: a for n, a in arrays.items() if n.startswith(prefix)}
    a, b = arrays["result/A"], arrays["result/B"]
    print(f"{FACTS['first']}: B differs from A by {distance(b, a):.1e} (relative L2, float64)")
    for name, theirs in named("B/").items():
        ours = arrays.get(f"A/{name}")
        if ours is None or not np.array_equal(ours, theirs):
            print(f"  {name} differs between A and B")
    for name, value in FACTS["settings"]["B"].items():
        if value != FACTS["settings"]["A"][name]:
            print(f"  {name} is {FACTS['settings']['A'][name]} in A and {value} in B")
    for side in "AB":
        result = compute(functions, named("input/"), named(f"{side}/"), **FACTS["settings"][side])
        print(f"{framework}, with the tensors and settings of {side}: {distance(result, a):.1e} "
              f"from A's result, {distance(result, b):.1e} from B's result")
    return 1 if distance(b, a) > 1e-10 else 0


if __name__ == "__main__":
    sys.exit(main())
'''
