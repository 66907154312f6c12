"""Faults in the code of the PyTorch models of video families while a job runs."""

import importlib
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from mutation.code_pytorch import FAULTS as OF_IMAGES
from mutation.code_pytorch import Patch, eps, heads, in_models, mask_inverted, shuffle_as_restore
from reference_models.positions import sincos_frequencies
from reference_models.pytorch import blocks as layers
from reference_models.pytorch import mae_st, patches, prithvi, videomae

MODULES = {"videomae": videomae, "mae_st": mae_st, "prithvi": prithvi}
MASKING = ("mask_by_noise", "mask_in_order")


def everywhere(family: str, name: str, make: Callable) -> list[Patch]:
    """Return patches of a function in each module of the family's model that has its name."""
    module = importlib.import_module(f"reference_models.pytorch.{family}")
    owners = [owner for owner in (module, patches, layers) if hasattr(owner, name)]
    return [(owner, name, make(getattr(owner, name))) for owner in owners]


def method(kind: type, name: str, change: Callable) -> list[Patch]:
    """Return the patch of a method; change: (original, self, arguments) → result."""
    original = getattr(kind, name)
    return [(kind, name, lambda self, *a, **o: change(original, self, *a, **o))]


def flipped(family: str, axis: int) -> list[Patch]:
    return everywhere(
        family, "patchify", lambda f: lambda pixels, config: f(pixels.flip(axis), config)
    )


def channels_first(family: str) -> list[Patch]:
    def make(original):
        def patchify(pixels, config):
            apart = original(pixels, config).unflatten(2, (-1, pixels.shape[1]))
            return apart.transpose(2, 3).flatten(2)

        return patchify

    return everywhere(family, "patchify", make)


def masking(family: str, change: Callable) -> list[Patch]:
    """Return patches of the masking; change: (original, noise, kept) → (ids, mask, ids_restore)."""

    def by_noise(original):
        return lambda noise, visible: change(original, noise, visible)

    def in_order(original):
        def mask_in_order(noise, visible):
            def reordered(*given):
                mask, ids, restore = original(*given)
                return ids, mask, restore

            ids, mask, restore = change(reordered, noise, visible)
            return mask, ids, restore

        return mask_in_order

    if family == "videomae":
        return everywhere(family, "mask_in_order", in_order)
    return everywhere(family, "mask_by_noise", by_noise)


def last_left_out(family: str) -> list[Patch]:
    def make(original):
        def run_blocks(blocks, tokens, name, taps=None):
            return original(list(blocks)[:-1] if name == "encoder" else blocks, tokens, name, taps)

        return run_blocks

    return everywhere(family, "run_blocks", make)


def summed(family: str) -> list[Patch]:
    kind = videomae.VideoMAEForPreTraining if family == "videomae" else patches.PixelPrediction
    return method(
        kind,
        "forward_loss",
        lambda f, self, pixels, logits, *a, **o: f(self, pixels, logits, *a, **o) * logits.shape[2],
    )


def biased(family: str) -> list[Patch]:
    def patch_statistics(values):
        variance, mean = torch.var_mean(values, -1, correction=0, keepdim=True)
        return mean, (variance + 1e-6).sqrt()

    def channel_statistics(_, values):
        variance, mean = torch.var_mean(values, dim=-2, correction=0, keepdim=True)
        return mean, variance.sqrt() + 1e-6

    if family == "videomae":
        return [(videomae.VideoMAEForPreTraining, "channel_statistics", channel_statistics)]
    return everywhere(family, "patch_statistics", lambda _: patch_statistics)


SHARED: dict[str, Callable[[str], list[Patch]]] = {
    **{
        name: lambda _, make=OF_IMAGES[name]: make()
        for name in (
            "eps 1e-5 everywhere",
            "GELU by tanh",
            "no scale",
            "causal attention",
            "normalized after",
            "no residual of the MLP",
            "unbiased variance in norms",
            "RMS norm",
        )
    },
    "eps 1e-12 in the decoder": lambda _: eps(1e-12, lambda name: "decoder" in name),
    "six heads": lambda family: heads(6, "blocks" if family == "mae_st" else "encoder"),
    "four decoder heads": lambda _: heads(4, "decoder"),
    "BGR videos": lambda family: flipped(family, 1),
    "frames reversed": lambda family: flipped(family, 2),
    "patches with channels first": channels_first,
    "highest noise kept": lambda family: masking(
        family, lambda f, n, visible_count: f(-n, visible_count)
    ),
    "mask inverted": lambda family: masking(family, mask_inverted),
    "ids_restore inverted": lambda family: masking(family, shuffle_as_restore),
    "last block left out": last_left_out,
    "loss summed over a patch": summed,
    "biased variance of patches": biased,
}


