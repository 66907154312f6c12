"""Faults in the code of the PyTorch reference model while a job runs."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import nn

from mae_convert.runtime import run_pytorch
from reference_models.outputs import Taps
from reference_models.pytorch import blocks as layers
from reference_models.pytorch import mae, patches

Patch = tuple[object, str, object]


def in_models(change: Callable[[str, nn.Module], None]) -> list[Patch]:
    """Return patches that change the modules, by name, of each model after it is built."""
    build = run_pytorch.build

    def built(job):
        model = build(job)
        for name, module in model.named_modules():
            change(name, module)
        return model

    return [(run_pytorch, "build", built)]


def eps(value: float, chosen: Callable[[str], bool]) -> list[Patch]:
    def change(name, module):
        if isinstance(module, nn.LayerNorm) and chosen(name):
            module.eps = value

    return in_models(change)


def activation(function: Callable, chosen: Callable[[str], bool]) -> list[Patch]:
    def change(name, module):
        if isinstance(module, layers.Mlp) and chosen(name):
            module.activation = function

    return in_models(change)


def heads(number: int, start: str) -> list[Patch]:
    def change(name, module):
        if isinstance(module, layers.Attention) and name.startswith(start):
            module.heads = number

    return in_models(change)


def attention(core: Callable) -> list[Patch]:
    original = F.scaled_dot_product_attention
    return [(F, "scaled_dot_product_attention", partial(core, original))]


def inside_out(x: torch.Tensor) -> torch.Tensor:
    """Return (N, H, T, d) with channels split as (d, H) instead of (H, d)."""
    flat = x.transpose(1, 2).flatten(2)
    return flat.unflatten(2, (-1, x.shape[1])).permute(0, 3, 1, 2)


def inside_in(x: torch.Tensor) -> torch.Tensor:
    """Return (N, H, T, d) such that the merged heads have the order (d, H)."""
    flat = x.permute(0, 2, 3, 1).flatten(2)
    return flat.unflatten(2, (x.shape[1], -1)).transpose(1, 2)


def not_transposed_back(x: torch.Tensor) -> torch.Tensor:
    flat = x.reshape(len(x), x.shape[2], -1)
    return flat.unflatten(2, (x.shape[1], -1)).transpose(1, 2)


def norms(function: Callable, chosen: Callable[[str], bool] = lambda _: True) -> list[Patch]:
    def change(name, module):
        if isinstance(module, nn.LayerNorm) and chosen(name):
            module.forward = partial(function, module)

    return in_models(change)


def normalized(module, x, *, correction=0, outside=False, centred=True):
    y = x - x.mean(-1, keepdim=True) if centred else x
    variance = y.square().sum(-1, keepdim=True) / (x.shape[-1] - correction)
    root = variance.sqrt() + module.eps if outside else (variance + module.eps).sqrt()
    return y / root * module.weight + module.bias


def block(forward: Callable) -> list[Patch]:
    return [(layers.Block, "forward", forward)]


def normalized_after(self, tokens, taps=None):
    tokens = self.norm1(tokens + self.attn(tokens, taps))
    return self.norm2(tokens + self.mlp(tokens, taps))


def in_parallel(self, tokens, taps=None):
    return tokens + self.attn(self.norm1(tokens), taps) + self.mlp(self.norm2(tokens), taps)


def without(*, attention=False, mlp=False):
    def forward(self, tokens, taps=None):
        attended = self.attn(self.norm1(tokens), taps)
        tokens = attended if attention else tokens + attended
        made = self.mlp(self.norm2(tokens), taps)
        return made if mlp else tokens + made

    return forward


def layer_scale(self, tokens, taps=None):
    tokens = tokens + 0.9 * self.attn(self.norm1(tokens), taps)
    return tokens + 0.9 * self.mlp(self.norm2(tokens), taps)


def embedding(change: Callable) -> list[Patch]:
    """Return patches of the embeddings; change: (original, self, pixels, ids) → tokens."""
    return [(mae.Encoder, "embed", partial_method(change, mae.Encoder.embed))]


def partial_method(change: Callable, original: Callable) -> Callable:
    def method(self, *args, **kwargs):
        return change(original, self, *args, **kwargs)

    return method


def without_position(original, self, pixels, ids=None):
    tokens = original(self, pixels, ids)
    return torch.cat([tokens[:, :1] - self.pos_embed[:, :1], tokens[:, 1:]], 1)


def token_twice(original, self, pixels, ids=None):
    tokens = original(self, pixels, ids)
    return torch.cat([tokens[:, :1] + self.cls_token, tokens[:, 1:]], 1)


def with_positions(places: Callable) -> Callable:
    def embed(original, self, pixels, ids=None):
        positions = self.pos_embed
        remaining = positions[0, 1:][ids]
        others = places(positions, ids)
        tokens = original(self, pixels, ids)
        return torch.cat([tokens[:, :1], tokens[:, 1:] - remaining + others], 1)

    return embed


def cut(change: Callable) -> list[Patch]:
    """Return patches that change the image patches (N, L, P) of the embeddings only."""

    def patchify(pixels, config):
        apart = original(pixels, config).unflatten(2, (*config.patch_hw, -1))
        return change(apart, config)

    original = mae.patchify
    return [(mae, "patchify", patchify)]


def column_by_column(apart, config):
    grid = apart.flatten(2).unflatten(1, config.grid_hw)
    return grid.transpose(1, 2).flatten(1, 2)


def masking(change: Callable) -> list[Patch]:
    original = patches.mask_by_noise
    return [(patches, "mask_by_noise", lambda noise, visible: change(original, noise, visible))]


def mask_inverted(original, noise, visible):
    keep, mask, restore = original(noise, visible)
    return keep, 1 - mask, restore


def mask_shuffled(original, noise, visible):
    keep, mask, restore = original(noise, visible)
    return keep, mask.sort(dim=1).values, restore


def shuffle_as_restore(original, noise, visible):
    keep, mask, restore = original(noise, visible)
    return keep, mask, restore.argsort(1)


def restoring(change: Callable) -> list[Patch]:
    """Return patches of the decoder's input; change: (self, visible, ids_restore) → tokens."""

    def decoder_tokens(self, latent, restore):
        return change(self, self.decoder_embed(latent), restore)

    return [(mae.ViTMAEForPreTraining, "decoder_tokens", decoder_tokens)]


