"""Upload a checkpoint: create repository and branch, send the large files one by one, then commit once.

So readers of the repository see either the old checkpoint or the new one. The Hub knows files that arrived before an
interruption by their hash, and they are not sent again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint.io import hub_errors
from ..errors import ConflictError, HlwqError
from ..progress import Progress, ProgressCallback
from .remote import Changes, Remote
from .retry import with_retries


@dataclass(frozen=True)
class Committed:
    """The commit of an upload, and the address of its pull request if there is one."""

    commit: str
    pull_request: str | None


@contextmanager
def push_errors(repo: str) -> Iterator[None]:
    """Turn exceptions of huggingface_hub during a push into errors that say what to do."""
    from huggingface_hub import errors

    with hub_errors(repo, "write to"):
        try:
            yield
        except errors.HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (409, 412):
                raise ConflictError(
                    f"{repo} was changed during this push.", "Run the same command again; it reads the new state."
                ) from error
            raise
        except RuntimeError as error:  # huggingface_hub wraps the error of one file in it
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from error
            raise HlwqError(f"The upload to {repo} failed: {_first_line(error)}", _AGAIN) from error
        except ValueError as error:
            raise HlwqError(f"The Hub rejects the push to {repo}: {_first_line(error)}", _AGAIN) from error


_AGAIN = "Run the same command again; files that have arrived are not sent twice."


def _first_line(error: Exception) -> str:
    text = re.sub(r"https?://\S+", "URL", " ".join(str(error).split()))
    return text[:200].rstrip(".") + "."


def _redact_queries(record: logging.LogRecord) -> bool:
    """Remove the query of each address: the signature of a storage address is a secret while it is valid."""
    record.msg, record.args = re.sub(r"\?\S+", "", record.getMessage()), ()
    return True


@contextmanager
def redact_logged_urls() -> Iterator[None]:
    """Inside this context, remove the queries of addresses from the log of huggingface_hub."""
    handlers = logging.getLogger("huggingface_hub").handlers
    for handler in handlers:
        handler.addFilter(_redact_queries)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_redact_queries)


def create(remote: Remote, public: bool) -> None:
    """Create the repository and the branch if they do not exist."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="hlwq")
    with push_errors(remote.repo):
        if not remote.exists:
            with_retries(lambda: api.create_repo(remote.repo, private=not public, exist_ok=True))
            if not public and not with_retries(lambda: api.model_info(remote.repo)).private:
                raise HlwqError(
                    f"The Hub created {remote.repo} as public.", "Make it private on the Hub; nothing was uploaded."
                )
        if remote.commit is None and remote.revision != "main":
            with_retries(lambda: api.create_branch(remote.repo, branch=remote.revision, exist_ok=True))


def send(
    remote: Remote, folder: Path, changes: Changes, message: str, pr: bool, progress: ProgressCallback
) -> Committed:
    """Upload files and commit.

    Args:
        remote: the revision as last read; a commit since then is a conflict.
        folder: local folder of the files.
        changes: files to upload and to remove.
        message: commit message.
        pr: open a pull request.
        progress: called before and after each file.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="hlwq")
    done = 0
    with push_errors(remote.repo), redact_logged_urls():
        additions = [CommitOperationAdd(f.name, folder / f.name) for f in changes.sent]
        for i, (file, addition) in enumerate(zip(changes.sent, additions, strict=True)):
            event = Progress(file.name, done, changes.bytes, files_done=i, files=len(additions))
            progress(event)
            api.preupload_lfs_files(remote.repo, [addition], revision=remote.revision, create_pr=pr, free_memory=False)
            done += file.size
            progress(replace(event, done=done, file_done=True, files_done=i + 1))
        removals: list[Any] = [CommitOperationDelete(name, is_folder=False) for name in changes.removed]
        info = with_retries(
            lambda: api.create_commit(
                remote.repo,
                [*additions, *removals],
                commit_message=message,
                revision=remote.revision,
                parent_commit=remote.commit,
                create_pr=pr,
            )
        )
    return Committed(str(info.oid), info.pr_url)
