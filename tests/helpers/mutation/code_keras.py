"""Faults in the code of the Keras reference model on TensorFlow while a job runs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import numpy as np
import tensorflow as tf
from keras import ops

from mae_convert.runtime import run_keras
from reference_models.keras import blocks as layers
from reference_models.keras import mae, patches, trunk
from reference_models.keras.numerics import ACTIVATION_FUNCTIONS

Patch = tuple[object, str, object]


def in_models(change: Callable) -> list[Patch]:
    """Return patches that change each model after it is built."""
    build = run_keras.build

    def built(*arguments):
        model = build(*arguments)
        change(model)
        return model

    return [(run_keras, "build", built)]


def blocks_of(model):
    yield from model.encoder._blocks()
    if hasattr(model, "decoder"):
        yield from model.decoder._blocks()


def set_eps(value: float, chosen: Callable) -> list[Patch]:
    def change(model):
        for layer in chosen(model):
            layer.epsilon = value

    return in_models(change)


def all_norms(model):
    yield from (norm for block in blocks_of(model) for norm in (block.norm1, block.norm2))
    yield from last_norms(model)


def last_norms(model):
    return [model.encoder.norm, model.decoder.norm]


def decoder_norms(model):
    blocks = model.decoder._blocks()
    return [*(norm for b in blocks for norm in (b.norm1, b.norm2)), model.decoder.norm]


def set_activation(function: Callable, chosen: Callable) -> list[Patch]:
    def change(model):
        for block in chosen(model):
            block.activation = function

    return in_models(change)


def set_heads(number: int, stack: str) -> list[Patch]:
    def change(model):
        for block in getattr(model, stack)._blocks():
            block.attention.heads = number

    return in_models(change)


def attention(**options) -> list[Patch]:
    return [(layers.Attention, "call", partial_call(attend, **options))]


def partial_call(function: Callable, **options) -> Callable:
    def call(self, tokens, taps=None):
        return function(self, tokens, taps, **options)

    return call


def attend(self, tokens, taps=None, *, scale=None, core=None, split=None, merge=None, order="qkv"):
    given = {"q": self.query(tokens), "k": self.key(tokens), "v": self.value(tokens)}
    size = self.width // self.heads
    apart = split or layers.Attention._split_heads
    q, k, v = (apart(self, given[part]) for part in order)
    scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))) * (scale(self) if scale else size**-0.5)
    probabilities = core(scores) if core else ops.softmax(scores, axis=-1)
    mixed = ops.matmul(probabilities, v)
    shape = ops.shape(given["q"])
    joined = merge(mixed) if merge else ops.transpose(mixed, (0, 2, 1, 3))
    output = self.projection(ops.reshape(joined, shape))
    record(taps, {**given, "attention": output})
    return output


def record(taps, activations):
    if taps is not None:
        taps.update(activations)


def split_inside_out(self, x):
    apart = ops.reshape(x, (-1, x.shape[1], self.width // self.heads, self.heads))
    return ops.transpose(apart, (0, 3, 1, 2))


def causal(scores):
    count = scores.shape[-1]
    mask = np.triu(np.full((count, count), -1e30), 1)
    return ops.softmax(scores + ops.cast(mask, scores.dtype), axis=-1)


def blind_to_class_token(scores):
    mask = np.zeros(scores.shape[-1])
    mask[0] = -1e30
    return ops.softmax(scores + ops.cast(mask, scores.dtype), axis=-1)


def norms(change: Callable) -> list[Patch]:
    return [(layers.LayerNorm, "call", change)]


def normalized(self, x, *, correction=0, outside=False, centred=True):
    y = x - ops.sum(x, axis=-1, keepdims=True) / x.shape[-1] if centred else x
    variance = ops.sum(y * y, axis=-1, keepdims=True) / (x.shape[-1] - correction)
    root = ops.sqrt(variance) + self.epsilon if outside else ops.sqrt(variance + self.epsilon)
    return y / root * self.gamma + self.beta


def method(function: Callable, **options) -> Callable:
    return lambda self, x: function(self, x, **options)


def without_norms(chosen: Callable) -> list[Patch]:
    original = layers.LayerNorm.call

    def call(self, tokens):
        return tokens if chosen(self.name) else original(self, tokens)

    return norms(call)


def block(forward: Callable) -> list[Patch]:
    return [(layers.Block, "call", forward)]


def mlp_of(self, x, taps):
    output = self.fc2(self.activation(self.fc1(x)))
    record(taps, {"mlp": output})
    return output


def normalized_after(self, tokens, taps=None):
    tokens = self.norm1(tokens + self.attention(tokens, taps=taps))
    return self.norm2(tokens + mlp_of(self, tokens, taps))


def in_parallel(self, tokens, taps=None):
    attended = self.attention(self.norm1(tokens), taps=taps)
    return tokens + attended + mlp_of(self, self.norm2(tokens), taps)


def without_residual(self, tokens, taps=None):
    attended = self.attention(self.norm1(tokens), taps=taps)
    return mlp_of(self, self.norm2(tokens + attended), taps)


def flipped(axis: int) -> list[Patch]:
    original = mae.patchify
    turned = lambda pixels, config: original(ops.flip(pixels, axis), config)  # noqa: E731
    return [(mae, "patchify", turned), (patches, "patchify", turned)]


def cut_channels_first() -> list[Patch]:
    original = mae.patchify

    def patchify(pixels, config):
        values = original(pixels, config)
        apart = ops.reshape(values, (*values.shape[:2], *config.patch_hw, config.num_channels))
        return ops.reshape(ops.transpose(apart, (0, 1, 4, 2, 3)), values.shape)

    return [(mae, "patchify", patchify)]


def embedding(change: Callable) -> list[Patch]:
    original = mae.Embeddings.call

    def call(self, pixels, ids_keep=None):
        return change(self, original(self, pixels, ids_keep), ids_keep)

    return [(mae.Embeddings, "call", call)]


def without_position(self, tokens, ids):
    return ops.concatenate([tokens[:, :1] - self.position_embeddings[:, :1], tokens[:, 1:]], 1)


def positions_not_picked(self, tokens, ids):
    positions = self.position_embeddings
    visible = ops.take(positions[0, 1:], ids, axis=0)
    others = positions[:, 1 : 1 + ids.shape[1]]
    return ops.concatenate([tokens[:, :1], tokens[:, 1:] - visible + others], 1)


def masking(change: Callable) -> list[Patch]:
    original = patches.mask_by_noise
    return [(patches, "mask_by_noise", lambda noise, visible: change(original, noise, visible))]


def mask_inverted(original, noise, visible):
    keep, mask, restore = original(noise, visible)
    return keep, 1 - mask, restore


def shuffle_as_restore(original, noise, visible):
    keep, mask, restore = original(noise, visible)
    return keep, mask, ops.argsort(restore, axis=1)


def restoring(change: Callable) -> list[Patch]:
    """Return patches of the decoder's unshuffling; change: (tokens, ids) → tokens."""
    return [(patches, "take_tokens", change)]