def decoder_tokens(
    *, restored=True, first=False, class_position=True, early=False, roll=0
) -> Callable:
    def change(self, visible, restore):
        count, (images, _, width) = restore.shape[1], visible.shape
        masks = self.mask_token.expand(images, count + 1 - visible.shape[1], width)
        parts = [masks, visible[:, 1:]] if first else [visible[:, 1:], masks]
        patches = torch.cat(parts, 1)
        positions = self.decoder_pos_embed.roll(roll, 1)
        if early:
            patches = patches + positions[:, 1:]
        if restored:
            patches = patches.gather(1, restore[..., None].expand(-1, -1, width))
        if not early:
            patches = patches + positions[:, 1:]
        token = visible[:, :1] + (positions[:, :1] if class_position else 0)
        return torch.cat([token, patches], 1)

    return change


def last_left_out() -> list[Patch]:
    def decode(self, latent, restore, taps=None):
        tokens = self.decoder_tokens(latent, restore)
        tokens = layers.run_blocks(self.decoder_blocks, tokens, "decoder", taps)
        normed = self.decoder_norm(tokens)
        if taps is not None:
            taps["decoder.norm"] = normed
        return self.decoder_pred(normed[:, :-1])

    return [(mae.ViTMAEForPreTraining, "decode", decode)]


def unpatchified(change: Callable) -> list[Patch]:
    original = patches.unpatchify
    return [(patches, "unpatchify", lambda x, config: original(change(x), config))]


def loss(change: Callable) -> list[Patch]:
    """Return patches of the loss; change: (self, target, logits, mask) → scalar."""

    def forward_loss(self, pixels, logits, mask, norm_pix_loss=None):
        target = self.patchify(pixels)
        if norm_pix_loss:
            mean, deviation = patches.patch_statistics(target)
            target = (target - mean) / deviation
        return change(logits - target, mask)

    return [(mae.ViTMAEForPreTraining, "forward_loss", forward_loss)]


