"""A profile's microseconds by cause: by names, and by their place where a name says too little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.runtime.loading import load_model
from hlwq_cli.runtime.offload import ExpertBudget
from hlwq_kernels.decode_step import attention, norms
from hlwq_kernels.linear import gemm_small_m as matmul
from hlwq_kernels.linear import gemv as matvec
from hlwq_kernels.moe import router
from hlwq_kernels.offload import slots
from scripts.bench.time_by_cause import _CAUSES, Event, by_cause, by_kernel, bytes_read, cause_rows, per_token

LAYER = ["gemv", "qk_norm_rope_append", "decode_attention", "fused_add_rmsnorm_pre_ffn", "route_topk", "assign_slots",
         "fetch", "fetch_ahead", "moe_gemv_up", "some_norm", "moe_gemv_down", "fused_add_rmsnorm_post_ffn"]  # fmt: skip


def profile(tokens: int) -> list[Event]:
    """Two layers, each kernel of which takes as many microseconds as its place in it says; a head of 100."""
    names = [name for _ in range(tokens) for name in (*LAYER, *LAYER, "gemv_of_cublas")]
    return [Event(n, t, 100.0 if n == "gemv_of_cublas" else 1.0 + LAYER.index(n)) for t, n in enumerate(names)]


def test_each_kernel_counts_once_and_what_lies_outside_of_layers_apart() -> None:
    found = per_token(by_cause(profile(5), 2), by_cause(profile(1), 2), 4)
    assert found == {
        "head and the rest": 101.0,
        "experts' products": 2 * (9.0 + 11.0),
        "norms and routing": 2 * (4.0 + 5.0 + 12.0),
        "prefetch (side stream)": 16.0,
        "fetch": 14.0,
        "plan": 12.0,
        "others in layers": 20.0,
        "attention": 10.0,
        "dense products": 1.0,
    }
    kernels = per_token(by_kernel(profile(5)), by_kernel(profile(1)), 4)
    assert sum(kernels.values()) == sum(found.values())
    assert next(iter(kernels)) == "gemv_of_cublas"


def test_models_whose_layers_run_otherwise_are_told_apart_by_name_alone() -> None:
    names = ["gemv", "assign_slots", "fetch", "moe_gemv_up", "moe_gemv_down", "elementwise", "gemv_of_cublas"]
    found = by_cause([Event(name, 0.0, 1.0) for name in names], 2)
    assert (found["dense products"], found["experts' products"], found["head and the rest"]) == (1.0, 2.0, 2.0)


def test_every_kernel_of_a_step_has_a_cause() -> None:
    ours = [*matvec._KERNELS, matmul._GEMM, matmul._ROTATE, slots._ASSIGN, slots._ASSIGN_PREFETCH, slots._FETCH]
    ours += [slots._PREFETCH, norms._PRE_FFN, norms._POST_FFN, attention._QK_NORM_ROPE, router._ROUTE]
    ours += [attention._ATTEND, attention._COMBINE]
    assert {kernel.name for kernel in ours} == set(_CAUSES)


def test_bytes_are_those_of_the_chosen_experts_and_of_every_other_matrix(coded: Callable[[str], Path]) -> None:
    folder = str(coded("qwen3_moe"))
    outside = load_model(folder, device="cpu", execution="coded", expert_budget=ExpertBudget(1))
    found, resident = bytes_read(outside, 2), bytes_read(load_model(folder, device="cpu", execution="coded"), 2)
    layer = outside.model.layers[0]
    assert found["experts' products"] == 2 * 2 * layer.mlp.experts.layout.bytes
    assert found["experts' products"] == pytest.approx(resident["experts' products"], rel=0.1)  # records are aligned
    assert found["dense products"] == resident["dense products"]
    parts = [t for n, t in layer.named_buffers() if n.endswith(("codes", "scales"))] + [layer.mlp.gate.weight]
    assert found["dense products"] == 2 * sum(t.numel() * t.element_size() for t in parts)
    head = outside.get_output_embeddings().weight
    assert found["head and the rest"] == head.numel() * head.element_size()


def test_rows_are_a_layer_and_the_rest_a_token() -> None:
    causes = {"fetch": 900.0, "plan": 12.0, "head and the rest": 300.0}
    found = cause_rows(causes, {"fetch": 600e-6, "head and the rest": 90e-6}, 3)
    assert found == ["fetch | 300.0 | 200.0", "plan | 4.0 | ", "head and the rest | 300.0 a token | 90.0"]
