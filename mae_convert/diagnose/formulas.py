"""Formulas that compute a result of a model from earlier results, as lines of a Python script.

The lines call ``linear``, ``norm``, ``attend`` and other functions, which
`mae_convert.diagnose.reproducer` defines for each framework. The call ``t(NAME)`` returns a tensor
or an input.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mae_convert.families.family import Family
from mae_convert.families.pixel_patches import cut
from mae_convert.runtime.trace_check import MASKING
from mae_convert.verify.localise import BLOCK_TAP
from reference_models.configuration import VideoMAEConfig
from reference_models.positions import interleaved_position_embedding

PROJECTIONS = ("q", "k", "v")
# Names of an encoder's or decoder's position embeddings; the spatial and the temporal position
# embedding are added to each other.
TABLES = tuple(
    f"{kind}position_embedding" for kind in ("", "joint_", "class_", "spatial_", "temporal_")
)
# Coordinates that are embedded besides pixels and positions: the names of the model's inputs, by
# the name of the learned factor.
COORDINATES = {"time": "temporal_coords", "location": "location_coords"}
NORMS = ("encoder.norm", "decoder.norm", "head.norm")


@dataclass(frozen=True)
class Location:
    """The image and the token for which a result differs most."""

    image: int
    """The index of the image."""

    token: int | None
    """The index of the token; None if the result has no tokens."""

    tokens: int
    """The number of tokens of the result."""


@dataclass(frozen=True)
class Formula:
    """Lines of Python that compute a result, and the inputs of these lines."""

    lines: tuple[str, ...]
    """Lines of Python; the last line returns the result."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    """The results that the lines use: the name of the result by the name of the variable."""

    tensors: Mapping[str, str] = field(default_factory=dict)
    """The canonical names of tensors, by name in the script."""

    rows: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """The rows of position embeddings that the lines use, by name in the script.

    Each row is a pair: "encoder" or "decoder", and the index of the row.
    """

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Inputs that are valid for only one `Location` (image and token), by name in the script."""

    one_token: bool = True
    """Whether each token is computed independently of the other tokens."""


@dataclass(frozen=True)
class Model:
    """A model with its tensors and results, for which formulas are written."""

    family: Family
    config: Any
    task: str

    tensors: Collection[str]
    """The canonical names of the model's tensors."""

    results: Mapping[str, np.ndarray]
    """The results that both A and B have, with the values of A, by name."""

    inputs: Mapping[str, np.ndarray]
    """Images and noise."""


def formula_of(first: str, model: Model, location: Location) -> Formula | None:
    """Return the formula that computes a result from results that both sides have.

    The formula is None if it cannot be written, for example because a required result is missing.

    Args:
        first: the name of the first result that differs.
        model: the model, with the results that both sides have.
        location: the image and the token at which the result differs most.
    """
    if match := BLOCK_TAP.fullmatch(first):
        return _Writer(model, first).block(match[1], int(match[2]), match[3])
    if first in MASKING:
        return _masking(first, model, location)
    if first == "encoder.embedding":
        return _embedding(model, location)
    if first == "decoder.embedding":
        return _decoder_embedding(model, location)
    if first in ("reconstruction", "loss", "loss_norm_pix"):
        return _of_pixels(first, model, location)
    return _Writer(model, first).end()


