"""From a request to a reply, for everything huggingface_hub asks when it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from .replies import Reply, error, file_reply, json_reply
from .store import Repo

_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?(?:/.*)?")
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_STORAGE = re.compile(r"/storage/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass(frozen=True)
class Asked:
    """A request, taken apart."""

    path: str
    query: Mapping[str, list[str]]
    range: str
    token: str

    @classmethod
    def parse(cls, target: str, headers: Mapping[str, str]) -> Asked:
        parts = urlsplit(target)
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        return cls(parts.path, parse_qs(parts.query), headers.get("Range", ""), token)


def answer(repos: Mapping[str, Repo], tokens: set[str], storage: str, asked: Asked) -> Reply:
    """The reply to a request that reads.

    Args:
        repos: repositories by id.
        tokens: that are known, and have accepted every gate.
        storage: address of the host that serves large files.
        asked: the request.
    """
    if match := _STORAGE.fullmatch(asked.path):
        return _stored(repos, match, asked)
    match = _API.fullmatch(asked.path) or _RESOLVE.fullmatch(asked.path)
    if not match:
        return error(404, "", "Sorry, we can't find the page you are looking for.")
    repo = repos.get(unquote(match["repo"]))
    refusal = _refusal(repo, asked.token, tokens, is_file="file" in match.groupdict())
    if repo is None or refusal is not None:
        return refusal or error(404, "RepoNotFound", "Repository not found")
    revision = repo.resolve(unquote(match["revision"] or "main"))
    if revision is None:
        return error(404, "RevisionNotFound", f"Invalid rev id: {unquote(match['revision'])}")
    if "file" in match.groupdict():
        return _resolve(repo, revision, unquote(match["file"]), storage, asked)
    if match["what"] == "tree":
        return json_reply(repo.tree(revision))
    return json_reply(repo.info(revision, "blobs" in asked.query), {"X-Repo-Commit": repo.commit(revision)})


def _refusal(repo: Repo | None, token: str, tokens: set[str], is_file: bool) -> Reply | None:
    """The Hub answers 401 to strangers for what does not exist, so as not to tell what does."""
    if repo is None or (repo.private and token not in tokens):
        return error(404 if token else 401, "RepoNotFound", "Repository not found")
    if repo.gated and is_file and token not in tokens:
        return error(403 if token else 401, "GatedRepo", f"Access to model {repo.id} is restricted.")
    return None


def _resolve(repo: Repo, revision: str, file: str, storage: str, asked: Asked) -> Reply:
    commit = repo.commit(revision)
    blob = repo.blobs(revision).get(file)
    if blob is None:
        reply = error(404, "EntryNotFound", "Entry not found")
        return Reply(reply.status, reply.body, reply.headers | {"X-Repo-Commit": commit})
    headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"'}
    if not blob.is_lfs:
        return file_reply(blob, asked.range, headers)
    linked = {"X-Linked-Size": str(blob.size), "X-Linked-ETag": f'"{blob.etag}"'}
    location = f"{storage}/storage/{repo.id}/{commit}/{file}"
    return Reply(302, b"Found. Redirecting", headers | linked | {"Location": location})


def _stored(repos: Mapping[str, Repo], match: re.Match[str], asked: Asked) -> Reply:
    repo = repos[match["repo"]]
    blob = repo.blobs(repo.resolve(match["revision"]) or "main")[unquote(match["file"])]
    return file_reply(blob, asked.range, {"ETag": f'"{blob.etag}"'})
