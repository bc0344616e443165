"""`hlwq push` against a real HTTP server: what is sent, what is not sent again, and what stays unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.checkpoint import load_recipe, quantize
from hlwq_cli.checkpoint.format import read_manifest, write_file
from hlwq_cli.checkpoint.io import locked_folder
from hlwq_cli.hub.push import push
from hlwq_cli.progress import Progress
from tests.cli.push.push_command import REPO, TOKEN, push_json, remote_files
from tests.cli.run_command import assert_refused, environment, hlwq, hlwq_process
from tests.support.builders import LLAMA, dense, save_tensors
from tests.support.files import read_json, tree
from tests.support.hub_server import HubServer

# huggingface_hub uploads with a method that its HTTP client has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
MANIFEST = "hlwq_manifest.json"
CARDS = {"README.md", MANIFEST}


def test_folder_arrives_byte_for_byte_in_a_private_repository(account: HubServer, folder: Path) -> None:
    found = push_json(folder, REPO)
    assert remote_files(account) == tree(folder)
    assert account.repos[REPO].private
    assert (found["created"], found["private"], found["unchanged"]) == (True, True, 0)
    assert found["url"] == f"{account.endpoint}/{REPO}"
    assert hlwq("inspect", REPO, "--verify", "-q").out == "ok\n"
    assert f'from_pretrained("{REPO}")' in (folder / "README.md").read_text()
    assert hlwq("inspect", folder, "--verify", "-q").out == "ok\n"


def test_pushed_manifest_states_every_hash_and_so_does_the_folders(account: HubServer, folder: Path) -> None:
    unstated = [f["name"] for f in read_json(folder / MANIFEST)["files"] if f["sha256"] is None]
    assert unstated == sorted(p.name for p in folder.glob("*.safetensors"))
    push_json(folder, REPO)
    published = account.repos[REPO].revisions["main"] / MANIFEST
    on_disk = tree(folder)
    del on_disk[MANIFEST]
    for manifest in (read_json(published), read_json(folder / MANIFEST)):
        assert {f["name"]: f["sha256"] for f in manifest["files"]} == on_disk


def test_progress_of_hashing_ends_with_its_total(account: HubServer, folder: Path) -> None:
    for _ in range(2):  # the second time all hashes are stated
        events: list[Progress] = []
        push(folder, REPO, progress=events.append)
        hashing = [e for e in events if e.stage == "hashing"]
        (total,) = {e.total for e in hashing}
        manifest = read_manifest(folder)
        shards = sum(f.size for f in manifest.files if f.is_shard)
        assert total > shards + manifest.coded_bytes + manifest.kept_bytes
        assert [e.done for e in hashing] == sorted({e.done for e in hashing})
        assert hashing[-1].done == total


def test_checkpoint_uploaded_by_another_tool_gets_its_hashes(
    account: HubServer, folder: Path, copied: Callable[[Path], Path]
) -> None:
    account.publish(REPO, copied(folder))
    assert set(push_json(folder, REPO)["sent"]) == CARDS  # type: ignore[arg-type]
    assert remote_files(account) == tree(folder)
    assert None not in [f["sha256"] for f in read_json(folder / MANIFEST)["files"]]


def test_shard_changed_on_the_hub_is_a_conflict(
    account: HubServer, folder: Path, copied: Callable[[Path], Path]
) -> None:
    account.publish(REPO, copied(folder))
    shard = sorted(p.name for p in folder.glob("*.safetensors"))[0]
    path, before = account.repos[REPO].revisions["main"] / shard, tree(folder)
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert_refused(hlwq("push", folder, REPO), 5, shard, "was changed since the last push", "--overwrite")
    assert tree(folder) == before
    push_json(folder, REPO, "--overwrite")
    assert remote_files(account) == tree(folder)


def test_repository_is_public_with_the_option(account: HubServer, folder: Path) -> None:
    push_json(folder, REPO, "--public")
    assert not account.repos[REPO].private


def test_quiet_result_is_the_url(account: HubServer, folder: Path) -> None:
    assert hlwq("push", folder, REPO, "-q").out == f"{account.endpoint}/{REPO}\n"


def test_large_files_are_uploaded_in_parts(account: HubServer, folder: Path) -> None:
    account.writes.part_size = 50_000
    push_json(folder, REPO)
    assert remote_files(account) == tree(folder)
    assert any("/complete/" in line for line in account.written())


def test_second_push_sends_nothing(account: HubServer, folder: Path) -> None:
    push_json(folder, REPO)
    account.requests.clear()
    found = push_json(folder, REPO)
    assert (found["sent"], found["sent_bytes"]) == ([], 0)
    assert account.written() == []


def test_changed_card_sends_the_card_and_the_manifest_that_names_its_hash(account: HubServer, folder: Path) -> None:
    push_json(folder, REPO)
    with (folder / "README.md").open("a") as f:
        f.write("A note of mine.\n")
    assert_refused(hlwq("push", folder, REPO), 1, "README.md does not match the manifest", "hlwq card")
    assert hlwq("card", folder, "--repo", REPO).code == 0
    account.requests.clear()
    assert set(push_json(folder, REPO)["sent"]) == CARDS  # type: ignore[arg-type]
    assert remote_files(account)["README.md"] == tree(folder)["README.md"]
    assert not [line for line in account.written() if line.startswith("PUT")]


def test_dry_run_writes_nothing_to_hub_or_folder(account: HubServer, folder: Path) -> None:
    before = tree(folder)
    found = push_json(folder, REPO, "--dry-run")
    assert set(found["sent"]) == set(before)  # type: ignore[call-overload]
    assert (account.written(), account.repos, tree(folder)) == ([], {}, before)


def test_card_changed_on_the_hub_is_a_conflict(account: HubServer, folder: Path) -> None:
    push_json(folder, REPO)
    repo = account.repos[REPO]
    repo.write("main", {"README.md": b"---\nlicense: mit\n---\nMine.\n"}, {}, [], "main")
    before = remote_files(account)
    assert_refused(hlwq("push", folder, REPO), 5, "README.md", "was changed since the last push", "--overwrite")
    assert remote_files(account) == before
    push_json(folder, REPO, "--overwrite")
    assert remote_files(account) == tree(folder)


def test_other_checkpoint_is_a_conflict_and_overwriting_removes_it(account: HubServer, tmp_path: Path) -> None:
    model = save_tensors(tmp_path / "m", dense(4, width=256), LLAMA)
    for bits in (5, 4):
        quantize(str(model), tmp_path / str(bits), load_recipe(bits=bits), max_shard_bytes=(9 - bits) * 30_000)
    push_json(tmp_path / "5", REPO)
    assert_refused(hlwq("push", tmp_path / "4", REPO), 5, "has another checkpoint, which differs in", "--overwrite")
    push_json(tmp_path / "4", REPO, "--overwrite")
    assert remote_files(account) == tree(tmp_path / "4")


def test_other_files_are_a_conflict_only_if_a_push_replaces_them(
    account: HubServer, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "notes.txt").write_text("theirs")
    account.publish(REPO, tmp_path / "theirs")
    push_json(folder, REPO)
    assert remote_files(account) == tree(folder) | tree(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text("{}")
    account.publish("ann/taken", tmp_path / "theirs")
    assert_refused(hlwq("push", folder, "ann/taken"), 5, "which hlwq did not push.")


def test_new_branch_has_none_of_mains_files(account: HubServer, folder: Path, tmp_path: Path) -> None:
    push_json(folder, REPO)
    other = save_tensors(tmp_path / "m", dense(), LLAMA)
    quantize(str(other), tmp_path / "four", load_recipe(bits=4))
    main = remote_files(account)
    found = push_json(tmp_path / "four", REPO, "--revision", "four")
    assert remote_files(account, "four") == tree(tmp_path / "four")
    assert remote_files(account) == main
    assert found["url"] == f"{account.endpoint}/{REPO}/tree/four"


def test_pull_request_does_not_change_main(account: HubServer, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "README.md").write_text("theirs")
    account.publish("bob/model", tmp_path / "theirs")
    found = push_json(folder, "bob/model", "--pr")
    assert found["url"] == f"{account.endpoint}/bob/model/discussions/1"
    assert remote_files(account, repo="bob/model") == tree(tmp_path / "theirs")
    assert remote_files(account, "refs/pr/1", "bob/model") == tree(folder)
    assert_refused(hlwq("push", folder, "bob/none", "--pr"), 3, "There is no repository bob/none")


def test_gated_base_model_gives_a_warning_and_its_licence(account: HubServer, tmp_path: Path) -> None:
    base = save_tensors(tmp_path / "base", dense(), LLAMA)
    (base / "README.md").write_text("---\nlicense: gemma\n---\n# Base\n")
    account.publish("owner/base", base, gated=True)
    quantize(str(base), tmp_path / "out", load_recipe(), base_model="owner/base")
    ran = hlwq("push", tmp_path / "out", REPO)
    assert ran.code == 0, ran.err
    assert "owner/base is gated" in ran.err
    assert "\nlicense: gemma\n" in (tmp_path / "out" / "README.md").read_text()


def test_token_is_never_printed_or_written(account: HubServer, folder: Path) -> None:
    ran = hlwq_process("push", folder, REPO, env=environment(HF_TOKEN=TOKEN, HLWQ_DEBUG="1"))
    assert ran.code == 0, ran.err
    account.fail("GET /api/models", 500)
    failed = hlwq_process("push", folder, REPO, env=environment(HF_TOKEN=TOKEN, HLWQ_DEBUG="1"))
    assert "Traceback" in failed.err
    assert TOKEN not in ran.out + ran.err + failed.out + failed.err
    assert not [p for p in folder.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


def test_card_is_valid_for_the_hub(account: HubServer, folder: Path) -> None:
    from huggingface_hub import ModelCard

    push_json(folder, REPO)
    assert [r.status for r in account.requests if r.path == "/api/validate-yaml"] == [200]
    assert ModelCard.load(folder / "README.md").data.library_name == "transformers"


def test_saved_figures_are_pushed_and_the_pushed_model_gives_the_same(account: HubServer, tmp_path: Path) -> None:
    from hlwq_cli import HLWQModel
    from hlwq_cli.samples import resolve_model

    out, text = tmp_path / "out", ("--data", "sample", "--window", "64", "--windows", "1", "--kld", "--ref", "sample")
    quantize(resolve_model("sample"), out, load_recipe())
    assert "Fidelity" not in (out / "README.md").read_text()
    ran = hlwq("bench", out, *text, "--save", "--json")
    assert ran.code == 0, ran.err
    card = (out / "README.md").read_text()
    kld = json.loads(ran.out)["report"]["measured"][0]["divergence"]["mean"]
    for part in ("## Fidelity", "protocol paper: sample/addresses", f"{kld:.5f}", "hlwq_bench.png"):
        assert part in card
    assert str(tmp_path) not in card + (out / "hlwq_bench.json").read_text()
    assert hlwq("inspect", out, "--verify", "-q").out == "ok\n"
    push_json(out, REPO)
    again = hlwq("bench", REPO, *text, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["report"]["measured"][0]["divergence"]["mean"] == kld
    answers = [HLWQModel.from_pretrained(p).generate("We are", max_new_tokens=8) for p in (REPO, str(out))]
    assert answers[0] == answers[1] != ""
    assert hlwq("quantize", REPO, "--dry-run").code == 1  # it is coded already


def test_card_leaves_out_figures_of_another_checkpoint(folder: Path) -> None:
    (folder / "hlwq_bench.json").write_text(json.dumps({"checkpoint": "0" * 64}))
    ran = hlwq("card", folder)
    assert ran.code == 0
    assert "measured on another checkpoint" in ran.err
    assert "Fidelity" not in (folder / "README.md").read_text()


def test_card_written_again_has_the_same_bytes(folder: Path) -> None:
    before = tree(folder)
    assert hlwq("card", folder).out == f"{folder / 'README.md'}: unchanged.\n"
    assert tree(folder) == before


def test_push_killed_between_card_and_manifest_continues(
    account: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder then holds the former card, and a manifest that states the hash of the new one."""

    class Killed(BaseException):
        pass

    def write_until_the_card(path: Path, data: bytes) -> None:
        if path.name == "README.md":
            raise Killed
        write_file(path, data)

    with monkeypatch.context() as patched:
        patched.setattr("hlwq_cli.hub.card.write_file", write_until_the_card)
        with pytest.raises(Killed):
            push(folder, REPO)
    assert hlwq("inspect", folder, "--verify").code == 6
    assert account.written() == []
    push_json(folder, REPO)
    assert remote_files(account) == tree(folder)
    assert hlwq("inspect", folder, "--verify").code == 0


def test_push_from_a_folder_that_another_process_writes_into_is_refused(account: HubServer, folder: Path) -> None:
    before = tree(folder)
    with locked_folder(folder):
        assert_refused(hlwq("push", folder, REPO), 5, "Another process of hlwq writes into")
        assert hlwq("push", folder, REPO, "--dry-run").code == 0
    assert tree(folder) == before
