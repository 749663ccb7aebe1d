"""MMLU and the other tasks of EleutherAI's lm-eval, asked of a model that is loaded already.

lm-eval is optional. It brings the tasks' prompts and takes their questions from the hub; where there is none, a folder
with a task's YAML and data serves (`--task-path`), and `evals/tasks/ropewalk_mc` is a small one to try it with.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import PreTrainedModel

from data.errors import UserError
from evals.measures import Materials, Unit
from evals.scoring import Scorer, TransformersScorer

VERSION = "0.4.13"  # the one that is tested
OWN_TASKS = Path(__file__).parent / "tasks"
PREFIX = "lm_eval/"  # of the units' names
BOOTSTRAPS = 1000  # for standard errors that have no formula; that of an accuracy has one

Numbers = dict[str, Any]


def require_lm_eval() -> ModuleType:
    """The package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import lm_eval  # pyright: ignore[reportMissingImports]
    except ImportError:
        found = "lm-eval, which holds the tasks, is not installed"
        raise UserError("lm_eval", found, f"pip install -c constraints.txt lm-eval=={VERSION}") from None
    return lm_eval


def units(tasks: Sequence[str], shots: Sequence[int], limit: int | None, task_path: Path | None) -> list[Unit]:
    """A measurement `lm_eval/TASK/N-shot` for each task and number of examples.

    Raises:
        UserError: lm-eval is not installed, or a task is not known.
    """
    depends_on = (require_lm_eval().__version__, limit, _stamp(_folders(task_path)))
    _require_known(tasks, _manager(task_path))
    return [
        Unit(f"{PREFIX}{task}/{count}-shot", depends_on, _measure(task, count, limit, task_path))
        for task in tasks
        for count in shots
    ]


def _measure(task: str, shots: int, limit: int | None, task_path: Path | None) -> Callable[[Scorer, Materials], Any]:
    return lambda scorer, materials: harness(scorer, [task], shots, limit, task_path)


def columns(results: Mapping[str, Any]) -> dict[str, Numbers]:
    """Of a model's results by unit, those of lm-eval, by what to call them in a table."""
    found = [unit for name, unit in results.items() if name.startswith(PREFIX)]
    return {f"{task}, {numbers['num_fewshot']}-shot": numbers for unit in found for task, numbers in unit.items()}


def harness(
    scorer: Scorer, tasks: Sequence[str], num_fewshot: int, limit: int | None, task_path: Path | None
) -> dict[str, Numbers]:
    """What lm-eval finds, by task; a tag, or a group without a number of its own, becomes its tasks.

    Args:
        num_fewshot: solved examples in front of each question; a task that is defined without any keeps to that.
        limit: questions of each task (of each of its subjects, for a group such as mmlu).

    Returns:
        For each task `metric` (its accuracy, or else its first), `acc` (the value of that), `acc_stderr` (None where
        there is none), `num_fewshot`, `samples` (questions), and `cut` (questions whose prompt is longer than the
        window: lm-eval cuts off its beginning).

    Raises:
        UserError: lm-eval is not installed, a task is not known or its data not to be had, or the model is a GGUF file.
    """
    lm_eval = require_lm_eval()
    if not isinstance(scorer, TransformersScorer):
        todo = "give --tasks for models of transformers only"
        raise UserError(scorer.name, "lm-eval cannot ask a GGUF file here", todo)
    manager = _manager(task_path)
    _require_known(tasks, manager)
    with _quiet():
        wanted = {key: task for name in tasks for key, task in _load(manager, name).items()}
        for task in (leaf for item in wanted.values() for leaf in _leaves(item)):
            _require_runnable(task, num_fewshot)
        lm = _wrapped(scorer)
        found = lm_eval.simple_evaluate(
            model=lm,
            tasks=list(wanted.values()),
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=manager,
            bootstrap_iters=BOOTSTRAPS,
        )
    return {name: _numbers(found, name, [leaf.task_name for leaf in _leaves(wanted[name])], lm) for name in wanted}


