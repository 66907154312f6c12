"""Methods of transformers' TensorFlow models, except ``call``."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

LABELS = ("labels", "label", "label_ids")
PROGRAM = Path("saved_model", "1")
"""The path of a SavedModel in a model directory, as in transformers."""


class TransformersMethods:
    """Methods that scripts for transformers call for data sets, training and SavedModels."""

    config: Any
    framework = "tf"

    @classmethod
    def can_generate(cls) -> bool:
        """Return False: no model here generates text."""
        return False

    def build_in_name_scope(self) -> None:
        """Do nothing, because the constructor creates the variables."""

    @property
    def input_signature(self) -> dict[str, Any]:
        """The shapes and dtypes of the inputs that a call needs, by name."""
        shape = (None, self.config.num_channels, *self.config.image_hw)
        if keras.backend.backend() != "tensorflow":
            return {"pixel_values": keras.InputSpec(shape=shape, dtype="float32")}
        import tensorflow as tf

        return {"pixel_values": tf.TensorSpec(shape, tf.float32, name="pixel_values")}

    @property
    def dummy_inputs(self) -> dict[str, Any]:
        """Example inputs for a call of the model, by name: one image of zeros."""
        return {"pixel_values": ops.zeros((1, self.config.num_channels, *self.config.image_hw))}

    def get_input_embeddings(self) -> Any:
        """Return the layer that projects patches."""
        return self.encoder.embeddings.projection  # type: ignore[attr-defined]

    def get_output_embeddings(self) -> None:
        """Return None: no model here has output embeddings."""

    def prepare_tf_dataset(
        self,
        dataset: Any,
        batch_size: int = 8,
        shuffle: bool = True,
        collate_fn: Callable[..., dict[str, Any]] | None = None,
        collate_fn_args: dict[str, Any] | None = None,
        drop_remainder: bool | None = None,
        prefetch: bool = True,
    ) -> Any:
        """Return a ``tf.data.Dataset`` of batches for ``fit``.

        Columns that are not inputs of the model are ignored; a column "label" or "label_ids"
        becomes "labels".

        Args:
            dataset: a ``datasets.Dataset``.
            batch_size: the number of images in a batch.
            shuffle: return the images in random order.
            collate_fn: creates a batch from a list of examples; default: stacks their arrays.
            collate_fn_args: further arguments of ``collate_fn``.
            drop_remainder: drop the last batch if it is smaller; default: the value of ``shuffle``.
            prefetch: prepare batches in advance.

        Raises:
            TypeError: the dataset is not a ``datasets.Dataset``.
        """
        if not hasattr(dataset, "to_tf_dataset"):
            raise TypeError(
                f"prepare_tf_dataset takes a datasets.Dataset, not a {type(dataset).__name__};"
                " pass arrays or a tf.data.Dataset directly to fit()"
            )
        inputs = [n for n in inspect.signature(type(self).call).parameters if n != "self"]  # type: ignore[attr-defined]
        columns = [name for name in dataset.column_names if name in inputs and name not in LABELS]
        labels = [name for name in dataset.column_names if name in LABELS]
        has_labels = bool(labels) and "labels" in inputs
        return dataset.to_tf_dataset(
            columns=columns[0] if len(columns) == 1 else columns,
            label_cols="labels" if has_labels else None,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_remainder=shuffle if drop_remainder is None else drop_remainder,
            collate_fn=collate_fn or _stacked,
            collate_fn_args=collate_fn_args or {},
            prefetch=prefetch,
        )

    def fit(self, x: Any = None, *more: Any, **named: Any) -> Any:
        """Call Keras's ``fit``; `x` may also be the output of the image processor."""
        if isinstance(named.get("validation_data"), tuple):
            named["validation_data"] = tuple(map(as_plain, named["validation_data"]))
        return super().fit(as_plain(x), *more, **named)  # type: ignore[misc]

    def evaluate(self, x: Any = None, *more: Any, **named: Any) -> Any:
        """Call Keras's ``evaluate``; `x` may also be the output of the image processor."""
        return super().evaluate(as_plain(x), *more, **named)  # type: ignore[misc]

    def predict(self, x: Any, *more: Any, **named: Any) -> Any:
        """Call Keras's ``predict``; `x` may also be the output of the image processor."""
        return super().predict(as_plain(x), *more, **named)  # type: ignore[misc]

    def serving_functions(self) -> dict[str, Any]:
        """Return a dictionary from the name of each signature to its function; see `export`."""
        from mae_convert.models.serving import serving_functions

        return serving_functions(self)

    def export(
        self,
        filepath: str | Path,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **options: Any,
    ) -> None:
        """Write the model as a program that runs without this project.

        By default, a model on TensorFlow is written as a SavedModel with the signatures of
        `serving_functions`, for any number of images. With another backend or format, an
        ``input_signature`` or further options, this method calls Keras's own ``export``.

        Args:
            filepath: the directory or file.
            format: a format that Keras can export: "tf_saved_model", "onnx", "litert" ...
            verbose: whether to print the written signatures; None for the default of Keras.
            input_signature: the shapes and dtypes of the inputs; Keras then writes one signature.
            options: further arguments of Keras.
        """
        ours = format == "tf_saved_model" and input_signature is None and not options
        if not ours or keras.backend.backend() != "tensorflow":
            super().export(filepath, format, verbose, input_signature, **options)  # type: ignore[misc]
            return
        from mae_convert.models.serving import export_saved_model

        export_saved_model(self, filepath, verbose=verbose)

    @property
    def _default_save_signature(self) -> Any:
        """The function that ``tf.saved_model.save`` exports as the signature "serving_default"."""
        return self.serving_functions()["serving_default"]

    def _trackable_children(self, save_type: str = "checkpoint", **options: Any) -> dict[str, Any]:
        """Return the objects that TensorFlow saves.

        For a SavedModel, they include the functions of all signatures except "serving_default".
        """
        children: dict[str, Any] = super()._trackable_children(save_type, **options)  # type: ignore[misc]
        if save_type == "savedmodel":
            functions = self.serving_functions()
            children |= {name: functions[name] for name in functions if name != "serving_default"}
        return children

    def save_pretrained(
        self,
        save_directory: str | Path,
        *arguments: Any,
        saved_model: bool = False,
        signatures: Any = None,
        **options: Any,
    ) -> None:
        """Write a model directory and, if requested, a SavedModel in its folder ``saved_model/1``.

        Args:
            save_directory: the directory.
            arguments: as for `PretrainedModel.save_pretrained`.
            saved_model: also write the SavedModel.
            signatures: a dictionary from the name of each signature of the SavedModel to its
                function; default: `serving_functions`.
            options: as for `PretrainedModel.save_pretrained`.
        """
        super().save_pretrained(save_directory, *arguments, **options)  # type: ignore[misc]
        if saved_model:
            import tensorflow as tf

            target = str(Path(save_directory) / PROGRAM)
            tf.saved_model.save(self, target, signatures=signatures or self.serving_functions())


def as_plain(inputs: Any) -> Any:
    """Convert inputs in a subclass of ``dict``, which Keras refuses, to a plain ``dict``.

    Other inputs are returned unchanged.
    """
    return dict(inputs) if isinstance(inputs, dict) else inputs


def _stacked(examples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the numeric columns of the examples by name; the values of a column are stacked.

    A column "label" or "label_ids" is renamed to "labels".
    """
    first = examples[0]
    names = {name: "labels" if name in LABELS else name for name in first}
    return {
        new: np.stack([np.asarray(example[name]) for example in examples])
        for name, new in names.items()
        if np.asarray(first[name]).dtype.kind in "buif"
    }
