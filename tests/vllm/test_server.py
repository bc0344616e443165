"""vLLM's OpenAI server answers from codes, and nothing on its command line names hlwq."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

from .worker import ENVIRONMENT


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def test_the_server_answers_a_chat(models: Path) -> None:
    """It starts an engine in a process of its own, which takes a minute of CPU time."""
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(models / "sample"),
        "--served-model-name", "sample", "--hf-overrides", '{"architectures": ["Gemma4ForCausalLM"]}',
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "2",
        "--max-num-batched-tokens", "256", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    server = subprocess.Popen(
        command,
        env=os.environ | ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            if "Application startup complete" in line:
                break
        else:
            raise AssertionError("".join(lines[-30:]))
        messages = [{"role": "user", "content": "Go on."}]
        body = {"model": "sample", "messages": messages, "max_tokens": 8, "ignore_eos": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        assert answer["choices"][0]["message"]["content"]
        assert answer["usage"]["completion_tokens"] == 8
    finally:
        server.terminate()
        server.wait(60)