def statistics(correction: int, floor: float) -> list[Patch]:
    def patch_statistics(values):
        variance, mean = torch.var_mean(values, -1, correction=correction, keepdim=True)
        return mean, (variance + floor).sqrt()

    return [(patches, "patch_statistics", patch_statistics)]


def pooled(pool: Callable) -> list[Patch]:
    def forward(self, pixels, labels=None, **kwargs):
        taps = Taps()
        tokens = self.encode(self.embed(pixels), taps)
        name, normed, read = pool(self, tokens)
        logits = self.head(read)
        return mae.ImageClassifierOutput(None, logits, None, None, {**taps, name: normed})

    return [(mae.ViTForImageClassification, "forward", forward)]


def avg(tokens: Callable, *, early: bool = False) -> Callable:
    def pool(self, x):
        normed = tokens(self.fc_norm(x)) if early else self.fc_norm(tokens(x))
        return "head.norm", normed, normed[:, 0]

    return pool


def read(which: Callable) -> Callable:
    def pool(self, x):
        normed = self.norm(x)
        return "encoder.norm", normed, which(normed)

    return pool


def without_bias(chosen: Callable[[str], bool], rows: Callable = slice(None)) -> list[Patch]:
    def change(name, module):
        if chosen(name):
            bias = module.bias.detach().clone()
            bias[rows(len(bias)) if callable(rows) else rows] = 0
            module.bias = nn.Parameter(bias, requires_grad=False)

    return in_models(change)


def blocks(order: Callable) -> list[Patch]:
    original = mae.run_blocks

    def run(blocks, tokens, name, taps=None):
        return original(order(list(blocks)) if name == "encoder" else blocks, tokens, name, taps)

    return [(mae, "run_blocks", run)]


def dropout() -> list[Patch]:
    """Return patches that make dropout active outside of training."""

    def forward(self, x):
        return F.dropout(x, 0.1, training=True)

    return [(nn.Dropout, "forward", forward)]


def with_precision(part: str, dtype: str, *, proof: bool) -> list[Patch]:
    """Return patches that compute a part in lower precision, with ``proof`` also in float64."""
    lower = LOWER[dtype]

    def affected(x):
        return proof or x.dtype != torch.float64

    sdpa, linear, norm, gelu = (
        F.scaled_dot_product_attention, F.linear, F.layer_norm, layers.Mlp.forward,
    )  # fmt: skip

    def attended(q, k, v, **options):
        if not affected(q):
            return sdpa(q, k, v, **options)
        return lower(sdpa(*(lower(x) for x in (q, k, v)), **options))

    def multiplied(x, weight, bias=None):
        if not affected(x):
            return linear(x, weight, bias)
        product = linear(lower(x), lower(weight), bias)
        return product if dtype == "TF32" else lower(product)

    def normed(x, *args):
        return lower(norm(lower(x), *args)) if affected(x) else norm(x, *args)

    def perceptron(self, tokens, taps=None):
        if not affected(tokens):
            return gelu(self, tokens, taps)
        hidden = multiplied(tokens, self.fc1.weight, self.fc1.bias)
        output = multiplied(self.activation(hidden), self.fc2.weight, self.fc2.bias)
        if taps is not None:
            taps["mlp"] = output
        return output

    changes: dict[str, list[Patch]] = {
        "attention": [(F, "scaled_dot_product_attention", attended)],
        "linear layers": [(F, "linear", multiplied)],
        "norms": [(F, "layer_norm", normed)],
        "the MLP": [(layers.Mlp, "forward", perceptron)],
    }
    changes["everything"] = [
        *changes["attention"],
        *changes["linear layers"],
        *(changes["norms"] if dtype != "TF32" else []),
    ]
    return changes[part]


def tf32(x: torch.Tensor) -> torch.Tensor:
    bits = x.float().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)


LOWER = {
    "bfloat16": lambda x: x.bfloat16().to(x.dtype),
    "float16": lambda x: x.half().to(x.dtype),
    "TF32": tf32,
}


def capped(original, q, k, v, **options):
    logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return (0.5 * (logits / 0.5).tanh()).softmax(-1) @ v


