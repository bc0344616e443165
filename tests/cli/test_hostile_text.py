"""What is shown: names of strangers never steer a terminal, and secrets never appear."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hlwq_cli.printable import one_line, printable
from hlwq_cli.ui.errors import without_secrets
from hlwq_cli.ui.sink import Format, Sink
from tests.cli.run_command import environment, hlwq
from tests.support.files import read_json

EVIL = "a\x1b]0;title\x07\x1b[2J\x9b31m\u202eb\rc"


def is_safe(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def test_control_characters_are_escaped_and_other_text_stays() -> None:
    assert printable(EVIL) == r"a\x1b]0;title\x07\x1b[2J\x9b31m\u202eb\rc"
    assert printable("Größe\t漢字\n→ 🙂") == "Größe\t漢字\n→ 🙂"
    assert one_line("two\nlines") == "two lines"
    assert printable("caf\udce9") == r"caf\udce9"


@pytest.mark.parametrize("form", [Format.human, Format.quiet, Format.json])
def test_no_form_of_a_result_sends_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: Format
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    sink = Sink(form)
    sink.result("x", {"name": EVIL}, lambda console: console.print(EVIL), EVIL)
    sink.note(EVIL)
    shown = capsys.readouterr()
    assert is_safe(shown.out)
    assert is_safe(shown.err)


def test_names_in_a_result_are_shown_escaped(
    coded: Callable[[str], Path], copied: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = copied(coded("qwen3"))
    manifest = read_json(folder / "hlwq_manifest.json")
    manifest["rule"] = manifest["source"]["id"] = EVIL
    (folder / "hlwq_manifest.json").write_text(json.dumps(manifest))
    ran = hlwq("inspect", folder)
    assert ran.code == 0
    assert r"\x1b[2J" in ran.out
    assert is_safe(ran.out)


def test_error_about_a_name_is_two_lines_without_control_characters(tmp_path: Path) -> None:
    ran = hlwq("inspect", tmp_path / f"{EVIL}\nError: another")
    assert ran.code == 3
    assert len(ran.err.splitlines()) == 2
    assert is_safe(ran.err)


def test_traceback_is_without_control_characters_and_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLWQ_DEBUG", "1")
    ran = hlwq("inspect", tmp_path / f"hf_{'S' * 34}\x1b[2J")
    assert "Traceback" in ran.err
    assert is_safe(ran.err)
    assert "SSSS" not in ran.err


@pytest.mark.parametrize(
    "text",
    [
        "Illegal header value b'Bearer hf_abcdefghijKLMNOP\\x01x'",
        "authorization: Bearer s3cr3t-abcdefghij",
        "ann:t0ps3cret",
    ],
)
def test_secrets_are_left_out_of_messages(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLWQ_DEMO_AUTH", "ann:t0ps3cret")
    shown = without_secrets(text)
    assert not any(secret in shown for secret in ("abcdefghij", "t0ps3cret"))
    assert "***" in shown


def test_names_of_functions_are_no_secrets() -> None:
    assert without_secrets("in hf_hub_download, hf_raise_for_status") == "in hf_hub_download, hf_raise_for_status"


@pytest.mark.parametrize(
    "option", [["--auth", "ann:TOPSECRET"], ["--auth=ann:TOPSECRET"]], ids=["two words", "one word"]
)
@pytest.mark.parametrize(
    "arguments", [["demo", "sample"], ["quantize", "m"], ["bench", "m", "--ppl"]], ids=lambda a: a[0]
)
def test_line_after_ctrl_c_holds_no_password_and_promises_only_what_is_true(
    arguments: list[str], option: list[str]
) -> None:
    words = [*arguments, *option]
    code = (
        "import sys\nfrom hlwq_cli.ui.errors import handle_errors\n"
        f"sys.argv = ['hlwq', *{words!r}]\n"
        "@handle_errors\ndef command(): raise KeyboardInterrupt\n"
        "import typer\n"
        "try: command()\nexcept typer.Exit as end: sys.exit(end.exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert "TOPSECRET" not in done.stdout + done.stderr
    assert ("Continue with: hlwq" if words[0] == "quantize" else "Run it again with: hlwq") in done.stderr


def test_code_of_a_checkpoint_is_neither_run_nor_asked_for(tmp_path: Path) -> None:
    ran_mark = tmp_path / "ran"
    folder = tmp_path / "m"
    folder.mkdir()
    names = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.T", None]}
    (folder / "config.json").write_text(
        json.dumps({"model_type": "evil", "architectures": ["Evil"], "auto_map": names})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": names}))
    (folder / "evil.py").write_text(f"open({str(ran_mark)!r}, 'w').write('ran')\n")
    measure = ["bench", folder, "--ppl", "--data", "sample"]
    for command in (measure, ["demo", folder], ["quantize", folder, "--dry-run"]):
        ran = hlwq(*command)
        assert ran.code == 1, ran
        assert ran.out == "", "no question is asked"
    assert not ran_mark.exists()
    assert "hlwq never runs a checkpoint's own code." in hlwq(*measure).err
