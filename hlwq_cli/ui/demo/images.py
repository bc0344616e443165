"""Pictures that people drop in: opened with suspicion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

MAX_UPLOAD = "20MB"
MAX_IMAGES = 8
_MAX_PIXELS = 50_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow would hand others to programs of the system


def open_image(path: Path) -> PILImage:
    """An RGB picture, upright, on white where it is transparent; of an animation the first frame.

    Raises:
        UsageError: it is no picture, a broken one, or too large to unpack.
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
        raise UsageError(f"{path.name} is far too large to unpack.", "Make it smaller.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UsageError(f"{path.name} is no picture that can be read.", "Take a PNG or JPEG file.") from error
