"""What the Hub refuses, lacks or fails to answer: a message, the right exit code, no output and no token."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.run_command import CommandResult, assert_refused, environment, hlwq, hlwq_process
from tests.support.builders import tiny_llama
from tests.support.files import edit_header
from tests.support.hub_server import HubServer

TOKEN = "hf_" + "s3cr3t" * 6


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "m")


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Check that quantize, its dry run and inspect refuse a repository, with and without a token."""

    def check(repo: str, code: int, *says: str, options: tuple[str, ...] = ()) -> None:
        out = tmp_path / "out"
        for token in ("", TOKEN):
            monkeypatch.setenv("HF_TOKEN", token)
            runs: list[CommandResult] = [
                hlwq("quantize", repo, out, *options),
                hlwq("quantize", repo, "--dry-run", *options),
                hlwq("inspect", repo, *options),
            ]
            for ran in runs:
                assert_refused(ran, code, *says)
                assert TOKEN not in ran.err
        assert not out.exists()

    return check


Refused = Callable[..., None]


def test_unknown_repository_exits_with_3(hub: HubServer, refused: Refused) -> None:
    refused("nobody/nothing", 3, "There is no repository nobody/nothing")


def test_private_repository_of_another_user_exits_with_3(hub: HubServer, refused: Refused, model: Path) -> None:
    hub.publish("tests/private", model, private=True)
    refused("tests/private", 3, "There is no repository tests/private, or you have no access to it.")


def test_gated_repository_exits_with_4(hub: HubServer, refused: Refused, model: Path) -> None:
    hub.publish("tests/gated", model, gated=True)
    refused("tests/gated", 4, "tests/gated is gated.", "Accept its terms at https://huggingface.co/tests/gated")


@pytest.mark.parametrize("revision", ["v9", "0" * 40, "refs/pr/1", "../../x"])
def test_unknown_revision_exits_with_3(hub: HubServer, refused: Refused, model: Path, revision: str) -> None:
    hub.publish("tests/revision", model)
    refused("tests/revision", 3, "has no such revision.", "--revision", options=("--revision", revision))


@pytest.mark.parametrize("repo", ["owner/na..me", "owner/name.git", "owner/na--me", "owner/-name", "o/" + "n" * 100])
def test_invalid_repository_id_is_refused(hub: HubServer, repo: str, tmp_path: Path) -> None:
    ran = hlwq("quantize", repo, tmp_path / "out")
    assert_refused(ran, ran.code)
    assert ran.code in (2, 3)


def test_inspect_of_an_ordinary_repository_exits_with_3(hub: HubServer, model: Path) -> None:
    hub.publish("tests/plain", model)
    assert_refused(hlwq("inspect", "tests/plain"), 3, "tests/plain is not an HLWQ checkpoint")


def test_repository_without_safetensors_is_refused(hub: HubServer, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    hub.publish("tests/pickled", model)
    ran = hlwq("quantize", "tests/pickled", tmp_path / "out")
    assert_refused(ran, 1, "tests/pickled has no safetensors weights.")


def test_repository_whose_index_names_a_missing_shard_is_refused(hub: HubServer, model: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.publish("tests/missing", model)
    ran = hlwq("quantize", "tests/missing", "--dry-run")
    assert_refused(ran, 1, "tests/missing lacks model-00001-of-00002.safetensors")


def test_invalid_header_on_the_hub_is_refused(hub: HubServer, model: Path) -> None:
    def stretch(header: dict[str, dict[str, object]]) -> None:
        header["lm_head.weight"]["shape"] = [41, 128]

    edit_header(model / "model.safetensors", stretch)
    hub.publish("tests/liar", model)
    assert_refused(hlwq("quantize", "tests/liar", "--dry-run"), 1, "lm_head.weight in model.safetensors")


# huggingface_hub retries 5xx and 429 of a file for half a minute; 418, which it does not retry, replaces them here.
@pytest.mark.parametrize(
    ("where", "status"),
    [("/api/models/", 500), ("/api/models/", 503), ("/api/models/", 429), ("/resolve/.*config.json", 418)]
    + [("safetensors", status) for status in (418, 429, 500, 503)],
)
def test_http_error_exits_with_1_and_is_named(hub: HubServer, model: Path, where: str, status: int) -> None:
    repo = f"tests/broken-{status}-{len(where)}"
    hub.publish(repo, model)
    hub.fail(where, status)
    assert_refused(hlwq("quantize", repo, "--dry-run"), 1, f"The Hub answered {status} for {repo}.")


@pytest.mark.parametrize("where", ["/api/models/", "/resolve/.*config.json", "safetensors"])
def test_dropped_connection_exits_with_1(hub: HubServer, model: Path, where: str) -> None:
    repo = f"tests/dropped-{len(where)}"
    hub.publish(repo, model)
    hub.fail(where, 0)
    assert_refused(hlwq("quantize", repo, "--dry-run"), 1, f"The Hub cannot be reached for {repo}.")


def test_mirror_that_ignores_range_requests_never_ends_in_an_unexpected_error(hub: HubServer, model: Path) -> None:
    hub.publish("tests/mirror", model)
    hub.ranges = False
    ran = hlwq("quantize", "tests/mirror", "--dry-run")
    assert "Unexpected" not in ran.err
    assert ran.code in (0, 1)


def test_interrupted_download_resumes(hub: HubServer, model: Path, tmp_path: Path) -> None:
    hub.publish("tests/again", model)
    hub.fail("/storage/.*safetensors", 0)
    assert hlwq("quantize", "tests/again", tmp_path / "out").code == 1
    hub.reset()
    hub.publish("tests/again", model)
    assert hlwq("quantize", "tests/again", tmp_path / "out").code == 0


def test_missing_network_is_reported(tmp_path: Path) -> None:
    env = environment(HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="", no_proxy="", HF_TOKEN=TOKEN)
    commands: list[list[str | Path]] = [
        ["quantize", "owner/name", tmp_path / "out"],
        ["inspect", "owner/name"],
        ["bench", "owner/name", "--ppl"],
    ]
    for arguments in commands:
        ran = hlwq_process(*arguments, env=env)
        assert_refused(ran, 1, "The Hub cannot be reached for owner/name.", "Check the network")
        assert TOKEN not in ran.err
        assert "Retrying" not in ran.err
    assert not (tmp_path / "out").exists()


def test_token_is_not_in_any_traceback(tmp_path: Path) -> None:
    env = environment(HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN, HLWQ_DEBUG="1")
    ran = hlwq_process("quantize", "owner/name", tmp_path / "out", env=env)
    assert "Traceback" in ran.err
    assert TOKEN not in ran.out + ran.err


def test_offline_mode_is_reported(tmp_path: Path) -> None:
    ran = hlwq_process("quantize", "owner/name", tmp_path / "out", env=environment(HF_HUB_OFFLINE="1"))
    assert_refused(ran, 1, "The Hub cannot be reached for owner/name.")
