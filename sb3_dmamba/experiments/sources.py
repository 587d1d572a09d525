"""Resolve ``--data``, and load the data under the options of an experiment."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sb3_dmamba import Trajectories, load_trajectories
from sb3_dmamba.data.sources import find_source
from sb3_dmamba.errors import UnknownTaskError
from sb3_dmamba.experiments.catalogue.problems import list_problems
from sb3_dmamba.experiments.grid import DataSource
from sb3_dmamba.experiments.grid.fingerprint import compute_fingerprint
from sb3_dmamba.tasks import Task, get_task

__all__ = ["LoadedData", "resolve_data"]


def resolve_data(text: str) -> tuple[Task | None, str]:
    """Read one ``--data``.

    Args:
        text: A task's name, ``NAME=SOURCE``, or a source.

    Returns:
        The task (None where the data alone must say) and what to load.

    Raises:
        UnknownTaskError: A task that has no data of its own is named without any.
    """
    problems = {problem.name: problem for problem in list_problems()}
    by_source = {problem.dataset: problem for problem in list_problems()}
    name, equals, source = text.partition("=")
    if equals and (name in problems or _is_task(name)):
        return problems.get(name) or get_task(name), source
    if text in problems:
        return problems[text], str(problems[text].dataset)
    if text in by_source:
        return by_source[text], text
    if _is_task(text):
        task = get_task(text)
        if task.dataset is None:
            raise UnknownTaskError(
                f"{text} has no data of its own: say where it lies with --data {text}=PATH"
            )
        return (task if task.target_returns else None), task.dataset
    return None, text


def _is_task(name: str) -> bool:
    if Path(name).exists():
        return False
    try:
        get_task(name)
    except UnknownTaskError:
        return False
    return True


class LoadedData:
    """A source under different options, each loaded and hashed once.

    Args:
        source: What ``load_trajectories`` takes.
        stores: Folder for the stores of sources that can be converted (the DQN replay); None
            converts nothing. Other sources are loaded from where they lie.
    """

    def __init__(self, source: str, stores: Path | None) -> None:
        self._source = source
        self._stores = stores
        self._described: dict[str, DataSource] = {}
        self._last: tuple[str, Trajectories] | None = None

    def get(self, options: Mapping[str, Any]) -> Trajectories:
        """Load the data; what was loaded last is at hand."""
        key = _name_options(options)
        if self._last is None or self._last[0] != key:
            self._last = None  # two at once may not fit into memory
            source, rest = self._place(options)
            self._last = key, load_trajectories(source, **rest)
        return self._last[1]

    def describe(self, options: Mapping[str, Any]) -> DataSource:
        """Return what the data is under some options, and where a cell finds it."""
        key = _name_options(options)
        if key not in self._described:
            fingerprint = compute_fingerprint(self.get(options))
            source, rest = self._place(options)
            self._described[key] = DataSource(source, rest, fingerprint)
        return self._described[key]

    def _place(self, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the source and its options, or the store that it was converted to."""
        if self._stores is None or not _can_be_converted(self._source):
            return self._source, dict(options)
        name = f"{Path(self._source).resolve()} {_name_options(options)}"
        store = self._stores / hashlib.sha256(name.encode()).hexdigest()[:16]
        if not store.exists():
            load_trajectories(self._source, **options, store=store)
        return str(store), {}


def _name_options(options: Mapping[str, Any]) -> str:
    return repr(sorted(options.items()))


def _can_be_converted(source: str) -> bool:
    """Whether ``load_trajectories`` takes ``store=`` for this kind of source."""
    kind = find_source(source)
    return kind is not None and "store" in kind.option_names()