@lru_cache
def _manager(task_path: Path | None) -> Any:
    """lm-eval's list of all tasks (it reads 14,000 files, which takes seconds)."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    return TaskManager(include_path=_folders(task_path))


def _folders(task_path: Path | None) -> list[Path]:
    if task_path is None or task_path.resolve() == OWN_TASKS:
        return [OWN_TASKS]
    if not task_path.is_dir():
        raise UserError(str(task_path), "not a folder", "give --task-path a folder with a task's YAML and data")
    return [OWN_TASKS, task_path]


def _stamp(folders: Sequence[Path]) -> str:
    """Changes whenever a file of the tasks is written anew."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def _require_known(tasks: Sequence[str], manager: Any) -> None:
    for name in tasks:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            found = f"no task has the name {name!r}" + (f"; near it: {', '.join(near)}" if near else "")
            raise UserError("--tasks", found, "list them with `lm-eval ls tasks`, or give --task-path yours")


def _load(manager: Any, name: str) -> dict[str, Any]:
    """The task, or group, by name, with its data.

    Raises:
        UserError: the data is not to be had.
    """
    from datasets.exceptions import DatasetsError

    try:
        loaded = manager.load(name)
    except (OSError, DatasetsError, ValueError, RuntimeError, ImportError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        todo = "connect to the hub once, or give --task-path a folder with the task's YAML and data"
        raise UserError(f"task {name}", f"it cannot be loaded: {first_line}", todo) from None
    group = loaded["groups"].get(name)
    return {name: group} if group is not None and group.has_aggregation else loaded["tasks"]


def _leaves(item: Any) -> list[Any]:
    """The single tasks of a group, or a task alone."""
    return item.get_all_tasks() if hasattr(item, "get_all_tasks") else [item]


def _require_runnable(task: Any, shots: int) -> None:
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        found = "it runs code that the model writes, or shows images"
        raise UserError(f"task {task.task_name}", found, "run it with lm-eval itself, with the precautions it names")
    examples = len(task.fewshot_docs() or ()) if shots and task.get_config("num_fewshot") != 0 else shots
    if examples < shots:
        found = f"{shots} examples for {task.task_name}, which has {examples}"
        raise UserError("--num-fewshot", found, f"give at most {examples}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's warnings, which repeat what was asked for; its progress bars stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _wrapped(scorer: TransformersScorer) -> Any:
    """The model as lm-eval wants it, one prompt at a time, so that no padding is in it."""
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    tokenizer = copy.deepcopy(scorer.encoder.tokenizer)  # because a missing pad token is put in
    with _weights_as_they_are(scorer.model):
        return HFLM(pretrained=scorer.model, tokenizer=tokenizer, max_length=scorer.window, batch_size=1)


@contextmanager
def _weights_as_they_are(model: PreTrainedModel) -> Iterator[None]:
    """HFLM ties the head to the embedding, which would undo an embedding that was trained without its head."""
    vars(model)["tie_weights"] = lambda: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]


def _numbers(found: Mapping[str, Any], name: str, leaves: Sequence[str], lm: Any) -> Numbers:
    result = found["results"][name]
    metric, stderr = _primary(result)
    requests = [request for leaf in leaves for request in found["samples"][leaf]]
    return {
        "metric": metric.removesuffix(",none"),
        "acc": float(result[metric]),
        "acc_stderr": stderr,
        "num_fewshot": max(found["n-shot"][leaf] for leaf in leaves),
        "samples": sum(found["n-samples"][leaf]["effective"] for leaf in leaves),
        "cut": sum(any(_is_cut(arguments, lm) for arguments in request["arguments"]) for request in requests),
    }


def _primary(result: Mapping[str, Any]) -> tuple[str, float | None]:
    """The accuracy's key, or the first metric's, as `acc,none`; and its standard error."""
    metrics = [key for key in result if "," in key and "_stderr," not in key]
    metric = next((key for key in metrics if key.startswith("acc,")), metrics[0])
    stderr = result.get(metric.replace(",", "_stderr,", 1))
    return metric, float(stderr) if isinstance(stderr, int | float) else None


def _is_cut(arguments: Sequence[Any], lm: Any) -> bool:
    """Whether a prompt does not fit into the window with its answer (whose last token is never read)."""
    match arguments:
        case (str(prompt), str(answer)):
            return len(lm.tok_encode(prompt + answer)) > lm.max_length + 1
        case (str(prompt), dict(options)):
            return len(lm.tok_encode(prompt)) > lm.max_length - options.get("max_gen_toks", lm.max_gen_toks)
        case _:
            return False
