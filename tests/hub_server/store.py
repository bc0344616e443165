"""What the stand-in Hub holds: repositories backed by folders, and the record of what was asked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".model", ".gguf", ".pt")
FIRST_COMMIT = "0" * 40


@dataclass(frozen=True)
class Request:
    """One request as answered: `sent` counts bytes of the body."""

    method: str
    path: str
    range: str
    token: str
    status: int
    sent: int


@dataclass(frozen=True)
class Blob:
    """A file of a repository."""

    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @property
    def is_lfs(self) -> bool:
        return self.path.name.endswith(LFS_SUFFIXES)

    @property
    def etag(self) -> str:
        """sha256 for large files, git's blob hash for the others, as the Hub has it."""
        data = self.path.read_bytes()
        if self.is_lfs:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """A repository: a folder for each revision, and who may read it.

    Attributes:
        id: owner/name.
        revisions: folders by branch or tag.
        gated: readable only with one of the server's tokens that has accepted the terms.
        private: without a token it does not seem to exist.
    """

    id: str
    revisions: dict[str, Path] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, revision: str) -> str:
        """The commit of a branch: a hash of what its files are."""
        blobs = self.blobs(revision)
        text = "\n".join(f"{name} {blob.etag}" for name, blob in blobs.items())
        return hashlib.sha1(f"{self.id}\n{text}".encode()).hexdigest()

    def resolve(self, revision: str) -> str | None:
        """The branch or tag that a branch, tag or commit hash means."""
        if revision in self.revisions:
            return revision
        return next((name for name in self.revisions if self.commit(name) == revision), None)

    def blobs(self, revision: str) -> dict[str, Blob]:
        folder = self.revisions[revision]
        return {
            str(path.relative_to(folder)): Blob(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".hlwq")
        }

    def info(self, revision: str, with_blobs: bool) -> dict[str, Any]:
        """What /api/models/owner/name says."""
        commit = self.commit(revision)
        return {
            "_id": commit[:24],
            "id": self.id,
            "modelId": self.id,
            "author": self.id.partition("/")[0],
            "sha": commit,
            "lastModified": "2026-07-01T12:00:00.000Z",
            "createdAt": "2026-07-01T12:00:00.000Z",
            "private": self.private,
            "gated": "auto" if self.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": [_sibling(n, b, with_blobs) for n, b in self.blobs(revision).items()],
        }

    def tree(self, revision: str) -> list[dict[str, Any]]:
        """What /api/models/owner/name/tree/revision says, every folder opened."""
        entries = []
        for name, blob in self.blobs(revision).items():
            entry: dict[str, Any] = {"type": "file", "oid": blob.etag[:40], "size": blob.size, "path": name}
            if blob.is_lfs:
                entry["lfs"] = {"oid": blob.etag, "size": blob.size, "pointerSize": 134}
            entries.append(entry)
        return entries


def _sibling(name: str, blob: Blob, with_blobs: bool) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": name}
    if with_blobs:
        sibling |= {"size": blob.size, "blobId": blob.etag[:40]}
        if blob.is_lfs:
            sibling["lfs"] = {"sha256": blob.etag, "size": blob.size, "pointerSize": 134}
    return sibling
