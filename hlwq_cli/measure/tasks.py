"""Downstream tasks with EleutherAI's lm-eval, an optional dependency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..checkpoint.io import is_transport_error
from ..errors import HlwqError, NotFoundError


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task.

    Attributes:
        task: name of the task in lm-eval.
        metric: name of the metric in lm-eval, without the filter.
        value: the score.
        error: standard error of the score, or None if lm-eval gives none.
    """

    task: str
    metric: str
    value: float
    error: float | None


def open_tasks(tasks: Sequence[str], folder: Path | None = None) -> Any:
    """Return lm-eval's index of tasks after checking that it has these; called before any model is loaded.

    If the user's folder has all of them, lm-eval's own index, with thousands of tasks, is not read: that takes seconds.

    Args:
        tasks: names of lm-eval tasks, such as `hellaswag`.
        folder: folder with the user's own task files.

    Raises:
        HlwqError: lm-eval is not installed.
        NotFoundError: there is no such task or folder.
    """
    if find_spec("lm_eval") is None:
        raise HlwqError("--tasks needs lm-eval, which is not installed.", "Run `pip install 'hlwq[eval]'`.")
    if folder is not None and not folder.is_dir():
        raise NotFoundError(f"There is no folder {folder}.", "Give a folder of lm-eval task files.")
    from lm_eval.tasks import TaskManager

    others = set(tasks)
    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if others <= set(own.all_subtasks):  # all_subtasks: a group may contain tasks of lm-eval
            return own
        others -= set(own.all_tasks)
    _check_known(_never_named(others))
    manager = TaskManager(include_path=None if folder is None else str(folder))
    _check_known(set(tasks) - set(manager.all_tasks))
    return manager


def _check_known(unknown: set[str]) -> None:
    if unknown:
        raise NotFoundError(f"lm-eval has no task {', '.join(sorted(unknown))}.", "`lm-eval ls tasks` lists them.")


def _never_named(tasks: set[str]) -> set[str]:
    """Return the names that no file of lm-eval contains: to search takes a second or two, its index ten.

    A task, group or tag is named in a YAML file, or in a file of any name that it includes.
    """
    import lm_eval.tasks

    left = {task: task.encode() for task in tasks}
    for path in Path(lm_eval.tasks.__file__).parent.rglob("*"):
        if not left:
            break
        if path.is_file():
            content = path.read_bytes()
            left = {task: name for task, name in left.items() if name not in content}
    return {*left}


def run_tasks(
    model: Any, tokenizer: Any, tasks: Sequence[str], manager: Any, limit: int | None = None
) -> tuple[TaskScore, ...]:
    """Evaluate a loaded model.

    Args:
        model: a transformers model.
        tokenizer: the model's tokenizer.
        tasks: names of tasks or groups of tasks.
        manager: the index from `open_tasks`.
        limit: maximum number of examples per task.

    Raises:
        HlwqError: the data of a task cannot be loaded.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    try:
        found = lm_eval.simple_evaluate(
            wrapped, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=0, verbosity="ERROR"
        )
    except Exception as error:
        if isinstance(error, OSError) or is_transport_error(error):
            raise HlwqError(f"The data of {', '.join(tasks)} cannot be loaded.", "Check the network.") from error
        raise
    return tuple(score for task, result in found["results"].items() for score in _scores(task, result))


def _scores(task: str, result: dict[str, Any]) -> list[TaskScore]:
    found = []
    for key, value in result.items():
        metric, _, rest = key.partition(",")
        if isinstance(value, int | float) and rest and not metric.endswith("_stderr"):
            error = result.get(f"{metric}_stderr,{rest}")
            found.append(TaskScore(task, metric, float(value), error if isinstance(error, float) else None))
    return found
