"""The Lloyd-Max codebook of a standard normal: the centroids with the least squared error for Gaussian weights."""

from __future__ import annotations

import math
from functools import lru_cache

MIN_BITS, MAX_BITS = 2, 8
_TOLERANCE = 1e-14


def _tail(x: float) -> float:
    """Return P(Z > x) for a standard normal Z; accurate far into the tail, unlike 1 - CDF."""
    return 0.5 * math.erfc(x / math.sqrt(2.0))


def _density(x: float) -> float:
    return math.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _normal_quantile(p: float) -> float:
    """Return the x with P(Z > x) = p, by bisection. It is only a starting point: the last digit does not matter."""
    low, high = 0.0, 40.0
    while high - low > 1e-12:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _tail(middle) > p else (low, middle)
    return low


def _initial_guess(levels: int) -> list[float]:
    """Return the positive centroids by Panter and Dite: asymptotically they are spread like a normal of variance 3."""
    return [math.sqrt(3.0) * _normal_quantile(0.5 - (i + 0.5) / (2 * levels)) for i in range(levels)]


def _newton_step(c: list[float]) -> list[float]:
    """Return the Newton correction for `c_i - E[Z | cell i] = 0`, a tridiagonal system, on the positive half-line."""
    m = len(c)
    edges = [0.0] + [0.5 * (c[i] + c[i + 1]) for i in range(m - 1)]
    tails = [_tail(t) for t in edges] + [0.0]
    densities = [_density(t) for t in edges] + [0.0]
    lower, diagonal, upper, residual = [0.0] * m, [0.0] * m, [0.0] * m, [0.0] * m
    for i in range(m):
        mass = tails[i] - tails[i + 1]
        mean = (densities[i] - densities[i + 1]) / mass
        by_left = densities[i] * (mean - edges[i]) / mass if i else 0.0
        by_right = densities[i + 1] * (edges[i + 1] - mean) / mass if i + 1 < m else 0.0
        residual[i] = mean - c[i]
        lower[i], upper[i] = -0.5 * by_left, -0.5 * by_right
        diagonal[i] = 1.0 - 0.5 * (by_left + by_right)
    return _solve_tridiagonal(lower, diagonal, upper, residual)


def _solve_tridiagonal(
    lower: list[float], diagonal: list[float], upper: list[float], right: list[float]
) -> list[float]:
    """Solve a tridiagonal system by Thomas' algorithm."""
    m = len(right)
    d, r = diagonal[:], right[:]
    for i in range(1, m):
        factor = lower[i] / d[i - 1]
        d[i] -= factor * upper[i - 1]
        r[i] -= factor * r[i - 1]
    x = [0.0] * m
    x[-1] = r[-1] / d[-1]
    for i in range(m - 2, -1, -1):
        x[i] = (r[i] - upper[i] * x[i + 1]) / d[i]
    return x


@lru_cache(maxsize=None)
def lloyd_max(bits: int) -> tuple[float, ...]:
    """Return the 2^bits centroids of N(0, 1), ascending and symmetric, converged in float64.

    They solve Lloyd's two conditions (S. P. Lloyd, 1957/1982; J. Max, 1960): each centroid is the mean of its cell,
    and each cell edge is the midpoint of two centroids. Newton's method converges in ten steps. Lloyd's iteration
    needs 1e5 steps, and the published tables stopped it early.

    Args:
        bits: 1 to 8.

    Raises:
        ValueError: `bits` is out of range.
    """
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"a codebook has 1 to {MAX_BITS} bits, not {bits}")
    half = _initial_guess(2 ** (bits - 1))
    for _ in range(100):
        step = _newton_step(half)
        half = [c + s for c, s in zip(half, step, strict=True)]
        if max(abs(s) for s in step) < _TOLERANCE:
            break
    return tuple(-c for c in reversed(half)) + tuple(half)
