"""A masked autoencoder in plain NumPy float64, an independent check of the reference models.

It is written from the papers, for readability and not for speed, and shares no code with the models
that it checks: patches are cut by loops, and attention is computed for each image and head. Weights
are a mapping with the names of facebookresearch/mae.
"""

import math

import numpy as np

ERF = np.vectorize(math.erf)
ACTIVATIONS = {
    "gelu": lambda x: x / 2 * (1 + ERF(x / math.sqrt(2))),
    "gelu_new": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}
ACTIVATIONS["gelu_pytorch_tanh"] = ACTIVATIONS["gelu_new"]
ACTIVATIONS["swish"] = ACTIVATIONS["silu"]


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def normalize(weights, name, x, eps):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    x = (x - mean) / np.sqrt(variance + eps)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(weights, name, x, heads):
    """Return the mixed tokens (N, T, D) and the probabilities (N, H, T, T)."""
    q, k, v = np.split(linear(weights, f"{name}.qkv", x), 3, axis=-1)
    size = q.shape[-1] // heads
    mixed, all_probabilities = np.zeros_like(q), np.zeros((len(x), heads, x.shape[1], x.shape[1]))
    for n in range(len(x)):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = np.exp(q[n, :, part] @ k[n, :, part].T / math.sqrt(size))
            probabilities = scores / scores.sum(-1, keepdims=True)
            all_probabilities[n, h] = probabilities
            mixed[n, :, part] = probabilities @ v[n, :, part]
    return linear(weights, f"{name}.proj", mixed), all_probabilities


def blocks(weights, name, x, config, heads, eps):
    """Return input and output of every block, and every block's probabilities."""
    states, probabilities = [x], []
    activation = ACTIVATIONS[config.hidden_act]
    for index in range(1 + max(int(key.split(".")[1]) for key in weights if key.startswith(name))):
        block = f"{name}.{index}"
        mixed, seen = attention(
            weights, f"{block}.attn", normalize(weights, f"{block}.norm1", x, eps), heads
        )
        x = x + mixed
        inner = linear(weights, f"{block}.mlp.fc1", normalize(weights, f"{block}.norm2", x, eps))
        x = x + linear(weights, f"{block}.mlp.fc2", activation(inner))
        states.append(x)
        probabilities.append(seen)
    return states, probabilities


def windows(config):
    """Yield the slices of rows and columns of each patch, in reading order."""
    (rows, columns), (height, width) = config.grid_hw, config.patch_hw
    for row in range(rows):
        for column in range(columns):
            yield (
                slice(row * height, (row + 1) * height),
                slice(column * width, (column + 1) * width),
            )


def patchify(images, config):
    cut = [images[:, :, y, x].transpose(0, 2, 3, 1) for y, x in windows(config)]
    return np.stack([patch.reshape(len(images), -1) for patch in cut], axis=1)


def unpatchify(patches, config):
    images = np.zeros((len(patches), config.num_channels, *config.image_hw))
    for index, (y, x) in enumerate(windows(config)):
        patch = patches[:, index].reshape(-1, *config.patch_hw, config.num_channels)
        images[:, :, y, x] = patch.transpose(0, 3, 1, 2)
    return images


def embed(weights, images, config):
    """Return class token and all patches with their positions, (N, 1 + L, D)."""
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    projected = [
        np.einsum("nchw,dchw->nd", images[:, :, y, x], kernel) + bias for y, x in windows(config)
    ]
    cls_token = np.broadcast_to(weights["cls_token"], (len(images), 1, kernel.shape[0]))
    tokens = np.concatenate([cls_token, np.stack(projected, axis=1)], axis=1)
    return tokens + weights["pos_embed"]


def pretrain(weights, images, noise, config):
    """Return the results of the pre-training model by name."""
    order = np.argsort(noise, axis=1, kind="stable")
    visible_ids, count = order[:, : config.num_kept], len(images)
    mask = np.ones(noise.shape)
    for n in range(count):
        mask[n, visible_ids[n]] = 0
    every = embed(weights, images, config)
    tokens = np.stack([every[n, [0, *(visible_ids[n] + 1)]] for n in range(count)])
    eps, heads = config.layer_norm_eps, config.num_attention_heads
    states, attentions = blocks(weights, "blocks", tokens, config, heads, eps)
    latent = normalize(weights, "norm", states[-1], config.layer_norm_eps)

    eps = config.decoder_layer_norm_eps or config.layer_norm_eps
    visible = linear(weights, "decoder_embed", latent)
    tokens = np.tile(weights["mask_token"], (count, 1 + noise.shape[1], 1))
    for n in range(count):
        tokens[n, [0, *(visible_ids[n] + 1)]] = visible[n]
    decoded, _ = blocks(
        weights,
        "decoder_blocks",
        tokens + weights["decoder_pos_embed"],
        config,
        config.decoder_num_attention_heads,
        eps,
    )
    normed = normalize(weights, "decoder_norm", decoded[-1], eps)
    logits = linear(weights, "decoder_pred", normed)[:, 1:]
    return {
        "mask": mask,
        "ids_restore": np.argsort(order, axis=1),
        "hidden_states": states,
        "attentions": attentions,
        "latent": latent,
        "decoder_states": decoded,
        "logits": logits,
        "loss": loss(images, logits, mask, config, normalized=False),
        "loss_norm_pix": loss(images, logits, mask, config, normalized=True),
        "reconstruction": unpatchify(logits, config),
    }


def loss(images, logits, mask, config, *, normalized):
    target = patchify(images, config)
    if normalized:
        deviation = np.sqrt(target.var(-1, keepdims=True, ddof=1) + 1e-6)
        target = (target - target.mean(-1, keepdims=True)) / deviation
    errors = ((logits - target) ** 2).mean(-1)
    return errors[mask == 1].mean()


def classify(weights, images, config):
    """Return a classifier's logits (N, K)."""
    tokens = embed(weights, images, config)
    eps = config.layer_norm_eps
    states, _ = blocks(weights, "blocks", tokens, config, config.num_attention_heads, eps)
    if config.global_pool == "avg" and config.fc_norm is False:
        read = normalize(weights, "norm", states[-1][:, 1:], eps).mean(1)
    elif config.global_pool == "avg":
        read = normalize(weights, "fc_norm", states[-1][:, 1:].mean(1), eps)
    else:
        read = normalize(weights, "norm", states[-1][:, 0], eps)
    return linear(weights, "head", read)
