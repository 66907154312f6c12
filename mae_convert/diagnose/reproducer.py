"""The script that reproduces the first differing result of a failed verification.

The script needs only NumPy and one framework.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The functions that the lines of a formula call, in each framework.
WAVES = """\
def waves(coordinates, width):  # in float64: angles are large
    parts = []
    for coordinate, size in zip(coordinates, (width // 2, width - width // 2)):
        angles = coordinate * 10000.0 ** -(np.arange(size // 2) / (size / 2))
        parts += [np.sin(angles), np.cos(angles)]
    return np.concatenate(parts)"""
TORCH = {
    "": "import torch\nimport torch.nn.functional as F\n\ntensor = torch.from_numpy",
    "linear": "linear = F.linear",
    "norm": "norm = lambda x, w, b, eps: F.layer_norm(x, w.shape, w, b, eps)",
    "attend": """\
def attend(q, k, v, heads):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)""",
    "act": """\
act = lambda x, name: {
    "gelu": F.gelu, "relu": F.relu, "silu": F.silu, "swish": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}.get(name, lambda x: F.gelu(x, approximate="tanh"))(x)""",
    "average": "average = lambda x: x.mean(1, keepdim=True)",
    "argsort": "argsort = lambda x: torch.argsort(x, dim=1, stable=True)",
    "number": "number = lambda x: x.double()",
    "sums": "sums = lambda x: x.sum(-1, keepdim=True)",
    "total": "total = torch.sum",
    "waves": WAVES,
    "rearrange": "rearrange = lambda x, a, axes, b: x.reshape(a).permute(axes).reshape(b)",
}
TENSORFLOW = {
    "": "import tensorflow as tf\n\ntensor = tf.constant",
    "linear": "linear = lambda x, w, b=0: x @ tf.transpose(w) + b",
    "norm": """\
def norm(x, w, b, eps):
    x = x - tf.reduce_mean(x, -1, keepdims=True)
    return x / tf.sqrt(tf.reduce_mean(x * x, -1, keepdims=True) + eps) * w + b""",
    "attend": """\
def attend(q, k, v, heads):
    n, count, width = q.shape
    shape = (n, count, heads, width // heads)
    q, k, v = (tf.transpose(tf.reshape(x, shape), (0, 2, 1, 3)) for x in (q, k, v))
    x = tf.nn.softmax(q @ tf.linalg.matrix_transpose(k) * (width // heads) ** -0.5) @ v
    return tf.reshape(tf.transpose(x, (0, 2, 1, 3)), (n, count, width))""",
    "act": """\
act = lambda x, name: {
    "gelu": lambda x: 0.5 * x * (1 + tf.math.erf(x * 0.5**0.5)), "relu": tf.nn.relu,
    "silu": tf.nn.silu, "swish": tf.nn.silu,
    "quick_gelu": lambda x: x * tf.sigmoid(1.702 * x),
}.get(name, lambda x: 0.5 * x * (1 + tf.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))))(x)""",
    "average": "average = lambda x: tf.reduce_mean(x, 1, keepdims=True)",
    "argsort": "argsort = lambda x: tf.argsort(x, 1, stable=True)",
    "number": "number = lambda x: tf.cast(x, tf.float64)",
    "sums": "sums = lambda x: tf.reduce_sum(x, -1, keepdims=True)",
    "total": "total = tf.reduce_sum",
    "waves": WAVES,
    "rearrange": "rearrange = lambda x, a, axes, b: "
    "tf.reshape(tf.transpose(tf.reshape(x, a), axes), b)",
}
JAX = {
    "": "import jax\nimport jax.numpy as jnp\n\n"
    'jax.config.update("jax_enable_x64", True)\ntensor = jnp.asarray',
    "linear": "linear = lambda x, w, b=0: x @ w.T + b",
    "norm": """\
def norm(x, w, b, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps) * w + b""",
    "attend": """\
def attend(q, k, v, heads):
    n, count, width = q.shape
    q, k, v = (x.reshape(n, count, heads, -1).swapaxes(1, 2) for x in (q, k, v))
    x = jax.nn.softmax(q @ k.swapaxes(2, 3) * (width // heads) ** -0.5) @ v
    return x.swapaxes(1, 2).reshape(n, count, width)""",
    "act": """\
act = lambda x, name: {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False), "relu": jax.nn.relu,
    "silu": jax.nn.silu, "swish": jax.nn.silu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}.get(name, lambda x: jax.nn.gelu(x, approximate=True))(x)""",
    "average": "average = lambda x: x.mean(1, keepdims=True)",
    "argsort": "argsort = lambda x: jnp.argsort(x, 1, stable=True)",
    "number": "number = lambda x: x.astype(float)",
    "sums": "sums = lambda x: x.sum(-1, keepdims=True)",
    "total": "total = jnp.sum",
    "waves": WAVES,
    "rearrange": "rearrange = lambda x, a, axes, b: x.reshape(a).transpose(axes).reshape(b)",
}
FRAMEWORKS: Mapping[str, Mapping[str, str]] = {"torch": TORCH, "tensorflow": TENSORFLOW, "jax": JAX}

BEGIN = '''"""FIRST: B differs from A (SHOWN). Usage: python reproduce.py USUAL

A and B are two models. reproduce.npz contains the input of this step, and the weights and the
result of each model.
The exit status is 1 if B differs from A, as it did when this file was written.
"""

import sys
from pathlib import Path

import numpy as np

framework = sys.argv[1] if len(sys.argv) > 1 else "FRAMEWORK"
if framework not in NAMES:
    print(__doc__, file=sys.stderr)
    sys.exit(2)
data = dict(np.load(Path(__file__).with_name("reproduce.npz")))
settings = SETTINGS
'''
STEP = """

def step(side, dtype="float64"):
    s = settings[side]
    t = lambda name: tensor(data.get(f"{side}/{name}", data.get(name)).astype(dtype))
LINES


def distance(x, y):
    same = (np.isnan(x) & np.isnan(y)) | (np.isinf(x) & (x == y))
    x, y = np.where(same, 0, x), np.where(same, 0, y)
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(x - y) / (np.linalg.norm(y) or 1))


a, b = data["result/A"], data["result/B"]  # the results of A and B
"""
FUNCTION = """print(f"FIRST: B differs from A by {distance(b, a):.1e} (relative L2, float64)")
canonical = CANONICAL
for name in sorted(n[2:] for n in data if n.startswith("B/")):
    print(f"  {canonical.get(name, name)} differs between A and B")
for name, value in settings["B"].items():
    if value != settings["A"][name]:
        print(f"  {name} is {settings['A'][name]} in A and {value} in B")
for side in "AB":
    result = np.asarray(step(side))
    print(f"{framework}, with the tensors and settings of {side}: {distance(result, a):.1e} "
          f"from A's result, {distance(result, b):.1e} from B's result")
sys.exit(not distance(b, a) <= LIMIT)
"""
NUMERICS = """errors = {}
for side, computed in ("A", a), ("B", b):
    exact, plain = np.asarray(step(side)), np.asarray(step(side, "DTYPE"))
    errors[side] = distance(computed, exact)
    print(f"FIRST in DTYPE: {side} differs by {errors[side]:.1e} from the float64 result of the "
          f"same input, {framework} by {distance(plain, exact):.1e}")
print("  limit of the larger error: LIMIT")
sys.exit(not max(errors.values()) <= LIMIT)
"""


@dataclass(frozen=True)
class Script:
    """The parts of a reproducer's script that depend on the differing result."""

    first: str
    """The name of the result that differs."""

    lines: Sequence[str]
    """The formula of the result, as lines of Python."""

    settings: Mapping[str, Mapping[str, Any]]
    """For each side ("A" or "B"), the settings that `lines` reads from the variable ``s``."""

    names: Mapping[str, str]
    """The canonical names of the tensors that differ, by their names in `lines`."""

    limit: float
    """In float64, the largest allowed distance between A and B. In a lower precision, the largest
    allowed rounding error of a side."""

    dtype: str = "float64"
    """The dtype in which the results were computed."""

    runner: str = ""
    """The runner that computed the results of B, such as "timm", if `--against` specified it; "" if
    they are side B's own results."""


def script_text(script: Script, frameworks: Sequence[str]) -> str:
    """Return the text of a script that can be run with any of the frameworks."""
    code = "\n".join(script.lines)
    used = set(re.findall(r'\bs\["(\w+)"\]', code))
    settings = {side: {n: v for n, v in values.items() if n in used}
                for side, values in script.settings.items()}  # fmt: skip
    shown = "float64" if script.dtype == "float64" else f"rounding errors in {script.dtype}"
    begin = (
        BEGIN.replace("FIRST", script.first).replace("SHOWN", shown)
        .replace("USUAL", " | ".join(frameworks)).replace("FRAMEWORK", frameworks[0])
        .replace("SETTINGS", json.dumps(settings)).replace("NAMES", repr(tuple(frameworks)))
    )  # fmt: skip
    functions = []
    for number, name in enumerate(frameworks):
        body = [FRAMEWORKS[name][""]]
        body += [text for op, text in FRAMEWORKS[name].items() if op and f"{op}(" in code]
        last = number == len(frameworks) - 1
        condition = f'{"el" if number else ""}if framework == "{name}":'
        head = "" if len(frameworks) == 1 else "else:" if last else condition
        text = "\n\n".join(body) if not head else _indented("\n\n".join(body))
        functions.append("\n".join(filter(None, (head, text))))
    end = FUNCTION if script.dtype == "float64" else NUMERICS.replace("DTYPE", script.dtype)
    end = end.replace("CANONICAL", json.dumps(dict(script.names)))
    end = end.replace("FIRST", script.first).replace("LIMIT", f"{script.limit:.1e}")
    if script.runner:
        note = f"  the results of B were computed by {script.runner}"
        before = "canonical = " if script.dtype == "float64" else 'print("  limit'
        end = end.replace(before, f"print({note!r})\n{before}", 1)
    return begin + "\n" + "\n".join(functions) + "\n" + STEP.replace("LINES", _indented(code)) + end


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.split("\n"))
