"""Stages are loaded in an order that loads each as seldom as it can, whatever passes they belong to."""

import pytest

from hlwq_cli.runtime.calibration.schedule import merged


@pytest.mark.parametrize(
    ("visits", "expected"),
    [
        ([(1, 2, 3)] * 3, [1, 2, 3]),
        ([(5, 6, 1, 2), (1, 2)], [5, 6, 1, 2]),  # a tower of a higher number, which only pictures run
        ([(1, 2), (5, 6, 1, 2), (7, 1, 2)], [5, 6, 7, 1, 2]),
        ([(1, 2, 2, 2, 3)] * 2, [1, 2, 2, 2, 3]),  # a layer that is run again and again
        ([(1, 9, 2, 9, 3)] * 2, [1, 9, 2, 9, 3]),
        ([], []),
        ([(), (4,)], [4]),
    ],
)
def test_stages_are_loaded_once_for_all_passes(visits: list[tuple[int, ...]], expected: list[int]) -> None:
    assert merged(visits) == expected
