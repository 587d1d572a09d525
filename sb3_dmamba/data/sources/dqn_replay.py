"""The Atari DQN replay dataset: which rows of its checkpoints are read, and as which episodes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy import ndarray

from sb3_dmamba.checks import check_integer, check_optional_integer
from sb3_dmamba.data.joining import gather_pieces, write_pieces
from sb3_dmamba.data.sources.dopamine import (
    Checkpoint,
    MemberReader,
    Steps,
    error_in,
    find_checkpoints,
)
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.envs import ATARI_ID, N_ACTIONS, canonical_game
from sb3_dmamba.errors import ConfigError, DatasetError
from sb3_dmamba.io import count_progress, describe_missing_path

_LOGS = "replay_logs"
_EPISODES_PER_VISIT = 10  # the recipe's
_SCREEN_SIZE = 84
_PUBLISHED_STICKY_ACTIONS = 0.25
_PADDING_ROWS = 3  # all-zero rows that Dopamine writes before an episode: its frame stack less one
_LONGEST_EPISODE = 108_000  # steps: the emulator ends a game after as many frames


def load_dqn_replay(
    source: str | os.PathLike[str],
    *,
    game: str | None = None,
    run: int | None = None,
    checkpoints: Sequence[int] | None = None,
    n_buffers: int | None = None,
    trajectories_per_buffer: int | None = None,
    n_steps: int | None = None,
    seed: int = 123,
    frame_stack: int = 4,
    keep_headless: bool = False,
    store: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress_bar: bool = False,
) -> Trajectories:
    """Read episodes from the replay buffers of a DQN agent.

    Frames are kept once and stacked when drawn. All-zero rows before an episode are left out,
    episodes that go from one checkpoint into the next are joined, and one whose end is not there
    counts as cut. Rewards are clipped to ±1, as the agent's were.

    Without ``n_steps`` every episode comes, in the order of recording. With it, the paper's recipe:
    random visits to checkpoints, each of which takes its next whole episodes. The paper has
    ``n_buffers=50, trajectories_per_buffer=10, n_steps=500_000`` and the seeds 123, 231 and 312.

    Args:
        source: Folder of a game, of one of its runs, or of the run's ``replay_logs``.
        game: Its name, where the folder's does not tell.
        run: Which run of a game's folder; None is the only one, or 1, the paper's.
        checkpoints: Numbers of the checkpoints to read; None is all that are there.
        n_buffers: How many of these, the last; None is all.
        trajectories_per_buffer: Episodes in a visit of the recipe; None is 10.
        n_steps: Steps after which the recipe stops, at the end of a visit.
        seed: Of the recipe's visits.
        frame_stack: Frames in an observation.
        keep_headless: Whether to keep an episode whose beginning is in no checkpoint; its time
            steps start at 0 all the same.
        store: Folder to convert to. None: in memory, or a temporary file above a gigabyte.
        overwrite: Whether to replace a store that is there already.
        progress_bar: Whether to show the rows read.

    Raises:
        DatasetError: A file is missing or malformed (names it), the game is unknown, or there are
            too few steps.
        ConfigError: A number is out of its range, or needs ``n_steps``.

    Source: Agarwal et al. 2020 (arXiv:1907.04543) recorded the data; Chen et al. 2021
    (arXiv:2106.01345), section 4.1, have the recipe.
    """
    run = check_optional_integer("run", run, 0)
    n_buffers = check_optional_integer("n_buffers", n_buffers, 1)
    per_visit = check_optional_integer("trajectories_per_buffer", trajectories_per_buffer, 1)
    n_steps = check_optional_integer("n_steps", n_steps, 1)
    seed = check_integer("seed", seed, 0)
    frame_stack = check_integer("frame_stack", frame_stack, 1)
    if n_steps is None and per_visit is not None:
        problem = "trajectories_per_buffer needs n_steps too (the paper's is 500000)"
        raise ConfigError(problem, setting="trajectories_per_buffer", value=per_visit)
    logs = _find_logs(Path(source).expanduser(), run)
    name = canonical_game(game if game is not None else _find_game(logs))
    opened = [Checkpoint.open(logs, number) for number in _choose(logs, checkpoints, n_buffers)]
    frame_shape = _find_frame_shape(opened)
    n_rows = sum(checkpoint.n_rows for checkpoint in opened)
    if n_steps is not None and n_steps > n_rows:
        raise _too_few_steps(len(opened), f"{n_rows:,} rows", n_steps)
    shape = frame_shape if frame_stack == 1 else (frame_stack, *frame_shape)
    fields: dict[str, Any] = {
        "observation_space": spaces.Box(0, 255, shape, np.uint8),
        "action_space": spaces.Discrete(N_ACTIONS[name]),
        "env_id": ATARI_ID,
        "env_kwargs": _find_env_kwargs(name, logs, frame_shape, frame_stack),
        "frame_stack": frame_stack,
    }

    read = partial(
        iterate_episodes, n_actions=N_ACTIONS[name], fields=fields, keep_headless=keep_headless
    )
    with count_progress(name, "rows" if n_steps is None else "steps", progress_bar) as bar:
        bar.start(0, n_rows if n_steps is None else n_steps)
        if n_steps is None:
            episodes = read(order_by_time(opened), report=bar.advance)
        else:
            by_number = {each.number: read(order_by_file(each)) for each in opened}
            per_visit = per_visit or _EPISODES_PER_VISIT
            episodes = follow_recipe(by_number, per_visit, n_steps, seed, bar.advance)
        describe = partial(_describe, name, logs, opened, None if n_steps is None else seed)
        if store is None:
            return gather_pieces(episodes, describe)
        return write_pieces(episodes, Path(store), overwrite=overwrite, source=describe)


@dataclass(frozen=True)
class RowRange:
    """Rows of one checkpoint that follow each other in time."""

    checkpoint: Checkpoint
    start: int
    stop: int
    continues: bool  # the first row comes right after the last one of the range before
    begins_history: bool  # the first row is the first that the buffer was ever given


def order_by_time(checkpoints: Sequence[Checkpoint]) -> list[RowRange]:
    """Order the rows of ascending checkpoints as they were recorded, each row once.

    A checkpoint whose counter is not a multiple of its rows ends with rows of the pass before,
    which come first.
    """
    ranges: list[RowRange] = []
    previous: Checkpoint | None = None
    for checkpoint in checkpoints:
        ranges += _new_rows(checkpoint, previous)
        previous = checkpoint
    return ranges


def _new_rows(checkpoint: Checkpoint, previous: Checkpoint | None) -> list[RowRange]:
    """Return the rows of a checkpoint that the one before does not have, oldest first."""
    n_rows, end = checkpoint.n_rows, checkpoint.add_count
    if end is None:  # then as if every checkpoint held the rows after those of the one before
        continues = previous is not None and previous.number + 1 == checkpoint.number
        return [RowRange(checkpoint, 0, n_rows, continues, checkpoint.number == 0)]
    begin, continues = max(0, end - n_rows), False
    seen = None if previous is None else previous.add_count
    if previous is not None and seen is not None:
        if end < seen:
            pair = previous.number, checkpoint.number
            problem = f"add_count goes back in {pair}, {seen:,} to {end:,}: read them one by one"
            raise error_in(checkpoint.folder, problem, setting="checkpoints", value=pair)
        if begin <= seen:
            begin, continues = seen, True
    if begin == end:
        return []
    start, stop = begin % n_rows, (end - 1) % n_rows + 1
    if start < stop:
        return [RowRange(checkpoint, start, stop, continues, begin == 0)]
    return [
        RowRange(checkpoint, start, n_rows, continues, begin == 0),
        RowRange(checkpoint, 0, stop, True, False),
    ]


def order_by_file(checkpoint: Checkpoint) -> list[RowRange]:
    """Return the rows of one checkpoint as its file has them, so that the first need no others.

    Rows behind the newest belong to the pass before, and follow from no row of the file.
    """
    n_rows, count = checkpoint.n_rows, checkpoint.add_count
    if count is None:
        count = (checkpoint.number + 1) * n_rows
    newest = count % n_rows or n_rows
    ranges = [RowRange(checkpoint, 0, newest, False, count <= n_rows)]
    if newest < n_rows and count > n_rows:
        ranges.append(RowRange(checkpoint, newest, n_rows, False, False))
    return ranges


def iterate_episodes(
    ranges: Iterable[RowRange],
    *,
    n_actions: int,
    fields: Mapping[str, Any],
    keep_headless: bool = False,
    report: Callable[[int], object] = lambda _: None,
) -> Iterator[Trajectories]:
    """Read the episodes of row ranges, without the all-zero rows before each, joined across ranges.

    One whose end is not there comes with ``terminated`` False, and one whose beginning is not there
    only if ``keep_headless``. ``report`` is called with the number of rows read.
    """
    episode: _Unfinished | None = None
    padding = 0  # all-zero rows since the last end
    ranges = list(ranges)
    read_to_end = {part.checkpoint for part in ranges if part.stop == part.checkpoint.n_rows}
    for part in ranges:
        checkpoint = part.checkpoint
        if not part.continues:
            if episode is not None:
                yield from episode.finish(terminated=False)
            episode, padding = None, 0
        starts_here = part.continues or part.begins_history  # so a first row starts an episode
        steps = checkpoint.read_steps(n_actions)
        with checkpoint.open_frames() as frames:
            frames.skip(part.start)
            for start, stop, is_end in _cut_at_ends(steps, part):
                first = start
                if episode is None:
                    first += _skip_padding(frames, steps, start, stop, _PADDING_ROWS - padding)
                    padding += first - start
                    if first < stop:
                        is_kept = keep_headless or starts_here or padding > 0
                        episode = _Unfinished(is_kept, fields)
                if episode is not None:
                    episode.extend(frames, steps, slice(first, stop), checkpoint)
                    if is_end:
                        yield from episode.finish(terminated=True)
                        episode, padding, starts_here = None, 0, True
                report(stop - start)
            if part.stop == checkpoint.n_rows or checkpoint not in read_to_end:
                frames.skip(checkpoint.n_rows - part.stop)
                frames.finish()  # compares the checksum
    if episode is not None:
        yield from episode.finish(terminated=False)


class _Unfinished:
    """An episode of which no end was read yet; steps of one that is not kept are only counted."""

    def __init__(self, is_kept: bool, fields: Mapping[str, Any]) -> None:
        self._is_kept, self._fields = is_kept, fields
        self._n_steps = 0
        self._parts: list[tuple[ndarray, ndarray, ndarray]] = []

    def extend(
        self, frames: MemberReader, steps: Steps, rows: slice, checkpoint: Checkpoint
    ) -> None:
        """Add rows of a checkpoint, the next ones of ``frames``."""
        count = rows.stop - rows.start
        self._n_steps += count
        if self._n_steps > _LONGEST_EPISODE:
            problem = f"no episode ends in {self._n_steps:,} rows: get that file again"
            raise error_in(checkpoint.path("terminal"), problem, index=rows.start)
        if not self._is_kept:
            frames.skip(count)
            return
        observations = np.empty((count, *checkpoint.frame_shape), np.uint8)
        frames.read_into(observations)
        actions, rewards = steps.actions[rows], steps.rewards[rows]
        self._parts.append((observations, actions.astype(np.int64), rewards.astype(np.float32)))

    def finish(self, terminated: bool) -> Iterator[Trajectories]:
        """Yield the episode, if it is kept."""
        if self._is_kept:
            frames, actions, rewards = (
                parts[0] if len(parts) == 1 else np.concatenate(parts)
                for parts in zip(*self._parts, strict=True)
            )
            yield Trajectories(
                observations=frames,
                actions=actions,
                rewards=rewards,
                terminated=np.array([terminated]),
                truncated=np.array([False]),
                episode_offsets=np.array([0, len(rewards)]),
                **self._fields,
            )


def _cut_at_ends(steps: Steps, part: RowRange) -> Iterator[tuple[int, int, bool]]:
    """Yield first row, one past the last, and whether that one is an episode's end."""
    start = part.start
    for last in np.flatnonzero(steps.terminal[part.start : part.stop]) + part.start:
        yield start, int(last) + 1, True
        start = int(last) + 1
    if start < part.stop:
        yield start, part.stop, False


