"""Gemma 4's processor for images and text, for use without torchvision.

`Gemma4Processor` requires a video processor, which needs torchvision; without it transformers 5.17 cannot even import
the class. This one has the parts that images need, and makes the same prompts and inputs.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from ..transformers_private import Gemma4ImageProcessorPil, make_nested_list_of_images


def needs_image_text_processor(config: Any) -> bool:
    """Return whether AutoProcessor cannot load this model's processor here."""
    return str(getattr(config, "model_type", "")).startswith("gemma4") and find_spec("torchvision") is None


class ImageTextProcessor(ProcessorMixin):
    """Gemma 4's processor without video and audio, for transformers 5.17 and newer."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
        self.boi_token, self.eoi_token = tokenizer.boi_token, tokenizer.eoi_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]

    @classmethod
    def open(cls, path: str, revision: str | None = None) -> ImageTextProcessor:
        """Load the processor of a Gemma 4 folder or repository."""
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        image_processor = Gemma4ImageProcessorPil.from_pretrained(path, revision=revision or "main")
        return cls(image_processor, tokenizer, tokenizer.chat_template)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Return the model's inputs; mm_token_type_ids lets the tokens of an image attend to each other."""
        kwargs = {"return_mm_token_type_ids": True, "padding": True, **kwargs}
        inputs: BatchFeature = super().__call__(images=images, text=text, **kwargs)
        return inputs

    def prepare_inputs_layout(  # type: ignore[override]
        self, images: Any = None, text: Any = None, **kwargs: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Return the images as one list per prompt."""
        images, text, *_ = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        return None if images is None else make_nested_list_of_images(images), text, None, None

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
        """Return what replaces an image token: one token for each soft token of the image, between its delimiters."""
        count = int(image_inputs["num_soft_tokens_per_image"][image_idx])
        return f"{self.boi_token}{self.image_token * count}{self.eoi_token}"

    @property
    def unused_input_names(self) -> list[str]:
        """Inputs that the image processor makes and the model does not take."""
        return ["num_soft_tokens_per_image"]
