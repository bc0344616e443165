"""The CUDA encoder with error feedback on the CPU: see cuda_on_cpu."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from hlwq_kernels.common import Macros
from hlwq_kernels.encode.feedback_cuda import PREPARE
from tests.support.cuda_on_cpu import addresses, library

_PREPARE = """
static i64 a[9];
extern "C" void launch(unsigned x, unsigned y, unsigned threads, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({x, y, 1}, threads, []() {
        float inverse_outermost;
        memcpy(&inverse_outermost, &a[4], 4);
        feedback_prepare((const void*)a[0], a[1], a[2], a[3], inverse_outermost, (float*)a[5], (float*)a[6],
                         (float*)a[7], (double*)a[8]);
    });
}
"""
_BLOCK = """
static i64 a[17];
extern "C" void launch(unsigned x, unsigned y, unsigned threads, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({x, y, 1}, threads, []() {
        feedback((const float*)a[0], (const float*)a[1], (const float*)a[2], (const float*)a[3], (const float*)a[4],
                 a[5], a[6], a[7], (const u32*)a[8], (u8*)a[9], a[10], (u8*)a[11], (float*)a[12], a[13], a[14],
                 (double*)a[15], (double*)a[16]);
    });
}
"""


def launch_on_cpu(
    source: str, name: str, macros: Macros, grid: tuple[int, ...], threads: int, arguments: list[Any], shared: int
) -> None:
    """Run a kernel's source on the CPU."""
    assert shared <= 16 * 2**16, "see `arena`"
    values: list[torch.Tensor | int] = []
    for argument in arguments:
        is_float = isinstance(argument, ctypes.c_float)
        values.append(ctypes.c_uint32.from_buffer_copy(argument).value if is_float else argument)
    text = _PREPARE if source == PREPARE else _BLOCK
    library(source, macros, text).launch(*(*grid, 1)[:2], threads, addresses(values))
