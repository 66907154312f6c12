"""What the three models have in common: built at once, made again from their configuration."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from reference_models.configuration import ViTMAEConfig
from reference_models.outputs import Tensor


class ConfiguredModel(keras.Model):
    """A model that is a function of its configuration; all its weights exist once it is made.

    Inputs are not cast when they come in: noise must keep the precision that it is sorted by.
    """

    def __init__(self, config: ViTMAEConfig | Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.config = config if isinstance(config, ViTMAEConfig) else ViTMAEConfig.from_dict(config)

    def _cast(self, x: Tensor) -> Tensor:
        """Return a tensor in the precision of the weights, but at least in float32."""
        return ops.cast(x, "float64" if self.variable_dtype == "float64" else "float32")

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to make the same model, as plain data."""
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        return {"config": self.config.to_dict(), "name": self.name, "dtype": dtype}
