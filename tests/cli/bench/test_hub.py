"""`hlwq bench` of models on the Hub, plain and coded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hlwq_cli import HLWQModel
from hlwq_cli.errors import NotAllowedError
from hlwq_cli.samples import resolve_model
from tests.support.hub_server import HubServer

from ..run_command import assert_refused, hlwq

TEXT = ("--data", "sample", "--window", "64", "--windows", "1")


def test_a_plain_repository_is_measured_as_its_folder_is(hub: HubServer, tmp_path: Path) -> None:
    hub.publish("owner/plain", Path(resolve_model("sample")))
    assert hlwq("quantize", "sample", tmp_path / "out", "-q").code == 0
    measures = ("--kld", "--cosine", *TEXT, "--json")
    found = [hlwq("bench", tmp_path / "out", "--ref", ref, *measures) for ref in ("owner/plain", "sample")]
    assert [ran.code for ran in found] == [0, 0], found[0].err
    there, here = (json.loads(ran.out)["report"] for ran in found)
    assert there["reference"]["bytes"] == here["reference"]["bytes"] > 14_000_000
    assert there["measured"][0]["divergence"] == here["measured"][0]["divergence"]
    assert there["measured"][0]["similarity"] == here["measured"][0]["similarity"]


def test_refusal_of_the_hub_differs_from_a_missing_network(hub: HubServer, tmp_path: Path) -> None:
    hub.publish("owner/gated", Path(resolve_model("sample")), gated=True)
    assert_refused(hlwq("bench", "owner/none", "--ppl", *TEXT), 3, "There is no repository owner/none")
    assert_refused(hlwq("bench", "owner/gated", "--ppl", *TEXT), 4, "owner/gated is gated.", "Accept its terms")
    with pytest.raises(NotAllowedError, match="owner/gated is gated"):
        HLWQModel.from_pretrained("owner/gated")
