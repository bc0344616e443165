"""Coded checkpoints on disk: write and read shards and manifests; verify, inspect and export checkpoints."""

from .calibration_text import OWN_TEXT_ORIGIN, calibration_options, describe_calibration
from .card_head import card_warnings
from .export import ExportResult, export
from .files import copy_file, disk_errors, json_bytes, new_file, remove_files, write_file, write_json
from .inspect import DiffReport, InspectReport, diff, inspect
from .manifest import CHART, JOURNAL, MANIFEST, RESULTS, Manifest, describe_differences, fingerprint, read_manifest
from .manifest_entries import (
    FileRecord,
    KeptRecord,
    ShardRecord,
    TensorRecord,
    coded_record,
    dump_shard,
    kept_record,
    read_shard,
    tensors_digest,
)
from .model_card import base_model, model_card
from .reader import CodedCheckpoint, open_coded
from .shard_writer import ShardWriter, bytes_of
from .shards import DEFAULT_SHARD_BYTES, FORMAT_VERSION, SHARD, Shard, divide, write_index
from .unlisted import check_folder_listed
from .verify import VerifyReport, bytes_to_verify, file_record, hash_file, tensor_hash, verify, with_all_hashes

__all__ = [
    "CHART",
    "DEFAULT_SHARD_BYTES",
    "FORMAT_VERSION",
    "JOURNAL",
    "MANIFEST",
    "OWN_TEXT_ORIGIN",
    "RESULTS",
    "SHARD",
    "CodedCheckpoint",
    "DiffReport",
    "ExportResult",
    "FileRecord",
    "InspectReport",
    "KeptRecord",
    "Manifest",
    "Shard",
    "ShardRecord",
    "ShardWriter",
    "TensorRecord",
    "VerifyReport",
    "base_model",
    "bytes_of",
    "bytes_to_verify",
    "calibration_options",
    "card_warnings",
    "check_folder_listed",
    "coded_record",
    "copy_file",
    "describe_calibration",
    "describe_differences",
    "diff",
    "disk_errors",
    "divide",
    "dump_shard",
    "export",
    "file_record",
    "fingerprint",
    "hash_file",
    "inspect",
    "json_bytes",
    "kept_record",
    "model_card",
    "new_file",
    "open_coded",
    "read_manifest",
    "read_shard",
    "remove_files",
    "tensor_hash",
    "tensors_digest",
    "verify",
    "with_all_hashes",
    "write_file",
    "write_index",
    "write_json",
]