def positions_not_picked(family: str) -> list[Patch]:
    def make(original):
        def take_tokens(tokens, ids):
            if len(tokens) == 1 < len(ids):
                return tokens[:, : ids.shape[1]].expand(len(ids), -1, -1)
            return original(tokens, ids)

        return take_tokens

    return everywhere(family, "take_tokens", make)


def change_root(change: Callable[[nn.Module], None]) -> list[Patch]:
    return in_models(lambda name, module: change(module) if not name else None)


# VideoMAE

PRETRAINING = videomae.VideoMAEForPreTraining
VIDEO_CLASSIFIER = videomae.VideoMAEForVideoClassification


def kept_by_noise(original, noise, visible):
    ids, mask, _ = original(noise, visible)
    ids = torch.cat([noise.argsort(1)[:, :visible], ids[:, visible:]], 1)
    return ids, mask, ids.argsort(1)


def decoding(*, positioned: bool = True, masks_first: bool = False) -> list[Patch]:
    def decode(self, latent, ids_keep, ids_decode, taps=None):
        table = self.decoder_positions
        visible = self.encoder_to_decoder(latent) + patches.take_tokens(table, ids_keep)
        masks = patches.take_tokens(table, ids_decode)
        masks = self.mask_token + (masks if positioned else masks * 0)
        tokens = torch.cat([masks, visible] if masks_first else [visible, masks], 1)
        return self.decoder(tokens, ids_decode.shape[1], taps)

    return [(PRETRAINING, "decode", decode)]


def first_predicted(self, tokens, predicted, taps=None):
    tokens = layers.run_blocks(self.blocks, tokens, "decoder", taps)
    tokens = self.norm(tokens[:, :predicted])
    if taps is not None:
        taps["decoder.norm"] = tokens
    return self.head(tokens)


def statistics_of_channels(dims: tuple[int, ...], *, inside: bool = False) -> list[Patch]:
    def channel_statistics(_, values):
        variance, mean = torch.var_mean(values, dim=dims, keepdim=True)
        return mean, (variance + 1e-6).sqrt() if inside else variance.sqrt() + 1e-6

    return [(PRETRAINING, "channel_statistics", channel_statistics)]


def one_frame_of_positions(model):
    frames = model.config.grid_shape[0]
    one = model.encoder.positions.chunk(frames, 1)[0]
    model.encoder.positions = one.repeat(1, frames, 1)


def pooled(read: Callable) -> list[Patch]:
    def pool(self, tokens, taps=None):
        norm = self.fc_norm if hasattr(self, "fc_norm") else None
        result = read(tokens, norm)  # (N, 1, D)
        if taps is not None and norm is not None:
            taps["head.norm"] = result
        return result[:, 0]

    return [(VIDEO_CLASSIFIER, "pool", pool)]


VIDEOMAE: dict[str, Callable[[], list[Patch]]] = {
    "kept patches in the order of the noise": lambda: masking("videomae", kept_by_noise),
    "positions not picked": lambda: positions_not_picked("videomae"),
    "mask tokens without positions": lambda: decoding(positioned=False),
    "mask tokens first": lambda: decoding(masks_first=True),
    "visible patches predicted": lambda: [(videomae.Decoder, "forward", first_predicted)],
    "pixels not unnormalized": lambda: [
        (PRETRAINING, "pixel_statistics", lambda _, like: (like.new_zeros(3), like.new_ones(3)))
    ],
    "normalized over all channels": lambda: statistics_of_channels((-2, -1)),
    "deviation floor inside the root": lambda: statistics_of_channels((-2,), inside=True),
    "positions of the first frame": lambda: change_root(one_frame_of_positions),
    "key bias": lambda: method(
        videomae.VideoAttention,
        "project",
        lambda f, self, x: [part + 0.3 * (at == 1) for at, part in enumerate(f(self, x))],
    ),
    "no layer scale": lambda: [(videomae.VideoBlock, "forward", layers.Block.forward)],
    "first token read": lambda: pooled(lambda tokens, norm: norm(tokens[:, :1])),
    "mean of tokens read": lambda: pooled(lambda tokens, _: tokens.mean(1, keepdim=True)),
    "norm before the mean": lambda: pooled(lambda tokens, norm: norm(tokens).mean(1, keepdim=True)),
}

# MAE-ST


def places_repeated(original, self, prefix):
    spatial = self.get_parameter(f"{prefix}pos_embed_spatial")
    temporal = self.get_parameter(f"{prefix}pos_embed_temporal")
    table = (temporal.unsqueeze(1) + spatial.unsqueeze(2)).flatten(1, 2)
    return torch.cat([self.get_parameter(f"{prefix}pos_embed_class"), table], 1)


def without_first(original, self, prefix):
    table = original(self, prefix)
    return torch.cat([table[:, :1] * 0, table[:, 1:]], 1)


def encoders_class_token(model):
    token = model.decoder_embed(model.cls_token).detach()
    model.decoder_cls_token = nn.Parameter(token, requires_grad=False)