def decoder_positions(change: Callable) -> list[Patch]:
    def changed(model):
        variable = model.decoder.position_embeddings
        variable.assign(change(ops.convert_to_numpy(variable)))

    return in_models(changed)


def class_row_zero(positions):
    return np.concatenate([positions[:, :1] * 0, positions[:, 1:]], 1)


def unpatchified(change: Callable) -> list[Patch]:
    original = patches.unpatchify
    return [(patches, "unpatchify", lambda x, config: original(change(x), config))]


def channels_first(patches):
    apart = ops.reshape(patches, (*patches.shape[:2], 3, 8, 8))
    return ops.reshape(ops.transpose(apart, (0, 1, 3, 4, 2)), patches.shape)


def statistics(correction: int, floor: float) -> list[Patch]:
    def patch_statistics(values):
        count = values.shape[-1]
        centre = ops.sum(values, axis=-1, keepdims=True) / count
        squares = ops.sum(ops.square(values - centre), axis=-1, keepdims=True)
        return centre, ops.sqrt(squares / (count - correction) + floor)

    return [(patches, "patch_statistics", patch_statistics)]


def loss(change: Callable) -> list[Patch]:
    def forward_loss(self, pixels, logits, mask, norm_pix_loss=None):
        target = self.patchify(pixels)
        if norm_pix_loss:
            centre, deviation = patches.patch_statistics(target)
            target = (target - centre) / deviation
        errors = ops.sum(ops.square(logits - target), axis=-1) / target.shape[-1]
        return change(errors, ops.cast(mask, errors.dtype))

    return [(mae.TFViTMAEForPreTraining, "forward_loss", forward_loss)]