def _skip_padding(frames: MemberReader, steps: Steps, start: int, stop: int, limit: int) -> int:
    """Leave out all-zero rows, at most ``limit``; a black screen later on is the game's own."""
    count = 0
    while count < min(limit, stop - start) and steps.are_blank(start + count):
        if frames.peek().any():
            break
        frames.skip(1)
        count += 1
    return count


def follow_recipe(
    episodes: Mapping[int, Iterator[Trajectories]],
    episodes_per_visit: int,
    n_steps: int,
    seed: int,
    report: Callable[[int], object],
) -> Iterator[Trajectories]:
    """Visit checkpoints at random, a few whole episodes a visit, until there are enough steps.

    Source: Chen et al. 2021 (arXiv:2106.01345), section 4.1, and the order in which their code
    draws checkpoints; theirs takes one episode more in each visit, and keeps the all-zero rows.
    """
    generator = np.random.RandomState(seed)  # which draws as theirs does
    numbers = np.array(sorted(episodes))
    exhausted: set[int] = set()
    taken = 0
    while taken < n_steps:
        if len(exhausted) == len(numbers):
            raise _too_few_steps(len(numbers), f"{taken:,} steps in whole episodes", n_steps)
        number = int(generator.choice(numbers, 1)[0])
        visited = 0
        while visited < episodes_per_visit and number not in exhausted:
            episode = next(episodes[number], None)
            if episode is None:
                exhausted.add(number)
            elif episode.terminated[0]:
                taken += episode.n_steps
                visited += 1
                yield episode
                report(episode.n_steps)


