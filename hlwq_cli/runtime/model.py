"""HLWQModel: a checkpoint with text in and text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UsageError
from .chat.conversation import Turn, messages
from .chat.text_stream import TextStream, cut
from .decode.generation import Generation
from .decode.sampling import generate_options
from .kv.bits import KVBits
from .loading.load import load_model, load_processor, supports_images
from .modules.format import Execution
from .offload.budget import ExpertBudget

if TYPE_CHECKING:
    from PIL.Image import Image


class HLWQModel:
    """A model and its processor, with text in and text out.

    Attributes:
        model: the transformers model.
        processor: its processor, or its tokenizer if it does not support images.
        tokenizer: the tokenizer, in either case.
        generation: how answers are decoded.

    Example:
        >>> model = HLWQModel.from_pretrained("out")  # doctest: +SKIP
        >>> model.generate("What is a Hadamard matrix?", max_new_tokens=50)  # doctest: +SKIP
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.generation = Generation(model)
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        execution: Execution = "auto",
        kv_cache_nbits: int | str | Sequence[int] | None = None,
        expert_cache_slots: int | None = None,
        gpu_memory: str | int | None = None,
    ) -> HLWQModel:
        """Load a folder or a Hub repository, quantized or not; see `load_model` for the other arguments and errors.

        Args:
            path: a folder, or a Hub id.
            revision: of a Hub id.
            device: see `load_model`.
            dtype: see `load_model`.
            execution: see `load_model`.
            kv_cache_nbits: bits of the codes of cached keys and values, 2 to 8; (4, 3) or "4,3" for keys and values.
                By default they stay in the model's dtype.
            expert_cache_slots: offload the experts of a mixture of experts to host memory, and keep this many of each
                layer on the GPU.
            gpu_memory: offload experts and choose their number by the memory that the whole process may take on the
                GPU, in bytes or as "8.6GB".
        """
        bits = None if kv_cache_nbits is None else KVBits.parse(kv_cache_nbits)
        budget = ExpertBudget.parse(expert_cache_slots, gpu_memory)
        model = load_model(
            str(path),
            revision=revision,
            device=device,
            dtype=dtype,
            execution=execution,
            kv_bits=bits,
            expert_budget=budget,
        )
        return cls(model, load_processor(str(path), revision))

    @property
    def supports_images(self) -> bool:
        """Whether the model takes images."""
        return supports_images(self.model.config)

    @property
    def has_chat_template(self) -> bool:
        """Whether the processor has a chat template, which conversations need."""
        return getattr(self.processor, "chat_template", None) is not None

    @property
    def max_context(self) -> int | None:
        """The longest conversation in tokens; None if the config does not say."""
        max_positions: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return max_positions

    def generate(
        self,
        text: str | Sequence[str],
        images: Sequence[Image] | Sequence[Sequence[Image]] | None = None,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        system: str | None = None,
        chat: bool | None = None,
        history: Sequence[Turn] = (),
    ) -> str | list[str]:
        """Answer one prompt, or several of any lengths.

        Args:
            text: prompt or prompts.
            images: the images of the prompt; for several prompts, a sequence of images for each.
            max_new_tokens: length of the longest answer, in tokens.
            temperature: of sampling; 0 is greedy.
            top_p: sample from the smallest set of tokens with this probability.
            seed: of sampling; the same seed gives the same answer.
            stop: strings that end an answer; it is cut before the first of them.
            system: a system prompt, if the chat template takes one.
            chat: wrap prompts as a user's turn; by default if there is a chat template.
            history: turns of the conversation before the prompt, with their images.

        Returns:
            The answer, or a list of answers for several prompts.

        Raises:
            UsageError: images for a model that does not support them; a prompt that fills the model's context; a
                history without a chat template; sampling settings out of range.
        """
        single = isinstance(text, str)
        prompts = [text] if isinstance(text, str) else list(text)
        grouped = _images_per_prompt(prompts, images, single)
        inputs = self.prepare(prompts, grouped, system=system, chat=chat, history=history)
        length = self._max_new_tokens(inputs, max_new_tokens)
        with torch.inference_mode():
            out = self.generation.generate(
                **inputs, **generate_options(self.tokenizer, length, temperature, top_p, seed, stop)
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        answers = [cut(a, stop) for a in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return answers[0] if single else answers

    def stream(self, text: str, images: Sequence[Image] | None = None, **options: Any) -> TextStream:
        """Answer one prompt piece by piece, with the options and errors of `generate`.

        The model stops when the stream is cancelled, closed or dropped.
        """
        stop = tuple(options.pop("stop", ()))
        shaping = {key: options.pop(key) for key in ("system", "chat", "history") if key in options}
        inputs = self.prepare([text], [list(images)] if images else None, **shaping)
        length = self._max_new_tokens(inputs, options.pop("max_new_tokens", 256))
        sampling = options.pop("temperature", 0.0), options.pop("top_p", 1.0), options.pop("seed", None)
        if options:
            raise UsageError(f"Unknown option of stream: {', '.join(sorted(options))}.")

        def generate(**hooks: Any) -> None:
            self.generation.generate(**inputs, **generate_options(self.tokenizer, length, *sampling, stop), **hooks)

        return TextStream(self.tokenizer, inputs["input_ids"].shape[1], generate, stop)

    def prepare(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image]] | None = None,
        *,
        system: str | None = None,
        chat: bool | None = None,
        history: Sequence[Turn] = (),
    ) -> Any:
        """Return the model's inputs for prompts: token ids, masks and pixels, padded on the left, on its device."""
        before = [i for turn in history for i in turn.images]
        if (before or images is not None) and not self.supports_images:
            raise UsageError(
                "This model does not support images.", "Remove them, or load a model that supports images."
            )
        wrapped = self.has_chat_template if chat is None else chat
        if history and not wrapped:
            raise UsageError("A history needs a chat template, and this model has none.", "Write it into the prompt.")
        texts, shown = list(prompts), [list(i) for i in images or [()] * len(prompts)]
        if wrapped:
            asked = [Turn("user", t, i) for t, i in zip(texts, shown, strict=True)]
            texts = [self._as_chat([*history, turn], system) for turn in asked]
        shown = [[*before, *i] for i in shown]
        extra = {"images": shown} if any(shown) else {}
        inputs = self.processor(text=texts, return_tensors="pt", padding=True, add_special_tokens=not wrapped, **extra)
        inputs = inputs.to(self.model.device)
        for key, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                inputs[key] = value.to(self.model.dtype)
        return inputs

    def _as_chat(self, turns: Sequence[Turn], system: str | None) -> str:
        wrapped: str = self.processor.apply_chat_template(
            messages(turns, system, self.supports_images), tokenize=False, add_generation_prompt=True
        )
        return wrapped

    def _max_new_tokens(self, inputs: Any, max_new_tokens: int) -> int:
        """Return how many tokens an answer may have: at most what was asked for, and what the context has left."""
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens={max_new_tokens} is not valid.", "Use at least 1.")
        tokens = inputs["input_ids"].shape[1]
        if self.max_context is not None and tokens >= self.max_context:
            raise UsageError(
                f"The prompt has {tokens:,} tokens, and the context of this model is {self.max_context:,}.",
                "Shorten it, or start a new conversation.",
            )
        return max_new_tokens if self.max_context is None else min(max_new_tokens, self.max_context - tokens)


PolarQuantModel = HLWQModel
"""The name of HLWQModel in published model cards."""


def _images_per_prompt(prompts: list[str], images: Any, single: bool) -> list[list[Any]] | None:
    if images is None:
        return None
    groups = [list(images)] if single else [list(i) for i in images]
    if len(groups) != len(prompts):
        raise UsageError(f"There are {len(prompts)} prompts, but images for {len(groups)}.")
    return groups
