"""The size of the weights that transformers would load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import UnsupportedError
from .hub_repo import HubRepo
from .local_files import list_files, read_json
from .weight_files import find_weight_files

_PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


def weights_bytes(source: Path | HubRepo) -> int:
    """Return the bytes of the files of weights that transformers would load from a folder or a repository.

    Other files of weights do not count, such as a second copy, an adapter, or shards that the index does not name.
    Pickled weights count where there are no others.
    """
    if isinstance(source, HubRepo):
        name, sizes = source.id, source.sizes
    else:
        name, sizes = str(source), {file: status.st_size for file, status in list_files(source).items()}

    def read(file: str) -> dict[str, Any]:
        return read_json(source.fetch(file) if isinstance(source, HubRepo) else source / file, file)

    try:
        config: Mapping[str, Any] = read("config.json") if "config.json" in sizes else {}
        return sum(sizes[file] for file in find_weight_files(name, sizes, config, read).names)
    except UnsupportedError:
        return sum(size for file, size in sizes.items() if _PICKLED.fullmatch(file))