def _too_few_steps(n_checkpoints: int, found: str, n_steps: int) -> DatasetError:
    problem = f"n_steps={n_steps:,}, and {n_checkpoints} checkpoints have {found}: ask for fewer"
    return DatasetError(problem, setting="n_steps", value=n_steps)


def _find_logs(folder: Path, run: int | None) -> Path:
    """Return the folder that has the files."""
    if not folder.is_dir():
        raise DatasetError(describe_missing_path(folder), path=folder)
    logs = folder if find_checkpoints(folder) else folder / _LOGS
    if logs.is_dir():
        place = logs.resolve()
        name = place.parent.name if place.name == _LOGS else place.name
        if run is not None and not (name.isdecimal() and int(name) == run):
            problem = f"run={run}, and this is the folder of one run: leave run out"
            raise error_in(logs, problem, setting="run", value=run)
        return logs
    runs = sorted(
        int(path.parent.name) for path in folder.glob(f"*/{_LOGS}") if path.parent.name.isdigit()
    )
    chosen = run
    if chosen is None:
        chosen = runs[0] if len(runs) == 1 else 1
    if chosen not in runs:
        has = f"only runs {', '.join(map(str, runs))}: pass run=" if runs else f"no <run>/{_LOGS}"
        problem = f"there is no run {chosen}, {has}"
        raise error_in(folder, problem, setting="run", value=chosen, choices=runs)
    return folder / str(chosen) / _LOGS


