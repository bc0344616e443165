"""Small sizes by the name of their setting, and the settings of single model types and classes."""

from __future__ import annotations

from typing import Any

HIDDEN = 128
VOCABULARY = 320
MAX_PARAMETERS = 50_000_000

COUNTS = {
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 2, "encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2,
    "depth": 2, "num_dense_layers": 1, "first_k_dense_replace": 1,
    "vocab_size": VOCABULARY, "text_vocab_size": VOCABULARY, "decoder_vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY, "entity_vocab_size": 64, "max_position_embeddings": 256,
    "n_positions": 256, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "top_k_experts": 2, "num_experts_per_token": 2,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "chunk_size": 16, "mamba_chunk_size": 16,
    "mamba_d_state": 16, "state_size": 16, "ssm_state_size": 16,
}  # fmt: skip
"""Numbers of layers, experts and rows, by the name of their setting."""

WIDTHS = {
    "hidden_size": HIDDEN, "d_model": HIDDEN, "n_embd": HIDDEN, "dim": HIDDEN, "embed_dim": HIDDEN,
    "embedding_size": HIDDEN, "word_embed_proj_dim": HIDDEN, "projection_dim": HIDDEN, "text_embed_dim": HIDDEN,
    "entity_emb_size": HIDDEN, "encoder_hidden_size": HIDDEN, "decoder_hidden_size": HIDDEN,
    "out_hidden_size": HIDDEN, "text_hidden_size": HIDDEN, "audio_hidden_size": HIDDEN, "condition_dim": HIDDEN,
    "intermediate_size": 192, "ffn_dim": 192, "d_ff": 192, "encoder_ffn_dim": 192, "decoder_ffn_dim": 192,
    "n_inner": 192, "ffn_hidden_size": 192, "intermediate_dim": 192, "intermediate_size_mlp": 192, "mlp_dim": 192,
    "feed_forward_dim": 192, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64, "expert_dim": 64,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "d_kv": 32, "kv_channels": 32, "q_lora_rank": 64, "kv_lora_rank": 64,
    "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32, "image_size": 32, "patch_size": 16,
}  # fmt: skip
"""Widths, heads and pictures, by the name of their setting."""

LAYERS = frozenset(name for name in COUNTS if "layer" in name or name == "depth")
LEVELS: tuple[dict[str, int | None], ...] = (
    {},
    {"backbone_config": None},
    {"num_key_value_heads": 4},
    {"head_dim": None, "num_key_value_heads": 4},
    {"head_dim": 64, "num_key_value_heads": 4},
    {"patch_size": None, "image_size": None},
    dict.fromkeys(LAYERS),
    dict.fromkeys(LAYERS) | {"num_key_value_heads": 4, "patch_size": None, "image_size": None},
    {"head_dim": None, "num_key_value_heads": None, "patch_size": None, "image_size": None},
    dict.fromkeys(WIDTHS),
    dict.fromkeys({*WIDTHS, *LAYERS}),
    {"depths": None},
)
"""Other sizes to try in turn; None is the default. The first ones give the smallest models."""

STAGES = "depths"
"""The setting that lists how many blocks each stage of a pyramid has."""

PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "attention_types", "indexer_types")

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
OTHER_LAYER = {"head_dim": 64, "num_key_value_heads": 1}
"""Sizes of the second layer, where layers differ."""

MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}}
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "align": {"projection_dim": 160},
    "align_vision_model": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "autoformer": {"prediction_length": 4, "num_time_features": 1},
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 32},
    "blt": {
        "encoder_hash_byte_group_vocab": 300, "encoder_config": {"hidden_size_global": HIDDEN},
        "decoder_config": {"hidden_size_global": HIDDEN},
    },
    "blip-2": {"image_token_id": 310}, "instructblip": {"image_token_id": 310},
    "chameleon": {"vocabulary_map": {"<image>": 310, "IMGIMGAAZ": 311}},
    "codegen": {"rotary_dim": 16},
    "clap_audio_model": {"depths": [2, 2], "num_attention_heads": [4, 8], "hidden_size": 192},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": None},
    },
    "dbrx": {
        "attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 1e4}, "ffn_config": {"ffn_hidden_size": 192},
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "deimv2": {"backbone_config": {"model_type": "hgnet_v2", "out_features": ["stage2", "stage3", "stage4"]}},
    "dia_decoder": {"cross_hidden_size": HIDDEN},
    "dots3_note_audio_encoder": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    "dots3_note_vision_encoder": {"adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN},
    "dots3_note_text": {
        "num_hidden_layers": 2, "layer_types": ["indexed_attention", "sliding_attention"],
        "mlp_layer_types": ["dense", "sparse"], "num_key_value_heads": 4, "index_n_heads": 2, "index_head_dim": 32,
        "index_topk": 8, "shared_experts_intermediate_size": 64,
        "per_layer_config": {"1": {
            "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 64, "kv_lora_rank": 64, "head_dim": 64,
            "qk_nope_head_dim": 32, "v_head_dim": 32, "qk_rope_head_dim": 32,
        }},
    },
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "emu3": {"vocabulary_map": {"<image>": 310, "<|visual token 000000|>": 311}},
    "emu3_vqgan": {"base_channels": 32}, "janus_vqgan": {"base_channels": 32, "num_patches": 2},
    "florence_vision": {"embed_dim": (32, 64, 128, 256), "num_heads": (2, 2, 4, 8), "num_groups": (2, 2, 4, 8)},
    "ernie4_5_vl_moe_text": {"rope_parameters": MROPE["rope_parameters"] | {"mrope_section": [6, 6, 4]}},
    "esm": {"pad_token_id": 1, "mask_token_id": 3, "vocab_size": 64},
    "falcon_h1": {"mamba_d_ssm": 256, "mamba_n_heads": 8, "mamba_d_head": 32},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "intermediate_size": 192, "laurel_rank": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 64,
        "activation_sparsity_pattern": [0.5, 0.0, 0.5, 0.0],
    },
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "glm5_next_text": {"num_key_value_heads": 4, "qk_rope_head_dim": 0},
    "glm4v_text": MROPE, "glm_image_text": MROPE, "glm_ocr_text": MROPE,
    "glm4v_moe_text": {"rope_parameters": MROPE["rope_parameters"] | {"mrope_section": [2, 3, 3]}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 32},
    "inkling2_text": {"unpadded_vocab_size": 300}, "inkling2_loop_text": {"unpadded_vocab_size": 300},
    "hunyuan_vl_text": {"rope_parameters": MROPE["rope_parameters"] | {"mrope_section": [4, 4, 4, 4]}},
    "hy_v4_vl_text": MROPE,
    "informer": {"prediction_length": 4, "num_time_features": 1},
    "instructblipvideo": {"video_token_id": 310},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"head_dim": 32, "num_heads": 8, "n_groups": 1},
    "paddleocr_vl_text": MROPE, "qwen2_vl_text": MROPE, "qwen2_5_vl_text": MROPE, "qwen2_5_omni_text": MROPE,
    "nemo_speechlm": {"blank_token_id": 310},
    "perceiver": {"num_latents": 16, "d_latents": 64, "num_self_attends_per_block": 2, "train_size": [32, 32]},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 32, "indexer_budget": 16,
        "indexer_compress_ratio": 2, "ngram_vocab_size_base": 100, "split_ngram_parts": 2, "ple_embed_dim": 16,
        "ple_layer_ids": [1], "layer_types": ["linear_attention", "full_attention"], "eos_token_id": 2,
        "use_cache": False,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "axial_pos_shape": (4, 4), "axial_pos_embds_dim": (64, 64), "hidden_size": 128, "num_buckets": 2,
        "attn_layers": ["local", "lsh"], "lsh_attn_chunk_length": 4, "local_attn_chunk_length": 4,
        "max_position_embeddings": 16,
    },
    "siglip_text_model": {"projection_size": HIDDEN}, "siglip2_text_model": {"projection_size": HIDDEN},
    "time_series_transformer": {"prediction_length": 4, "num_time_features": 1},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
    },
}  # fmt: skip
"""Settings of single model types, and of parts of that type, on top of the small sizes."""

CLASS_SETTINGS: dict[str, dict[str, Any]] = {
    "BltForCausalLM": {"use_cache": False},
    "ReformerModelWithLMHead": {"is_decoder": True},
}
"""Settings of single classes."""
