"""Canonical names and shapes: the types that tables of every family use."""

import re

Shape = tuple[int, ...]
Schema = dict[str, Shape]
# Softmax cancels a key bias, so that some programs have none where query and value have one.
KEY_BIAS = re.compile(r"\.attention\.k\.bias$")
