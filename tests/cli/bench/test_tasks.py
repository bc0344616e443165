"""`hlwq bench --tasks`: the figures of lm-eval if it is installed, else a message."""

import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from hlwq_cli.runtime import HLWQModel
from tests.support.hub_server import HubServer

from ..run_command import assert_refused, hlwq

DOCUMENTS = [
    {"start": "The state of our", "ends": [" union is strong", " cabbage is purple"], "right": 0},
    {"start": "My fellow", "ends": [" elephants", " Americans"], "right": 1},
    {"start": "God bless the United States of", "ends": [" America", " applause applause"], "right": 0},
    {"start": "Thank you", "ends": [" very much", " helicopter"], "right": 1},  # whatever the model says of this
]


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "endings.jsonl").write_text("\n".join(json.dumps(d) for d in DOCUMENTS))
    task = f"""
        task: endings
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: {folder / "endings.jsonl"}}}}}
        test_split: test
        output_type: multiple_choice
        doc_to_text: "{{{{start}}}}"
        doc_to_choice: ends
        doc_to_target: right
        target_delimiter: ""
        metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
    """
    (folder / "endings.yaml").write_text(textwrap.dedent(task))
    return folder


def log_likelihood(model: HLWQModel, start: str, end: str) -> float:
    """Return the log-likelihood of `end` after BOS and `start`."""
    ids = model.tokenizer(start + end, return_tensors="pt")["input_ids"]
    given = len(model.tokenizer(start)["input_ids"])
    with torch.no_grad():
        log_p = model.model(input_ids=ids).logits[0].float().log_softmax(-1)
    return float(sum(log_p[i - 1, ids[0, i]] for i in range(given, ids.shape[1])))


def choice(model: HLWQModel, start: str, ends: list[str]) -> int:
    values = [log_likelihood(model, start, end) for end in ends]
    return values.index(max(values))


def test_own_task_has_the_score_of_the_models_likelihoods(task_folder: Path) -> None:
    ran = hlwq("bench", "sample", "--tasks", "endings", "--task-folder", task_folder, "--json")
    assert ran.code == 0, ran.err
    (measured,) = json.loads(ran.out)["report"]["measured"]
    (score,) = measured["tasks"]
    model = HLWQModel.from_pretrained("sample", device="cpu")
    right = [choice(model, d["start"], d["ends"]) == d["right"] for d in DOCUMENTS]  # type: ignore[arg-type]
    assert True in right
    assert False in right
    assert (score["task"], score["metric"]) == ("endings", "acc")
    assert score["value"] == sum(right) / len(right)


def test_limit_uses_the_first_examples_and_human_output_has_a_line(task_folder: Path) -> None:
    ran = hlwq("bench", "sample", "--tasks", "endings", "--task-folder", task_folder, "--task-limit", "2")
    assert ran.code == 0, ran.err
    assert "sample: endings acc 1.0000" in ran.out


def test_missing_lm_eval_is_reported_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    ran = hlwq("bench", "sample", "--tasks", "hellaswag")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.endswith("Error: --tasks needs lm-eval, which is not installed.\nRun `pip install 'hlwq[eval]'`.\n")
    assert "loading sample" not in ran.err


def test_an_unknown_task_is_not_found(task_folder: Path) -> None:
    ran = hlwq("bench", "sample", "--tasks", "endings,no_such_task", "--task-folder", task_folder)
    assert (ran.code, ran.out) == (3, "")
    assert "Error: lm-eval has no task no_such_task.\n" in ran.err
    assert "loading sample" not in ran.err


def test_a_missing_task_folder_is_not_found(tmp_path: Path) -> None:
    ran = hlwq("bench", "sample", "--tasks", "endings", "--task-folder", tmp_path / "nowhere")
    assert_refused(ran, 3, "nowhere")


def test_task_whose_data_cannot_be_loaded_is_reported(hub: HubServer, task_folder: Path) -> None:
    """The Hub stand-in has no such dataset."""
    task = (task_folder / "endings.yaml").read_text()
    lines = [line for line in task.splitlines() if "dataset_kwargs" not in line]
    (task_folder / "endings.yaml").write_text(
        "\n".join(lines).replace("dataset_path: json", "dataset_path: no/such-data")
    )
    ran = hlwq("bench", "sample", "--tasks", "endings", "--task-folder", task_folder)
    assert (ran.code, ran.out) == (1, "")
    assert "Error: The data of endings cannot be loaded.\nCheck the network.\n" in ran.err
