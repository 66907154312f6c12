"""Work in threads."""

import threading
from collections.abc import Iterator

import pytest

from mae_convert.files.workers import overlapped


def test_next_item_is_produced_while_the_previous_one_is_processed() -> None:
    made = [threading.Event() for _ in range(3)]
    main = threading.get_ident()

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            assert threading.get_ident() == main
            event.set()
            yield number

    def work(number: int) -> int:
        if number < 2:
            assert made[number + 1].wait(5)
        assert threading.get_ident() != main
        return 10 * number

    assert list(overlapped(work, items())) == [0, 10, 20]
    assert list(overlapped(work, iter([]))) == []


def test_several_threads_keep_the_order_and_few_results() -> None:
    begun: list[int] = []
    both = threading.Barrier(2, timeout=5)

    def work(number: int) -> int:
        begun.append(number)
        if number < 2:
            both.wait()  # the first two run at the same time
        return number

    used = 0
    for used, number in enumerate(overlapped(work, range(9), threads=2)):
        assert number == used
        assert max(begun) <= used + 2
    assert used == 8


def test_an_error_of_either_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(overlapped(lambda number: 1 // number, iter([1, 0, 1])))

    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second one")

    with pytest.raises(ValueError, match="the second one"):
        list(overlapped(lambda number: number, items()))
