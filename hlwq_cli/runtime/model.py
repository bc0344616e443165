"""HLWQModel: a checkpoint that answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UsageError
from .coded import Execution
from .generation import Generation
from .loading import load_model, load_processor, sees

if TYPE_CHECKING:
    from PIL.Image import Image


class HLWQModel:
    """A model and its processor, with text in and text out.

    Attributes:
        model: the transformers model.
        processor: its processor, or its tokenizer where it takes no pictures.
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
    ) -> HLWQModel:
        """Load a folder or a Hub repository, coded or plain; see `load_model` for the arguments and errors."""
        model = load_model(str(path), revision=revision, device=device, dtype=dtype, execution=execution)
        return cls(model, load_processor(str(path), revision))

    @property
    def sees(self) -> bool:
        """Whether the model takes pictures."""
        return sees(self.model.config)

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
    ) -> str | list[str]:
        """Answer a prompt, or each of several of any lengths.

        Args:
            text: prompt or prompts.
            images: the pictures of the prompt; for several prompts, a sequence of pictures each.
            max_new_tokens: longest answer, in tokens.
            temperature: 0 is greedy.
            top_p: share of probability that is sampled from.
            seed: of sampling; the same seed gives the same answer.
            stop: the answer ends before the first of these.
            system: a system prompt, where the chat template takes one.
            chat: wrap prompts as a user's turn; by default where there is a chat template.

        Raises:
            UsageError: pictures for a model that takes none.
        """
        single = isinstance(text, str)
        prompts = [text] if isinstance(text, str) else list(text)
        pictures = _pictures_for(prompts, images, single)
        inputs = self.prepare(prompts, pictures, system=system, chat=chat)
        with torch.inference_mode():
            out = self.generation.generate(**inputs, **self._settings(max_new_tokens, temperature, top_p, seed, stop))
        new = out[:, inputs["input_ids"].shape[1] :]
        answers = [_cut(a, stop) for a in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return answers[0] if single else answers

    def stream(self, text: str, images: Sequence[Image] | None = None, **options: Any) -> Iterator[str]:
        """Answer one prompt piece by piece; options are those of `generate`. Closing the iterator stops the model."""
        from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

        cancelled = threading.Event()

        class Cancelled(StoppingCriteria):
            def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
                return torch.full((input_ids.shape[0],), cancelled.is_set(), device=input_ids.device)

        stop = tuple(options.pop("stop", ()))
        shaping = {key: options.pop(key) for key in ("system", "chat") if key in options}
        inputs = self.prepare([text], [list(images)] if images else None, **shaping)
        settings = self._settings(
            options.pop("max_new_tokens", 256), options.pop("temperature", 0.0), options.pop("top_p", 1.0),
            options.pop("seed", None), stop,
        )  # fmt: skip
        if options:
            raise UsageError(f"stream does not know {', '.join(sorted(options))}.")
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []

        def work() -> None:
            try:
                with torch.inference_mode():
                    self.generation.generate(
                        **inputs, **settings, streamer=streamer, stopping_criteria=StoppingCriteriaList([Cancelled()])
                    )
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from _until_stop(streamer, stop)
        finally:
            cancelled.set()
            thread.join()
        if failure:
            raise failure[0]

    def prepare(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image]] | None = None,
        *,
        system: str | None = None,
        chat: bool | None = None,
    ) -> Any:
        """Token ids, masks and pixels of prompts, padded on the left, on the model's device."""
        if images is not None and not self.sees:
            raise UsageError("This model takes no pictures.", "Leave them out, or load a model that sees.")
        has_template = getattr(self.processor, "chat_template", None) is not None
        wrapped = has_template if chat is None else chat
        texts = list(prompts)
        if wrapped:
            counts = [len(i) for i in images] if images else [0] * len(texts)
            texts = [self._as_turn(t, n, system) for t, n in zip(texts, counts, strict=True)]
        extra = {} if images is None else {"images": [list(i) for i in images]}
        inputs = self.processor(text=texts, return_tensors="pt", padding=True, add_special_tokens=not wrapped, **extra)
        inputs = inputs.to(self.model.device)
        for key, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                inputs[key] = value.to(self.model.dtype)
        return inputs

    def _as_turn(self, text: str, pictures: int, system: str | None) -> str:
        content: Any = text
        if self.sees:
            content = [{"type": "image"}] * pictures + [{"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        turn: str = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return turn

    def _settings(
        self, max_new_tokens: int, temperature: float, top_p: float, seed: int | None, stop: Sequence[str]
    ) -> dict[str, Any]:
        if seed is not None:
            torch.manual_seed(seed)
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        if temperature > 0:
            settings |= {"temperature": temperature, "top_p": top_p}
        else:
            settings |= {"temperature": None, "top_p": None, "top_k": None}
        if stop:
            settings |= {"stop_strings": list(stop), "tokenizer": self.tokenizer}
        return {**settings, "pad_token_id": self.tokenizer.pad_token_id}


PolarQuantModel = HLWQModel
"""The name under which published model cards load the same thing."""


def _pictures_for(prompts: list[str], images: Any, single: bool) -> list[list[Any]] | None:
    if images is None:
        return None
    groups = [list(images)] if single else [list(i) for i in images]
    if len(groups) != len(prompts):
        raise UsageError(f"{len(prompts)} prompts came with pictures for {len(groups)}.")
    return groups


def _cut(text: str, stop: Sequence[str]) -> str:
    ends = [text.find(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text


def _until_stop(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """Pass text on, holding back what may be the beginning of a stop string."""
    held = ""
    longest = max((len(s) for s in stop), default=1) - 1
    for piece in pieces:
        held += piece
        if any(s in held for s in stop):
            yield _cut(held, stop)
            return
        ready = len(held) - longest
        if ready > 0:
            yield held[:ready]
            held = held[ready:]
    if held:
        yield held
