"""Faults in the code of the Keras models of video families on TensorFlow, while a job runs."""

import importlib
from collections.abc import Callable

from keras import ops

from mutation.code_keras import FAULTS as OF_IMAGES
from mutation.code_keras import Patch, mask_inverted, set_eps, shuffle_as_restore
from reference_models.keras import mae_st, patches, prithvi, videomae


def everywhere(family: str, name: str, make: Callable) -> list[Patch]:
    """Return patches of a function in each module of the family's model that has its name."""
    module = importlib.import_module(f"reference_models.keras.{family}")
    owners = [owner for owner in (module, patches) if hasattr(owner, name)]
    return [(owner, name, make(getattr(owner, name))) for owner in owners]


def method(kind: type, name: str, change: Callable) -> list[Patch]:
    """Return the patch of a method; change: (original, self, arguments) → result."""
    original = getattr(kind, name)
    return [(kind, name, lambda self, *a, **o: change(original, self, *a, **o))]


def flipped(family: str, axis: int) -> list[Patch]:
    return everywhere(
        family, "patchify", lambda f: lambda pixels, config: f(ops.flip(pixels, axis), config)
    )


def channels_first(family: str) -> list[Patch]:
    def make(original):
        def patchify(pixels, config):
            values = original(pixels, config)
            apart = ops.reshape(values, (*values.shape[:2], -1, pixels.shape[1]))
            return ops.reshape(ops.swapaxes(apart, 2, 3), values.shape)

        return patchify

    return everywhere(family, "patchify", make)


def masking(family: str, change: Callable) -> list[Patch]:
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


SHARED: dict[str, Callable[[str], list[Patch]]] = {
    **{
        name: lambda _, make=OF_IMAGES[name]: make()
        for name in (
            "eps 1e-5 everywhere",
            "GELU by tanh",
            "six heads",
            "four decoder heads",
            "no scale",
            "causal attention",
            "unbiased variance in norms",
            "RMS norm",
        )
    },
    "eps 1e-12 in the decoder": lambda _: set_eps(1e-12, lambda model: [model.decoder.norm]),
    "BGR videos": lambda family: flipped(family, 1),
    "frames reversed": lambda family: flipped(family, 2),
    "patches with channels first": channels_first,
    "highest noise kept": lambda family: masking(family, lambda f, n, visible: f(-n, visible)),
    "mask inverted": lambda family: masking(family, mask_inverted),
    "ids_restore inverted": lambda family: masking(family, shuffle_as_restore),
}


def statistics_of_channels(axes: tuple[int, ...]) -> list[Patch]:
    def change(original, self, values):
        apart = values
        mean = ops.mean(apart, axis=axes, keepdims=True)
        variance = ops.mean(ops.square(apart - mean), axis=axes, keepdims=True)
        return mean, ops.sqrt(variance) + 1e-6  # biased, too

    return method(videomae.VideoMAEForPreTraining, "channel_statistics", change)


def rolled_positions(original, self):
    return ops.roll(original(self), 1, axis=1)


def coordinates(change: Callable) -> list[Patch]:
    return method(
        prithvi.PositionedTrunk,
        "patch_positions",
        lambda f, self, times, places: f(self, *change(self, times, places)),
    )


OWN: dict[str, dict[str, Callable[[], list[Patch]]]] = {
    "videomae": {
        "pixels not unnormalized": lambda: method(
            videomae.VideoMAEForPreTraining,
            "pixel_statistics",
            lambda f, self: tuple(value * 0 + at for at, value in enumerate(f(self))),
        ),
        "normalized over all channels": lambda: statistics_of_channels((-2, -1)),
    },
    "mae_st": {
        "joint positions one off": lambda: method(
            mae_st.PositionedTrunk, "positions", rolled_positions
        ),
    },
    "prithvi": {
        "latitude and longitude exchanged": lambda: coordinates(
            lambda _, times, places: (times, ops.flip(places, -1))
        ),
        "year and day exchanged": lambda: coordinates(
            lambda _, times, places: (ops.flip(times, -1), places)
        ),
        "no location in the decoder": lambda: coordinates(
            lambda self, times, places: (times, None if self.name == "decoder" else places)
        ),
        "scale left out": lambda: method(
            prithvi.CoordinateEmbedding,
            "call",
            lambda f, self, values: f(self, values) / ops.cast(self.scale, self.compute_dtype),
        ),
    },
}


def faults_of_family(name: str) -> list[Patch]:
    """Return the patches of the fault "FAMILY: FAULT"."""
    family, _, fault = name.partition(": ")
    return OWN[family][fault]() if fault in OWN[family] else SHARED[fault](family)
