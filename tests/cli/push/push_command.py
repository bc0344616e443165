"""`hlwq push` as a function, and the files of the stand-in Hub after it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.run_command import hlwq
from tests.support.files import tree
from tests.support.hub_server import HubServer

TOKEN = "hf_" + "s3cr3t" * 6
REPO = "ann/model"


def remote_files(hub: HubServer, revision: str = "main", repo: str = REPO) -> dict[str, str]:
    found = tree(hub.repos[repo].revisions[revision])
    found.pop(".gitattributes", None)
    return found


def push_json(*args: str | Path) -> dict[str, object]:
    ran = hlwq("push", *args, "--json")
    assert ran.code == 0, ran.err
    assert TOKEN not in ran.out + ran.err
    found: dict[str, object] = json.loads(ran.out)
    return found
