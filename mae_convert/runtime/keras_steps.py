"""Run each step of a Keras reference model on a specified input.

The input replaces the output of the previous step. A step is a block or a norm.
"""

from collections.abc import Mapping
from typing import Any

from keras import ops


class Step:
    """Wraps a layer of a model: records its result and returns a specified activation instead.

    Args:
        layer: the layer, whose first argument and result are tokens (N, T, D).
        name: the name of the layer's result among the activations.
        replacements: activations by name that replace computed ones.
        computed: the dictionary in which the layer's result is recorded.
        before: the name of the layer's input if the input is replaced too, else "".
    """

    def __init__(
        self,
        layer: Any,
        name: str,
        replacements: Mapping[str, Any],
        computed: dict[str, Any],
        before: str = "",
    ) -> None:
        self.layer, self.name, self.before = layer, name, before
        self.replacements, self.computed = replacements, computed

    def __call__(self, tokens: Any, *arguments: Any, **named: Any) -> Any:
        """Return the layer's result, or the activation that replaces the result."""
        if self.before in self.replacements:
            self.computed[self.before], tokens = replaced(tokens, self.replacements[self.before])
        output = self.layer(tokens, *arguments, **named)
        if self.name not in self.replacements:
            return output
        self.computed[self.name], output = replaced(output, self.replacements[self.name])
        return output


def replace_steps(model: Any, replacements: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the input of each step of a model by a specified activation.

    The model can be called only once afterwards.

    Args:
        model: a Keras reference model.
        replacements: activations (N, T, D) by name, in the model's dtype. Each replaces the
            activation of the same name that the model computes, so that it becomes the input of the
            next step.

    Returns:
        A dictionary that is filled, when the model is called, with the activations that the model
        itself computes.
    """
    computed: dict[str, Any] = {}
    for name in ("encoder", "decoder"):
        stack = getattr(model, name, None)
        if stack is None:
            continue
        for index in range(stack.depth):
            block, result = f"block_{index}", f"{name}.blocks.{index}.output"
            before = f"{name}.embedding" if index == 0 else ""
            setattr(
                stack, block, Step(getattr(stack, block), result, replacements, computed, before)
            )
        if stack.norm is not None:
            stack.norm = Step(stack.norm, f"{name}.norm", replacements, computed)
    if getattr(model, "fc_norm", None) is not None:
        model.fc_norm = Step(model.fc_norm, "head.norm", replacements, computed)
    return computed


def replaced(computed: Any, replacement: Any) -> tuple[Any, Any]:
    """Return the activation that a layer computed, and an output to use instead of `computed`.

    The activation does not contain the additional tokens; the output begins with them, and then
    contains `replacement`.

    Args:
        computed: the result of a layer, (N, T, D). It may begin with additional tokens that the
            model drops later; the replacement does not contain these tokens.
        replacement: the activation that replaces the result, (N, T, D).
    """
    more = computed.shape[1] - replacement.shape[1]
    if more <= 0:
        return computed, replacement
    return computed[:, more:], ops.concatenate([computed[:, :more], replacement], axis=1)
