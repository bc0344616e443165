"""The pages: links and paths lead somewhere, options are those of the commands, prose keeps to its width."""

import re
from functools import lru_cache
from pathlib import Path

import pytest
import typer.main

from hlwq_cli.main import COMMANDS, app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page for place in ("", "docs/**", "hlwq_cli/**", ".github/**") for page in ROOT.glob(f"{place}/*.md".lstrip("/"))
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PLACES = ("scripts", "docs", "tests", "configs", "hlwq_cli", "kernels")
HISTORY = {"CHANGELOG.md", "docs/log.md"}  # they also name what is gone
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]*")


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


@lru_cache(maxsize=None)
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_to_files_and_headings(name: str) -> None:
    page, broken = ROOT / name, []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("name", [n for n in NAMES if n not in HISTORY and not n.startswith("docs/decisions/")])
def test_paths_that_a_page_names_exist(name: str) -> None:
    found = re.findall(rf"(?<![\w/.-])(?:{'|'.join(PLACES)})/[\w./-]*\w", text_of(name))
    assert [path for path in found if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_prose_is_at_most_120_columns_wide(name: str) -> None:
    lines = enumerate(text_of(name).splitlines(), 1)
    assert [n for n, line in lines if len(line) > 120 and not line.startswith("|")] == []


def sections() -> dict[str, str]:
    """What docs/cli.md says of each command; under "" what it says of all."""
    first, *rest = re.split(r"^## ", text_of("docs/cli.md"), flags=re.MULTILINE)
    by_title = {part.split("\n", 1)[0]: part for part in rest}
    own = {title.split()[1]: part for title, part in by_title.items() if title.startswith("hlwq ")}
    return {"": first + "".join(part for title, part in by_title.items() if not title.startswith("hlwq ")), **own}


def options(command: str) -> set[str]:
    """The options that a command takes, long and short, but for `--help`."""
    group = typer.main.get_command(app)
    found = group.get_command(None, command)  # type: ignore[attr-defined]
    return {name for parameter in found.params for name in parameter.opts if name.startswith("-")}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_the_command_line_names_every_option(command: str) -> None:
    said = set(OPTION.findall(sections()[command])) | set(OPTION.findall(sections()[""]))
    assert options(command) - said == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_the_command_line_names_no_other_option(command: str) -> None:
    known = {name for other in COMMANDS for name in options(other)}
    starts = re.findall(r"^- (.*?`): ", sections()[command], re.MULTILINE)
    listed = {name for start in starts for name in OPTION.findall(start)}
    assert listed - options(command) == set()
    assert set(OPTION.findall(sections()[command])) - known <= {"--help", "--version"}


def test_the_format_page_prints_the_errors_that_are_tested() -> None:
    from tests.codec.test_distortion import TABLE

    rows = re.findall(
        r"^\| (\d) \| ([\d.e-]+) \| ([\d.e-]+) \| ([\d.e-]+) \|$", text_of("docs/format.md"), re.MULTILINE
    )
    assert {int(b): tuple(map(float, errors)) for b, *errors in rows} == TABLE
