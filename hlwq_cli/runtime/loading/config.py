"""A checkpoint's config.json: read without the checkpoint's own code, and what it says of the model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...checkpoint import is_repo_id
from ...checkpoint.format import check_folder_listed
from ...checkpoint.io import ask_once, check_config, hub_errors
from ...errors import CorruptError, HlwqError, NotFoundError, UnsupportedError


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn errors of the Hub, or of a folder, into ours."""
    if not os.path.isdir(path):
        with hub_errors(path):
            yield
        return
    try:
        yield
    except OSError as error:
        what = " ".join(str(error).split()).rstrip(".")
        raise CorruptError(f"{path} cannot be read: {what}.", "Download or quantize the checkpoint again.") from error


def check_exists(path: str) -> None:
    """Raise NotFoundError if a path is neither a folder nor a valid Hub id."""
    if not os.path.isdir(path) and (os.path.lexists(path) or not is_repo_id(path)):
        raise NotFoundError(f"There is no folder {path}.", "Give the folder of a checkpoint, or a Hub id owner/name.")


def read_config(path: str, revision: str | None = None) -> Any:
    """Return the config of a folder or Hub repository, as an object of transformers.

    Raises:
        UnsupportedError: transformers does not know the model, or the checkpoint needs code of its own.
        CorruptError: config.json has an invalid value.
        GateMissedError: files are there that the checkpoint's manifest does not list.
    """
    import transformers

    with reading(path):
        if os.path.isdir(path):
            check_folder_listed(Path(path))
        else:
            ask_once(path, revision)
        try:
            settings, _ = transformers.PreTrainedConfig.get_config_dict(path, revision=revision)
            check_config(settings, path)
            config = transformers.AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        except (HlwqError, OSError):
            raise
        except Exception as error:  # a config class may check its values in any way
            raise _not_read(path, revision, error) from error
    name = architecture(config)
    if name and not _is_model_class(name) and _names_model_code(getattr(config, "auto_map", None)):
        raise custom_code(path)
    return config


def custom_code(path: str, what: str = "") -> UnsupportedError:
    """Return the error for a checkpoint that works only with code of its own.

    Args:
        path: the checkpoint.
        what: the part of it that needs the code; empty for the model.
    """
    return UnsupportedError(
        f"{f'The {what} of {path}' if what else path} needs custom code, and hlwq never runs a checkpoint's own code.",
        "Use a checkpoint of a model that transformers has itself.",
    )


def _not_read(path: str, revision: str | None, error: Exception) -> HlwqError:
    """Return the error for a config that transformers refuses."""
    import transformers

    try:
        settings, _ = transformers.PreTrainedConfig.get_config_dict(path, revision=revision)
    except (OSError, ValueError, TypeError):
        settings = {}
    if settings.get("model_type") in transformers.CONFIG_MAPPING:
        return CorruptError(
            f"config.json of {path} is not valid: {first_sentence(error)}.", "Correct it, or download it again."
        )
    if settings.get("auto_map"):
        return custom_code(path)
    return UnsupportedError(
        f"{path} has no config.json of a model that transformers knows.", "Give the folder or Hub id of a checkpoint."
    )


def _is_model_class(name: str) -> bool:
    """Return whether transformers has a model class of a name, which is a stranger's."""
    import transformers

    named = getattr(transformers, name, None) if name.isidentifier() else None
    return inspect.isclass(named) and issubclass(named, transformers.PreTrainedModel)


def _names_model_code(auto_map: Any) -> bool:
    return isinstance(auto_map, dict) and any(str(key).startswith("AutoModel") for key in auto_map)


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error of another library, without its full stop."""
    text = " ".join(str(error).split())
    return text.split(". ")[0].rstrip(".:") or type(error).__name__


def architecture(config: Any) -> str:
    """Return the name of the class that a config names; empty if it names none."""
    names = getattr(config, "architectures", None)
    return str(names[0]) if isinstance(names, list | tuple) and names else ""


def supports_images(config: Any) -> bool:
    """Return whether a model takes images."""
    return getattr(config, "vision_config", None) is not None


def text_config(config: Any) -> Any:
    """Return the part of a config that describes the text model; the config itself where transformers cannot choose."""
    try:
        return config.get_text_config()
    except ValueError:
        return config
