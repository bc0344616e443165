"""Products of a few rows of activations with coded weights on a CUDA device: launches of matvec.cu and matmul.cu."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .nvrtc import CudaKernel, Macros, runs_nvrtc, shared_per_multiprocessor
from .tables import scale_steps_on

FEW = 16
"""Rows of activations that `multiply_few` takes at most. On an H100 decoding first takes 1.3 to 2.2 times as long for
17 as this for 16, and about as long for 32 as this twice (docs/benchmarks.md)."""

_ONE_NAMES = ("multiply_one", "multiply_each", "multiply_and_sum")
_ONE = [CudaKernel("ptx.cu", "lookup.cu", "rotation.cu", "matvec.cu", name=name) for name in _ONE_NAMES]
_FEW = CudaKernel("ptx.cu", "lookup.cu", "matmul.cu", name="multiply_few")
_ROTATE = CudaKernel("ptx.cu", "lookup.cu", "rotation.cu", "rotate.cu", name="rotate_rows")
_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_COPIES = {2: 32, 3: 32, 4: 32, 5: 8, 6: 2, 7: 32, 8: 32}
"""How often the table of centroids lies in shared memory: as often as 32 KB hold it, at most once a bank."""
_GATES = {None: 0, "silu": 1, "gelu_pytorch_tanh": 2}
_WARPS, _ROWS, _CHUNK, _SLICE = 8, 16, 128, 32
_THREADS, _THREADS_A_PROCESSOR = 448, 896
_SHARED_BYTES = 48 * 2**10

GATES = frozenset(name for name in _GATES if name)
"""Gates that the kernels apply themselves."""


class CodedWeight(NamedTuple):
    """A coded weight of (..., out, in): see `decode_rows` for its tensors, each with those leading dimensions."""

    codes: torch.Tensor
    scales: torch.Tensor
    base: torch.Tensor | None
    centroids: torch.Tensor
    block_size: int

    @property
    def padded(self) -> int:
        """Columns, padding included."""
        return self.scales.shape[-1] * self.block_size

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.centroids.numel().bit_length() - 1


def runs_matmul(x: torch.Tensor) -> bool:
    """Whether these kernels take activations like `x`: float16 or bfloat16, on a CUDA device that can."""
    return x.dtype in (torch.bfloat16, torch.float16) and runs_nvrtc(x.device)


def takes_gate(x: torch.Tensor, weight: CodedWeight) -> bool:
    """Whether `multiply_codes` can gate `x` itself."""
    return len(x) == 1 and weight.padded // _SLICE <= _THREADS and runs_matmul(x)


def multiply_codes(
    x: torch.Tensor, weight: CodedWeight, bias: torch.Tensor | None, gate: str | None = None
) -> torch.Tensor:
    """X W^T + bias for x of 1 to FEW rows: (rows, out), in the dtype of `x`, summed in float32.

    With one of GATES, where `takes_gate`, x is (1, 2 * in), and gate(first half) * second half is multiplied.
    """
    y = x.new_empty(len(x), weight.codes.shape[0])
    if len(x) == 1 and weight.padded // _SLICE <= _THREADS:
        _launch_one(x, weight, y, bias=bias, gate=gate)
    else:
        _launch_few(x, weight, y, bias)
    return y


def multiply_each(x: torch.Tensor, experts: CodedWeight, chosen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each token times each of the experts that it chose.

    Args:
        x: (tokens, in).
        experts: coded (experts, out, in).
        chosen: int64 (tokens, k); numbers that are no expert's give zeros.
        dtype: of the result.

    Returns:
        (tokens * k, out).
    """
    y = x.new_empty(chosen.numel(), experts.codes.shape[1], dtype=dtype)
    _launch_one(x, experts, y, kind=1, chosen=chosen)
    return y


