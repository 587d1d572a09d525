"""From a name to a task: the named ones, Minari ids and Gymnasium ids."""

from __future__ import annotations

import importlib
import re

from sb3_dmamba import atari, memory_tasks
from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.compatibility import is_known_elsewhere
from sb3_dmamba.d4rl import list_names
from sb3_dmamba.errors import UnknownTaskError
from sb3_dmamba.folders import minari_folder
from sb3_dmamba.tasks.recipes import (
    MEASURED_REFERENCES,
    find_d4rl_task,
    find_tmaze_task,
    named_tasks,
)
from sb3_dmamba.tasks.task import ReferenceScores, Task

__all__ = ["get_reference_scores", "get_task", "list_tasks"]

_NAMESPACED_ID = re.compile(r"(?:[\w-]+/)+[\w.-]+-v\d+")


def list_tasks() -> list[Task]:
    """Return the tasks of the paper and of this package; :func:`get_task` knows many more."""
    return named_tasks()


def get_task(name: str) -> Task:
    """Find out what a name stands for.

    In this order: a named task (:func:`list_tasks`), any other Gym-MuJoCo dataset of D4RL
    (``"hopper-expert-v2"``, ``"ant-medium-v1"``), a T-maze of any length (``"tmaze-70"``), an
    environment registered with Gymnasium
    (``"Hopper-v5"``; ``"package:Name-v0"`` imports the package first, ``"ALE/Pong-v5"`` and
    dm_control's ``"dm_control/cartpole-swingup-v0"`` need no import, ``"gym:Name-v0"`` is the old
    gym's), and a Minari dataset (``"hopper/medium-v0"``, or any id found in the local storage).
    A name is never translated: D4RL's ``"hopper-medium-v2"`` and Minari's ``"hopper/medium-v0"``
    are different data.

    Args:
        name: The name, spelled exactly.

    Returns:
        The task. A Gymnasium id has no dataset and no targets; a Minari id has neither
        environment nor targets until its dataset, which may name them, is loaded.

    Raises:
        UnknownTaskError: The name is none of these; suggests close ones.
    """
    for task in named_tasks():
        if task.name == name:
            return task
    d4rl_task = find_d4rl_task(name)
    if d4rl_task is not None:
        return d4rl_task
    tmaze = find_tmaze_task(name)
    if tmaze is not None:
        return tmaze
    if is_known_elsewhere(name) or _is_registered(name):
        return _gymnasium_task(name)
    if _is_local_minari_id(name) or _NAMESPACED_ID.fullmatch(name):
        return _minari_task(name)
    near = _near_tasks(name)
    hint = f"{did_you_mean(near)} " if near else ""
    raise UnknownTaskError(
        f"no task is called {name!r}: {hint}`dmamba tasks` lists the named ones; a D4RL name "
        "(hopper-expert-v2), a registered Gymnasium id (Hopper-v5) and a Minari id "
        "(hopper/medium-v0) work too",
        setting="task",
        value=name,
        choices=near,
    )


def get_reference_scores(env_id: str) -> ReferenceScores | None:
    """Return the scores measured in an environment, to normalise by; None where there are none.

    D4RL's scores belong to its named tasks alone: they are never returned for a bare environment.
    """
    return MEASURED_REFERENCES.get(env_id)


def _gymnasium_task(env_id: str) -> Task:
    reference = get_reference_scores(env_id)
    source = {"env_id": "registered with Gymnasium"}
    if reference is not None:
        source["reference"] = reference.source
    return Task(
        name=env_id,
        env_id=env_id,
        reference=reference,
        description=f"The environment {env_id}; the dataset is yours to give",
        source=source,
    )


def _minari_task(dataset_id: str) -> Task:
    return Task(
        name=dataset_id,
        dataset=dataset_id,
        description=f"The Minari dataset {dataset_id}",
        source={"dataset": "the Minari id given"},
    )


def _is_registered(name: str) -> bool:
    import gymnasium

    atari.register()
    memory_tasks.register()
    if name in gymnasium.registry:
        return True
    module, _, env_id = name.partition(":")
    if not module or not env_id:
        return False
    try:
        importlib.import_module(module)  # as gymnasium.make does
    except (ImportError, TypeError):  # no module, or no absolute name of one
        return False
    return env_id in gymnasium.registry


def _is_local_minari_id(name: str) -> bool:
    """Whether Minari's local storage holds the dataset; leaves the storage as it is."""
    if not re.fullmatch(r"[\w./-]+", name) or ".." in name or name.startswith("/"):
        return False
    return (minari_folder() / name / "data").is_dir()


def _near_tasks(name: str) -> list[str]:
    """Return up to five names like this one: named tasks it begins, then similar spellings."""
    import gymnasium

    tasks = [task.name for task in named_tasks()]
    newest: dict[tuple[str | None, str], tuple[int, str]] = {}
    for env_id, spec in gymnasium.registry.items():
        versioned = (spec.version or 0, env_id)
        key = (spec.namespace, spec.name)
        newest[key] = max(newest.get(key, versioned), versioned)
    candidates = [*tasks, *list_names()] + [env_id for _, env_id in newest.values()]
    begun = [task for task in tasks if name and task.startswith(name.lower())][:2]
    return list(dict.fromkeys(begun + near_names(name, candidates, n=3)))
