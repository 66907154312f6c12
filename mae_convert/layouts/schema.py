"""Types for canonical names and shapes, used by the tables of all families."""

import re

Shape = tuple[int, ...]
Schema = dict[str, Shape]
# Softmax cancels a key bias, so that some programs have none where query and value have one.
KEY_BIAS = re.compile(r"\.attention\.k\.bias$")