def multiply_and_sum(
    x: torch.Tensor, experts: CodedWeight, chosen: torch.Tensor, routed: torch.Tensor, gate: str | None,
    dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """For each token the sum of rows of x, gated, times the experts that it chose, weighed.

    Args:
        x: (tokens * k, in); with a gate (tokens * k, 2 * in), of which gate(first half) * second half counts.
        experts: coded (experts, out, in).
        chosen: int64 (tokens, k).
        routed: float32 (tokens, k), the weights.
        gate: None or one of GATES.
        dtype: of the result.

    Returns:
        (tokens, out).
    """
    y = x.new_empty(len(chosen), experts.codes.shape[1], dtype=dtype)
    _launch_one(x, experts, y, kind=2, chosen=chosen, routed=routed, gate=gate)
    return y


class _Shape(NamedTuple):
    """How matvec.cu is laid out: rows at once, threads of a CTA, CTAs a multiprocessor, CTAs along the rows."""

    teams: int
    threads: int
    ctas: int
    grid: int


def _launch_one(
    x: torch.Tensor, weight: CodedWeight, y: torch.Tensor, *, kind: int = 0, bias: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None, routed: torch.Tensor | None = None, gate: str | None = None,
) -> None:  # fmt: skip
    """Kinds are the kernel's EXPERTS, and have names of their own."""
    if not y.numel():
        return
    x, weight = x.contiguous(), _readable(weight, kind > 0)
    share = 1 if chosen is None else chosen.shape[1]
    tokens = 1 if chosen is None else len(chosen)
    slices = weight.padded // _SLICE * (share if kind == 2 else 1)
    at_once = tokens * (share if kind == 1 else 1)
    shape = _shape(y.shape[1], slices, at_once, _processors(y.device))
    x_blocks = slices * _SLICE // weight.block_size
    beside = 4 * (256 + x_blocks) + 64 * shape.teams + max(2 * _SLICE * slices, 32 * shape.threads)
    macros: Macros = (
        *_coding(weight, y, shape.threads, beside), ("INPUT", _TYPES[x.dtype]), ("GATE", _GATES[gate]),
        ("COLUMNS", weight.padded), ("TEAMS", shape.teams), ("CTAS", shape.ctas), ("EXPERTS", kind), ("SHARE", share),
        ("NAME", _ONE_NAMES[kind]),
    )  # fmt: skip
    grid = (shape.grid, share, tokens) if kind == 1 else (shape.grid, tokens)
    _ONE[kind].launch(
        y.device, macros, grid, shape.threads, x, x.shape[1] // (2 if gate else 1), *_stored(weight, y), bias,
        y.shape[1], chosen, routed, weight.codes.shape[0] if kind else 1, *_strides(weight, kind), y, overlap=True,
    )  # fmt: skip


def _strides(weight: CodedWeight, kind: int) -> tuple[int, int, int]:
    """Bytes from one expert's codes, scales and base to those of the next."""
    if not kind:
        return 0, 0, 0
    codes, scales, base = (0 if t is None else t.stride(0) * t.element_size() for t in weight[:3])
    return codes, scales, base


def _launch_few(x: torch.Tensor, weight: CodedWeight, y: torch.Tensor, bias: torch.Tensor | None) -> None:
    x, weight = x.contiguous(), _readable(weight, False)
    tokens, n = len(x), weight.block_size
    blocks = weight.padded // n
    values, units = x.new_empty(tokens, weight.padded, dtype=torch.float16), x.new_empty(tokens, dtype=torch.float32)
    rotating = (("BITS", 5), ("N", n), ("ALIGN", 4), ("COPIES", 1), ("OUTPUT", 0), ("INPUT", _TYPES[x.dtype]),
                ("GATE", 0), ("THREADS", 32))  # fmt: skip
    threads = 32 * min(32, max(1, -(-blocks // 2)))
    _ROTATE.launch(x.device, rotating, (tokens,), threads, x, x.shape[1], blocks, values, units)
    groups, tiles = -(-y.shape[1] // _ROWS), -(-tokens // 8)
    beside = 1024 + 4096 * tiles
    fits = shared_per_multiprocessor(y.device) // (_table_bytes(weight.bits, _copies(weight.bits, beside)) + beside)
    resident = _processors(y.device) * max(1, min(3 if tiles == 1 else 2, fits))
    split = _split(groups, weight.padded, resident)
    macros: Macros = (
        *_coding(weight, y, 32 * _WARPS, beside), ("INPUT", _TYPES[x.dtype]), ("SPLIT", split), ("TILES", tiles),
    )  # fmt: skip
    _FEW.launch(
        y.device, macros, (min(resident, -(-groups * split // _WARPS)),), 32 * _WARPS, values, units, tokens,
        *_stored(weight, y), bias, y.shape[1], weight.padded, y, overlap=True,
    )  # fmt: skip


def _coding(weight: CodedWeight, y: torch.Tensor, threads: int, beside: int) -> Macros:
    """The macros of lookup.cu, with as many copies of the table as fit beside so many bytes, and of the scales."""
    row_bytes = weight.codes.shape[-1]
    return (
        ("BITS", weight.bits), ("ALIGN", min(16, row_bytes & -row_bytes)), ("COPIES", _copies(weight.bits, beside)),
        ("OUTPUT", _TYPES[y.dtype]), ("THREADS", threads), ("N", weight.block_size),
        ("LOG8", int(weight.base is not None)),
    )  # fmt: skip


def _copies(bits: int, beside: int) -> int:
    copies = _COPIES[bits]
    while copies > 1 and _table_bytes(bits, copies) + beside > _SHARED_BYTES:
        copies //= 2
    return copies


def _table_bytes(bits: int, copies: int) -> int:
    return 4 * copies << (2 * bits if bits <= 6 else bits)


def _stored(weight: CodedWeight, y: torch.Tensor) -> tuple[Any, ...]:
    return *weight[:3], weight.centroids.to(y.device), scale_steps_on(y.device)


def _readable(weight: CodedWeight, experts: bool) -> CodedWeight:
    """As kernels read it: parts that are runs of bytes, or one run for each expert, and codes at a multiple of 16."""
    codes, scales, base = (None if t is None else _in_runs(t, experts) for t in weight[:3])
    assert codes is not None
    assert scales is not None
    return weight._replace(codes=codes if codes.data_ptr() % 16 == 0 else codes.clone(), scales=scales, base=base)


def _in_runs(part: torch.Tensor, experts: bool) -> torch.Tensor:
    return part if part.is_contiguous() or (experts and part[0].is_contiguous()) else part.contiguous()


@lru_cache(maxsize=None)
def _shape(rows: int, slices: int, at_once: int, processors: int) -> _Shape:
    """The layout that leaves the fewest threads idle: beyond the last slice, and in the last round."""

    def laid_out(teams: int) -> tuple[float, _Shape]:
        threads = -(-teams * slices // 32) * 32
        ctas = max(1, min(4, _THREADS_A_PROCESSOR // threads))
        grid = max(1, min(-(-rows // teams), processors * ctas // at_once))
        rounds = -(-rows // (teams * grid))
        used = rows * slices / (rounds * grid * threads) * min(1.0, grid * at_once / (processors * ctas))
        return used, _Shape(teams, threads, ctas, grid)

    return max(laid_out(teams) for teams in range(1, max(1, _THREADS // slices) + 1))[1]


def _split(groups: int, columns: int, resident: int) -> int:
    """How many warps share a group of rows: so many that the CTAs are soonest through.

    Each takes so many rounds, and in each its share of the columns, and the time of half a chunk to sum up.
    """

    def time(split: int) -> float:
        rounds = -(-groups * split // (_WARPS * resident))
        return rounds * (-(-columns // (_CHUNK * split)) + 0.5)

    return min((1, 2, 4, 8), key=time)


@lru_cache(maxsize=None)
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