def without_bias(chosen: Callable) -> list[Patch]:
    def change(model):
        for variable in chosen(model):
            variable.assign(ops.zeros_like(variable))

    return in_models(change)


def reversed_blocks() -> list[Patch]:
    original = trunk.Trunk._blocks

    def blocks(self):
        return original(self)[::-1] if self.name == "vit" else original(self)

    return [(trunk.Trunk, "_blocks", blocks)]


def dropout(chosen: Callable, name: str) -> list[Patch]:
    """Return patches that make a dropout of each block active outside of training.

    Args:
        chosen: returns the layer of a block that has the dropout.
        name: the attribute of that layer.
    """

    def change(model):
        for block in blocks_of(model):
            setattr(chosen(block), name, lambda x: tf.nn.dropout(x, 0.1))

    return in_models(change)


def with_precision(part: str, dtype: str, *, proof: bool) -> list[Patch]:
    """Return patches that compute a part in lower precision, with ``proof`` also in float64."""
    import keras

    lower = LOWER[dtype]

    def affected(x):
        return proof or keras.backend.standardize_dtype(x.dtype) != "float64"

    def where_affected(original, function):
        return lambda self, x, *a, **o: (
            function(self, x, *a, **o) if affected(x) else original(self, x, *a, **o)
        )

    def multiplied(self, x, *_, **__):
        product = ops.matmul(lower(x), lower(self.kernel)) + self.bias
        return product if dtype == "TF32" else lower(product)

    def normed(self, x):
        return lower(normalize(self, lower(x)))

    def attended(self, tokens, taps=None):
        given = [self.query(tokens), self.key(tokens), self.value(tokens)]
        q, k, v = (lower(self._split_heads(x)) for x in given)
        scores = lower(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))) * (q.shape[-1] ** -0.5)
        mixed = lower(ops.matmul(lower(ops.softmax(scores, axis=-1)), v))
        joined = ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), ops.shape(given[0]))
        output = self.projection(joined)
        record(taps, dict(zip("qkv", given, strict=True)) | {"attention": output})
        return output

    dense, normalize = keras.layers.Dense.call, layers.LayerNorm.call
    attention_call = layers.Attention.call
    linear = [(keras.layers.Dense, "call", where_affected(dense, multiplied))]
    norm = [(layers.LayerNorm, "call", where_affected(normalize, normed))]
    core = [(layers.Attention, "call", where_affected(attention_call, attended))]
    everything = [*linear, *core, *(norm if dtype != "TF32" else [])]
    return {
        "attention": core,
        "linear layers": linear,
        "norms": norm,
        "everything": everything,
    }[part]


def tf32(x):
    bits = tf.bitcast(tf.cast(x, tf.float32), tf.int32)
    cut = tf.bitwise.bitwise_and(bits + 0x1000, ~0x1FFF)
    return tf.cast(tf.bitcast(cut, tf.float32), x.dtype)


LOWER = {
    "bfloat16": lambda x: tf.cast(tf.cast(x, tf.bfloat16), x.dtype),
    "float16": lambda x: tf.cast(tf.cast(x, tf.float16), x.dtype),
    "TF32": tf32,
}

