"""Uploaded pictures, which are not trusted: only common formats, with limits on pixels, shrunk when they arrive."""

from __future__ import annotations

import math
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MAX_UPLOAD = "20MB"
MAX_UPLOAD_BYTES = 20 * 10**6
MAX_IMAGES = 8
MAX_MESSAGE_PIXELS = 32_000_000
"""Pixels of all pictures of one message, after they are shrunk: 96 MB as RGB."""
MAX_CONVERSATION_PIXELS = 64_000_000
"""Pixels of all pictures of a conversation, which a prompt holds at once: 192 MB as RGB."""
_MAX_FILE_PIXELS = 50_000_000
_USUAL_PIXELS = 2048 * 2048
_LARGEST_SIDE = 16_384  # an edge above this is a number of pixels, as in Qwen's processors
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # for other formats Pillow may start external programs
_DECODING = threading.Lock()  # one picture is decoded at a time: at full size it takes up to 600 MB


def open_picture(path: Path, max_pixels: int = _USUAL_PIXELS) -> PILImage:
    """Open a picture as RGB, rotated as its EXIF data says, on white where it is transparent.

    Of an animation it takes the first frame. A picture of more than `max_pixels` pixels is shrunk.

    Raises:
        UsageError: the file is not a picture, is corrupt, or has too many pixels.
    """
    from PIL import Image

    with _DECODING:
        try:
            with Image.open(path, formats=_FORMATS) as found:
                pixels = found.width * found.height
                if pixels > _MAX_FILE_PIXELS:
                    limit = _MAX_FILE_PIXELS // 10**6
                    raise UsageError(f"{path.name} has more than {limit} megapixels.", "Make it smaller.")
                return _as_rgb(found, max_pixels)
        except Image.DecompressionBombError as error:
            raise UsageError(f"{path.name} has far too many pixels.", "Make it smaller.") from error
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise UsageError(f"{path.name} is not a picture that can be read.", "Use a PNG or JPEG file.") from error


def keep_shrunk(path: Path, folder: Path, max_pixels: int) -> tuple[Path, int]:
    """Write an uploaded picture, shrunk, to a new file in a new folder of `folder`; return it and its pixels.

    Raises:
        UsageError: see `open_picture`.
    """
    picture = open_picture(path, max_pixels)
    kept = folder / f"kept-{secrets.token_hex(8)}" / f"{path.stem[:100]}.png"
    kept.parent.mkdir(parents=True)
    picture.save(kept, compress_level=1)
    return kept, picture.width * picture.height


def pixels_seen(processor: Any) -> int:
    """Return how many pixels of a picture reach a model at most, at twice the resolution that its processor resizes to.

    Args:
        processor: a processor or tokenizer of transformers.
    """
    images = getattr(processor, "image_processor", None)
    size: Any = getattr(images, "size", None)
    if size is None or not hasattr(size, "get"):
        return _USUAL_PIXELS
    longest = size.get("longest_edge")
    if isinstance(longest, int) and longest > _LARGEST_SIDE:
        return min(longest, MAX_MESSAGE_PIXELS // 2)
    height, width = size.get("height"), size.get("width")
    if not (isinstance(height, int) and isinstance(width, int)) or _takes_tiles(images):
        return _USUAL_PIXELS
    return max(1, min(4 * height * width, _USUAL_PIXELS))


def _takes_tiles(images: Any) -> bool:
    """Whether an image processor looks at parts of a picture, each at the size that it resizes to."""
    words = ("tile", "split", "patches", "pan_and_scan", "grid", "crops")
    return any(value for name, value in vars(images).items() if any(word in name for word in words))


def _as_rgb(found: PILImage, max_pixels: int) -> PILImage:
    """Decode, turn and shrink a picture with at most two copies of it at full size."""
    from PIL import Image, ImageOps

    scale = math.sqrt(max_pixels / max(found.width * found.height, 1))
    if scale < 1:
        found.draft("RGB", _scaled(found, scale))  # a JPEG is decoded at a half, a quarter or an eighth of its size
    ImageOps.exif_transpose(found, in_place=True)
    mode = "RGBA" if found.has_transparency_data else "RGB"
    picture = found if found.mode == mode else found.convert(mode)
    if picture.width * picture.height > max_pixels:
        scale = math.sqrt(max_pixels / (picture.width * picture.height))
        picture.thumbnail(_scaled(picture, scale), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _scaled(picture: PILImage, scale: float) -> tuple[int, int]:
    return max(1, math.floor(picture.width * scale)), max(1, math.floor(picture.height * scale))
