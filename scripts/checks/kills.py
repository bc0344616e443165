"""Kill hlwq with SIGKILL at many points of its work, give the same command again, and compare every byte.

    python scripts/checks/kills.py --count 1000

A process that has imported everything forks for each run. A child gives the command and kills itself just before its
Nth create, rename, link, truncate or removal of a file, or, for `push`, before its Nth request to the stand-in Hub. A
second child gives the same command again: it must end with 0 and leave what an undisturbed run leaves. Where `export`
was killed after its last change, the second ends with 5, as over any complete export. The points of
each journey are tried in random order; when all are done, runs are killed twice or more, at random points.
Prints a table, and a line for each finding; exits with 1 if there is one. Needs the repository's tests, for the Hub.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.checks.forked_kills import count_points, give

TOKEN, REPO = "hf_" + "k1ll" * 8, "ann/model"
MAX_KILLS = 4


@dataclass(frozen=True)
class Journey:
    """A command that is killed and given again.

    Attributes:
        name: of the journey, for people.
        prepare: makes the state before the command.
        command: the arguments of `hlwq`.
        state: what the command leaves, to be compared.
        repeated: the exit code of the command over its own complete result.
    """

    name: str
    prepare: Callable[[Path], None]
    command: Callable[[Path], list[str]]
    state: Callable[[Path], dict[str, str]]
    repeated: int = 0


@dataclass
class Score:
    """What came of the runs of one journey."""

    runs: int = 0
    kills: int = 0
    points: int = 0
    findings: list[str] = field(default_factory=list)


def warm_up(command: list[str]) -> None:
    """Give a command in this process, so that its children inherit what it imports and compiles."""
    from hlwq_cli.main import app

    with contextlib.redirect_stdout(io.StringIO()):
        try:
            app(command)
        except SystemExit as status:
            if status.code:
                raise


def attempt(journey: Journey, folder: Path, points: list[int], wanted: dict[str, str]) -> tuple[int, str]:
    """Kill a command at each of some points in turn, then let it finish; return the kills, and what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    journey.prepare(folder)
    kills = 0
    for number in points:
        code = give(journey.command(folder), number, folder)
        if code != -signal.SIGKILL:
            break
        kills += 1
    code = give(journey.command(folder), None, folder)
    found = journey.state(folder)
    odd = sorted({name for name, _ in set(found.items()) ^ set(wanted.items())})
    at = ", ".join(map(str, points[:kills]))
    is_right = code in (0, journey.repeated) and not odd
    return kills, "" if is_right else f"{journey.name} killed before {at}: exit {code}, differs in {odd}"


def campaign(journeys: list[Journey], count: int, seed: int, work: Path, minutes: float = math.inf) -> dict[str, Score]:
    """Kill each journey `count / len(journeys)` times or a little more, or as often as `minutes` suffice for.

    Returns:
        The scores by name.
    """
    rng, scores = random.Random(seed), {}
    began, share = time.monotonic(), 60 * minutes / len(journeys)
    for i, journey in enumerate(journeys):
        score = scores[journey.name] = Score()
        folder = work / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        journey.prepare(folder)
        score.points = count_points(journey.command(folder), folder)
        if not score.points:
            score.findings.append(f"{journey.name} fails undisturbed")
            continue
        wanted, target = journey.state(folder), count * (i + 1) // len(journeys) - count * i // len(journeys)
        single = rng.sample(range(score.points), score.points)
        while score.kills < target and time.monotonic() - began < share * (i + 1):
            several = [rng.randrange(score.points) for _ in range(rng.randint(2, MAX_KILLS))]
            kills, problem = attempt(journey, folder, [single.pop()] if single else several, wanted)
            score.runs += 1
            score.kills += kills
            if problem:
                score.findings.append(problem)
                print(problem, flush=True)
    return scores


def journeys(originals: Path, hub: Any) -> list[Journey]:
    """Return the journeys, on a small checkpoint in `originals`."""
    from tests.support.builders import LLAMA, dense, save_tensors
    from tests.support.files import tree

    source = str(save_tensors(originals / "source", dense(2), LLAMA))
    other = str(save_tensors(originals / "other", dense(3, seed=1), LLAMA))
    options = ["--threads", "1", "--max-shard-size", "20kB", "-q"]
    coded, earlier = originals / "coded", originals / "earlier"
    for command in (
        ["quantize", source, str(coded), *options],
        ["quantize", other, str(earlier), *options],
        ["export", str(coded), str(originals / "plain"), "-q"],
        ["card", str(coded), "-q"],
        ["push", str(coded), REPO, "-q", "--dry-run"],
    ):
        warm_up(command)

    def nothing(folder: Path) -> None:
        pass

    def copy(original: Path) -> Callable[[Path], None]:
        return lambda folder: shutil.copytree(original, folder / "out", dirs_exist_ok=True) and None

    def changed_card(folder: Path) -> None:
        copy(coded)(folder)
        (folder / "out" / "README.md").unlink()

    def empty_hub(folder: Path) -> None:
        copy(coded)(folder)
        hub.reset()
        hub.login(TOKEN, "ann")

    def out_of(folder: Path) -> dict[str, str]:
        return tree(folder / "out")

    def remote(folder: Path) -> dict[str, str]:
        sent = tree(hub.repos[REPO].revisions["main"]) if REPO in hub.repos else {}
        return {f"remote {name}": sha for name, sha in sent.items()} | out_of(folder)

    def exported(folder: Path) -> dict[str, str]:
        return tree(folder / "plain")

    return [
        Journey("quantize", nothing, lambda f: ["quantize", source, str(f / "out"), *options], out_of),
        Journey(
            "quantize --overwrite",
            copy(earlier),
            lambda f: ["quantize", source, str(f / "out"), *options, "--overwrite"],
            out_of,
        ),
        Journey("export", nothing, lambda f: ["export", str(coded), str(f / "plain"), "-q"], exported, 5),
        Journey("card", changed_card, lambda f: ["card", str(f / "out"), "-q"], out_of),
        Journey("push", empty_hub, lambda f: ["push", str(f / "out"), REPO, "-q"], remote),
    ]


def table(scores: dict[str, Score]) -> str:
    """Return the scores as a Markdown table."""
    lines = ["| command | points | runs | kills | findings |", "|---|---|---|---|---|"]
    lines += [f"| {n} | {s.points} | {s.runs} | {s.kills} | {len(s.findings)} |" for n, s in scores.items()]
    kills, findings = sum(s.kills for s in scores.values()), sum(len(s.findings) for s in scores.values())
    return "\n".join(lines) + f"\n\n{kills:,} kills, {findings} findings"


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="number of kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after this time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="journeys to try; default is all")
    options = parser.parse_args()
    from tests.support.hub_server import HubServer

    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="hlwq-kills-", dir=memory) as folder:
        work, hub = Path(folder), HubServer()
        os.environ.update(hub.environment(work / "hub-home"))
        os.environ["HF_TOKEN"] = TOKEN
        hub.login(TOKEN, "ann")
        chosen = [j for j in journeys(work / "originals", hub) if not options.only or j.name in options.only]
        scores = campaign(chosen, options.count, options.seed, work, options.minutes)
    print(table(scores))
    return int(any(s.findings for s in scores.values()))


if __name__ == "__main__":
    sys.exit(main())
