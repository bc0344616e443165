"""The stand-in Hub, judged by huggingface_hub itself."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.files import tree
from tests.support.hub_server import HubServer


def test_snapshot_download_gives_the_folder(hub: HubServer, coded: Callable[[str], Path]) -> None:
    from huggingface_hub import snapshot_download

    hub.publish("tests/snapshot", coded("qwen3"))
    assert tree(Path(snapshot_download("tests/snapshot"))) == tree(coded("qwen3"))


def test_model_info_and_tree_agree_on_sizes_and_hashes(hub: HubServer, coded: Callable[[str], Path]) -> None:
    from huggingface_hub import HfApi

    repo = hub.publish("tests/listed", coded("qwen3"))
    info = HfApi().model_info("tests/listed", files_metadata=True)
    entries = {e.path: e for e in HfApi().list_repo_tree("tests/listed", recursive=True)}
    assert info.sha == repo.commit("main")
    for sibling in info.siblings or []:
        assert sibling.size == entries[sibling.rfilename].size == (coded("qwen3") / sibling.rfilename).stat().st_size
        if sibling.rfilename.endswith(".safetensors"):
            assert sibling.lfs is not None
            assert sibling.lfs.sha256 == tree(coded("qwen3"))[sibling.rfilename]


def test_metadata_of_a_file_names_commit_etag_and_size(hub: HubServer, coded: Callable[[str], Path]) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    repo = hub.publish("tests/metadata", coded("qwen3"))
    path = sorted(coded("qwen3").glob("*.safetensors"))[0]
    metadata = get_hf_file_metadata(hf_hub_url("tests/metadata", path.name))
    assert (metadata.commit_hash, metadata.size) == (repo.commit("main"), path.stat().st_size)
    assert metadata.etag == tree(coded("qwen3"))[path.name]
    assert metadata.location.startswith(hub.storage)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (5, 99), (0, 10**9)])
def test_ranges_are_served(hub: HubServer, coded: Callable[[str], Path], first: int, last: int) -> None:
    from huggingface_hub import get_session

    hub.publish("tests/ranges", coded("qwen3"))
    data = (coded("qwen3") / "tokenizer.json").read_bytes()
    url = f"{hub.endpoint}/tests/ranges/resolve/main/tokenizer.json"
    response = get_session().get(url, headers={"Range": f"bytes={first}-{last}"})
    assert (response.status_code, response.content) == (206, data[first : last + 1])
    assert response.headers["Content-Range"].endswith(f"/{len(data)}")


def test_errors_are_told_apart(hub: HubServer, coded: Callable[[str], Path]) -> None:
    from huggingface_hub import errors, hf_hub_download, model_info

    hub.publish("tests/errors", coded("qwen3"))
    hub.publish("tests/errors-gated", coded("qwen3"), gated=True)
    with pytest.raises(errors.RepositoryNotFoundError):
        model_info("tests/absent")
    with pytest.raises(errors.RevisionNotFoundError):
        model_info("tests/errors", revision="v0")
    with pytest.raises(errors.EntryNotFoundError):
        hf_hub_download("tests/errors", "absent.txt")
    with pytest.raises(errors.GatedRepoError):
        hf_hub_download("tests/errors-gated", "config.json")
