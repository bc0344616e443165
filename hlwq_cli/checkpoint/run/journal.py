"""The journal of an unfinished run: it lists the complete shards, so that the next run need not make them again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...errors import ConflictError
from ..format import JOURNAL, ShardRecord, describe_differences, disk_errors, dump_shard, read_shard, write_file


def journal_differences(folder: Path, fingerprint: dict[str, Any]) -> str:
    """Return how an unfinished run in `folder` differs from `fingerprint`, in a few words, or "" if it does not."""
    try:
        theirs = json.loads((folder / JOURNAL).read_text().split("\n")[0])
    except ValueError:
        theirs = None
    if not isinstance(theirs, dict):
        return "a journal that cannot be read"
    return describe_differences(fingerprint, theirs)


class Journal:
    """The finished shards of an unfinished run. The first line is the fingerprint; each other line is one shard.

    Attributes:
        path: path of the file.
        fingerprint: fingerprint of the current run.
        shards: finished shards by file name.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.path = folder / JOURNAL
        self.fingerprint = fingerprint
        self.shards: dict[str, ShardRecord] = {}

    def open(self) -> None:
        """Start a journal, or continue the existing one.

        Raises:
            ConflictError: the existing one belongs to a run with other arguments.
        """
        lines = self.path.read_text().split("\n") if self.path.exists() else []
        if not lines or len(lines) == 1:  # absent, or cut off within its first line
            write_file(self.path, json.dumps(self.fingerprint).encode() + b"\n")
            return
        different = journal_differences(self.path.parent, self.fingerprint)
        if different:
            raise ConflictError(
                f"{self.path.parent} holds an unfinished run that differs in {different}.",
                "Use the same arguments to continue it, or --overwrite to start again.",
            )
        whole = []
        for line in lines[1:-1]:  # a line is whole when a newline ends it
            try:
                record = read_shard(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # its shard is made again
            whole.append(line)
            path = self.path.parent / record.file.name
            if path.is_file() and path.stat().st_size == record.file.size:
                self.shards[record.file.name] = record
        write_file(self.path, "\n".join([lines[0], *whole, ""]).encode())

    def add(self, record: ShardRecord) -> None:
        """Add a finished shard. It is on disk when this returns."""
        with disk_errors(self.path), self.path.open("a") as f:
            f.write(json.dumps(dump_shard(record)) + "\n")
            f.flush()
            os.fsync(f.fileno())
        self.shards[record.file.name] = record
