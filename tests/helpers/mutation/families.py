"""The population of the video families: their small models, and their specific faults.

Faults in mapping tables, and the compared results, are as in `mutation.population`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from mae_convert.checkpoint.checkpoint import Checkpoint
from mae_convert.families import families
from mae_convert.families.family import Family
from mutation.code import CodeFault
from mutation.models import write_original
from mutation.population import Mutant, Population
from mutation.settings import SettingFault
from mutation.weights import (
    EVERY_TENSOR,
    MATRICES,
    Tensors,
    WeightFault,
    alone,
    exchanges,
    heads_inside_out,
    heads_rotated,
    mlp_units_in_another_order,
    scaled_against_each_other,
)
from reference_models.positions import spacetime_position_embedding

FAMILIES = ("videomae", "mae_st", "prithvi")
# All sizes differ where possible.
SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": (32, 24),
    "patch_size": 8,
    "num_frames": 6,
    "tubelet_size": 2,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 28,
    "mask_ratio": 0.6,
    "num_labels": 5,
}
COORDINATES = {"coords_encoding": ("time", "location"), "coords_scale_learn": True}
MODELS: Mapping[str, Mapping[str, tuple[str, dict[str, Any]]]] = {
    "videomae": {
        "pretrain": ("pretrain", {}),
        "encoder": ("encoder", {"use_mean_pooling": False}),
        "mean": ("classify", {"use_mean_pooling": True, "layer_scale_init_value": 0.1}),
        "token": ("classify", {"use_mean_pooling": False}),
    },
    "mae_st": {
        "pretrain": ("pretrain", {"pred_t_dim": 3}),
        "encoder": ("encoder", {}),
        "joint": ("pretrain", {"sep_pos_embed": False}),
        "mean": ("classify", {}),
    },
    "prithvi": {
        "pretrain": ("pretrain", {"tubelet_size": 1, "num_frames": 3, **COORDINATES}),
        "encoder": ("encoder", {"tubelet_size": 1, "num_frames": 3, **COORDINATES}),
    },
}


def small_tensors(family: Family, config: Any, task: str, seed: int) -> Tensors:
    """Return canonical tensors of a small model, all random except fixed positions."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in family.schema(config, task).items():
        values = rng.standard_normal(shape)
        if family.fixed_positions and name.endswith("position_embedding"):
            values = spacetime_position_embedding(shape[-1], config.grid_shape)
        elif "norm" in name and name.endswith("weight"):
            values = 1 + 0.2 * values
        elif len(shape) > 1 and not name.endswith(("token", "embedding")):
            values *= np.prod(shape[1:]) ** -0.5
        else:
            values *= 0.3
        tensors[name] = values.astype(np.float32)
    return tensors