FAULTS: dict[str, Callable[[], list[Patch]]] = {
    "eps 1e-5 everywhere": lambda: set_eps(1e-5, all_norms),
    "eps 1e-12 in the decoder": lambda: set_eps(1e-12, decoder_norms),
    "eps 1e-12 before the MLP": lambda: set_eps(1e-12, lambda m: [b.norm2 for b in blocks_of(m)]),
    "eps 1e-5 in the last norms": lambda: set_eps(1e-5, last_norms),
    "GELU by tanh": lambda: set_activation(ACTIVATION_FUNCTIONS["gelu_new"], blocks_of),
    "quick GELU in the decoder": lambda: set_activation(
        ACTIVATION_FUNCTIONS["quick_gelu"], lambda m: m.decoder._blocks()
    ),
    "ReLU in one block": lambda: set_activation(ops.relu, lambda m: [m.encoder._blocks()[2]]),
    "six heads": lambda: set_heads(6, "encoder"),
    "four decoder heads": lambda: set_heads(4, "decoder"),
    "heads split inside out": lambda: attention(split=split_inside_out),
    "heads not transposed back": lambda: attention(merge=lambda x: x),
    "scale by the width": lambda: attention(scale=lambda self: self.width**-0.5),
    "no scale": lambda: attention(scale=lambda self: 1.0),
    "causal attention": lambda: attention(core=causal),
    "key and value exchanged": lambda: attention(order="qvk"),
    "softmax over queries": lambda: attention(core=partial(ops.softmax, axis=-2)),
    "class token not attended to": lambda: attention(core=blind_to_class_token),
    "normalized after": lambda: block(normalized_after),
    "attention and MLP in parallel": lambda: block(in_parallel),
    "no residual of the MLP": lambda: block(without_residual),
    "unbiased variance in norms": lambda: norms(method(normalized, correction=1)),
    "RMS norm": lambda: norms(method(normalized, centred=False)),
    "epsilon outside the root": lambda: norms(method(normalized, outside=True)),
    "no last norm of the encoder": lambda: without_norms(lambda name: name == "layernorm"),
    "no norm before the MLP": lambda: without_norms(lambda name: name == "layernorm_after"),
    "BGR images": lambda: flipped(1),
    "patches cut as (channel, row, column)": cut_channels_first,
    "no position of the class token": lambda: embedding(without_position),
    "positions not picked": lambda: embedding(positions_not_picked),
    "highest noise kept": lambda: masking(lambda f, noise, visible: f(-noise, visible)),
    "mask inverted": lambda: masking(mask_inverted),
    "shuffle in place of ids_restore": lambda: masking(shuffle_as_restore),
    "one patch more": lambda: masking(lambda f, noise, visible: f(noise, visible + 1)),
    "not restored": lambda: restoring(lambda tokens, ids: tokens),
    "no decoder position of the class token": lambda: decoder_positions(class_row_zero),
    "decoder positions one off": lambda: decoder_positions(lambda p: np.roll(p, 1, 1)),
    "reconstruction as (channel, row, column)": lambda: unpatchified(channels_first),
    "biased variance of patches": lambda: statistics(0, 1e-6),
    "no epsilon of patches": lambda: statistics(1, 0.0),
    "loss over visible patches": lambda: loss(
        lambda e, mask: ops.sum(e * (1 - mask)) / ops.sum(1 - mask)
    ),
    "loss over all patches": lambda: loss(lambda e, mask: ops.mean(e)),
    "no key bias": lambda: without_bias(lambda m: [b.attention.key.bias for b in blocks_of(m)]),
    "no bias of fc2": lambda: without_bias(lambda m: [b.fc2.bias for b in blocks_of(m)]),
    "no patch bias": lambda: without_bias(lambda m: [m.encoder.embeddings.projection.bias]),
    "blocks in reverse order": reversed_blocks,
    "dropout left on": lambda: dropout(lambda block: block, "dropout"),
    "dropout of attention left on": lambda: dropout(lambda b: b.attention, "probability_dropout"),
}


def patches_of(name: str) -> list[Patch]:
    if name in FAULTS:
        return FAULTS[name]()
    if ": " in name:  # of a family of video models
        from mutation.code_families_keras import faults_of_family

        return faults_of_family(name)
    part, _, dtype = name.removesuffix(", but not in the proof").rpartition(" in ")
    return with_precision(part, dtype, proof="not in the proof" not in name)


@contextmanager
def fault(name: str | None) -> Iterator[None]:
    """Context in which the reference model's code has a fault; None for no fault."""
    with ExitStack() as stack:
        for target, attribute, value in patches_of(name) if name else []:
            stack.enter_context(mock.patch.object(target, attribute, value))
        yield
