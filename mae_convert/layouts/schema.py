"""Types for canonical names and shapes, used by the tables of all families."""

import re

Shape = tuple[int, ...]
Schema = dict[str, Shape]
# A key bias has no effect on the softmax, so some programs have none although query and value have
# one.
KEY_BIAS = re.compile(r"\.attention\.k\.bias$")