def over_queries(original, q, k, v, **options):
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-2) @ v


def mean_square(errors):
    return errors.square().mean(-1)


def flipped(axis: int) -> list[Patch]:
    """Return patches that flip the images in each function of the model that reads them."""
    original = mae.patchify
    turned = lambda pixels, config: original(pixels.flip(axis), config)  # noqa: E731
    return [(mae, "patchify", turned), (patches, "patchify", turned)]


FAULTS: dict[str, Callable[[], list[Patch]]] = {
    "eps 1e-5 everywhere": lambda: eps(1e-5, lambda _: True),
    "eps 1e-12 in the decoder": lambda: eps(1e-12, lambda n: n.startswith("decoder")),
    "eps 1e-12 before the MLP": lambda: eps(1e-12, lambda n: n.endswith("norm2")),
    "eps 1e-3 in block 1": lambda: eps(1e-3, lambda n: n.startswith("blocks.1.")),
    "eps 1e-5 in the last norms": lambda: eps(1e-5, lambda n: n in ("norm", "decoder_norm")),
    "eps 1e-12 in the blocks": lambda: eps(1e-12, lambda n: "blocks." in n),
    "GELU by tanh": lambda: activation(partial(F.gelu, approximate="tanh"), lambda _: True),
    "quick GELU in the decoder": lambda: activation(
        lambda x: x * torch.sigmoid(1.702 * x), lambda n: n.startswith("decoder")
    ),
    "ReLU in one block": lambda: activation(F.relu, lambda n: n.startswith("blocks.2.")),
    "six heads": lambda: heads(6, "blocks"),
    "four decoder heads": lambda: heads(4, "decoder"),
    "heads inside out": lambda: attention(
        lambda f, q, k, v, **o: inside_in(f(*(inside_out(x) for x in (q, k, v)), **o))
    ),
    "heads split inside out": lambda: attention(
        lambda f, q, k, v, **o: f(*(inside_out(x) for x in (q, k, v)), **o)
    ),
    "heads not transposed back": lambda: attention(
        lambda f, q, k, v, **o: not_transposed_back(f(q, k, v, **o))
    ),
    "scale by the width": lambda: attention(
        lambda f, q, k, v, **o: f(q, k, v, scale=(q.shape[1] * q.shape[3]) ** -0.5)
    ),
    "no scale": lambda: attention(lambda f, q, k, v, **o: f(q, k, v, scale=1.0)),
    "scale twice": lambda: attention(lambda f, q, k, v, **o: f(q, k, v, scale=1 / q.shape[3])),
    "causal attention": lambda: attention(lambda f, q, k, v, **o: f(q, k, v, is_causal=True)),
    "key and value exchanged": lambda: attention(lambda f, q, k, v, **o: f(q, v, k)),
    "query and key exchanged": lambda: attention(lambda f, q, k, v, **o: f(k, q, v)),
    "softmax over queries": lambda: attention(over_queries),
    "class token not attended to": lambda: attention(
        lambda f, q, k, v, **o: f(q, k[:, :, 1:], v[:, :, 1:])
    ),
    "logits of attention capped": lambda: attention(capped),
    "normalized after": lambda: block(normalized_after),
    "attention and MLP in parallel": lambda: block(in_parallel),
    "no residual of attention": lambda: block(without(attention=True)),
    "no residual of the MLP": lambda: block(without(mlp=True)),
    "layer scale 0.9": lambda: block(layer_scale),
    "unbiased variance in norms": lambda: norms(partial(normalized, correction=1)),
    "RMS norm": lambda: norms(partial(normalized, centred=False)),
    "epsilon outside the root": lambda: norms(partial(normalized, outside=True)),
    "no last norm of the encoder": lambda: norms(lambda _, x: x, lambda n: n == "norm"),
    "no norm before the MLP": lambda: norms(lambda _, x: x, lambda n: n.endswith("norm2")),
    "BGR images": lambda: flipped(1),
    "images upside down": lambda: flipped(2),
    "patches cut as (channel, row, column)": lambda: cut(
        lambda apart, _: apart.permute(0, 1, 4, 2, 3).flatten(2)
    ),
    "patches cut as (column, row, channel)": lambda: cut(
        lambda apart, _: apart.transpose(2, 3).flatten(2)
    ),
    "patches column by column": lambda: cut(column_by_column),
    "no position of the class token": lambda: embedding(without_position),
    "class token twice": lambda: embedding(token_twice),
    "positions not picked": lambda: embedding(
        with_positions(lambda p, ids: p[:, 1 : 1 + ids.shape[1]])
    ),
    "positions one off": lambda: embedding(with_positions(lambda p, ids: p[0][ids])),
    "highest noise kept": lambda: masking(lambda f, noise, visible_count: f(-noise, visible_count)),
    "mask inverted": lambda: masking(mask_inverted),
    "shuffle in place of ids_restore": lambda: masking(shuffle_as_restore),
    "one patch more": lambda: masking(lambda f, noise, visible_count: f(noise, visible_count + 1)),
    "mask in the shuffled order": lambda: masking(mask_shuffled),
    "ids one off": lambda: masking(
        lambda f, noise, visible_count: (
            *(r := f(noise, visible_count))[:2],
            (r[2] + 1) % noise.shape[1],
        )
    ),
    "not restored": lambda: restoring(decoder_tokens(restored=False)),
    "mask tokens first": lambda: restoring(decoder_tokens(first=True)),
    "no decoder position of the class token": lambda: restoring(
        decoder_tokens(class_position=False)
    ),
    "decoder positions before restoring": lambda: restoring(decoder_tokens(early=True)),
    "decoder positions one off": lambda: restoring(decoder_tokens(roll=1)),
    "last token left out": last_left_out,
    "reconstruction as (channel, row, column)": lambda: unpatchified(
        lambda x: x.unflatten(2, (3, 8, 8)).permute(0, 1, 3, 4, 2).flatten(2)
    ),
    "reconstruction as BGR": lambda: unpatchified(
        lambda x: x.unflatten(2, (64, 3)).flip(-1).flatten(2)
    ),
    "loss over visible patches": lambda: loss(
        lambda e, mask: (mean_square(e) * (1 - mask)).sum() / (1 - mask).sum()
    ),
    "loss over all patches": lambda: loss(lambda e, mask: mean_square(e).mean()),
    "absolute error": lambda: loss(lambda e, mask: (e.abs().mean(-1) * mask).sum() / mask.sum()),
    "summed over a patch": lambda: loss(
        lambda e, mask: (e.square().sum(-1) * mask).sum() / mask.sum()
    ),
    "biased variance of patches": lambda: statistics(0, 1e-6),
    "no epsilon of patches": lambda: statistics(1, 0.0),
    "mean with the class token": lambda: pooled(avg(lambda x: x.mean(1, keepdim=True))),
    "normalized before pooling": lambda: pooled(
        avg(lambda x: x[:, 1:].mean(1, keepdim=True), early=True)
    ),
    "class token pooled": lambda: pooled(avg(lambda x: x[:, :1])),
    "mean of patches read": lambda: pooled(read(lambda x: x[:, 1:].mean(1))),
    "first patch read": lambda: pooled(read(lambda x: x[:, 1])),
    "no key bias": lambda: without_bias(
        lambda n: n.endswith("attn.qkv"), lambda size: slice(size // 3, 2 * size // 3)
    ),
    "no patch bias": lambda: without_bias(lambda n: n == "patch_embed.proj"),
    "no bias of fc2": lambda: without_bias(lambda n: n.endswith("mlp.fc2")),
    "no bias of the prediction": lambda: without_bias(lambda n: n == "decoder_pred"),
    "blocks in reverse order": lambda: blocks(lambda b: b[::-1]),
    "last block left out": lambda: blocks(lambda b: b[:-1]),
    "first block twice": lambda: blocks(lambda b: [b[0], *b[:-1]]),
    "dropout left on": dropout,
    "dropout of attention left on": lambda: attention(
        lambda f, q, k, v, **o: f(q, k, v, dropout_p=0.1)
    ),
}


def patches_of(name: str) -> list[Patch]:
    if name in FAULTS:
        return FAULTS[name]()
    if ": " in name:  # of a family of video models
        from mutation.code_families_pytorch import faults_of_family

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
