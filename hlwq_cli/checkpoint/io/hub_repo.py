"""A repository on the Hub as a source of files: errors of hlwq, headers by range request, files on demand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CorruptError, HlwqError, NotAllowedError, NotFoundError
from .local_files import is_inside

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

    from .safetensors_file import TensorInfo

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repo_id(model: str) -> bool:
    """Return whether `model` has the form owner/name."""
    return _REPO_ID.fullmatch(model) is not None


def is_transport_error(error: Exception) -> bool:
    """Return whether an error comes from the HTTP client of huggingface_hub, which differs between versions."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpcore", "httpx2", "httpcore2", "requests")


@contextmanager
def hub_errors(repo: str, action: str = "read") -> Iterator[None]:
    """Turn errors of huggingface_hub into errors that say what to do. No message ever holds a token.

    Args:
        repo: Hub id, for messages.
        action: what the caller does with the repository, for the message about missing rights.
    """
    from huggingface_hub import errors

    _check_token()
    try:
        with _unwrapped():
            yield
    except errors.GatedRepoError as error:
        raise NotAllowedError(
            f"{repo} is gated.", f"Accept its terms at https://huggingface.co/{repo}, then run `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotFoundError(
            f"There is no repository {repo}, or you have no access to it.", "Check the name; log in for private ones."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NotFoundError(f"{repo} has no such revision.", "Check --revision.") from error
    except errors.LocalEntryNotFoundError as error:  # raised for any failure to locate a file
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        if status is not None:
            raise HlwqError(f"The Hub answered {status} for {repo}.", "Try again later.") from error
        raise HlwqError(
            f"The Hub cannot be reached for {repo}.", "Check the network, or give a local folder."
        ) from error
    except errors.HFValidationError as error:
        raise NotFoundError(f"{repo} is not a valid repository id.", "Write owner/name.") from error
    except errors.EntryNotFoundError as error:
        raise NotFoundError(f"{repo} lacks a file it should have.", "Check the repository.") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        if status in (401, 403):
            raise NotAllowedError(
                f"The Hub does not let you {action} {repo}.", "Run `hf auth login` with a token that may."
            ) from error
        raise HlwqError(f"The Hub answered {status} for {repo}.", _when(error)) from error
    except (errors.OfflineModeIsEnabled, ConnectionError, OSError) as error:
        raise HlwqError(
            f"The Hub cannot be reached for {repo}.", "Check the network, or give a local folder."
        ) from error
    except Exception as error:
        if is_transport_error(error):
            raise HlwqError(
                f"The Hub cannot be reached for {repo}.", "Check the network, or give a local folder."
            ) from error
        raise


def _check_token() -> None:
    """Raise NotAllowedError if the token has characters that no request can carry; it is not shown."""
    from huggingface_hub import get_token

    token = get_token()
    if token is not None and not (token.isascii() and token.isprintable()):
        raise NotAllowedError(
            "The token of the Hub has characters that no token has.", "Set HF_TOKEN again, or run `hf auth login`."
        )


def _when(error: HfHubHTTPError) -> str:
    """Return a hint that says when to try again, from the response if it says so."""
    wait = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    return f"Try again in {wait} seconds." if wait.isdecimal() else "Try again later."


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise the original error of huggingface_hub if transformers turned it into a plain OSError."""
    from huggingface_hub import errors

    try:
        yield
    except OSError as error:
        if type(error) is OSError and isinstance(error.__cause__, errors.HfHubHTTPError | errors.EntryNotFoundError):
            raise error.__cause__ from error.__cause__.__cause__
        raise


@dataclass(frozen=True)
class HubRepo:
    """A repository at a commit.

    Attributes:
        id: owner/name.
        commit: hash of the commit.
        files: names of all files.
        root: the local snapshot folder, where fetched files appear.
        sizes: bytes of all files, by name.
    """

    id: str
    commit: str
    files: list[str]
    root: Path
    sizes: Mapping[str, int]

    @classmethod
    def find(cls, repo: str, revision: str | None) -> HubRepo:
        """Resolve a revision and list its files; see `hub_errors` for the errors."""
        from huggingface_hub import HfApi, constants
        from huggingface_hub.file_download import repo_folder_name

        with hub_errors(repo):
            info = HfApi(library_name="hlwq").model_info(repo, revision=revision, files_metadata=True)
        commit = info.sha or "main"
        sizes = {s.rfilename: s.size for s in sorted(info.siblings or [], key=lambda s: s.rfilename)}
        _check_names(repo, commit, sizes)
        folder = repo_folder_name(repo_id=repo, repo_type="model")
        root = Path(constants.HF_HUB_CACHE) / folder / "snapshots" / commit
        known = {name: size if isinstance(size, int) and size > 0 else 0 for name, size in sizes.items()}
        return cls(repo, commit, list(known), root, known)

    def fetch(self, file: str, folder: Path | None = None) -> Path:
        """Download a file into the cache, or into `folder`, unless it is there, and return its path."""
        from huggingface_hub import hf_hub_download

        with hub_errors(self.id):
            return Path(hf_hub_download(self.id, file, revision=self.commit, library_name="hlwq", local_dir=folder))

    def header(self, file: str) -> dict[str, TensorInfo]:
        """The tensors of a safetensors file, from its first bytes only."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

        from .safetensors_file import LARGEST_HEADER, parse_header

        url = hf_hub_url(self.id, file, revision=self.commit)
        headers = build_hf_headers(library_name="hlwq")

        def get(first: int, last: int) -> tuple[bytes, int]:
            asked = {**headers, "Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
            with get_session().stream("GET", url, headers=asked, follow_redirects=True) as response:
                if response.is_error:
                    response.read()  # the message of the error
                hf_raise_for_status(response)
                return _part(response, first, last, file)

        with hub_errors(self.id):
            start, size = get(0, 2**17 - 1)
            length = int.from_bytes(start[:8], "little")
            if 8 + length > len(start) and length <= LARGEST_HEADER:
                start += get(len(start), 8 + length - 1)[0]
        if len(start) < 8 + length:
            raise CorruptError(f"{file} is cut short or is not a safetensors file.", "Fetch it again.")
        return parse_header(start[8 : 8 + length], file, size)[0]


def _check_names(repo: str, commit: str, names: Iterable[str]) -> None:
    """Refuse names that would be paths outside the folder: the answer may come from a mirror."""
    for name in (commit, *names):
        if not is_inside(name):
            raise CorruptError(f"The Hub lists the file {name!r} in {repo}.", "Do not trust this repository.")


def _part(response: Any, first: int, last: int, file: str) -> tuple[bytes, int]:
    """Return bytes `first` to `last` of a streamed file, and the size of the whole file.

    A server that does not know ranges sends the file from its start; no more of it is read than is needed.
    """
    knows_ranges = response.status_code == 206
    skipped, wanted = (0 if knows_ranges else first), last + 1 - first
    data = bytearray()
    for chunk in response.iter_raw(2**16):
        data += chunk
        if len(data) >= skipped + wanted:
            break
    said = response.headers.get("Content-Range" if knows_ranges else "Content-Length", "").rpartition("/")[2]
    if not said.isdecimal():
        raise CorruptError(f"The Hub does not say how large {file} is.", "Try again later.")
    return bytes(data[skipped : skipped + wanted]), int(said)


def ask_once(repo: str, revision: str | None) -> None:
    """Find a repository of which nothing is kept here; where there is no network transformers would ask for a minute.

    Raises:
        HlwqError: see `hub_errors`.
    """
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(repo, "config.json", revision=revision), str):
        HubRepo.find(repo, revision)
