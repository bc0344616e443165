"""From a request to a reply, for everything huggingface_hub sends when it writes.

Strict: a token of the right account, hashes that are true, parts that are whole and named by their ETags, a parent that
is the head, files that have arrived before a commit names them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from .replies import Reply, error, json_reply
from .store import LFS_SUFFIXES, Account, Blob, Repo, new_repo

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_UPLOAD = re.compile(rf"/upload/{_REPO}/(?P<oid>[0-9a-f]{{64}})(?:/(?P<part>\d+))?")
_ROUTES = {
    "create": re.compile(r"/api/repos/create"),
    "card": re.compile(r"/api/validate-yaml"),
    "branch": re.compile(rf"/api/models/{_REPO}/branch/(?P<revision>[^/]+)"),
    "preupload": re.compile(rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)"),
    "commit": re.compile(rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)"),
    "paths": re.compile(rf"/api/models/{_REPO}/paths-info/(?P<revision>[^/]+)"),
    "batch": re.compile(rf"/{_REPO}\.git/info/lfs/objects/batch"),
    "verify": re.compile(rf"/{_REPO}\.git/info/lfs/objects/verify"),
    "complete": re.compile(rf"/{_REPO}\.git/info/lfs/complete/(?P<oid>[0-9a-f]{{64}})"),
}
_LICENCES = {"apache-2.0", "mit", "gemma", "llama3", "cc0-1.0", "other", "unknown"}


@dataclass
class Writes:
    """The side of the Hub that takes things in.

    Attributes:
        repos: by id, shared with the side that gives.
        accounts: by token.
        endpoint: of the Hub; `storage` is another host name.
        part_size: files larger than this are asked for in parts; None is never.
        arrived: hashes of large files in the order in which they were whole.
    """

    repos: dict[str, Repo]
    accounts: dict[str, Account]
    endpoint: str
    storage: str
    part_size: int | None = None
    arrived: list[str] = field(default_factory=list)
    _parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    _folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="hlwq-hub-objects-")))

    def who(self, token: str) -> Reply:
        """What /api/whoami-v2 says."""
        account = self.accounts.get(token)
        if account is None:
            return error(401, "", "Invalid credentials in Authorization header")
        organizations = [{"name": o, "type": "org"} for o in account.organizations]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": account.role}}
        return json_reply({"type": "user", "name": account.name, "orgs": organizations, "auth": auth})

    def answer(self, target: str, token: str, body: bytes) -> Reply:
        """The reply to a POST."""
        parts = urlsplit(target)
        routes = ((n, m) for n, pattern in _ROUTES.items() if (m := pattern.fullmatch(parts.path)))
        name, match = next(routes, ("", None))
        if match is None:
            return error(404, "", "Sorry, we can't find the page you are looking for.")
        if name == "card":
            return _validated(json.loads(body))
        found = {k: unquote(v) for k, v in match.groupdict().items()}
        if name == "complete":  # signed, not authorised
            signed = parse_qs(parts.query).get("signature") == ["s1gned"] and not token
            repo = self.repos[found["repo"]]
            return self._complete(repo, found["oid"], body) if signed else error(403, "", "SignatureDoesNotMatch")
        account = self.accounts.get(token)
        if account is None:
            return error(401, "", "Invalid credentials in Authorization header")
        if name == "create":
            return self._create(json.loads(body), account)
        pr = parse_qs(parts.query).get("create_pr") == ["1"]
        target_repo = self.repos.get(found["repo"])
        if target_repo is None:
            return error(404, "RepoNotFound", "Repository not found")
        if not (account.may_write(target_repo.id) or pr or name in ("batch", "verify", "paths")):
            return error(403, "", "You don't have the rights to write to this repository")
        reply: Reply = getattr(self, f"_{name}")(target_repo, found, body, pr)
        return reply

    def _create(self, asked: dict[str, Any], account: Account) -> Reply:
        repo = f"{asked['organization'] or account.name}/{asked['name']}"
        if asked.get("visibility") not in ("private", "public"):
            return error(400, "", "visibility must be said")
        if not account.may_write(repo):
            return error(403, "", f"You don't have the rights to create a model under the namespace {repo}")
        if repo in self.repos:
            return error(409, "", "You already created this model repo")
        self.repos[repo] = new_repo(repo, private=asked["visibility"] == "private")
        return json_reply({"url": f"{self.endpoint}/{repo}", "name": repo})

    def _branch(self, repo: Repo, found: dict[str, str], body: bytes, pr: bool) -> Reply:
        if found["revision"] in repo.revisions:
            return error(409, "", "Reference already exists")
        start = repo.resolve(json.loads(body).get("startingPoint", "main"))
        if start is None:
            return error(404, "RevisionNotFound", "Invalid rev id")
        repo.revisions[found["revision"]] = repo.revisions[start]
        return json_reply({})

    def _preupload(self, repo: Repo, found: dict[str, str], body: bytes, pr: bool) -> Reply:
        revision = repo.resolve(found["revision"])
        if revision is None:
            return error(404, "RevisionNotFound", "Invalid rev id")
        there, files = repo.blobs(revision), []
        for file in json.loads(body)["files"]:
            base64.b64decode(file["sample"], validate=True)
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) or file["size"] > 10_000_000 else "regular"
            entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in there:
                entry["oid"] = there[file["path"]].etag
            files.append(entry)
        return json_reply({"files": files})

    def _batch(self, repo: Repo, found: dict[str, str], body: bytes, pr: bool) -> Reply:
        asked = json.loads(body)
        assert asked["operation"] == "upload"
        assert asked["hash_algo"] == "sha256"
        return json_reply({"transfer": "basic", "objects": [self._action(repo, o) for o in asked["objects"]]})

    def _action(self, repo: Repo, wanted: dict[str, Any]) -> dict[str, Any]:
        oid, size = wanted["oid"], wanted["size"]
        if repo.holds(oid, size):
            return {"oid": oid, "size": size}
        verify = {"href": f"{self.endpoint}/{repo.id}.git/info/lfs/objects/verify"}
        place = f"{self.storage}/upload/{repo.id}/{oid}"
        if self.part_size is None or size <= self.part_size:
            upload: dict[str, Any] = {"href": f"{place}?signature=s1gned"}
        else:
            count = -(-size // self.part_size)
            urls = {f"{i:05d}": f"{place}/{i}?signature=s1gned" for i in range(1, count + 1)}
            href = f"{self.endpoint}/{repo.id}.git/info/lfs/complete/{oid}?signature=s1gned"
            upload = {"href": href, "header": {"chunk_size": str(self.part_size), **urls}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def take(self, target: str, token: str, body: bytes) -> Reply:
        """The reply to a PUT to storage."""
        parts = urlsplit(target)
        match = _UPLOAD.fullmatch(parts.path)
        if not match or parse_qs(parts.query).get("signature") != ["s1gned"]:
            return error(403, "", "SignatureDoesNotMatch")
        if token:
            return error(400, "", "Only one auth mechanism allowed")
        if match["part"]:
            self._parts[match["oid"], int(match["part"])] = body
            return Reply(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        return self._keep(self.repos[match["repo"]], match["oid"], body)

    def _keep(self, repo: Repo, oid: str, data: bytes) -> Reply:
        if hashlib.sha256(data).hexdigest() != oid:
            return error(400, "", "The hash of what was sent is not its name")
        path = self._folder / oid
        path.write_bytes(data)
        repo.objects[oid] = path
        self.arrived.append(oid)
        return Reply(200, b"", {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})

    def _complete(self, repo: Repo, oid: str, body: bytes) -> Reply:
        asked, data = json.loads(body), b""
        for number, part in enumerate(asked["parts"], 1):
            piece = self._parts.pop((oid, number), None)
            if piece is None or part != {"partNumber": number, "etag": f'"{hashlib.md5(piece).hexdigest()}"'}:
                return error(400, "", "InvalidPart")
            data += piece
        return self._keep(repo, oid, data)

    def _verify(self, repo: Repo, found: dict[str, str], body: bytes, pr: bool) -> Reply:
        asked = json.loads(body)
        return json_reply({}) if repo.holds(asked["oid"], asked["size"]) else error(404, "", "Object not found")

    def _paths(self, repo: Repo, found: dict[str, str], body: bytes, pr: bool) -> Reply:
        wanted = set(parse_qs(body.decode())["paths"])
        return json_reply([e for e in repo.tree(found["revision"]) if e["path"] in wanted])

    def _commit(self, repo: Repo, found: dict[str, str], body: bytes, pr: bool) -> Reply:
        lines = [json.loads(line) for line in body.decode().splitlines()]
        header = lines[0]["value"]
        revision = repo.resolve(found["revision"])
        if revision is None:
            return error(404, "RevisionNotFound", "Invalid rev id")
        if header.get("parentCommit", repo.commit(revision)) != repo.commit(revision):
            return error(412, "", "A commit has happened since. Please refresh and try again.")
        values = {key: [e["value"] for e in lines if e["key"] == key] for key in ("file", "lfsFile", "deletedFile")}
        there = repo.blobs(revision)
        if any(v["path"] not in there for v in values["deletedFile"]):
            return error(404, "EntryNotFound", "A file with this name doesn't exist")
        if not all(repo.holds(v["oid"], v["size"]) for v in values["lfsFile"]):
            return error(400, "", "LFS pointer pointed to a file that does not exist")
        if any(Blob(Path(v["path"])).is_lfs for v in values["file"]):
            return error(400, "", "Files of this kind go to large file storage")
        repo.pulls += pr
        target = f"refs/pr/{repo.pulls}" if pr else revision
        commit = repo.write(
            revision,
            {v["path"]: base64.b64decode(v["content"], validate=True) for v in values["file"]},
            {v["path"]: v["oid"] for v in values["lfsFile"]},
            [v["path"] for v in values["deletedFile"]],
            target,
        )
        reply = {"success": True, "commitOid": commit, "commitUrl": f"{self.endpoint}/{repo.id}/commit/{commit}"}
        if pr:
            reply["pullRequestUrl"] = f"{self.endpoint}/{repo.id}/discussions/{repo.pulls}"
        return json_reply(reply)


def _validated(asked: dict[str, Any]) -> Reply:
    """The checks of a model card's head that the Hub is known to make."""
    match = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
    front = yaml.safe_load(match[1]) if match else None
    problems = [] if isinstance(front, dict) else ["The card has no head"]
    if isinstance(front, dict):
        if front.get("license", "unknown") not in _LICENCES:
            problems.append('"license" must be one of the known ones')
        if front.get("base_model_relation") not in (None, "quantized", "finetune", "adapter", "merge"):
            problems.append('"base_model_relation" is unknown')
        if not all(isinstance(t, str) for t in front.get("tags", [])):
            problems.append('"tags" must be strings')
    body = {"errors": [{"message": p} for p in problems], "warnings": []}
    return Reply(400 if problems else 200, json.dumps(body).encode(), {"Content-Type": "application/json"})
