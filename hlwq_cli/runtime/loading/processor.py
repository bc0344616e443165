"""What turns text and images into a model's inputs: its processor, or its tokenizer where that is all there is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import HlwqError, NotFoundError
from ...samples import resolve_model
from .config import check_exists, custom_code, first_sentence, read_config, reading, supports_images
from .gemma4_processor import ImageTextProcessor, needs_image_text_processor

_FAILURES = (OSError, ValueError, TypeError, ImportError, AttributeError, KeyError)
"""What transformers raises for a processor or tokenizer that it cannot build from the files."""
_LIBRARY = re.compile(r"requires the (\w+) library")


@dataclass(frozen=True)
class LoadedProcessor:
    """A processor, and why it takes no images.

    Attributes:
        processor: a processor for text and images, or a tokenizer.
        without_images: why a model that supports images has no processor for them; empty otherwise.
    """

    processor: Any
    without_images: str = ""


def load_processor(path: str, revision: str | None = None) -> Any:
    """Load the checkpoint's processor if the model supports images, else its tokenizer; see `open_processor`."""
    return open_processor(path, revision).processor


def open_processor(path: str, revision: str | None = None) -> LoadedProcessor:
    """Load the checkpoint's processor if the model supports images and the processor can be used here, else its
    tokenizer.

    Raises:
        NotFoundError: it has neither.
        UnsupportedError: transformers does not know the model, or the tokenizer needs code of its own.
    """
    path = resolve_model(path)
    check_exists(path)
    config = read_config(path, revision)
    with reading(path):
        if not supports_images(config):
            return LoadedProcessor(_tokenizer(path, revision))
        try:
            processor = _image_processor(path, revision, config)
        except _FAILURES as error:
            return LoadedProcessor(_tokenizer(path, revision), _missing(path, error))
        if hasattr(processor, "tokenizer"):
            return LoadedProcessor(processor)
        return LoadedProcessor(_tokenizer(path, revision), "its files describe no image processor")


def bos_token(tokenizer: Any) -> int | None:
    """Return the id of BOS if the tokenizer adds it to a text by itself, else None (for example Qwen)."""
    bos = tokenizer.bos_token_id
    with_special = tokenizer("a")["input_ids"]
    return int(bos) if bos is not None and with_special[:1] == [bos] else None


def _image_processor(path: str, revision: str | None, config: Any) -> Any:
    import transformers

    if needs_image_text_processor(config):
        return ImageTextProcessor.open(path, revision)
    return transformers.AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=False)


def _tokenizer(path: str, revision: str | None) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except HlwqError:
        raise
    except Exception as error:  # tokenizers raises bare exceptions
        if "trust_remote_code" in str(error):
            raise custom_code(path, "tokenizer") from error
        if isinstance(error, ImportError):
            raise HlwqError(f"The tokenizer of {path} cannot be loaded: {_reason(error)}.", "Install it.") from error
        raise NotFoundError(f"{path} has no usable tokenizer.", "Copy its tokenizer files there.") from error


def _missing(path: str, error: Exception) -> str:
    """Return what keeps a processor for images from being loaded."""
    if "trust_remote_code" in str(error):
        return "its processor needs custom code, and hlwq never runs a checkpoint's own code"
    if not isinstance(error, ImportError) and Path(path).is_dir():
        files = ("preprocessor_config.json", "processor_config.json")
        if not any((Path(path) / name).is_file() for name in files):
            return "it has no preprocessor_config.json"
    return _reason(error)


def _reason(error: Exception) -> str:
    library = _LIBRARY.search(str(error))
    return f"{library[1].lower()} is not installed" if library else first_sentence(error)
