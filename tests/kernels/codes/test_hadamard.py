"""The rotation and the fixed sum."""

import math

import numpy as np
import pytest
import torch

from hlwq_kernels import hadamard
from hlwq_kernels.codes.hadamard import tree_sum
from tests.kernels.weights import sylvester

SIZES = (1, 2, 8, 32, 64, 128, 256)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=dtype)


@pytest.mark.parametrize("n", SIZES)
def test_hadamard_is_the_product_with_sylvesters_matrix(n: int) -> None:
    x = random(2, 3, n, dtype=torch.float64)
    np.testing.assert_allclose(hadamard(x).numpy(), x.numpy() @ sylvester(n), atol=1e-12)


@pytest.mark.parametrize("n", SIZES)
def test_columns_of_the_matrix_come_out_exactly(n: int) -> None:
    assert hadamard(torch.eye(n)).tolist() == sylvester(n).tolist()


@pytest.mark.parametrize("n", SIZES)
def test_hadamard_twice_is_n_times_the_input(n: int) -> None:
    whole = (random(5, n) * 100).round()
    assert torch.equal(hadamard(hadamard(whole)), n * whole)


@pytest.mark.parametrize("n", SIZES)
def test_butterflies_run_from_neighbours_outward(n: int) -> None:
    x = random(n)
    expected, h = x.numpy().copy(), 1
    while h < n:
        for i in range(n):
            if not i & h:
                a, b = expected[i], expected[i + h]
                expected[i], expected[i + h] = a + b, a - b
        h *= 2
    assert hadamard(x).tolist() == expected.tolist()


@pytest.mark.parametrize("n", [0, 3, 48, 96])
def test_hadamard_refuses_a_length_that_is_no_power_of_two(n: int) -> None:
    with pytest.raises(ValueError, match=f"power of two, not {n}"):
        hadamard(torch.zeros(2, n))


@pytest.mark.parametrize("n", SIZES)
def test_tree_sum_folds_the_upper_half_onto_the_lower(n: int) -> None:
    x = random(n)
    folded = x.numpy().copy()
    while len(folded) > 1:
        h = len(folded) // 2
        folded = np.array([folded[i] + folded[i + h] for i in range(h)], dtype=np.float32)
    assert tree_sum(x).item() == folded[0]


@pytest.mark.parametrize("n", SIZES)
def test_tree_sum_is_the_sum_of_each_row(n: int) -> None:
    x = random(3, 4, n).square()
    exact = [[math.fsum(block) for block in row] for row in x.tolist()]
    np.testing.assert_allclose(tree_sum(x).numpy(), exact, rtol=math.log2(n) * 2.0**-24)