def edits_of(name: str, array: np.ndarray, config: Any) -> Iterator[tuple[str, Callable]]:
    """Yield the edits that apply to a tensor, by name."""
    yield from EVERY_TENSOR.items()
    if array.ndim == 2:
        yield from MATRICES.items()
    if name.endswith("position_embedding"):
        yield "one place later", lambda a: np.roll(a, 1, axis=1)
        yield "halves exchanged", lambda a: np.roll(a, a.shape[2] // 2, axis=2)
        yield from _transposed_grids(array, config)
    if name == "encoder.patch_embedding.weight":
        yield "BGR", lambda a: a[:, ::-1]
        yield "frames reversed", lambda a: a[:, :, ::-1]
        yield "height and width", lambda a: a.swapaxes(3, 4)
        yield "channels last", lambda a: a.transpose(0, 2, 3, 4, 1).reshape(a.shape)
    if name.startswith("decoder.prediction"):
        colours = config.num_channels
        yield "channels first", partial(_channels_first, colours)
        yield "BGR", lambda a: a.reshape(-1, colours, *a.shape[1:])[:, ::-1].reshape(a.shape)
    yield from _edits_of_heads(name, 2 if name.startswith("decoder") else 3)


def _channels_first(colours: int, array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, colours, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def _transposed_grids(array: np.ndarray, config: Any) -> Iterator[tuple[str, Callable]]:
    """Yield the table with frames and positions, or rows and columns, in another order."""
    time, rows, columns = config.grid_shape
    first = array.shape[1] - time * rows * columns
    if first not in (0, 1):
        return

    def reordered(a: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
        grid = a[:, first:].reshape(1, time, rows, columns, -1).transpose(*axes)
        return np.concatenate([a[:, :first], grid.reshape(1, -1, a.shape[2])], axis=1)

    yield "places before times", partial(reordered, axes=(0, 2, 3, 1, 4))
    yield "columns before rows", partial(reordered, axes=(0, 1, 3, 2, 4))


def _edits_of_heads(name: str, heads: int) -> Iterator[tuple[str, Callable]]:
    if ".attention." not in name or name.endswith("scale"):
        return
    if ".output" not in name:
        yield "heads rotated", lambda a: heads_rotated(a, heads)
        yield "heads inside out", lambda a: heads_inside_out(a, heads)
    elif name.endswith("weight"):
        yield "heads rotated", lambda a: heads_rotated(a.T, heads).T
        yield "heads inside out", lambda a: heads_inside_out(a.T, heads).T


def single_faults(tensors: Tensors, config: Any) -> Iterator[WeightFault]:
    """Yield every edit of every tensor that changes it."""
    for name, array in tensors.items():
        for what, edit in edits_of(name, array, config):
            change = alone(name, edit)
            if not np.array_equal(change(tensors)[name], array):
                yield WeightFault(f"{name}: {what}", change, (name,))


def compensating() -> Iterator[WeightFault]:
    """Yield faults that cancel out, in the tensors or in the result."""
    block = "encoder.blocks.1"
    parts = (f"{block}.mlp.fc1.weight", f"{block}.mlp.fc1.bias", f"{block}.mlp.fc2.weight")
    name = "MLP units in another order"
    yield WeightFault(name, mlp_units_in_another_order, parts, blind=True)
    q, k = (f"{block}.attention.{part}.weight" for part in "qk")
    yield WeightFault("q doubled, k halved", scaled_against_each_other(q, k), (q, k))
    v, output = f"{block}.attention.v.weight", f"{block}.attention.output.weight"
    yield WeightFault("v doubled, output halved", scaled_against_each_other(v, output), (v, output))


def _as_it_cancels(fault: WeightFault) -> WeightFault:
    """Mark an exchange of two tensors as invisible if only their sum is used."""
    first, second = sorted(name.partition(".")[2] for name in fault.changed_tensors)
    same_part = len({name.partition(".")[0] for name in fault.changed_tensors}) == 1
    cancels = same_part and (first, second) == ("class_position_embedding", "cls_token")
    return replace(fault, blind=cancels)


FUNCTION: dict[str, tuple[Any, ...]] = {
    "layer_norm_eps": (1e-12, 1e-5, 1e-7),
    "hidden_act": ("gelu_new", "relu"),
    "num_attention_heads": (1, 2, 6),
}
OF_DECODER: dict[str, tuple[Any, ...]] = {
    "decoder_num_attention_heads": (1, 4),
    "decoder_layer_norm_eps": (1e-5, 1e-12),
}
FLAGS: dict[str, tuple[Any, ...]] = {"norm_pix_loss": (True, False), "mask_ratio": (0.5, 0.75)}
OF_FAMILY: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "videomae": {
        "final_layer_norm_eps": (1e-5,),
        "num_frames": (12,),
        "image_size": (48, [24, 32]),
    },
    "mae_st": {"image_size": ([24, 32],)},
    "prithvi": {"image_size": ([24, 32],), "num_frames": (4,), "coords_encoding": ([], ["time"])},
}


def setting_faults(family: str) -> Iterator[SettingFault]:
    """Yield wrong values of the configuration fields of a family's models."""
    for model, (task, stored) in MODELS[family].items():
        config = families()[family].configuration_class.from_dict({**SMALL, **stored})
        fields = {**FUNCTION, **OF_FAMILY[family], **(OF_DECODER if task == "pretrain" else {})}
        if family == "videomae" and task == "encoder":
            del fields["final_layer_norm_eps"]  # of the decoder's norm and the classifier's
        if model == "token":
            del fields["final_layer_norm_eps"]
        flags = FLAGS if task == "pretrain" else {}
        means: dict[str, tuple[Any, ...]] = {"image_mean": ([0.5] * 3,), "image_std": ([0.5] * 3,)}
        of_pixels = means if family != "prithvi" else {}
        for name, values in {**fields, **flags, **of_pixels}.items():
            # VideoMAE's targets are the pixels before normalization.
            target = family == "videomae" and task == "pretrain" and name in means
            flag = name in flags or (name in of_pixels and not target)
            right = getattr(config, name, None)
            for value in values:
                if (tuple(value) if isinstance(value, list) else value) != right:
                    label = f"{model}: {name} is {value}"
                    yield SettingFault(label, model, {name: value}, flag=flag)


SHARED = (
    "eps 1e-5 everywhere", "eps 1e-12 in the decoder", "GELU by tanh", "six heads",
    "four decoder heads", "no scale", "causal attention", "normalized after",
    "no residual of the MLP", "unbiased variance in norms", "RMS norm", "BGR videos",
    "frames reversed", "patches with channels first", "highest noise kept", "mask inverted",
    "ids_restore inverted", "last block left out", "loss summed over a patch",
    "biased variance of patches",
)  # fmt: skip
OWN: Mapping[str, tuple[tuple[str, str], ...]] = {
    "videomae": (
        ("kept patches in the order of the noise", "pretrain"),
        ("positions not picked", "pretrain"),
        ("mask tokens without positions", "pretrain"),
        ("mask tokens first", "pretrain"),
        ("visible patches predicted", "pretrain"),
        ("pixels not unnormalized", "pretrain"),
        ("normalized over all channels", "pretrain"),
        ("deviation floor inside the root", "pretrain"),
        ("positions of the first frame", "pretrain"),
        ("key bias", "pretrain"),
        ("no layer scale", "mean"),
        ("first token read", "mean"),
        ("mean of tokens read", "token"),
        ("norm before the mean", "mean"),
    ),
    "mae_st": (
        ("times repeated in place of places", "pretrain"),
        ("no position of the class token", "pretrain"),
        ("encoder's class token in the decoder", "pretrain"),
        ("first frames predicted", "pretrain"),
        ("frames rounded up", "pretrain"),
        ("positions not picked", "pretrain"),
        ("joint positions one off", "joint"),
        ("class token in the mean", "mean"),
        ("norm before the mean", "mean"),
    ),
    "prithvi": (
        ("latitude and longitude exchanged", "pretrain"),
        ("year and day exchanged", "pretrain"),
        ("times repeated frame by frame", "pretrain"),
        ("scale left out", "pretrain"),
        ("no location in the decoder", "pretrain"),
        ("no time in the encoder", "encoder"),
        ("coordinates in float32", "pretrain"),
        ("sines and cosines exchanged", "pretrain"),
        ("positions one off", "pretrain"),
        ("no patch bias", "pretrain"),
    ),
}


def code_faults(family: str) -> list[CodeFault]:
    """Return the faults in the code of a family's models, with the names that `fault` accepts."""
    shared = [CodeFault(f"{family}: {name}", "pretrain", ()) for name in SHARED]
    return shared + [CodeFault(f"{family}: {name}", model, ()) for name, model in OWN[family]]


@dataclass
class FamilyPopulation(Population):
    """The faults of one family of video models."""

    own_layout: str = "original"

    @classmethod
    def of(cls, family: str, folder: Path, seed: int = 0) -> "FamilyPopulation":
        return cls(folder, seed, family=families()[family])

    @cached_property
    def models(self) -> Mapping[str, Checkpoint]:
        by_task = {}
        for name, (task, fields) in MODELS[self.family.name].items():
            kind = self.family.configuration_class
            config = kind.from_dict({**SMALL, **fields})
            tensors = small_tensors(self.family, config, task, self.seed)
            path = self.folder / f"{name}.safetensors"
            by_task[name] = write_original(path, config, task, tensors, self.family)
        return by_task

    def weights(self, number: int | None, by_tensorflow: int) -> Iterator[Mutant]:
        """Yield faults in tensors of the pre-training model, and in those that only others have."""
        faults = []
        names: set[str] = set()
        for model, checkpoint in self.models.items():
            tensors = {n: t.load() for n, t in checkpoint.tensors.items()}
            config = checkpoint.configuration.model
            single = [
                f for f in single_faults(tensors, config) if f.changed_tensors[0] not in names
            ]
            names |= tensors.keys()
            faults += [(model, tensors, fault) for fault in self.some(single, number)]
            if model == "pretrain":
                chosen = map(_as_it_cancels, self.some(exchanges(tensors), number))
                more = [*chosen, *compensating()]
                faults += [(model, tensors, fault) for fault in more]
        chosen = set(self.rng.choice(len(faults), min(by_tensorflow, len(faults)), replace=False))
        for index, (model, tensors, fault) in enumerate(faults):
            layout = "keras" if index in chosen else self.own_layout
            yield self._weight_mutant(model, fault, tensors, layout)

    def model_of(self, task: str) -> str:
        return {"classify": "mean"}.get(task, task)

    def _faults_undone_by_reader(self, number: int | None) -> Iterator[Mutant]:
        return iter(())

    def configurations(self, number: int | None, by_tensorflow: int) -> Iterator[Mutant]:
        yield from self._settings(list(setting_faults(self.family.name)), number, by_tensorflow)

    def code(self, torch: int | None, tensorflow: int | None) -> Iterator[Mutant]:
        yield from self._code(code_faults(self.family.name), "code", torch, tensorflow)
