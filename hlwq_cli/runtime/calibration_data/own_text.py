"""The model's own text as calibration data: nobody's data is needed.

The text is sampled at temperature 1 in pieces of 256 tokens, as in LLM-QAT (arXiv 2305.17888). Half of the pieces of a
chat model begin as a user's turn of its chat template, so that the model writes both sides (Magpie, arXiv 2406.08464);
the others begin with BOS. Sampling does not stop at an end token: the model goes on with another text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from ...checkpoint import OWN_TEXT_ORIGIN
from ...errors import HlwqError
from ...progress import Progress, ProgressCallback, ignore_progress
from ..chat.conversation import Turn
from ..chat.template import as_chat, template_owner
from ..loading.config import supports_images
from ..loading.processor import bos_token
from ..model import HLWQModel
from ..offload.memory_budget import cache_bytes
from .tokens import CalibrationTokens, tokenizer_digest

PIECE = 256
"""Tokens of a piece."""
BATCH = 128
"""Pieces that are sampled at the same time, if memory allows."""
_MARK = "hlwq-calibration-mark"
"""Stands for a user's message, to find where a chat template puts it."""


@dataclass(frozen=True)
class Pieces:
    """How much text to sample.

    Attributes:
        count: number of pieces.
        length: tokens of a piece.
        seed: of the sampling.
    """

    count: int
    length: int
    seed: int


def sample_text(
    model: HLWQModel, pieces: Pieces, memory_bytes: int, progress: ProgressCallback = ignore_progress
) -> CalibrationTokens:
    """Sample text from a model; the same seed, device, batch and versions give the same text.

    Args:
        model: the model, or a coded copy of it. Its generation config is replaced.
        pieces: how much.
        memory_bytes: memory for the keys and values of a batch.
        progress: called after each batch.

    Raises:
        HlwqError: the model cannot generate.
    """
    model.model.generation_config = _sampling(model)
    chat_start = _chat_start(model, pieces.length)
    chats = pieces.count // 2 if chat_start else 0
    kinds = [(_text_start(model), pieces.count - chats), (chat_start, chats)]
    size = max(1, min(BATCH, memory_bytes // max(1, cache_bytes(model.model, pieces.length))))
    found: list[torch.Tensor] = []
    for start, count in kinds:
        left = count
        while left:
            batch = min(size, left)
            torch.manual_seed(pieces.seed + len(found))
            sampled = _try(lambda: _sample(model, start, batch, pieces.length))  # noqa: B023
            if sampled is None and batch == 1:
                raise MemoryError
            if sampled is None:
                size = max(1, batch // 2)
                continue
            found.append(sampled)
            left -= batch
            done = sum(len(batch) for batch in found)
            progress(Progress("own text", done * pieces.length, pieces.count * pieces.length, "steps"))
    return CalibrationTokens(torch.cat(found), OWN_TEXT_ORIGIN, tokenizer_digest(model.tokenizer), pieces.seed)


def _sample(model: HLWQModel, start: list[int], batch: int, length: int) -> torch.Tensor:
    """Return int64 (batch, length) on the CPU: a start, and what the model writes after it."""
    ids = torch.tensor([start] * batch, device=model.model.device)
    with torch.inference_mode():
        out = model.generation.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length - len(start)
        )
    return out[:, :length].cpu().clone()


def _try(sample: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """Return what was sampled; None if memory was short."""
    try:
        return sample()
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def is_memory_error(error: BaseException) -> bool:
    """Return whether memory was short; torch, safetensors and CUDA each have their own words for it."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said


def _sampling(model: HLWQModel) -> GenerationConfig:
    """Return a config that samples from the model's own distribution, and does not stop."""
    old = model.model.generation_config
    pad = next((t for t in (old.pad_token_id, model.tokenizer.pad_token_id) if isinstance(t, int)), 0)
    return GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=pad)


def _text_start(model: HLWQModel) -> list[int]:
    """Return the ids that a text begins with: BOS, or else the token that separates texts, or else token 0."""
    tokenizer, config = model.tokenizer, model.model.config.get_text_config()
    candidates = (bos_token(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, config.bos_token_id, 0)
    return [next(int(token) for token in candidates if isinstance(token, int))]


def _chat_start(model: HLWQModel, length: int) -> list[int]:
    """Return the ids of a chat before the user's first message; none without a template that says and leaves room."""
    if template_owner(model.processor) is None:
        return []
    try:
        chat = as_chat(model.processor, [Turn("user", _MARK)], None, supports_images(model.model.config))
    except HlwqError:
        return []
    before, found, _ = chat.partition(_MARK)
    ids: list[int] = model.tokenizer(before, add_special_tokens=False)["input_ids"] if found and before else []
    return ids if len(ids) <= length // 2 else []
