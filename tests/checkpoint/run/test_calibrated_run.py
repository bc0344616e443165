"""A calibrated run: losses in the manifest, the same bytes again and after a kill, and refusals before any work."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hlwq_cli.checkpoint import QuantizeResult, load_recipe, open_coded, quantize, verify
from hlwq_cli.errors import ConflictError, UnsupportedError, UsageError
from hlwq_cli.runtime.calibration import StreamCalibration, token_inputs
from tests.support.builders import save_family, tiny_llama

SHARD_BYTES = 60_000


def calibration(seed: int = 0, rows: int = 6, highest: int = 300) -> StreamCalibration:
    torch.set_num_threads(1)  # the number is part of the fingerprint
    tokens = torch.randint(5, highest, (rows, 24), generator=torch.Generator().manual_seed(seed))
    return StreamCalibration(token_inputs([tokens], "cpu"), "cpu", {"text": "random"}, {"tokens.bin": b"tokens"})


def run(source: Path, out: Path, **options: object) -> QuantizeResult:
    settings = {"calibration": calibration(), "max_shard_bytes": SHARD_BYTES, "threads": 1} | options
    return quantize(str(source), out, load_recipe(bits=4), **settings)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("qwen3_moe", tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    run(source, out)
    return out


def test_the_manifest_states_losses_and_what_was_calibrated_with(finished: Path) -> None:
    checkpoint = open_coded(finished)
    assert verify(checkpoint).problems == ()
    manifest = checkpoint.manifest
    losses = {t.name: (t.loss or 0.0) / t.nmse for t in manifest.coded}
    assert all(0 < ratio < 1.05 for ratio in losses.values()), losses
    assert sum(losses.values()) < 0.97 * len(losses)
    record = manifest.calibration
    assert record is not None
    assert (record["text"], record["tokens"], record["sequences"]) == ("random", 144, 6)
    assert record["without_moments"] == {}
    assert manifest.fingerprint["calibration"]["inputs"] == record["inputs"]
    assert "tokens.bin" in [f.name for f in manifest.files]


def test_without_calibration_nothing_says_so(source: Path, tmp_path: Path) -> None:
    manifest = run(source, tmp_path / "out", calibration=None).manifest
    assert manifest.calibration is None
    assert b"calibration" not in manifest.dump()
    assert b"loss" not in manifest.dump()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.checkpoint.run.test_calibrated_run import run
done = 0
def kill(event):
    global done
    done += event.file_done
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
run(Path(sys.argv[1]), Path(sys.argv[2]), progress=kill)
"""


def test_a_killed_run_goes_on_to_the_same_bytes(source: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shards = len(list(finished.glob("model-*")))
    killed = subprocess.run([sys.executable, "-c", KILLED, source, out, str(shards - 2)])
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "hlwq_manifest.json").exists()
    assert run(source, out).resumed_shards == shards - 2
    assert contents(out) == contents(finished)


def test_other_tokens_do_not_continue_a_checkpoint(source: Path, finished: Path) -> None:
    with pytest.raises(ConflictError, match=r"calibration\.inputs"):
        run(source, finished, calibration=calibration(seed=1))


def test_a_model_without_a_class_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"its config\.json names no class"):
        run(tiny_llama(tmp_path / "source"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_run_the_tokens_is_refused_before_any_work(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="transformers cannot run it: "):
        run(source, tmp_path / "out", calibration=calibration(highest=100_000))
    assert not (tmp_path / "out").exists()


def test_other_scales_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="log8"):
        quantize(str(source), tmp_path / "out", load_recipe("classic", bits=4), calibration=calibration())


def test_files_cannot_be_deleted_while_they_are_needed_again(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder"):
        run(source, tmp_path / "out", delete_source=True)
