"""Gemma 4's processor for pictures and text, where torchvision is not installed.

`Gemma4Processor` insists on a video processor, which needs torchvision; without it transformers 5.17 cannot even import
the class. The parts that pictures need are put together here: same prompts, same inputs.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from transformers import AutoTokenizer, BatchFeature, ProcessorMixin
from transformers.image_utils import make_nested_list_of_images
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil


def needs_image_text_processor(config: Any) -> bool:
    """Whether plain AutoProcessor cannot open this model's processor here."""
    return str(getattr(config, "model_type", "")).startswith("gemma4") and find_spec("torchvision") is None


class ImageTextProcessor(ProcessorMixin):
    """Gemma 4's processor without video and sound, from transformers 5.17 on."""

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        self.image_token, self.image_token_id = tokenizer.image_token, tokenizer.image_token_id
        self.boi_token, self.eoi_token = tokenizer.boi_token, tokenizer.eoi_token
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]

    @classmethod
    def open(cls, path: str, revision: str | None = None) -> ImageTextProcessor:
        """Open a Gemma 4 folder's or repository's processor."""
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        image_processor = Gemma4ImageProcessorPil.from_pretrained(path, revision=revision or "main")
        return cls(image_processor, tokenizer, tokenizer.chat_template)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """The model's inputs; mm_token_type_ids is what lets the tokens of a picture see each other."""
        kwargs = {"return_mm_token_type_ids": True, "padding": True, **kwargs}
        inputs: BatchFeature = super().__call__(images=images, text=text, **kwargs)
        return inputs

    def prepare_inputs_layout(  # type: ignore[override]
        self, images: Any = None, text: Any = None, **kwargs: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Pictures as one list a prompt."""
        images, text, *_ = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        return None if images is None else make_nested_list_of_images(images), text, None, None

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
        """One image token in the prompt becomes as many as the picture has soft tokens, between its two marks."""
        count = int(image_inputs["num_soft_tokens_per_image"][image_idx])
        return f"{self.boi_token}{self.image_token * count}{self.eoi_token}"

    @property
    def unused_input_names(self) -> list[str]:
        """What the image processor gives and the model does not take."""
        return ["num_soft_tokens_per_image"]