def frames(choose: Callable) -> list[Patch]:
    def patchify(self, pixels):
        ids = torch.tensor(choose(self.config.num_frames, len(self.config.predicted_frames)))
        return patches.patchify(pixels.index_select(2, ids), self.predicted)

    return [(mae_st.MAESTForPreTraining, "patchify", patchify)]


def classified(read: Callable) -> list[Patch]:
    def forward(self, pixels, labels=None, output_taps=False, **_):
        taps = mae_st.Taps()
        tokens = layers.run_blocks(self.blocks, self.embed(pixels), "encoder", taps)
        mean = read(tokens, self.norm)
        result = {**taps, "head.norm": mean}
        return mae_st.ImageClassifierOutput(None, self.head(mean[:, 0]), None, None, result)

    return [(mae_st.MAESTForVideoClassification, "forward", forward)]


POSITIONS = mae_st.Positions
MAE_ST: dict[str, Callable[[], list[Patch]]] = {
    "times repeated in place of places": lambda: method(POSITIONS, "positions", places_repeated),
    "no position of the class token": lambda: method(POSITIONS, "positions", without_first),
    "encoder's class token in the decoder": lambda: change_root(encoders_class_token),
    "first frames predicted": lambda: frames(lambda total, count: list(range(count))),
    "frames rounded up": lambda: frames(
        lambda total, count: np.ceil(np.linspace(0, total - 1, count)).astype(int).tolist()
    ),
    "positions not picked": lambda: positions_not_picked("mae_st"),
    "joint positions one off": lambda: method(
        POSITIONS, "positions", lambda f, self, prefix: f(self, prefix).roll(1, 1)
    ),
    "class token in the mean": lambda: classified(lambda x, norm: norm(x.mean(1, keepdim=True))),
    "norm before the mean": lambda: classified(
        lambda x, norm: norm(x)[:, 1:].mean(1, keepdim=True)
    ),
}

# Prithvi

COORDINATES = prithvi.Coordinates
EMBEDDING = prithvi.CoordinateEmbedding


def coordinates(change: Callable) -> list[Patch]:
    """Return patches of the coordinates; change: (self, times, locations) → (times, locations)."""
    return method(
        COORDINATES,
        "add_to",
        lambda f, self, positions, times, places: f(self, positions, *change(self, times, places)),
    )


def frame_by_frame(original, self, positions, times, places):
    embedded = self.get_submodule(f"temporal_embed_{self.suffix}")(times)
    repeated = embedded.repeat(1, positions.shape[1] // embedded.shape[1], 1)
    return original(self, positions + repeated, None, places)


def embedded(self, values, *, exact=torch.float64, order="sc"):
    parts = []
    for value, width in zip(values.to(exact).unbind(-1), self.widths, strict=True):
        angles = value.unsqueeze(-1) * torch.from_numpy(sincos_frequencies(width)).to(value)
        waves = {"s": angles.sin(), "c": angles.cos()}
        parts += [waves[kind] for kind in order]
    return self.scale * torch.cat(parts, -1).to(self.scale.dtype)


def table_one_off(name, module):
    if hasattr(module, "pos_embed"):
        module.pos_embed = nn.Parameter(module.pos_embed.roll(1, 1), requires_grad=False)


def no_patch_bias(name, module):
    if name.endswith("patch_embed.proj"):
        module.bias = nn.Parameter(torch.zeros_like(module.bias), requires_grad=False)


PRITHVI: dict[str, Callable[[], list[Patch]]] = {
    "latitude and longitude exchanged": lambda: coordinates(lambda _, t, p: (t, p.flip(-1))),
    "year and day exchanged": lambda: coordinates(lambda _, t, p: (t.flip(-1), p)),
    "times repeated frame by frame": lambda: method(COORDINATES, "add_to", frame_by_frame),
    "scale left out": lambda: method(
        EMBEDDING, "forward", lambda f, self, x: f(self, x) / self.scale
    ),
    "no location in the decoder": lambda: coordinates(
        lambda self, t, p: (t, None if self.suffix == "dec" else p)
    ),
    "no time in the encoder": lambda: coordinates(
        lambda self, t, p: (None if self.suffix == "enc" else t, p)
    ),
    "coordinates in float32": lambda: [
        (EMBEDDING, "forward", lambda self, x: embedded(self, x, exact=torch.float32))
    ],
    "sines and cosines exchanged": lambda: [
        (EMBEDDING, "forward", lambda self, x: embedded(self, x, order="cs"))
    ],
    "positions one off": lambda: in_models(table_one_off),
    "no patch bias": lambda: in_models(no_patch_bias),
}
OWN = {"videomae": VIDEOMAE, "mae_st": MAE_ST, "prithvi": PRITHVI}


def faults_of_family(name: str) -> list[Patch]:
    """Return the patches of the fault "FAMILY: FAULT"."""
    family, _, fault = name.partition(": ")
    return OWN[family][fault]() if fault in OWN[family] else SHARED[fault](family)