class _Writer:
    """Writes the lines of one formula, from the available results to the requested result."""

    def __init__(self, model: Model, first: str) -> None:
        self.model, self.first = model, first
        self.lines: list[str] = []
        self.inputs: dict[str, str] = {}
        self.tensors: dict[str, str] = {}
        self.one_token = True

    def formula(self, result: str) -> Formula:
        """Return the lines written so far as a formula whose value is the expression `result`."""
        lines = (*self.lines, f"return {result}")
        return Formula(lines, self.inputs, self.tensors, one_token=self.one_token)

    def is_available(self, result: str) -> bool:
        """Return whether a result can be an input of the formula, because both sides have it."""
        return result in self.model.results and result != self.first

    def block(self, part: str, number: int, wanted: str) -> Formula | None:
        """Return the formula of the result `wanted` ("q", "attention", "mlp" ...) of a block.

        Args:
            part: "encoder" or "decoder".
            number: the index of the block.
            wanted: the name of the result in the block.

        Returns:
            The formula; None if there is no earlier result that both sides have.
        """
        name = f"{part}.blocks.{number}"
        projected = all(self.is_available(f"{name}.{p}") for p in PROJECTIONS)
        if not (wanted == "attention" and projected) and not self.stream(part, number):
            return None
        self.steps(name, wanted)
        return self.formula(wanted)

    def stream(self, part: str, number: int) -> bool:
        """Write the lines that compute ``x``, the input of a block, from the last available result.

        Blocks between the available result and the block are computed in a loop.

        Args:
            part: "encoder" or "decoder".
            number: the index of the block.

        Returns:
            Whether an earlier result is available; if not, no lines are written.
        """
        before = [f"{part}.embedding", *(f"{part}.blocks.{i}.output" for i in range(number))]
        available = [index for index, name in enumerate(before) if self.is_available(name)]
        if not available:
            return False
        self.inputs["x"] = before[available[-1]]
        self.lines.append('x = t("x")')
        if between := range(available[-1], number):
            inner = _Writer(self.model, f"{part}.blocks.{between[0]}.output")
            inner.steps(f"{part}.blocks.{between[0]}", "output", alone=True)
            numbers = f"range({between[0]}, {between[-1] + 1})" if len(between) > 1 else "[{0}]"
            self.lines.append(f"for n in {numbers.format(between[0])}:")
            self.lines += [f"    {_numbered(line)}" for line in inner.lines]
            self.lines.append("    x = output")
            for n in between:
                names = inner.tensors.items()
                first = f".{between[0]}."
                self.tensors |= {f"{n}.{k}": name.replace(first, f".{n}.") for k, name in names}
            self.one_token = False
        return True

    def steps(self, block: str, wanted: str, *, alone: bool = False) -> None:
        """Write the lines that compute a result of a block from the block's input ``x``.

        Args:
            block: the canonical name of the block.
            wanted: the name of the result in the block, such as "mlp".
            alone: use no input except ``x``. Other results of the block that are needed for
                `wanted` are computed, even if they are available on both sides.
        """

        def need(step: str) -> None:
            if not alone and step != wanted and self.is_available(f"{block}.{step}"):
                self.inputs[step] = f"{block}.{step}"
                self.lines.append(f'{step} = t("{step}")')
            else:
                define(step)

        def define(step: str) -> None:
            if step in PROJECTIONS:
                if not any(line.startswith("normed =") for line in self.lines):
                    self.norm("normed", "x", "norm1", f"{block}.norm1")
                self.linear(step, "normed", step, f"{block}.attention.{step}")
            elif step == "attention":
                for projection in PROJECTIONS:
                    need(projection)
                self.lines.append('mixed = attend(q, k, v, s["heads"])')
                self.linear(step, "mixed", "out", f"{block}.attention.output")
                self.one_token = False
            elif step == "mlp":
                need("attention")
                self.lines.append(f"after = x + {self.scaled('attention', block)}")
                self.norm("normed", "after", "norm2", f"{block}.norm2")
                self.linear("hidden", "normed", "fc1", f"{block}.mlp.fc1")
                self.linear(step, 'act(hidden, s["activation"])', "fc2", f"{block}.mlp.fc2")
            else:
                need("attention")
                need("mlp")
                attention, mlp = self.scaled("attention", block), self.scaled("mlp", block)
                self.lines.append(f"output = x + {attention} + {mlp}")

        define(wanted)
        self.lines = list(dict.fromkeys(self.lines))  # each line once

    def scaled(self, step: str, block: str) -> str:
        """Return the expression of a result, multiplied by the layer scale if the block has one.

        Args:
            step: the name of the result in the block, "attention" or "mlp".
            block: the canonical name of the block.
        """
        scale = f"{block}.{step}.scale"
        if scale not in self.model.tensors:
            return step
        self.tensors[f"{step}.scale"] = scale
        return f't("{step}.scale") * {step}'

    def norm(self, out: str, x: str, name: str, module: str) -> None:
        """Write a line that assigns the layer norm `module` of `x` to `out`.

        Args:
            out: the variable of the result.
            x: the variable of the input.
            name: the layer norm's name in the script, such as "norm1" for the weight
                "norm1.weight".
            module: the layer norm's canonical name.
        """
        self.tensors |= {f"{name}.{leaf}": f"{module}.{leaf}" for leaf in ("weight", "bias")}
        self.lines.append(f'{out} = norm({x}, t("{name}.weight"), t("{name}.bias"), s["eps"])')

    def linear(self, out: str, x: str, name: str, module: str) -> None:
        """Write a line that assigns the linear layer `module` of `x` to `out`.

        Args:
            out: the variable of the result.
            x: the variable or the expression of the input.
            name: the layer's name in the script, as in "fc1.weight".
            module: the layer's canonical name. The bias is left out if the model does not have it.
        """
        leaves = [n for n in ("weight", "bias") if f"{module}.{n}" in self.model.tensors]
        self.tensors |= {f"{name}.{leaf}": f"{module}.{leaf}" for leaf in leaves}
        arguments = ", ".join(f't("{name}.{leaf}")' for leaf in leaves)
        self.lines.append(f"{out} = linear({x}, {arguments})")

    def end(self) -> Formula | None:
        """Return the formula of the requested result if it is computed after the blocks.

        Such results are the outputs of the last layer norms and of the last linear layer.

        Returns:
            The formula; None for any other result, or if no earlier result is available.
        """
        config, task = self.model.config, self.model.task
        first = self.first
        if first == "last_hidden_state":
            first = "head.norm" if "head.norm.weight" in self.model.tensors else "encoder.norm"
        if first in NORMS:
            return self.last_norm(first)
        if first != "logits":
            return None
        norm, module = "decoder.norm", "decoder.prediction"
        if task == "classify":
            norm = "head.norm" if "head.norm.weight" in self.model.tensors else "encoder.norm"
            module = "head"
        if self.is_available(norm):
            self.inputs["x"] = norm
            self.lines.append('normed = t("x")')
        elif self.last_norm(norm) is None:
            return None
        x = "normed"
        if task == "classify":
            if norm == "encoder.norm" and getattr(config, "global_pool", "") == "avg":
                self.lines.append("normed = average(normed[:, 1:])")
            x = "normed[:, 0]"
            self.one_token = False
        self.linear("logits", x, "linear", module)
        return self.formula("logits")

    def last_norm(self, first: str) -> Formula | None:
        """Return the formula of the norm after the blocks, or None if it cannot be written.

        In models with average pooling, the norm is applied to the mean of the tokens.

        Args:
            first: the name of the norm, without ``.weight``.
        """
        part, config = first.partition(".")[0], self.model.config
        part = "encoder" if part == "head" else part
        depth = "num_hidden_layers" if part == "encoder" else "decoder_num_hidden_layers"
        if f"{first}.weight" not in self.model.tensors or not self.stream(
            part, getattr(config, depth)
        ):
            return None
        x = "x"
        if first == "head.norm":
            # VideoMAE has no class token and averages all tokens.
            x = "average(x)" if hasattr(config, "use_mean_pooling") else "average(x[:, 1:])"
            self.one_token = False
        self.norm("normed", x, "norm", first)
        return self.formula("normed")


