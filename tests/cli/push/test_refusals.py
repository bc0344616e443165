"""`hlwq push` against a real HTTP server that refuses, fails or disconnects: messages, and what is kept."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.push.push_command import REPO, TOKEN, push_json, remote_files
from tests.cli.run_command import CommandResult, assert_refused, environment, hlwq, start
from tests.support.files import tree
from tests.support.hub_server import HubServer

# huggingface_hub uploads with a method that its HTTP client has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_wrong_byte_is_found_before_any_request(account: HubServer, folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert_refused(hlwq("push", folder, REPO), 1, f"{path.name} does not match the manifest", "nothing was sent")
    assert account.requests == []


def test_unfinished_folder_is_refused(account: HubServer, folder: Path) -> None:
    (folder / "hlwq_manifest.json").rename(folder / ".hlwq_run.jsonl")
    assert_refused(hlwq("push", folder, REPO), 3, "holds an unfinished run.")
    assert account.requests == []


def test_missing_token_exits_with_4(hub: HubServer, folder: Path) -> None:
    assert_refused(hlwq("push", folder, REPO), 4, "Pushing needs a token.")


def test_unknown_token_exits_with_4(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ran = hlwq("push", folder, REPO)
    assert_refused(ran, 4, f"The Hub does not let you write to {REPO}.")
    assert TOKEN not in ran.err


def test_read_only_token_exits_with_4(account: HubServer, folder: Path) -> None:
    account.login(TOKEN, "ann", "read")
    assert_refused(hlwq("push", folder, REPO), 4, "The token is read-only.")


def test_repository_of_another_user_exits_with_4(account: HubServer, folder: Path) -> None:
    assert_refused(hlwq("push", folder, "bob/model"), 4, "The Hub does not let you write to bob/model.")


def test_invalid_repository_id_exits_with_2(account: HubServer, folder: Path) -> None:
    assert_refused(hlwq("push", folder, "model"), 2, "Write owner/name.")
    assert_refused(hlwq("card", folder, "--repo", "model"), 2, "Write owner/name.")


@pytest.mark.parametrize("where", ["POST .*/repos/create", "POST .*/commit/", "GET /api/whoami"])
@pytest.mark.parametrize(("status", "code"), [(401, 4), (403, 4), (404, 1), (429, 1), (500, 1)])
def test_http_errors_are_reported_with_their_exit_code(
    account: HubServer, folder: Path, where: str, status: int, code: int
) -> None:
    account.fail(where, status, Retry_After="70")  # longer than a push waits
    ran = hlwq("push", folder, REPO)
    assert_refused_after_lines(ran, code, f"write to {REPO}" if code == 4 else f"The Hub answered {status} for {REPO}.")
    assert code == 4 or "Try again in 70 seconds." in ran.err
    assert "Unexpected" not in ran.err
    assert TOKEN not in ran.err
    assert REPO not in account.repos or remote_files(account) == {}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("where", ["GET /api/whoami", "GET /api/models", "POST .*/repos/create", "POST .*/commit/"])
def test_requests_are_retried_while_the_hub_is_busy(account: HubServer, folder: Path, where: str, status: int) -> None:
    account.fail(where, status, times=2, Retry_After="0")
    push_json(folder, REPO)
    assert remote_files(account) == tree(folder)


def test_uploads_are_retried_after_a_failure(account: HubServer, folder: Path) -> None:
    account.fail("PUT /upload/", 429, times=1, Retry_After="0")
    account.cut("PUT /upload/", 1000)
    push_json(folder, REPO)
    assert remote_files(account) == tree(folder)


def test_interrupted_push_resumes_with_the_missing_files(account: HubServer, folder: Path) -> None:
    last = sorted(folder.glob("*.safetensors"))[-1]
    oid = tree(folder)[last.name]
    account.fail(f"PUT .*{oid}", 418)
    ran = hlwq("push", folder, REPO)
    assert_refused_after_lines(ran, 1, "The Hub answered 418")
    assert "signature" not in ran.err
    assert remote_files(account) == {}
    sent = list(account.writes.arrived)
    assert sent
    account._faults.clear()
    push_json(folder, REPO)
    assert remote_files(account) == tree(folder)
    assert len(set(account.writes.arrived)) == len(account.writes.arrived)


def assert_refused_after_lines(ran: CommandResult, code: int, *says: str) -> None:
    """Check a refusal that follows lines of progress."""
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.splitlines()[-2].startswith("Error: ")
    assert all(text in ran.err for text in says), ran.err


def test_killed_push_resumes_and_readers_never_see_a_part(account: HubServer, folder: Path) -> None:
    last = sorted(folder.glob("*.safetensors"))[-1]
    account.delay(f"PUT .*{tree(folder)[last.name]}", 60)
    env = environment(HF_TOKEN=TOKEN)
    process = start("push", folder, REPO, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shards = len([*folder.glob("*.safetensors")])
    deadline = time.monotonic() + 60
    while len(account.writes.arrived) < shards - 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert remote_files(account) == {}
    before = set(account.writes.arrived)
    assert len(before) >= shards - 1
    account._delays.clear()
    account.requests.clear()
    push_json(folder, REPO)
    assert remote_files(account) == tree(folder)
    assert not [line for line in account.written() if line.startswith("PUT") and any(oid in line for oid in before)]
