"""The kernels of offload/slots.cu on the CPU: see cuda_on_cpu."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hlwq_kernels.offload import slots
from tests.support.cuda_on_cpu import addresses, library

ASSIGN = """
static i64 a[11];
extern "C" void launch(unsigned grid, unsigned threads, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({grid, 1, 1}, threads, []() {
        assign_slots((const i64*)a[0], a[1], a[2], a[3], (int*)a[4], (int*)a[5], (int*)a[6], (i64*)a[7], (int*)a[8],
             (int*)a[9], (i64*)a[10]);
    });
}
"""
ASSIGN_PREFETCH = """
static i64 a[9];
extern "C" void launch(unsigned grid, unsigned threads, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({grid, 1, 1}, threads, []() {
        assign_prefetch((const i64*)a[0], a[1], a[2], (int*)a[3], (int*)a[4], (const int*)a[5], a[6], (int*)a[7],
                   (int*)a[8]);
    });
}
"""
FETCH = """
static i64 a[6];
extern "C" void launch(unsigned grid, unsigned threads, const i64* arguments) {
    memcpy(a, arguments, sizeof(a));
    run_grid({grid, 1, 1}, threads, []() {
        fetch((const uint4*)a[0], (uint4*)a[1], (const int*)a[2], (const int*)a[3], a[4], (i64*)a[5]);
    });
}
"""
PREFETCH = FETCH.replace("fetch(", "fetch_ahead(")
SHARED = (("__shared__", "static"),)  # CTAs come one after the other


def launched(source: str) -> Callable[..., None]:
    """A kernel's launch, on the CPU."""

    def launch(device: Any, macros: Any, grid: tuple[int, ...], block: int, *arguments: Any) -> None:
        library("offload/slots.cu", (*macros, *SHARED), source).launch(min(grid[0], 3), block, addresses(arguments))

    return launch


def run_slot_kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch the kernels that assign slots and fetch on the CPU, as a device with one multiprocessor."""
    sources = {"_ASSIGN": ASSIGN, "_ASSIGN_PREFETCH": ASSIGN_PREFETCH, "_FETCH": FETCH, "_PREFETCH": PREFETCH}
    for kernel, source in sources.items():
        monkeypatch.setattr(getattr(slots, kernel), "launch", launched(source))
    monkeypatch.setattr(slots, "num_sms", lambda device: 1)