def _numbered(line: str) -> str:
    """Change a line of one block's formula into a line of a loop over the block numbers ``n``.

    ``t("NAME")`` becomes ``t(f"{n}.NAME")``.
    """
    return line.replace('t("', 't(f"{n}.')


def _masking(first: str, model: Model, location: Location) -> Formula | None:
    """Return the formula that computes `first` ("mask" or "ids_restore") from the noise.

    The result is None if the trace has no noise.
    """
    noise = model.inputs.get("noise")
    if noise is None:
        return None
    visible = int(model.config.num_kept)
    lines = ['rank = argsort(argsort(t("noise")))']
    if first == "mask":
        lines.append(f"return number(rank >= {visible})")
    elif model.family.predicts_removed_only:
        lines.append(f"return argsort(argsort(number(rank >= {visible})))  # in the patches' order")
    else:
        lines.append("return rank")
    return Formula(tuple(lines), arrays={"noise": noise[location.image : location.image + 1]})


def _embedding(model: Model, location: Location) -> Formula | None:
    """Return the formula of one token of the encoder's embedding.

    The result is None if the location has no token, or if the encoder's position embeddings are
    neither stored nor fixed.
    """
    if location.token is None or not _has_positions(model, "encoder"):
        return None
    visible = _visible_count(model)
    count = location.tokens - visible  # number of class tokens
    if location.token < count:
        return _token('t("token")', {"token": "encoder.cls_token"}, ("encoder", 0))
    index = location.token - count
    if (restore := model.results.get("ids_restore")) is not None:
        index = int(np.argsort(restore[location.image])[index])
    patches = channels_first(model.inputs["pixel_values"][location.image :][:1], model.config)
    names = {f"patch.{leaf}": f"encoder.patch_embedding.{leaf}" for leaf in ("weight", "bias")}
    return _with_coordinates(
        _token(
            'linear(t("patch"), t("patch.weight"), t("patch.bias"))', names,
            ("encoder", count + index), {"patch": patches[:, index : index + 1]},
        ), "encoder", index, model, location,
    )  # fmt: skip


