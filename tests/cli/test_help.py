"""Help is fast, without torch, and names every command and environment variable."""

import subprocess
import sys

import pytest

from .run_command import COMMAND, hlwq

HEAVY = ("torch", "transformers", "numba", "numpy", "huggingface_hub", "safetensors", "gradio")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["quantize", "--help"],
        ["inspect", "--help"],
        ["demo", "--help"],
        ["chat", "--help"],
        ["serve", "--help"],
        [],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['hlwq', *{arguments!r}]\nfrom hlwq_cli.main import main\n"
        f"try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_names_commands_and_environment_variables() -> None:
    done = subprocess.run([sys.executable, "-m", "hlwq_cli.main", "--help"], capture_output=True, text=True, check=True)
    for word in (
        "quantize",
        "inspect",
        "export",
        "generate",
        "chat",
        "serve",
        "demo",
        "HLWQ_AUTOLOAD",
        "HLWQ_DEBUG",
        "HLWQ_DEMO_AUTH",
        "HLWQ_API_KEY",
        "HF_TOKEN",
        "HF_HOME",
        "HF_ENDPOINT",
        "NO_COLOR",
    ):
        assert word in done.stdout
    assert done.stderr == ""


def test_help_names_extras_in_full() -> None:
    done = subprocess.run([*COMMAND, "bench", "--help"], capture_output=True, text=True, check=True)
    assert "'hlwq[eval]'" in done.stdout


def test_console_script_is_installed() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="hlwq")
    assert script.value == "hlwq_cli.main:main"


@pytest.mark.parametrize("command", [["bench"], ["generate", "-p", "We"], ["chat"], ["demo"]], ids=lambda c: c[0])
def test_unknown_execution_is_refused_before_a_model_is_loaded(command: list[str]) -> None:
    ran = hlwq(*command, "no/such-model", "--execution", "fast")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Error: --execution must be auto, coded or dense, not 'fast'.")
