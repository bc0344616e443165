"""Uploaded images, which are not trusted: only common formats, with a limit on pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MAX_UPLOAD = "20MB"
MAX_IMAGES = 8
_MAX_PIXELS = 50_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # for other formats Pillow may start external programs


def open_image(path: Path) -> PILImage:
    """Open an image as RGB, rotated as its EXIF data says, on white where it is transparent.

    Of an animation it takes the first frame.

    Raises:
        UsageError: the file is not an image, is corrupt, or has too many pixels.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=_FORMATS) as found:
            if found.width * found.height > _MAX_PIXELS:
                raise UsageError(f"{path.name} has more than {_MAX_PIXELS // 10**6} megapixels.", "Make it smaller.")
            upright = ImageOps.exif_transpose(found)
            if not upright.has_transparency_data:
                return upright.convert("RGB")
            white = Image.new("RGBA", upright.size, "white")
            return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
    except Image.DecompressionBombError as error:
        raise UsageError(f"{path.name} has far too many pixels.", "Make it smaller.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UsageError(f"{path.name} is not a picture that can be read.", "Use a PNG or JPEG file.") from error
