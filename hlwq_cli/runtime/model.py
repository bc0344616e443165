"""HLWQModel: a checkpoint with text in and text out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UsageError
from .chat.conversation import Turn
from .chat.encoder import PromptEncoder
from .chat.template import as_chat, template_owner
from .chat.text_stream import TextStream, cut
from .decode.generation import Generation
from .decode.sampling import generate_options
from .kv.bits import KVBits
from .loading.classes import inputs_beside_text
from .loading.config import supports_images
from .loading.context import context_of
from .loading.load import load_model
from .loading.processor import open_processor
from .modules.format import Execution
from .offload.budget import ExpertBudget
from .saving import describe, save_model

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..hub import PushResult
    from .chat.template_process import TemplateProcess


class HLWQModel:
    """A model and its processor, with text in and text out.

    Attributes:
        model: the transformers model.
        processor: its processor, or its tokenizer if it does not support images.
        tokenizer: the tokenizer, in either case.
        generation: how answers are decoded.
        max_context: the longest conversation in tokens; None if the config does not say.
        path: the folder or Hub id that it was loaded from; None of a model that was given to the constructor.
        revision: of a Hub id.
        template_process: where chat templates run, with limits; None, the default, is this process, without limits.

    Example:
        >>> model = HLWQModel.from_pretrained("out")  # doctest: +SKIP
        >>> model.generate("What is a Hadamard matrix?", max_new_tokens=50)  # doctest: +SKIP
    """

    def __init__(self, model: Any, processor: Any, without_images: str = "") -> None:
        """Wrap a transformers model.

        Args:
            model: the model.
            processor: its processor or tokenizer.
            without_images: why the processor takes no images although the model does; see `LoadedProcessor`.
        """
        self.model = model
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.generation = Generation(model)
        context = context_of(model)
        self.max_context = None if context is None else context.tokens
        self.path: str | None = None
        self.revision: str | None = None
        self.template_process: TemplateProcess | None = None
        self._encoder = PromptEncoder(model, processor)
        self._without_images = without_images

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
        found = open_processor(str(path), revision)
        loaded = cls(model, found.processor, found.without_images)
        loaded.path, loaded.revision = str(path), revision
        return loaded

    def __repr__(self) -> str:
        """Return path, class, codes, dtype and device in a line."""
        return describe(self.path, self.model, self.supports_images)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the model, and its processor, to a new folder; a coded model gets a manifest and a card there.

        `model.model.save_pretrained` saves without them, as transformers does; `hlwq inspect` needs the manifest.

        Args:
            folder: absent, or empty.

        Raises:
            HlwqError: see `save_checkpoint`.
        """
        save_model(self.model, self.processor, self.path, self.revision, Path(folder))

    def push_to_hub(
        self,
        repo: str,
        *,
        public: bool = False,
        revision: str | None = None,
        pr: bool = False,
        overwrite: bool = False,
    ) -> PushResult:
        """Upload the folder that the model was loaded from, as `hlwq push` does: verified, with its card.

        What was changed in memory is not in that folder: save it, load the new folder, and push that.

        Args:
            repo: repository id, OWNER/NAME. It is created if it does not exist, as private unless `public`.
            public: create a new repository as public.
            revision: branch, created if it does not exist, or refs/pr/N.
            pr: open a pull request instead of changing the branch.
            overwrite: replace another checkpoint, or files that somebody else changed.

        Raises:
            UsageError: it was not loaded from a folder.
            HlwqError: see `hlwq_cli.hub.push`.
        """
        from ..hub import push

        if self.path is None or not os.path.isdir(self.path):
            raise UsageError("This model was not loaded from a folder.", "Save it with save_pretrained, and load that.")
        return push(self.path, repo, public=public, revision=revision, pr=pr, overwrite=overwrite)

    @property
    def supports_images(self) -> bool:
        """Whether the model takes images, and its processor can read them."""
        return supports_images(self.model.config) and not self._without_images

    @property
    def has_chat_template(self) -> bool:
        """Whether the processor has a default chat template, which conversations need."""
        return template_owner(self.processor) is not None

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
            UsageError: images for a model that does not support them; an empty prompt, or one that fills the model's
                context; a history without a chat template, or one that the template refuses; sampling settings out of
                range.
            UnsupportedError: the chat template fails, or transformers cannot generate with these settings.
        """
        single = isinstance(text, str)
        prompts = [text] if isinstance(text, str) else list(text)
        if not prompts:
            return []
        grouped = _images_per_prompt(prompts, images, single)
        inputs = self.prepare(prompts, grouped, system=system, chat=chat, history=history)
        length = self._max_new_tokens(inputs, max_new_tokens)
        with torch.inference_mode():
            out = self.generation.generate(**inputs, **self._options(length, temperature, top_p, seed, stop))
        first = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        rows = [self._until_end(row) for row in out[:, first:].tolist()]
        answers = [cut(a, stop) for a in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]
        return answers[0] if single else answers

    def stream(self, text: str, images: Sequence[Image] | None = None, **options: Any) -> TextStream:
        """Answer one prompt piece by piece, with the options and errors of `generate`.

        The prompt is prepared now, on the CPU; the model starts with the first piece. It stops when the stream is
        cancelled, closed or dropped.
        """
        stop = tuple(options.pop("stop", ()))
        shaping = {key: options.pop(key) for key in ("system", "chat", "history") if key in options}
        inputs = self._encode([text], [list(images)] if images else None, **shaping)
        length = self._max_new_tokens(inputs, options.pop("max_new_tokens", 256))
        sampling = options.pop("temperature", 0.0), options.pop("top_p", 1.0), options.pop("seed", None)
        if options:
            raise UsageError(f"Unknown option of stream: {', '.join(sorted(options))}.")

        def generate(**hooks: Any) -> None:
            placed = self._encoder.place(inputs)
            self.generation.generate(**placed, **self._options(length, *sampling, stop), **hooks)

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
        return self._encoder.place(self._encode(prompts, images, system=system, chat=chat, history=history))

    def _encode(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image]] | None = None,
        *,
        system: str | None = None,
        chat: bool | None = None,
        history: Sequence[Turn] = (),
    ) -> Any:
        """Return what `prepare` does, on the CPU."""
        before = [i for turn in history for i in turn.images]
        if (before or images is not None) and not self.supports_images:
            raise self._no_images()
        if not before and images is None and "pixel_values" in inputs_beside_text(type(self.model), "generate"):
            raise UsageError("This model answers about an image only.", "Give one with each prompt.")
        wrapped = self.has_chat_template if chat is None else chat
        if history and not wrapped:
            raise UsageError("A history needs a chat template, and this model has none.", "Write it into the prompt.")
        texts, shown = list(prompts), [list(i) for i in images or [()] * len(prompts)]
        if wrapped:
            asked = [Turn("user", t, i) for t, i in zip(texts, shown, strict=True)]
            in_parts = supports_images(self.model.config)
            process = self.template_process
            texts = [as_chat(self.processor, [*history, turn], system, in_parts, process) for turn in asked]
        return self._encoder.encode(texts, [[*before, *i] for i in shown], add_special_tokens=not wrapped)

    def _no_images(self) -> UsageError:
        if self._without_images:
            return UsageError(
                f"The images of this model cannot be read: {self._without_images}.",
                "Remove them, or add what is missing.",
            )
        return UsageError("This model does not support images.", "Remove them, or load a model that supports images.")

    def _max_new_tokens(self, inputs: Any, max_new_tokens: int) -> int:
        """Return how many tokens an answer may have: at most what was asked for, and what the context has left."""
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens={max_new_tokens} is not valid.", "Use at least 1.")
        if self.max_context is None:
            return max_new_tokens
        tokens = inputs["input_ids"].shape[1]
        if self.model.config.is_encoder_decoder:  # the answer has a context of its own, which the start token begins
            room = self.max_context - 1
            fits = tokens <= self.max_context
        else:
            room = self.max_context - tokens
            fits = room > 0
        if not fits:
            raise UsageError(
                f"The prompt has {tokens:,} tokens, and the context of this model is {self.max_context:,}.",
                "Shorten it, or start a new conversation.",
            )
        return min(max_new_tokens, room)

    def _options(
        self, max_new_tokens: int, temperature: float, top_p: float, seed: int | None, stop: Sequence[str]
    ) -> dict[str, Any]:
        """Return the options of `generate`; the strings that the generation config stops at still end an answer."""
        usual = self.model.generation_config.stop_strings or []
        stops = [*stop, *([usual] if isinstance(usual, str) else usual)] if stop else []
        options = generate_options(self.tokenizer, max_new_tokens, temperature, top_p, seed, stops)
        return {**options, "pad_token_id": self._encoder.pad}

    def _until_end(self, row: list[int]) -> list[int]:
        """Return the ids of an answer without the padding after its end token."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))]


PolarQuantModel = HLWQModel
"""The name of HLWQModel in published model cards."""


def _images_per_prompt(prompts: list[str], images: Any, single: bool) -> list[list[Any]] | None:
    if images is None:
        return None
    groups = [list(images)] if single else [list(i) for i in images]
    if len(groups) != len(prompts):
        raise UsageError(f"There are {len(prompts)} prompts, but images for {len(groups)}.")
    return groups
