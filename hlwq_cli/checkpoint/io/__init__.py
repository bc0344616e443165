"""Read the bytes of checkpoints by range, from safetensors files in folders and Hub repositories."""

from .folder_lock import LOCK, check_unlocked, locked_folder
from .hub_repo import HubRepo, ask_once, hub_errors, is_repo_id, is_transport_error
from .local_files import check_inside, is_inside, list_files, open_regular, read_errors, read_json, read_text
from .model_config import check_config, model_config
from .open_files import PREFETCH_FILES, PrefetchedFiles
from .open_source import open_source
from .safetensors_file import DTYPE_NAMES, DTYPES, TensorInfo, build_header, read_header, read_into
from .slice_sizes import GPU_SLICE_WEIGHTS, MAX_ROW_WEIGHTS, SLICE_WEIGHTS
from .source import Source
from .source_rows import SourceRows
from .weight_map import INDEX, collect_tensors, read_weight_map
from .weights_bytes import weights_bytes

__all__ = [
    "DTYPES",
    "DTYPE_NAMES",
    "GPU_SLICE_WEIGHTS",
    "INDEX",
    "LOCK",
    "MAX_ROW_WEIGHTS",
    "PREFETCH_FILES",
    "SLICE_WEIGHTS",
    "HubRepo",
    "PrefetchedFiles",
    "Source",
    "SourceRows",
    "TensorInfo",
    "ask_once",
    "build_header",
    "check_config",
    "check_inside",
    "check_unlocked",
    "collect_tensors",
    "hub_errors",
    "is_inside",
    "is_repo_id",
    "is_transport_error",
    "list_files",
    "locked_folder",
    "model_config",
    "open_regular",
    "open_source",
    "read_errors",
    "read_header",
    "read_into",
    "read_json",
    "read_text",
    "read_weight_map",
    "weights_bytes",
]
