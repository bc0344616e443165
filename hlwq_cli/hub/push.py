"""Push a checkpoint to the Hub: verify it, write its card, check for conflicts, upload what is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint import CodedCheckpoint, Manifest, open_coded, verify
from ..checkpoint.format import MANIFEST, FileRecord, base_model, bytes_to_verify, with_all_hashes
from ..checkpoint.io import hub_errors, is_repo_id, locked_folder
from ..errors import CorruptError, HlwqError, NotAllowedError, NotFoundError, UsageError
from ..progress import ProgressCallback, ignore_progress
from .card import CARD, card_record, check_folder, render_card, write_card
from .remote import Changes, Remote, check_conflict, compare, read_remote
from .retry import with_retries
from .upload import Committed, create, push_errors, send


@dataclass(frozen=True)
class PushResult:
    """What a push did, or would do with `dry_run`.

    Attributes:
        url: address of the repository, the revision or the pull request.
        repo: repository id, OWNER/NAME.
        revision: branch.
        commit: head of the revision after the push; None if a dry run found no revision.
        created: whether the repository did not exist before.
        private: whether the repository is private, or will be.
        sent: names of uploaded files.
        sent_bytes: size of the uploaded files.
        removed: names of removed files.
        unchanged: number of files that were in the repository already.
        dry_run: whether nothing was written.
        notes: remarks for the user.
    """

    url: str
    repo: str
    revision: str
    commit: str | None
    created: bool
    private: bool
    sent: tuple[str, ...]
    sent_bytes: int
    removed: tuple[str, ...]
    unchanged: int
    dry_run: bool = False
    notes: tuple[str, ...] = ()


def push(
    path: str | os.PathLike[str],
    repo: str,
    *,
    public: bool = False,
    revision: str | None = None,
    pr: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> PushResult:
    """Upload a finished checkpoint.

    Args:
        path: folder of the checkpoint.
        repo: repository id, OWNER/NAME. It is created if it does not exist, as private unless `public`.
        public: create a new repository as public.
        revision: branch, created if it does not exist, or refs/pr/N.
        pr: open a pull request instead of changing the branch.
        overwrite: replace another checkpoint, or files that somebody else changed.
        dry_run: find out what a push would do; write nothing to the Hub or the folder.
        progress: called while files are hashed, and before and after each upload of a file.

    Raises:
        CorruptError: a file differs from the manifest.
        NotAllowedError: there is no token, or it may not write to the repository.
        ConflictError: the revision was changed by somebody else.
    """
    _check_arguments(repo, revision, pr)
    check_folder(path)
    options = _Options(repo, public, revision or "main", pr, overwrite, dry_run)
    with nullcontext() if dry_run else locked_folder(Path(path)):
        return _push(open_coded(path), options, progress)


@dataclass(frozen=True)
class _Options:
    """Arguments of `push`."""

    repo: str
    public: bool
    revision: str
    pr: bool
    overwrite: bool
    dry_run: bool


def _push(checkpoint: CodedCheckpoint, options: _Options, progress: ProgressCallback) -> PushResult:
    """Push from a folder that is locked unless nothing is written; see `push`."""
    try:
        _check_token()
        verified, card_problem = _verified_manifest(checkpoint, progress)
    finally:
        checkpoint.close()
    _check_role(options.repo)
    remote = read_remote(options.repo, options.revision)
    _check_target(remote, options.pr)
    inherited, notes = _read_base_card(checkpoint)
    text, more = render_card(checkpoint, options.repo, inherited)
    notes += more + _visibility_notes(remote, options.public)
    if card_problem and card_record(text) not in checkpoint.manifest.files:  # else a push was killed before it wrote it
        raise _damaged([card_problem], "Run `hlwq card` on the folder.")
    manifest, contents = _with_card(verified, text)
    changes = compare(remote, checkpoint.folder, _records(manifest), contents)
    if not (options.overwrite or options.pr):
        check_conflict(remote, manifest, changes)
    done = None
    if not options.dry_run:
        write_card(checkpoint.folder, verified, text)
        checkpoint.check_unchanged()
        done = _upload(remote, checkpoint.folder, changes, options.public, options.pr, progress)
    private = remote.private if remote.exists else not options.public
    result = _result(remote, changes, done, private)
    return replace(result, dry_run=options.dry_run, notes=notes)


def _result(remote: Remote, changes: Changes, done: Committed | None, private: bool) -> PushResult:
    return PushResult(
        url=_url(remote, done),
        repo=remote.repo,
        revision=remote.revision,
        commit=done.commit if done else remote.commit,
        created=not remote.exists,
        private=private,
        sent=tuple(f.name for f in changes.sent),
        sent_bytes=changes.bytes,
        removed=changes.removed,
        unchanged=changes.unchanged,
    )


def _check_arguments(repo: str, revision: str | None, pr: bool) -> None:
    if not is_repo_id(repo):
        raise UsageError(f"{repo} is not a valid repository id.", "Write owner/name.")
    if pr and revision not in (None, "main"):
        raise UsageError("--pr opens a pull request against main.", "Leave --revision out.")
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UsageError("--revision is a commit; a push needs a branch.", "Give the name of a branch.")


def _check_token() -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise NotAllowedError("Pushing needs a token.", "Run `hf auth login`, or set HF_TOKEN.")


def _verified_manifest(checkpoint: CodedCheckpoint, progress: ProgressCallback) -> tuple[Manifest, str]:
    """Verify a checkpoint; return its manifest with the hash of every file, and what is wrong with its card, or ""."""
    manifest = checkpoint.manifest
    verified = bytes_to_verify(manifest)
    total = verified + sum(f.size for f in manifest.files if f.sha256 is None)
    problems = verify(checkpoint, lambda event: progress(replace(event, total=total))).problems
    if any(not p.startswith(f"{CARD} ") for p in problems):
        raise _damaged(problems, "Quantize again, or download the checkpoint again.")
    complete = with_all_hashes(
        checkpoint.folder, manifest, lambda event: progress(replace(event, done=verified + event.done, total=total))
    )
    return complete, problems[0] if problems else ""


def _damaged(problems: Sequence[str], hint: str) -> CorruptError:
    return CorruptError(f"{problems[0]} ({len(problems)} in all); nothing was sent.", hint)


def _check_role(repo: str) -> None:
    from huggingface_hub import HfApi

    with push_errors(repo):
        who = with_retries(HfApi(library_name="hlwq").whoami)
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise NotAllowedError("The token is read-only.", "Create a token with write access, then run `hf auth login`.")


def _check_target(remote: Remote, pr: bool) -> None:
    if pr and not remote.exists:
        raise NotFoundError(f"There is no repository {remote.repo} to open a pull request in.", "Leave --pr out.")
    if remote.commit is None and remote.revision.startswith("refs/"):
        raise NotFoundError(f"{remote.repo} has no {remote.revision}.", "Open a pull request with --pr.")


def _read_base_card(checkpoint: CodedCheckpoint) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Return the front matter of the base model's card, and warnings if it is gated or not accessible."""
    from huggingface_hub import HfApi

    base = base_model(checkpoint.manifest, checkpoint.config)
    if base is None:
        return {}, ()
    try:
        with hub_errors(base):
            info = HfApi(library_name="hlwq").model_info(base)
    except HlwqError:
        return {}, (f"The base model {base} is not accessible; check that its licence lets you share this.",)
    inherited: dict[str, Any] = dict(vars(info.card_data)) if info.card_data else {}
    if not info.gated:
        return inherited, ()
    terms = "users of this model must accept the same terms. Gate the repository, or keep it private."
    return inherited, (f"{base} is gated: {terms}",)


