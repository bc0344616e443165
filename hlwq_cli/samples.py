"""The bundled sample, a small trained model with text and pictures, and the bundled calibration set."""

from __future__ import annotations

from pathlib import Path

from .errors import NotFoundError

SAMPLE = "sample"
_FOLDER = Path(__file__).parent / "sample"
_CALIBRATION = Path(__file__).parent / "calibration_set"


def resolve_model(model: str) -> str:
    """Return the folder of the bundled model for `sample`, unless there is a folder `sample`; else return `model`."""
    return str(_FOLDER) if model == SAMPLE and not Path(SAMPLE).exists() else model


def sample_file(name: str) -> Path:
    """Return the path of a file of the bundled sample.

    Raises:
        NotFoundError: this installation lacks the file.
    """
    return _bundled(_FOLDER / name)


def calibration_file(name: str) -> Path:
    """Return the path of a file of the bundled calibration set, which `hlwq bench` never measures on.

    Raises:
        NotFoundError: this installation lacks the file.
    """
    return _bundled(_CALIBRATION / name)


def _bundled(path: Path) -> Path:
    if not path.is_file():
        raise NotFoundError(f"This installation has no bundled {path.name}.", "Install hlwq again.")
    return path
