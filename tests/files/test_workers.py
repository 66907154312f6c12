"""Work in threads."""

import threading
from collections.abc import Iterator

import pytest

from mae_convert.files.workers import one_ahead


def test_the_next_item_is_computed_while_one_is_used() -> None:
    computed = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for number, event in enumerate(computed):
            event.set()
            yield number
        raise ValueError("the last one")

    used = one_ahead(items())
    assert next(used) == 0
    assert computed[1].wait(5)
    assert not computed[2].is_set()
    assert [next(used), next(used)] == [1, 2]
    with pytest.raises(ValueError, match="the last one"):
        next(used)
    assert list(one_ahead(iter([]))) == []
