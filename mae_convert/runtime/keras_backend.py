"""Backend-specific parts of running Keras: devices, precision, compilation, gradients."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np

from mae_convert.errors import Option
from mae_convert.runtime.loaders import LoadError
from mae_convert.runtime.read_ahead import ALIGNMENT

Function = Callable[..., Any]

ON_CPU = ("pass ", Option("device", "cpu"))


def _is_jax() -> bool:
    return bool(keras.backend.backend() == "jax")


def device(name: str) -> Any:
    """Return a context in which computations run on a device, "cpu" or "cuda".

    Raises:
        LoadError: there is no such device.
    """
    if _is_jax():
        import jax

        try:
            return jax.default_device(jax.devices({"cuda": "gpu"}.get(name, name))[0])
        except RuntimeError as error:
            raise LoadError("JAX finds no CUDA device", hint=ON_CPU) from error
    import tensorflow

    if name == "cpu":
        return tensorflow.device("/CPU:0")
    if not tensorflow.config.list_physical_devices("GPU"):
        raise LoadError("TensorFlow finds no CUDA device", hint=ON_CPU)
    return tensorflow.device("/GPU:0")


def set_precision(dtype: str, device: str) -> None:
    """Enable TF32 if `dtype` is "tf32", else disable it; make TensorFlow deterministic.

    With TF32, the default on GPUs, the factors of float32 products are rounded to 10 bits.

    Raises:
        LoadError: TF32 is requested on a device other than "cuda".
    """
    if dtype == "tf32" and device != "cuda":
        raise LoadError(
            "TF32 exists on CUDA devices only", hint=("pass ", Option("device", "cuda"))
        )
    if _is_jax():
        import jax

        precision = "tensorfloat32" if dtype == "tf32" else "highest"
        jax.config.update("jax_default_matmul_precision", precision)
        return
    import tensorflow

    tensorflow.config.experimental.enable_tensor_float_32_execution(dtype == "tf32")
    keras.utils.set_random_seed(0)  # deterministic mode requires a seed
    tensorflow.config.experimental.enable_op_determinism()


class Unset(keras.initializers.Initializer):
    """An initializer that leaves values arbitrary, which is fast: weights are loaded afterwards."""

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Return a tensor with arbitrary values."""
        dtype = keras.backend.standardize_dtype(dtype)
        if _is_jax():
            return keras.ops.zeros(shape, dtype)
        import tensorflow

        return tensorflow.raw_ops.Empty(shape=shape, dtype=dtype)


def short_variable_names() -> Any:
    """Return a context in which TensorFlow's variables get names without the names of layers.

    TensorFlow compiles the operation that creates a variable, and compiles it again for each new
    name of a variable. Compiling takes longer than the rest of the creation. The names and paths of
    Keras's variables do not change.
    """
    if _is_jax():
        return nullcontext()
    import tensorflow

    def create(next_creator: Function, **options: Any) -> Any:
        return next_creator(**{**options, "name": f"{options['name']}/"})

    return tensorflow.variable_creator_scope(create)


def backend_tensor(array: np.ndarray) -> Any:
    """Return an array as a TensorFlow tensor with the same memory, if possible, else unchanged.

    Nothing else may use the array afterwards. The array is returned unchanged if the backend is
    JAX, if the array is empty, if its dtype is bfloat16, or if its memory is not aligned:
    TensorFlow's operations on unaligned memory would crash the process. An unchanged array is
    copied when it is assigned to a variable.
    """
    aligned = array.size and array.ctypes.data % ALIGNMENT == 0
    if _is_jax() or not aligned or array.dtype.kind not in "fiu":  # bfloat16 is of kind "V"
        return array
    import tensorflow

    return tensorflow.experimental.dlpack.from_dlpack(array.__dlpack__())


def as_array(tensor: Any) -> np.ndarray:
    """Return a tensor as a read-only array, without a copy if the tensor is on the CPU."""
    if _is_jax() or tensor.device.endswith("CPU:0"):
        return np.asarray(tensor)
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def compiled(function: Function, model: Any, mode: str) -> Function:
    """Return a function of tensors, compiled if the mode is "compiled" or "xla".

    TensorFlow compiles the function by ``tf.function``, which uses XLA only in the mode "xla"; JAX
    compiles it by ``jax.jit`` in both modes. In any other mode, the function is returned unchanged.

    On JAX the model's variables are arguments of the compiled function; otherwise they would be
    constants in the function.
    """
    if mode not in ("compiled", "xla"):
        return function
    if not _is_jax():
        import tensorflow

        return tensorflow.function(function, jit_compile=mode == "xla")
    import jax

    pure = jax.jit(_with_values(function, model.variables))
    return lambda *inputs: pure([variable.value for variable in model.variables], *inputs)


def gradients(function: Function, variables: Sequence[Any], mode: str) -> Function:
    """Return a function that computes the gradients of a scalar with respect to variables.

    Args:
        function: a function that returns the scalar.
        variables: the variables of the model.
        mode: the mode of the run; in "compiled" and "xla", the returned function is compiled.
    """
    if _is_jax():
        import jax

        pure = jax.grad(_with_values(function, variables))
        pure = jax.jit(pure) if mode in ("compiled", "xla") else pure
        return lambda *inputs: pure([variable.value for variable in variables], *inputs)
    import tensorflow

    def by_tape(*inputs: Any) -> list[Any]:
        with tensorflow.GradientTape() as tape:
            value = function(*inputs)
        values = tape.gradient(value, [variable.value for variable in variables])
        # The gradient of a tensor from which rows were gathered is an IndexedSlices of these rows.
        return [g if g is None else tensorflow.convert_to_tensor(g) for g in values]

    if mode in ("compiled", "xla"):
        return tensorflow.function(by_tape, jit_compile=mode == "xla")
    return by_tape


def _with_values(function: Function, variables: Sequence[Any]) -> Function:
    """Return a function that takes the values of variables as an additional first argument."""

    def pure(values: Sequence[Any], *inputs: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*inputs)

    return pure
