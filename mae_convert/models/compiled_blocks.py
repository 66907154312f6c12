"""Compile the blocks of a Keras model with TensorFlow, for inference calls outside a graph.

An eager call spends most of its time on overhead between operations. Here each block calls a
`tf.function` that takes the weights as arguments, so that all blocks of an encoder or decoder share
one graph. Only one block is traced, which takes a fraction of a second, so the first call takes
about as long as an eager call. The results do not depend on how often a model was called before.
"""

from collections import OrderedDict
from typing import Any

import keras

from reference_models.keras.blocks import Attention, Block, LayerNorm
from reference_models.outputs import Taps, Tensor

LIMIT = 16
"""Maximum number of graphs of a model; a new graph replaces the least recently used graph."""


def may_compile(inputs: tuple[Any, ...], *, training: bool | None) -> bool:
    """Return whether compiled blocks affect only the speed of a call.

    The result is False if something observes individual operations: a gradient tape, a surrounding
    graph, a distribution strategy, TensorFlow's debuggers, or Keras's symbolic or stateless
    execution.

    Args:
        inputs: the inputs of the call; None for an input that was not given.
        training: whether dropout is active. None for False.
    """
    if training or keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf
    from keras.src.backend.common.stateless_scope import in_stateless_scope
    from tensorflow.python.eager import context, record  # there is no public function for these

    return bool(
        tf.executing_eagerly()
        and not tf.config.functions_run_eagerly()
        and not record.could_possibly_record()
        and not context.context().op_callbacks
        and not tf.distribute.has_strategy()
        and not in_stateless_scope()
        and all(isinstance(given, tf.Tensor) for given in inputs if given is not None)
    )


class CompiledBlocks:
    """The TensorFlow graphs of the blocks of one model.

    The class is not a Keras or TensorFlow class, so that the graphs are not saved with the model.
    """

    def __init__(self) -> None:
        self._functions: OrderedDict[Any, Any] = OrderedDict()

    def of(self, blocks: list[Any]) -> list[Any]:
        """Return a compiled callable for each block, in order.

        A block is returned unchanged if a script has quantized the block, or has replaced one of
        its layers or the method ``call`` of a layer.
        """
        return [_CompiledBlock(self, block) if _is_unchanged(block) else block for block in blocks]

    def function(self, block: Any, tokens: Tensor, variables: list[Any], taps: Taps | None) -> Any:
        """Return the compiled function that all blocks with the structure of `block` share.

        The function takes the values of a block's variables and tokens (N, T, D), with any N, and
        returns the block's output and a dictionary of the requested intermediate activations.

        Args:
            block: a transformer block.
            tokens: tokens (N, T, D) with which the function will be called.
            variables: the variables of the block, in the order of ``block.variables``.
            taps: specifies the intermediate activations that the function returns; None if the
                dictionary of intermediate activations must be empty.
        """
        recorded = None if taps is None else (taps.attentions, taps.activations)
        key = (tuple(tokens.shape[1:]), tokens.dtype, recorded, _structure(block, variables))
        if key not in self._functions:
            self._functions[key] = _function(block, tokens, taps)
        self._functions.move_to_end(key)
        while len(self._functions) > LIMIT:
            self._functions.popitem(last=False)
        return self._functions[key]


class _CompiledBlock:
    """A block that calls the compiled function of all blocks with the same structure."""

    def __init__(self, functions: CompiledBlocks, block: Any) -> None:
        self.functions, self.block = functions, block

    def __call__(self, tokens: Tensor, taps: Taps | None = None) -> Tensor:
        """Return the output of the block (N, T, D).

        Args:
            tokens: the input of the block (N, T, D).
            taps: specifies the intermediate activations to record, and receives them; None to
                record none.
        """
        variables = self.block.variables
        function = self.functions.function(self.block, tokens, variables, taps)
        output, recorded = function([variable.value for variable in variables], tokens)
        if taps is not None:
            taps.update(recorded)
        return output


def _parts(block: Any) -> tuple[tuple[Any, Any], ...]:
    """Return the block, its attention and its norms, each in a pair with its expected class."""
    return (
        (block, Block),
        (block.attention, Attention),
        (block.norm1, LayerNorm),
        (block.norm2, LayerNorm),
    )


def _dense(block: Any) -> tuple[Any, ...]:
    attention = block.attention
    return (
        attention.query,
        attention.key,
        attention.value,
        attention.projection,
        block.fc1,
        block.fc2,
    )


def _is_unchanged(block: Any) -> bool:
    """Return whether no script has replaced a layer or a method of a block."""
    return all(
        type(layer) is kind and "call" not in layer.__dict__ for layer, kind in _parts(block)
    ) and all(
        type(dense) is keras.layers.Dense and dense.quantization_mode is None
        for dense in _dense(block)
    )


def _structure(block: Any, variables: list[Any]) -> tuple[Any, ...]:
    """Return the properties that the graph of a block depends on, besides the values of weights."""
    return (
        *(kind.call for _, kind in _parts(block)),
        block.activation,
        block.attention.heads,
        block.norm1.epsilon,
        block.norm2.epsilon,
        *(
            (variable.path.rpartition("/")[2], variable.shape, variable.dtype)
            for variable in variables
        ),
    )


def _function(block: Any, tokens: Tensor, taps: Taps | None) -> Any:
    import tensorflow as tf

    shape = (None, *tokens.shape[1:])
    attentions, activations = (
        taps is not None and taps.attentions,
        taps is not None and taps.activations,
    )

    @tf.function(autograph=False, reduce_retracing=True)
    def run(values: list[Tensor], tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        inside = Taps.requested(False, attentions, activations)
        with keras.StatelessScope(list(zip(block.variables, values, strict=True))):
            output = block(tf.ensure_shape(tokens, shape), taps=inside)
        recorded = {} if inside is None else dict(inside)
        return output, {n: v for n, v in recorded.items() if activations or n == "probabilities"}

    return run