def _decoder_embedding(model: Model, location: Location) -> Formula | None:
    """Return the formula of one token of the decoder's embedding.

    The result is None if an input of the formula is missing in the trace, if the location has no
    token, or if the decoder's position embeddings are neither stored nor fixed.
    """
    latent = model.results.get("encoder.norm", model.results.get("last_hidden_state"))
    restore = model.results.get("ids_restore")
    if latent is None or restore is None or location.token is None:
        return None
    if not _has_positions(model, "decoder"):
        return None
    visible, image = _visible_count(model), location.image
    count = location.tokens - restore.shape[1]  # number of class tokens
    if location.token < count and "decoder.cls_token" in model.tensors:
        return _token('t("token")', {"token": "decoder.cls_token"}, ("decoder", 0))
    if model.family.predicts_removed_only:  # visible patches come first, then mask tokens
        source, row = location.token, int(np.argsort(restore[image])[location.token])
    else:
        source = int(restore[image, location.token - count]) if location.token >= count else -count
        row = location.token
    if source >= visible:
        masked = _token('t("token")', {"token": "decoder.mask_token"}, ("decoder", row))
        return _with_coordinates(masked, "decoder", row - count, model, location)
    leaves = [n for n in ("weight", "bias") if f"decoder.embed.{n}" in model.tensors]
    arguments = ", ".join(f't("embed.{leaf}")' for leaf in leaves)
    names = {f"embed.{leaf}": f"decoder.embed.{leaf}" for leaf in leaves}
    number = latent.shape[1] - visible + source  # the first token may be the class token
    x = latent[image : image + 1, number : number + 1]
    formula = _token(f'linear(t("x"), {arguments})', names, ("decoder", row), {"x": x})
    if location.token < count:
        return formula
    return _with_coordinates(formula, "decoder", row - count, model, location)


