import pytest

from hlwq_cli.errors import UsageError
from hlwq_cli.runtime.calibration_data.imatrix_names import map_names


def test_names_of_a_dense_model_map() -> None:
    sources = [f"model.layers.{i}.{n}.weight" for i in (0, 11) for n in ("self_attn.q_proj", "mlp.down_proj")]
    found = map_names(
        ["blk.0.attn_q.weight", "blk.11.attn_q.weight", "blk.11.ffn_down.weight"], [*sources, "lm_head.weight"], "llama"
    )
    assert found == {
        "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
        "model.layers.11.self_attn.q_proj.weight": "blk.11.attn_q.weight",
        "model.layers.11.mlp.down_proj.weight": "blk.11.ffn_down.weight",
    }


@pytest.mark.parametrize(
    ("model_type", "source", "entry"),
    [
        ("gemma4_text", "model.language_model.layers.0.experts.gate_up_proj", "blk.0.ffn_gate_up_exps.weight"),
        ("gemma4_text", "model.language_model.layers.0.experts.down_proj", "blk.0.ffn_down_exps.weight"),
        ("qwen3_moe", "model.layers.0.mlp.experts.5.gate_proj.weight", "blk.0.ffn_gate_exps.weight"),
        ("qwen3_moe", "model.layers.0.mlp.gate.weight", "blk.0.ffn_gate_inp.weight"),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj", "blk.0.ffn_gate_exps.weight"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.1.w2.weight", "blk.0.ffn_down_exps.weight"),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight", "blk.0.attn_qkv.weight"),
        ("an unknown type", "model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight"),
    ],
)
def test_names_of_many_families_map(model_type: str, source: str, entry: str) -> None:
    assert map_names([entry], [source], model_type) == {source: entry}


def test_names_that_belong_to_no_tensor_are_all_listed() -> None:
    entries = ["blk.0.attn_q.weight", "blk.7.attn_q.weight", "blk.0.magic.weight", "blk.0.attn_k_b.weight"]
    with pytest.raises(
        UsageError, match=r"2 names .* no tensor of this model: blk.0.magic.weight, blk.7.attn_q.weight\."
    ):
        map_names(entries, ["model.layers.0.self_attn.q_proj.weight"], "llama")
