"""The bundled sample: a small trained model with text and pictures, for a first run that needs no network."""

from __future__ import annotations

from pathlib import Path

from .errors import NotFoundError

SAMPLE = "sample"
_FOLDER = Path(__file__).parent / "sample"


def resolve_model(model: str) -> str:
    """`sample` to the folder of the bundled model, unless a folder of that name is here; anything else as it is."""
    return str(_FOLDER) if model == SAMPLE and not Path(SAMPLE).exists() else model


def sample_file(name: str) -> Path:
    """A file of the bundled sample.

    Raises:
        NotFoundError: this installation lacks it.
    """
    path = _FOLDER / name
    if not path.is_file():
        raise NotFoundError(f"This installation has no bundled {name}.", "Install hlwq again.")
    return path
