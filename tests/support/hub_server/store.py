"""What the stand-in Hub holds: repositories backed by folders, and the record of what was asked."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".bin", ".model", ".gguf", ".pt")
FIRST_COMMIT = "0" * 40


@dataclass(frozen=True)
class Request:
    """One request as answered: `sent` and `received` count bytes of bodies."""

    method: str
    path: str
    range: str
    token: str
    status: int
    sent: int
    received: int = 0


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
    objects: dict[str, Path] = field(default_factory=dict)
    history: dict[str, Path] = field(default_factory=dict)
    changes: int = 0
    pulls: int = 0

    def commit(self, revision: str) -> str:
        """The commit of a branch: a hash of what its files are."""
        made = next((c for c, folder in self.history.items() if folder == self.revisions[revision]), None)
        if made is not None:
            return made
        blobs = self.blobs(revision)
        text = "\n".join(f"{name} {blob.etag}" for name, blob in blobs.items())
        return hashlib.sha1(f"{self.id}\n{text}".encode()).hexdigest()

    def resolve(self, revision: str) -> str | None:
        """The branch or tag that a branch, tag or commit hash means."""
        if revision in self.revisions:
            return revision
        return next((name for name in self.revisions if self.commit(name) == revision), None)

    def holds(self, oid: str, size: int) -> bool:
        """Whether a large file of this hash has been uploaded, or is in a revision."""
        if oid in self.objects:
            return self.objects[oid].stat().st_size == size
        for revision in self.revisions:
            for blob in self.blobs(revision).values():
                if blob.is_lfs and blob.etag == oid:
                    self.objects[oid] = blob.path
                    return True
        return False

    def write(
        self, revision: str, files: Mapping[str, bytes], large: Mapping[str, str], removed: Iterable[str], target: str
    ) -> str:
        """Commit on top of `revision` and let `target` point there; returns the commit."""
        folder = Path(tempfile.mkdtemp(prefix="hlwq-hub-repo-")) / "files"
        shutil.copytree(self.revisions[revision], folder, copy_function=os.link)
        for name in removed:
            (folder / name).unlink()
        for name, data in files.items():
            put(folder / name, data)
        for name, oid in large.items():
            put(folder / name, self.objects[oid].read_bytes())
        self.changes += 1
        commit = hashlib.sha1(f"{self.id} {self.changes} {folder}".encode()).hexdigest()
        self.history[commit] = self.revisions[target] = folder
        return commit

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


def put(path: Path, data: bytes) -> None:
    """Write a file without touching what its old name was linked to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def new_repo(repo: str, private: bool) -> Repo:
    """A repository as the Hub makes it: one file, one commit."""
    folder = Path(tempfile.mkdtemp(prefix="hlwq-hub-repo-"))
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    return Repo(repo, {"main": folder}, private=private)


@dataclass
class Account:
    """Whose token it is: a name, organisations to write for, and `write` or `read`."""

    name: str
    role: str = "write"
    organizations: tuple[str, ...] = ()

    def may_write(self, repo: str) -> bool:
        return self.role == "write" and repo.partition("/")[0] in (self.name, *self.organizations)


def _sibling(name: str, blob: Blob, with_blobs: bool) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": name}
    if with_blobs:
        sibling |= {"size": blob.size, "blobId": blob.etag[:40]}
        if blob.is_lfs:
            sibling["lfs"] = {"sha256": blob.etag, "size": blob.size, "pointerSize": 134}
    return sibling
