"""The encoder as a program for other runtimes: SavedModel, TFLite (LiteRT) and ONNX.

The program maps ``pixel_values`` (N, C, H, W) to ``last_hidden_state`` (N, 1 + L, D) after the
final norm, without masking and with the patches in order.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mae_convert.errors import MaeConvertError, MissingRequirementError
from mae_convert.files.atomic import (
    Destination,
    check_target,
    flush,
    replacing_file,
    staged,
    write_file,
)
from mae_convert.runtime.saving import kind_of, unwrapped

INPUT, OUTPUT = "pixel_values", "last_hidden_state"


def export_encoder(model: Any, target: str | Path, *, overwrite: bool = False) -> None:
    """Write the encoder of a model as a program that runs without this project.

    Args:
        model: an encoder or a pre-training model, in PyTorch for ONNX, and in Keras on TensorFlow
            for TFLite and SavedModel.
        target: a file whose name ends in ``.onnx`` or ``.tflite``, or a directory for a SavedModel.
        overwrite: replace an existing file. An existing directory is never replaced.

    Raises:
        OutputError: the target exists, or cannot be written.
        MaeConvertError: the format cannot be exported from the model's framework, or the model is a
            classifier.
        MissingRequirementError: a package for the format is not installed.
    """
    model, target = unwrapped(model), Path(target)
    _, framework, task = kind_of(model)
    if task == "classify":
        raise MaeConvertError(
"a classifier is not an encoder",
hint="export it with model.export, or load the model with task='encoder'"
)  # fmt: skip
    needed = "torch" if target.suffix == ".onnx" else "keras"
    if framework != needed:
        name = {"torch": "torch", "keras": "tensorflow"}[needed]
        raise MaeConvertError(
            f"{target.name} cannot be exported from a model of {framework}",
            hint=f'load the model with load_model(..., "{name}")',
        )
    if target.suffix in (".onnx", ".tflite"):
        check_target(target, overwrite=overwrite)
    if target.suffix == ".onnx":
        with replacing_file(target, overwrite=overwrite) as temporary:
            _write_onnx(model, temporary)
    elif target.suffix == ".tflite":
        write_file(target, _tflite(model), overwrite=overwrite)
    else:
        _write_saved_model(model, target)


def _write_onnx(model: Any, path: Path) -> None:
    import torch

    class Encoder(torch.nn.Module):
        """The encoder of the model, without masking."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            """Return tokens (N, 1 + L, D)."""
            tokens = self.model.encode(self.model.embed(pixel_values))
            normed: torch.Tensor = self.model.norm(tokens)
            return normed

    weight = model.norm.weight
    shape = (2, model.config.num_channels, *model.config.image_hw)
    example = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    try:
        program = torch.onnx.export(
            Encoder().eval(),
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1, max=1 << 16)}},
            dynamo=True,
            verbose=False,
        )
    except ImportError as error:
        raise MissingRequirementError(
            f"{error.name} is not installed here", hint="pip install 'mae-convert[onnx]'"
        ) from error
    assert program is not None
    program.save(str(path))


def _write_saved_model(model: Any, target: Path) -> None:
    with staged(Destination(target, is_directory=True)) as (output,):
        import tensorflow as tf

        module = tf.Module()
        module.encoder = model
        module.serve = encoder_function(model)
        path = output.path
        tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
        for item in (*path.rglob("*"), path):
            flush(item)


def pixel_shape(model: Any) -> tuple[int | None, int, int, int]:
    """Return the shape (N, C, H, W) of a model's images; N is None, for any number of images."""
    return (None, model.config.num_channels, *model.config.image_hw)


def float_dtype(model: Any) -> str:
    """Return the dtype of the images that an exported program takes."""
    return "float64" if model.variable_dtype == "float64" else "float32"


def encoder_function(model: Any, *, as_constants: bool = False) -> Any:
    """Return the encoder as a TensorFlow function of any number of images.

    With ``as_constants``, the weights are constants of the function, because the converter to
    TFLite would make Keras's variables empty, and the program would return NaN.
    """
    import keras
    import tensorflow as tf

    held = [(w, keras.ops.convert_to_numpy(w)) for w in model.weights if as_constants]

    @tf.function(input_signature=[tf.TensorSpec(pixel_shape(model), float_dtype(model), INPUT)])
    def encode(pixel_values: Any) -> dict[str, Any]:
        constants = [(weight, tf.constant(value)) for weight, value in held]
        with keras.StatelessScope(constants) if as_constants else nullcontext():
            return {OUTPUT: model.encoder(pixel_values)}

    return encode


def _tflite(model: Any) -> bytes:
    import tensorflow as tf

    module = tf.Module()
    function = encoder_function(model, as_constants=True).get_concrete_function()
    content: bytes = tf.lite.TFLiteConverter.from_concrete_functions([function], module).convert()
    return content