def _visibility_notes(remote: Remote, public: bool) -> tuple[str, ...]:
    if not remote.exists or remote.private == (not public):
        return ()
    return (f"{remote.repo} is {'private' if remote.private else 'public'} already; this does not change.",)


def _with_card(manifest: Manifest, text: str) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest with the hash of a card that is not written yet, and the bytes of both files."""
    complete = manifest.with_files([card_record(text)])
    return complete, {CARD: text.encode(), MANIFEST: complete.dump()}


def _records(manifest: Manifest) -> list[FileRecord]:
    import hashlib

    data = manifest.dump()
    return [*manifest.files, FileRecord(MANIFEST, len(data), hashlib.sha256(data).hexdigest())]


def _upload(
    remote: Remote, folder: Path, changes: Changes, public: bool, pr: bool, progress: ProgressCallback
) -> Committed | None:
    if not (changes.sent or changes.removed):
        return None
    if remote.commit is None:
        create(remote, public)
        remote = read_remote(remote.repo, remote.revision)
        ours = {f.name for f in changes.sent}
        # A new branch starts as a copy of main, so the files of main's checkpoint must be removed.
        left = tuple(n for n in remote.files if n not in ours)
        changes = Changes(changes.sent, left, changes.unchanged)
    return send(remote, folder, changes, "Upload an HLWQ checkpoint", pr, progress)


def _url(remote: Remote, done: Committed | None) -> str:
    from huggingface_hub import constants

    if done is not None and done.pull_request:
        return done.pull_request
    url = f"{constants.ENDPOINT}/{remote.repo}"
    return url if remote.revision == "main" else f"{url}/tree/{remote.revision}"
