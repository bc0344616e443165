"""The counter of lines sees loops, calls and threads."""

from functools import partial
from threading import Thread

from tests.support.effort import lines_run


def pairs(numbers: range) -> int:
    found = 0
    for a in numbers:
        for b in numbers:
            found += a == b
    return found


def test_lines_grow_with_the_work() -> None:
    few, many = (lines_run(partial(pairs, range(n)))[1] for n in (10, 20))
    assert 200 < few < 250
    assert 800 < many < 900


def test_lines_of_threads_count() -> None:
    def work() -> None:
        thread = Thread(target=pairs, args=(range(10),))
        thread.start()
        thread.join()

    assert lines_run(work)[1] > 200
