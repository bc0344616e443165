"""hlwq serve with the clients that people use, over HTTP: answers, pictures, keys, and how it ends."""

import base64
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from hlwq_cli.runtime import HLWQModel
from hlwq_cli.samples import calibration_file, resolve_model

from .run_command import assert_refused, environment, hlwq, hlwq_process, start_anew

KEY = "a-right-key"
PROMPT = "The state of our union is"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Served:
    """A running `hlwq serve sample` on transformers; `log` is what it said."""

    def __init__(self) -> None:
        self.port, self.log = free_port(), ""
        how = ("--engine", "transformers", "--device", "cpu", "--dtype", "float32", "--port", self.port)
        self.process = start_anew("serve", "sample", *how, env=environment(HLWQ_API_KEY=KEY))
        self._is_up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._is_up.wait(150), self.log
        assert self.process.poll() is None, self.log

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if "Uvicorn running" in line:
                self._is_up.set()
        self._is_up.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        self._reader.join(60)
        assert self.process.stdout is not None
        return code, self.process.stdout.read()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self._reader.join(60)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.close()


@pytest.fixture(scope="module")
def model() -> HLWQModel:
    return HLWQModel.from_pretrained(resolve_model("sample"), dtype="float32", device="cpu")


def ask(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def test_a_chat_is_answered_as_the_library_does(served: Served, model: HLWQModel) -> None:
    options = {"model": "sample", "messages": ask(PROMPT), "max_tokens": 8, "temperature": 0}
    with served.client() as client:
        whole = client.chat.completions.create(**options)  # type: ignore[call-overload]
        pieces = client.chat.completions.create(**options, stream=True)  # type: ignore[call-overload]
        streamed = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        assert "sample" in [found.id for found in client.models.list()]
    wanted = model.generate(PROMPT, max_new_tokens=8)
    assert (whole.choices[0].message.content, streamed) == (wanted, wanted)
    assert whole.usage.prompt_tokens == model.prepare([PROMPT])["input_ids"].shape[1]
    assert whole.usage.completion_tokens == 8


def test_a_completion_stops_and_a_seed_repeats(served: Served, model: HLWQModel) -> None:
    def complete(**options: object) -> tuple[str, str]:
        found = client.completions.create(model="sample", prompt=PROMPT, max_tokens=8, **options)  # type: ignore[call-overload]
        return found.choices[0].text, found.choices[0].finish_reason

    with served.client() as client:
        text, reason = complete(temperature=0)
        assert reason == "length"
        word = text.split()[1]
        stopped, reason = complete(temperature=0, stop=[word])
        assert (stopped, reason) == (text[: text.index(word) + len(word)], "stop")
        drawn = [complete(temperature=1.5, seed=seed)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_picture_is_seen(served: Served, model: HLWQModel) -> None:
    from PIL import Image

    picture = calibration_file("picture-00.png")
    data = base64.b64encode(picture.read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "What is this?"},
    ]
    with served.client() as client:
        found = client.chat.completions.create(  # type: ignore[call-overload]
            model="sample", messages=ask(parts), max_tokens=8, temperature=0
        )
    with Image.open(picture) as image:
        assert found.choices[0].message.content == model.generate("What is this?", [image], max_new_tokens=8)


@pytest.mark.parametrize("key", ["wrong", KEY + "x"])
def test_a_wrong_key_is_401_and_is_not_logged(served: Served, key: str) -> None:
    with served.client(key) as client, pytest.raises(openai.AuthenticationError) as refused:
        client.models.list()
    assert refused.value.status_code == 401
    assert httpx.get(f"{served.url}/v1/models").status_code == 401
    assert KEY not in served.log


def test_health_needs_no_key_and_paths_that_load_models_are_closed(served: Served) -> None:
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}
    right = {"Authorization": f"Bearer {KEY}"}
    for path in ("/load_model", "/reset", "/docs"):
        assert httpx.post(f"{served.url}{path}", json={"model": "other/model"}, headers=right).status_code == 404
        assert httpx.post(f"{served.url}{path}", json={"model": "other/model"}).status_code == 401


def test_ctrl_c_ends_with_130_and_stdout_has_the_address_alone(served: Served) -> None:
    code, out = served.end()
    assert (code, out) == (130, f"{served.url}/v1\n")
    assert "Traceback" not in served.log
    assert KEY not in served.log


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A package in the place of vLLM, whose server prints its arguments and its key; tests/vllm has the real one."""
    server = tmp_path / "vllm" / "entrypoints" / "openai" / "api_server.py"
    server.parent.mkdir(parents=True)
    for folder in (server.parent, server.parent.parent, server.parent.parent.parent):
        (folder / "__init__.py").touch()
    server.write_text("import json, os, sys\nprint(json.dumps([sys.argv[1:], os.environ.get('VLLM_API_KEY')]))\n")
    return tmp_path


def test_vllm_takes_the_place_of_the_process_and_gets_the_key_unseen(stand_in: Path) -> None:
    paths = environment().get("PYTHONPATH", "")
    variables = environment(PYTHONPATH=f"{stand_in}:{paths}", HLWQ_API_KEY=KEY, VLLM_API_KEY="other")
    port = free_port()
    ran = hlwq_process("serve", "sample", "--port", port, env=variables)
    url, printed = ran.out.splitlines()
    arguments, key = json.loads(printed)
    assert (ran.code, url, key) == (0, f"http://127.0.0.1:{port}/v1", KEY)
    assert arguments[:4] == ["--model", resolve_model("sample"), "--served-model-name", "sample"]
    assert arguments[-4:] == ["--host", "127.0.0.1", "--port", port]
    assert KEY not in " ".join(arguments)


@pytest.mark.parametrize("option", [("--kv-bits", "4"), ("--gpu-memory", "8GB"), ("--device", "cpu")])
def test_what_vllm_cannot_do_is_refused_by_name(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, str]
) -> None:
    monkeypatch.syspath_prepend(str(stand_in))
    assert_refused(hlwq("serve", "sample", "--engine", "vllm", *option), 2, option[0])


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--engine", "vllm"), 1, "vLLM is not installed"),
        (("--engine", "transformers", "--api-key", ""), 2, "The API key is empty"),
        (("--engine", "transformers", "--host", "no.such.host.invalid"), 2, "is not an address"),
    ],
)
def test_other_refusals(options: tuple[str, ...], code: int, says: str) -> None:
    assert_refused(hlwq("serve", "sample", "--port", free_port(), *options), code, says)
