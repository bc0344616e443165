"""Sending: a repository, a branch, the large files one by one, and then one commit that shows them all.

A reader of the repository therefore sees the old checkpoint or the new one and nothing between. What has arrived before
a run was cut off is known to the Hub by its hash and is not sent again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint.io.hub_repo import hub_errors
from ..errors import ConflictError, HlwqError
from ..progress import Progress, ProgressCallback
from .remote import Changes, Remote
from .retry import with_retries


@dataclass(frozen=True)
class Committed:
    """Where it went."""

    commit: str
    pull_request: str | None


@contextmanager
def push_errors(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub raises while it writes into errors that say what to do."""
    from huggingface_hub import errors

    with hub_errors(repo, "write to"):
        try:
            yield
        except errors.HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (409, 412):
                raise ConflictError(
                    f"{repo} was changed while this ran.", "Run the same command again; it looks anew."
                ) from error
            raise
        except RuntimeError as error:  # huggingface_hub wraps what went wrong with one file
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from error
            raise HlwqError(f"The upload to {repo} failed: {_first_line(error)}", _AGAIN) from error
        except ValueError as error:
            raise HlwqError(f"The Hub refuses what is pushed to {repo}: {_first_line(error)}", _AGAIN) from error


_AGAIN = "Run the same command again; what has arrived is not sent twice."


def _first_line(error: Exception) -> str:
    text = re.sub(r"https?://\S+", "URL", " ".join(str(error).split()))
    return text[:200].rstrip(".") + "."


def _redact_queries(record: logging.LogRecord) -> bool:
    """Signatures of storage addresses are secrets for as long as they are valid."""
    record.msg, record.args = re.sub(r"\?\S+", "", record.getMessage()), ()
    return True


@contextmanager
def redact_logged_urls() -> Iterator[None]:
    """Keep the queries of addresses out of what huggingface_hub logs."""
    handlers = logging.getLogger("huggingface_hub").handlers
    for handler in handlers:
        handler.addFilter(_redact_queries)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_redact_queries)


def create(remote: Remote, public: bool) -> None:
    """Make the repository and the branch, where they are not there."""
    from huggingface_hub import HfApi

    api = HfApi(library_name="hlwq")
    with push_errors(remote.repo):
        if not remote.exists:
            with_retries(lambda: api.create_repo(remote.repo, private=not public, exist_ok=True))
            if not public and not with_retries(lambda: api.model_info(remote.repo)).private:
                raise HlwqError(f"The Hub made {remote.repo} public.", "Make it private there; nothing was uploaded.")
        if remote.commit is None and remote.revision != "main":
            with_retries(lambda: api.create_branch(remote.repo, branch=remote.revision, exist_ok=True))


def send(
    remote: Remote, folder: Path, changes: Changes, message: str, pr: bool, progress: ProgressCallback
) -> Committed:
    """Upload files and commit.

    Args:
        remote: as last seen; somebody's commit in between is a conflict.
        folder: that the files lie in.
        changes: what to send and what to remove.
        message: of the commit.
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
