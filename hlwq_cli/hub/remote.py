"""The current state of a repository on the Hub, and what a push would change."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..checkpoint import Manifest
from ..checkpoint.format import MANIFEST, SHARD, FileRecord, describe_differences, hash_file, read_manifest
from ..checkpoint.io import INDEX, hub_errors
from ..errors import ConflictError, CorruptError, NotFoundError
from .retry import with_retries

_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub: its size, its git blob hash, and for an LFS file its sha256."""

    size: int
    sha256: str | None
    blob: str | None


@dataclass(frozen=True)
class Remote:
    """A revision of a repository.

    Attributes:
        repo: repository id, OWNER/NAME.
        revision: branch or refs/pr/N.
        exists: whether the repository exists.
        private: whether the repository is private.
        commit: head of the revision; None if the revision does not exist.
        files: files by name, without .gitattributes.
        manifest: manifest of the checkpoint in this revision, or None.
    """

    repo: str
    revision: str
    exists: bool
    private: bool
    commit: str | None
    files: dict[str, RemoteFile]
    manifest: Manifest | None


@dataclass(frozen=True)
class Changes:
    """The files that a push uploads and removes."""

    sent: tuple[FileRecord, ...]
    removed: tuple[str, ...]
    unchanged: int

    @property
    def bytes(self) -> int:
        """Size of the files to upload."""
        return sum(f.size for f in self.sent)


def read_remote(repo: str, revision: str) -> Remote:
    """Read the list of files and the manifest of a revision.

    Raises:
        NotAllowedError: the token does not allow it.
        HlwqError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi(library_name="hlwq")
    with hub_errors(repo):
        try:
            info = with_retries(lambda: api.model_info(repo, revision=revision, files_metadata=True))
        except errors.RepositoryNotFoundError:
            return Remote(repo, revision, False, False, None, {}, None)
        except errors.RevisionNotFoundError:
            private = bool(with_retries(lambda: api.model_info(repo)).private)
            return Remote(repo, revision, True, private, None, {}, None)
    files = {s.rfilename: _file(s) for s in info.siblings or [] if s.rfilename != ".gitattributes"}
    manifest = _manifest(repo, info.sha) if MANIFEST in files else None
    return Remote(repo, revision, True, bool(info.private), info.sha, files, manifest)


def _file(sibling: Any) -> RemoteFile:
    return RemoteFile(sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None, sibling.blob_id)


def _manifest(repo: str, commit: str | None) -> Manifest | None:
    """Return the manifest in a repository, or None if it is missing or not valid."""
    try:
        return read_manifest(_fetch(repo, MANIFEST, commit).parent, repo)
    except (CorruptError, NotFoundError):
        return None


def _fetch(repo: str, name: str, commit: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    with hub_errors(repo):
        return Path(hf_hub_download(repo, name, revision=commit, library_name="hlwq"))


def compare(remote: Remote, folder: Path, records: list[FileRecord], contents: Mapping[str, bytes]) -> Changes:
    """Return which files to upload so that a revision has these files, and which files of an older result to remove.

    Args:
        remote: the revision.
        folder: local folder of the files.
        records: all files.
        contents: bytes of those files that are not written yet.
    """

    def open_file(name: str) -> BinaryIO:
        return io.BytesIO(contents[name]) if name in contents else (folder / name).open("rb")

    sent = tuple(r for r in records if not _is_there(remote.files.get(r.name), r, open_file))
    ours = {r.name for r in records}
    older = {f.name for f in remote.manifest.files} if remote.manifest else set()
    removed = sorted(n for n in remote.files if n not in ours and (n in older or n == INDEX or SHARD.fullmatch(n)))
    return Changes(sent, tuple(removed), len(records) - len(sent))


def _is_there(there: RemoteFile | None, record: FileRecord, open_file: Callable[[str], BinaryIO]) -> bool:
    if there is None or there.size != record.size:
        return False
    if there.sha256 is not None:
        return there.sha256 == record.sha256
    digest = hashlib.sha1(b"blob %d\0" % record.size)
    with open_file(record.name) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return there.blob == digest.hexdigest()


def check_conflict(remote: Remote, ours: Manifest, changes: Changes) -> None:
    """Raise ConflictError if a push would undo somebody else's change.

    A push may only replace files of an earlier push of the same checkpoint.
    """
    touched = [n for n in (*(f.name for f in changes.sent), *changes.removed) if n in remote.files]
    if not touched:
        return
    where = f"{remote.repo} at {remote.revision}"
    if remote.manifest is None:
        raise ConflictError(
            f"{where} has {touched[0]}, which hlwq did not push.", "Push to another repository, or use --overwrite."
        )
    if remote.manifest.digest != ours.digest:
        different = describe_differences(ours.fingerprint, remote.manifest.fingerprint) or "its weights"
        raise ConflictError(
            f"{where} has another checkpoint, which differs in {different}.",
            "Push to another repository, or use --overwrite.",
        )
    stated = {f.name: f for f in remote.manifest.files}
    changed = [n for n in touched if n != MANIFEST and not _is_as_stated(remote, n, stated.get(n))]
    if changed:
        raise ConflictError(
            f"{', '.join(changed[:3])} of {where} was changed since the last push.",
            "Download that change, or use --overwrite.",
        )


def _is_as_stated(remote: Remote, name: str, record: FileRecord | None) -> bool:
    there = remote.files[name]
    if record is None or there.size != record.size:
        return False
    return (there.sha256 or hash_file(_fetch(remote.repo, name, remote.commit))) == record.sha256