def _with_coordinates(
    formula: Formula, part: str, index: int, model: Model, location: Location
) -> Formula:
    """Return the formula of a patch's token with the embeddings of its coordinates added.

    The coordinates are the time of the frame, and latitude and longitude.

    Args:
        formula: a formula of one line for the token without these embeddings.
        part: "encoder" or "decoder".
        index: the index of the patch; patches are ordered by time.
        model: the model; its inputs contain the coordinates, if the model embeds coordinates.
        location: the image for which the formula is written.
    """
    width = model.config.hidden_size if part == "encoder" else model.config.decoder_hidden_size
    (line,), names, arrays = formula.lines, dict(formula.tensors), dict(formula.arrays)
    for kind, name in COORDINATES.items():
        if name in model.inputs:
            values = model.inputs[name][location.image]
            if values.ndim == 2:  # coordinates of each frame
                values = values[index // (model.config.num_patches // len(values))]
            line += f' + t("{kind}.scale") * tensor(waves(data["{kind}"], {width}).astype(dtype))'
            names[f"{kind}.scale"], arrays[kind] = f"{part}.{kind}_scale", values
    return replace(formula, lines=(line,), tensors=names, arrays=arrays)


def _token(
    code: str,
    tensors: Mapping[str, str],
    row: tuple[str, int],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> Formula:
    """Return the formula of a token: the expression `code` plus the token's position embedding.

    Args:
        code: the expression.
        tensors: see `Formula.tensors`.
        row: the row of the position embedding, as in `Formula.rows`.
        arrays: see `Formula.arrays`.
    """
    line = f'return {code} + t("position")'
    return Formula((line,), {}, tensors, {"position": row}, arrays or {})


def _visible_count(model: Model) -> int:
    """Return the number of visible patches, which are the input of the encoder."""
    mask = model.results.get("mask")
    return int(model.config.num_patches if mask is None else (mask[0] == 0).sum())


def _has_positions(model: Model, part: str) -> bool:
    """Return whether `part` ("encoder" or "decoder") has stored or fixed position embeddings."""
    return any(f"{part}.{name}" in model.tensors for name in TABLES) or _fixed_positions(model)


def _fixed_positions(model: Model) -> bool:
    return isinstance(model.config, VideoMAEConfig)


def position_row(tensors: Mapping[str, Any], part: str, row: int, model: Model) -> np.ndarray:
    """Return the position embedding of a token, (D,).

    Args:
        tensors: the lazy tensors of one side, by canonical name.
        part: "encoder" or "decoder".
        row: the row of the position embedding, in which class tokens come first.
        model: the model with these tensors.
    """
    config = model.config
    if _fixed_positions(model):
        width = config.hidden_size if part == "encoder" else config.decoder_hidden_size
        table = interleaved_position_embedding(width, config.num_patches)
        return np.asarray(table[0, row], np.float32)
    # In float64, because .npz files cannot contain bfloat16.
    arrays = {n: np.asarray(tensors[f"{part}.{n}"].load())[0].astype(np.float64) for n in TABLES
              if f"{part}.{n}" in tensors}  # fmt: skip
    if len(arrays) == 1:
        return np.asarray(next(iter(arrays.values()))[row])
    spatial, temporal = (arrays[f"{kind}_position_embedding"] for kind in ("spatial", "temporal"))
    first = arrays.get("class_position_embedding")
    if first is not None and row == 0:
        return np.asarray(first[0])
    time, location = divmod(row - (first is not None), len(spatial))
    return np.asarray(temporal[time] + spatial[location])


def _of_pixels(first: str, model: Model, location: Location) -> Formula | None:
    """Return the formula that computes a result from the predicted patches.

    Args:
        first: the name of the result: "reconstruction", "loss" or "loss_norm_pix".
        model: the model with its results.
        location: the image that is reconstructed.

    Returns:
        The formula; None if the predicted patches or the mask are not available, or if their
        numbers of patches differ.
    """
    if "logits" not in model.results or "mask" not in model.results:
        return None
    if first == "reconstruction":
        return _reconstruction(model, location)
    if isinstance(model.config, VideoMAEConfig):
        return _loss_per_channel(first, model)
    removed = model.results["mask"] > 0
    patches = channels_last(_predicted_pixels(model), _predicted(model))
    target, logits = patches[removed], model.results["logits"][removed]
    lines, count = ['target = t("target")'], target.shape[-1]
    if first == "loss_norm_pix":
        lines += [
            f"target = target - sums(target) / {count}",
            f"target = target / (sums(target * target) / {count - 1} + 1e-6) ** 0.5",
        ]
    return _mean_error(lines, {"logits": logits, "target": target})


def _loss_per_channel(first: str, model: Model) -> Formula | None:
    """Return the formula of the result `first` of VideoMAE: ``loss`` or ``loss_norm_pix``.

    The targets are pixels from 0 to 1, without the normalization of the inputs. For
    ``loss_norm_pix``, each channel of a patch is then normalized separately. Only removed patches
    are predicted. The result is None if the numbers of predicted and target pixels differ.
    """
    config, logits = model.config, model.results["logits"]
    patches = channels_last(_predicted_pixels(model), config)[model.results["mask"] > 0]
    if patches.size != logits.size:
        return None
    apart = (len(patches), -1, config.num_channels)
    arrays = {"logits": logits.reshape(apart), "target": patches.reshape(apart)}
    arrays = {name: array.swapaxes(1, 2) for name, array in arrays.items()}  # channel, pixel
    for name, values in (("mean", config.pixel_mean), ("deviation", config.pixel_std)):
        arrays[name] = np.asarray(values, np.float64)[:, None]
    lines = ['target = t("target") * t("deviation") + t("mean")  # pixels from 0 to 1']
    count = arrays["target"].shape[-1]
    if first == "loss_norm_pix":
        lines += [
            f"target = target - sums(target) / {count}",
            f"target = target / ((sums(target * target) / {count - 1}) ** 0.5 + 1e-6)",
        ]
    return _mean_error(lines, arrays)


def _mean_error(lines: Sequence[str], arrays: Mapping[str, np.ndarray]) -> Formula:
    """Return the formula of the mean squared error of the predictions.

    Args:
        lines: lines that compute ``target``, the values to predict, from `arrays`.
        arrays: arrays by name, among them the predictions ``logits``.
    """
    last = f"return total(errors) / {arrays['target'].size}"
    lines = (*lines, 'errors = (t("logits") - target) ** 2', last)
    return Formula(lines, arrays=arrays, one_token=False)


def _reconstruction(model: Model, location: Location) -> Formula | None:
    """Return the formula that rearranges the predicted patches into an image or a video.

    `location` specifies the image. The result is None if the number of predicted patches is not the
    number of removed patches.
    """
    logits, mask = model.results["logits"][location.image :][:1], model.results["mask"]
    shapes = _predicted(model)
    if model.family.predicts_removed_only:  # zeros at the visible patches
        removed = mask[location.image] > 0
        predicted = np.zeros((1, len(removed), logits.shape[2]), logits.dtype)
        if removed.sum() != logits.shape[1]:
            return None
        predicted[:, removed], logits = logits, predicted
    grid, patch = tuple(shapes.grid_shape), tuple(shapes.patch_shape)
    channels, axes = model.config.num_channels, len(grid)
    pairs = [axis for n in range(axes) for axis in (1 + n, 1 + axes + n)]
    order = (0, 1 + 2 * axes, *pairs)
    whole = (1, channels, *(rows * size for rows, size in zip(grid, patch, strict=True)))
    line = f'return rearrange(t("logits"), {(1, *grid, *patch, channels)}, {order}, {whole})'
    return Formula((line,), arrays={"logits": logits}, one_token=False)


def _predicted(model: Model) -> Any:
    """Return an object with the shapes of predicted images and patches.

    It is the configuration, except for MAE-ST, which predicts fewer frames.
    """
    return getattr(model.config, "prediction", model.config)


def _predicted_pixels(model: Model) -> np.ndarray:
    """Return those input images or frames that the model predicts, as (N, C, [T,] H, W)."""
    pixels, config = model.inputs["pixel_values"], model.config
    if hasattr(config, "predicted_frames"):
        return pixels[:, :, list(config.predicted_frames)]
    return pixels if pixels.ndim == 2 + len(config.patch_shape) else pixels[:, :, None]


def channels_first(pixels: np.ndarray, shapes: Any) -> np.ndarray:
    """Cut images into patches (N, L, P); values are in the order channel, [frame,] row, column.

    `shapes` has the attributes ``grid_shape``, ``patch_shape`` and ``num_patches`` of the images.
    """
    axes = cut(pixels, shapes)
    grid, inner = range(2, axes.ndim, 2), range(3, axes.ndim, 2)
    return axes.transpose(0, *grid, 1, *inner).reshape(len(pixels), shapes.num_patches, -1)


def channels_last(pixels: np.ndarray, shapes: Any) -> np.ndarray:
    """Cut images into patches (N, L, P); values are in the order [frame,] row, column, channel.

    `shapes` has the attributes ``grid_shape``, ``patch_shape`` and ``num_patches`` of the images.
    """
    axes = cut(pixels, shapes)
    grid, inner = range(2, axes.ndim, 2), range(3, axes.ndim, 2)
    return axes.transpose(0, *grid, *inner, 1).reshape(len(pixels), shapes.num_patches, -1)
