"""Run the steps of a Keras reference model on given inputs instead of the preceding results."""

from collections.abc import Mapping
from typing import Any

from keras import ops


class Step:
    """Wraps a layer of a model: records its result and returns a given activation instead.

    Args:
        layer: the layer, whose first argument and result are tokens (N, T, D).
        name: the name of the layer's result among the activations.
        given: activations by name that replace computed ones.
        computed: the dictionary in which the layer's result is recorded.
        before: the name of the layer's input if that is replaced too, else None.
    """

    def __init__(
        self,
        layer: Any,
        name: str,
        given: Mapping[str, Any],
        computed: dict[str, Any],
        before: str = "",
    ) -> None:
        self.layer, self.name, self.before = layer, name, before
        self.given, self.computed = given, computed

    def __call__(self, tokens: Any, *arguments: Any, **named: Any) -> Any:
        """Return the activation that replaces the layer's result."""
        if self.before in self.given:
            self.computed[self.before], tokens = exchanged(tokens, self.given[self.before])
        output = self.layer(tokens, *arguments, **named)
        if self.name not in self.given:
            return output
        self.computed[self.name], output = exchanged(output, self.given[self.name])
        return output


def replace_steps(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the input of each step of a model, which can be used once, by a given activation.

    Args:
        model: a Keras reference model.
        given: activations by name, (N, T, D), in the model's dtype.

    Returns:
        A dictionary that is filled with the activations that the model itself computes.
    """
    computed: dict[str, Any] = {}
    for name in ("encoder", "decoder"):
        stack = getattr(model, name, None)
        if stack is None:
            continue
        for index in range(stack.depth):
            block, result = f"block_{index}", f"{name}.blocks.{index}.output"
            before = f"{name}.embedding" if index == 0 else ""
            setattr(stack, block, Step(getattr(stack, block), result, given, computed, before))
        if stack.norm is not None:
            stack.norm = Step(stack.norm, f"{name}.norm", given, computed)
    if getattr(model, "fc_norm", None) is not None:
        model.fc_norm = Step(model.fc_norm, "head.norm", given, computed)
    return computed


def exchanged(computed: Any, given: Any) -> tuple[Any, Any]:
    """Return a computed activation (N, T, D), and what replaces it in the model.

    Args:
        computed: the result of a layer, (N, T, D). It may begin with tokens that the activation
            does not have, because they are dropped afterwards.
        given: the activation that replaces it.
    """
    more = computed.shape[1] - given.shape[1]
    if more <= 0:
        return computed, given
    return computed[:, more:], ops.concatenate([computed[:, :more], given], axis=1)