def _find_game(logs: Path) -> str:
    """Return the name of the game's folder: <game>/<run>/replay_logs."""
    return [part for part in logs.resolve().parts if part != _LOGS and not part.isdigit()][-1]


def _choose(logs: Path, checkpoints: Sequence[int] | None, n_buffers: int | None) -> list[int]:
    """Return the numbers of the checkpoints to read, ascending."""
    found = find_checkpoints(logs)
    if not found:
        raise error_in(logs, "no file is called like $store$_observation_ckpt.0.gz")
    chosen = found if checkpoints is None else sorted({int(number) for number in checkpoints})
    if not chosen or not set(chosen) <= set(found):
        problem = f"checkpoints={checkpoints!r} are not among {found}"
        raise error_in(logs, problem, setting="checkpoints", value=checkpoints, choices=found)
    if n_buffers is not None and n_buffers > len(chosen):
        problem = f"n_buffers={n_buffers}, and there are {len(chosen)} checkpoints: ask for fewer"
        raise error_in(logs, problem, setting="n_buffers", value=n_buffers)
    return chosen if n_buffers is None else chosen[-n_buffers:]


def _find_frame_shape(checkpoints: Sequence[Checkpoint]) -> tuple[int, ...]:
    first = checkpoints[0]
    for other in checkpoints:
        if other.frame_shape != first.frame_shape:
            problem = f"frames have shape {other.frame_shape}, others {first.frame_shape}"
            value, choices = other.frame_shape, [first.frame_shape]
            raise error_in(other.path("observation"), problem, value=value, choices=choices)
    return first.frame_shape


def _find_env_kwargs(
    game: str, logs: Path, frame_shape: tuple[int, ...], frame_stack: int
) -> dict[str, Any]:
    """Return the arguments of the environment that the data was recorded in."""
    kwargs: dict[str, Any] = {
        "game": game,
        "sticky_actions": _PUBLISHED_STICKY_ACTIONS,
        "frame_skip": 4,
        "terminal_on_life_loss": False,
        "frame_stack": frame_stack,
        "noop_max": 30,
    }
    if frame_shape[0] == frame_shape[1] != _SCREEN_SIZE:
        kwargs["screen_size"] = frame_shape[0]
    path = next((p for p in (logs / "info.json", logs.parent / "info.json") if p.is_file()), None)
    return kwargs if path is None else {**kwargs, **_read_info(path)}


def _read_info(path: Path) -> dict[str, Any]:
    """Return the environment's settings that a file beside the data has."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise error_in(path, f"not readable as JSON ({error}): repair or remove it") from error
    if not isinstance(info, dict):
        raise error_in(path, "it holds no JSON object: repair or remove it")
    found = {}
    for name, kinds in (("sticky_actions", (int, float)), ("frame_skip", (int,))):
        if name in info:
            if isinstance(info[name], bool) or not isinstance(info[name], kinds):
                problem = f"{name!r} is {info[name]!r}: give a number"
                raise error_in(path, problem, setting=name, value=info[name])
            found[name] = info[name]
    return found


def _describe(
    game: str, logs: Path, checkpoints: Sequence[Checkpoint], seed: int | None, n_steps: int
) -> str:
    """Return the name of the dataset; ``seed`` is the recipe's, if it was followed."""
    run = logs.resolve().parent.name
    where = f"{game}/{run}" if run.isdigit() else game
    numbers = [checkpoint.number for checkpoint in checkpoints]
    which = f"{len(numbers)} checkpoints, {numbers[0]} to {numbers[-1]}"
    which = which if len(numbers) > 1 else f"checkpoint {numbers[0]}"
    recipe = "" if seed is None else f", {n_steps} steps, seed {seed}"
    return f"dqn-replay:{where} ({which}{recipe})"
