"""Tiny models of every kind, with a tokenizer of bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from hlwq_cli.runtime import HLWQModel
from tests.support.builders import HIDDEN, TEXT

ENCODER: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": HIDDEN, "intermediate_size": 192, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
BART: dict[str, Any] = {
    "vocab_size": 320, "d_model": HIDDEN, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 192, "decoder_ffn_dim": 192, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def save(model: Any, folder: Path, **special: str | None) -> Path:
    """Write a model with random weights, and a tokenizer with these special tokens changed."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + (parameter.ndim == 1 and "norm" in name))
    model.save_pretrained(folder)
    save_tokenizer(folder, **special)
    return folder


def save_tokenizer(folder: Path, **special: Any) -> None:
    """Write a tokenizer of bytes; ids 0 to 3 are special, the byte tokens follow."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    settings = {name: value for name, value in {**SPECIAL, **special}.items() if value is not None}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)


def llama(folder: Path, **special: Any) -> Path:
    """A causal model with rotary positions and a context of 128."""
    import transformers as t

    return save(t.LlamaForCausalLM(t.LlamaConfig(**TEXT, tie_word_embeddings=False)), folder, **special)


def gpt2(folder: Path) -> Path:
    """A causal model with a table of 64 positions."""
    import transformers as t

    return save(
        t.GPT2LMHeadModel(t.GPT2Config(n_embd=128, n_layer=1, n_head=4, vocab_size=320, n_positions=64)), folder
    )


def roberta_decoder(folder: Path) -> Path:
    """A causal model whose table of 66 positions begins after the padding token, 0."""
    import transformers as t

    settings = ENCODER | {"max_position_embeddings": 66, "is_decoder": True}
    return save(t.RobertaForCausalLM(t.RobertaConfig(**settings)), folder)


def t5(folder: Path) -> Path:
    """An encoder-decoder without a context."""
    import transformers as t

    config = t.T5Config(
        vocab_size=320, d_model=HIDDEN, d_kv=32, d_ff=192, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    return save(t.T5ForConditionalGeneration(config), folder)


def bart(folder: Path) -> Path:
    """An encoder-decoder with tables of 64 positions."""
    import transformers as t

    return save(t.BartForConditionalGeneration(t.BartConfig(**BART)), folder)


def marian(folder: Path) -> Path:
    """An encoder-decoder whose class has a name of its own."""
    import transformers as t

    return save(t.MarianMTModel(t.MarianConfig(**BART)), folder)


def vision(folder: Path) -> Path:
    """A model that takes images, without a processor for them."""
    import transformers as t

    tower = {
        "hidden_size": 128, "intermediate_size": 192, "depth": 1, "num_heads": 4, "out_hidden_size": 128,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    text = TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
    config = t.Qwen2_5_VLConfig(text_config=text, vision_config=tower, image_token_id=319, video_token_id=318)
    return save(t.Qwen2_5_VLForConditionalGeneration(config), folder)


def blip(folder: Path) -> Path:
    """A model that takes text only together with an image."""
    import transformers as t

    sizes = {"hidden_size": HIDDEN, "intermediate_size": 192, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 320, "encoder_hidden_size": HIDDEN, "bos_token_id": 1, "sep_token_id": 2}
    config = t.BlipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 16})
    return save(t.BlipForConditionalGeneration(config), folder)


def idefics(folder: Path) -> Path:
    """A model that needs an image, and whose signature does not say so."""
    import transformers as t

    sizes = {"intermediate_size": 192, "num_hidden_layers": 1, "num_attention_heads": 4}
    tower = {**sizes, "embed_dim": HIDDEN, "image_size": 32, "patch_size": 16}
    config = t.IdeficsConfig(
        **sizes, hidden_size=HIDDEN, vocab_size=320, vision_config=tower, use_resampler=False, cross_layer_interval=1
    )
    return save(t.IdeficsForVisionText2Text(config), folder)


def whisper_decoder(folder: Path) -> Path:
    """A causal model whose config states its 64 positions under a name of its own."""
    import transformers as t

    config = t.WhisperConfig(
        vocab_size=320, d_model=HIDDEN, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_target_positions=64, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, begin_suppress_tokens=None, suppress_tokens=None,
    )  # fmt: skip
    return save(t.WhisperForCausalLM(config), folder)


def prophetnet_decoder(folder: Path) -> Path:
    """A causal model with a table of 66 positions, of which 64 are for tokens."""
    import transformers as t

    config = t.ProphetNetConfig(
        vocab_size=320, hidden_size=HIDDEN, encoder_ffn_dim=64, num_encoder_layers=1, num_encoder_attention_heads=4,
        decoder_ffn_dim=64, num_decoder_layers=1, num_decoder_attention_heads=4, max_position_embeddings=66,
        is_decoder=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return save(t.ProphetNetForCausalLM(config), folder)


def change(folder: Path, name: str, **settings: Any) -> None:
    """Change keys of a JSON file, which may be absent."""
    path = folder / name
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | settings))


def opened(folder: Path) -> HLWQModel:
    """Return the model of a folder, on the CPU in float32."""
    return HLWQModel.from_pretrained(str(folder), device="cpu", dtype="float32")


def by_transformers(model: HLWQModel, text: str, **options: Any) -> str:
    """Return the answer of transformers' own generate, with the whole of what it returns decoded."""
    inputs = model.tokenizer(text, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    out = model.model.generate(**inputs, do_sample=False, **options)
    found: str = model.tokenizer.batch_decode(out, skip_special_tokens=True)[0]
    return found
