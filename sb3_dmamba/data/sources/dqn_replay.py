"""The Atari DQN replay dataset, as episodes."""

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
from jaxtyping import Float32, Int64, UInt8
from numpy import ndarray

from sb3_dmamba.checks import check_integer, check_optional_integer
from sb3_dmamba.console import count_progress
from sb3_dmamba.data.joining import gather_pieces, write_pieces
from sb3_dmamba.data.sources.dopamine import Checkpoint, MemberReader, Steps, find_checkpoints
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.envs import ATARI_ID, N_ACTIONS, canonical_game
from sb3_dmamba.errors import ConfigError, DatasetError

_PADDING_ROWS = 3  # all-zero rows that Dopamine writes before an episode: its frame stack less one
_LONGEST_EPISODE = 108_000  # steps: the emulator ends a game after as many frames


@dataclass(frozen=True, eq=False)
class RecordedEpisode:
    """An episode, or as much of it as there is.

    Args:
        observations: Single frames, (T, height, width).
        actions: (T,).
        rewards: (T,), clipped.
        terminated: Whether its end is there.
    """

    observations: UInt8[ndarray, "T height width"]
    actions: Int64[ndarray, "T"]
    rewards: Float32[ndarray, "T"]
    terminated: bool = False


@dataclass(frozen=True)
class Stretch:
    """Rows of one checkpoint that follow each other in time.

    Args:
        checkpoint: Where they are.
        start: First row.
        stop: The row behind the last.
        continues: Whether the first row comes right after the last one of the stretch before.
        begins_history: Whether the first row is the first that the buffer was ever given.
    """

    checkpoint: Checkpoint
    start: int
    stop: int
    continues: bool
    begins_history: bool


def plan_all(checkpoints: Sequence[Checkpoint]) -> list[Stretch]:
    """Put the rows of checkpoints into the order in which they were recorded, each row once.

    A checkpoint whose counter is not a multiple of its rows was written when its last rows were
    still those of the pass before: these come first. Rows that the checkpoint before had already
    are left out.

    Args:
        checkpoints: Ascending.

    Raises:
        DatasetError: A counter goes back.
    """
    stretches: list[Stretch] = []
    previous: Checkpoint | None = None
    for checkpoint in checkpoints:
        stretches += _plan_one(checkpoint, previous)
        previous = checkpoint
    return stretches


def _plan_one(checkpoint: Checkpoint, previous: Checkpoint | None) -> list[Stretch]:
    n_rows, end = checkpoint.n_rows, checkpoint.add_count
    if end is None:  # then as if every checkpoint held the rows after those of the one before
        continues = previous is not None and previous.number + 1 == checkpoint.number
        return [Stretch(checkpoint, 0, n_rows, continues, checkpoint.number == 0)]
    first = max(0, end - n_rows)
    begin = first
    continues = False
    seen = None if previous is None else previous.add_count
    if previous is not None and seen is not None:
        if end < seen:
            raise DatasetError(
                f"{checkpoint.folder}: the counter (add_count) of checkpoint {checkpoint.number} "
                f"is {end:,}, less than the {seen:,} of checkpoint {previous.number}: they are of "
                f"two recordings; read each alone, with checkpoints="
            )
        if first <= seen:
            begin, continues = seen, True
    if begin == end:
        return []
    start, stop = begin % n_rows, (end - 1) % n_rows + 1
    if start < stop:
        return [Stretch(checkpoint, start, stop, continues, begin == 0)]
    return [
        Stretch(checkpoint, start, n_rows, continues, begin == 0),
        Stretch(checkpoint, 0, stop, True, False),
    ]


def plan_visit(checkpoint: Checkpoint) -> list[Stretch]:
    """Put the rows of one checkpoint into the order of its file, for who reads only the first."""
    n_rows = checkpoint.n_rows
    count = (
        (checkpoint.number + 1) * n_rows if checkpoint.add_count is None else checkpoint.add_count
    )
    newest = count % n_rows or n_rows
    stretches = [Stretch(checkpoint, 0, newest, False, count <= n_rows)]
    if newest < n_rows and count > n_rows:
        stretches.append(Stretch(checkpoint, newest, n_rows, False, False))
    return stretches


class _Part:
    """An episode that has begun and not ended.

    Args:
        kept: Whether its steps are wanted; those that are not are only counted.
        frame_shape: Shape of one frame.
    """

    def __init__(self, kept: bool, frame_shape: tuple[int, ...]) -> None:
        self.kept = kept
        self.n_steps = 0
        self.observations = np.empty((0, *frame_shape), np.uint8)
        self.actions = np.empty(0, np.int64)
        self.rewards = np.empty(0, np.float32)

    def extend(self, frames: MemberReader, steps: Steps, rows: slice) -> None:
        """Add rows of a checkpoint, the next ones of ``frames``."""
        count = rows.stop - rows.start
        self.n_steps += count
        if not self.kept:
            frames.skip(count)
            return
        known = len(self.observations)
        observations = np.empty((known + count, *self.observations.shape[1:]), np.uint8)
        observations[:known] = self.observations
        frames.read_into(observations[known:])
        self.observations = observations
        actions, rewards = steps.actions[rows], steps.rewards[rows]
        self.actions = np.concatenate([self.actions, actions], dtype=np.int64)
        self.rewards = np.concatenate([self.rewards, rewards], dtype=np.float32)

    def finish(self, terminated: bool) -> Iterator[RecordedEpisode]:
        """Yield the episode, if it is wanted."""
        if self.kept:
            yield RecordedEpisode(self.observations, self.actions, self.rewards, terminated)


def iterate_episodes(
    stretches: Iterable[Stretch],
    n_actions: int,
    *,
    keep_headless: bool = False,
    report: Callable[[int], object] = lambda _: None,
) -> Iterator[RecordedEpisode]:
    """Read episodes one after the other.

    The all-zero rows before an episode are left out. An episode that goes on in the next stretch
    is joined; one whose end is not there comes with ``terminated`` False.

    Args:
        stretches: What to read.
        n_actions: How many actions the game has.
        keep_headless: Whether to keep an episode whose beginning is not there.
        report: Called with the number of rows that were read since the last call.

    Raises:
        DatasetError: A file is damaged, or holds no ends of episodes. Names it.
    """
    part: _Part | None = None
    padding = 0  # all-zero rows since the last end
    for stretch in stretches:
        checkpoint = stretch.checkpoint
        if not stretch.continues:
            if part is not None:
                yield from part.finish(terminated=False)
            part, padding = None, 0
        begins = stretch.continues or stretch.begins_history  # so a first row starts an episode
        steps = checkpoint.read_steps(n_actions)
        with checkpoint.open_frames() as frames:
            frames.skip(stretch.start)
            for start, stop, is_end in _cut(steps, stretch):
                first = start
                if part is None:
                    first += _skip_padding(frames, steps, start, stop, _PADDING_ROWS - padding)
                    padding += first - start
                    if first < stop:
                        kept = keep_headless or begins or padding > 0
                        part = _Part(kept, checkpoint.frame_shape)
                if part is not None:
                    _check_length(part.n_steps + stop - first, checkpoint)
                    part.extend(frames, steps, slice(first, stop))
                    if is_end:
                        yield from part.finish(terminated=True)
                        part, padding, begins = None, 0, True
                report(stop - start)
            if stretch.stop == checkpoint.n_rows:
                frames.finish()
    if part is not None:
        yield from part.finish(terminated=False)


def _cut(steps: Steps, stretch: Stretch) -> Iterator[tuple[int, int, bool]]:
    """Yield first row, row behind the last, and whether the last one is an episode's end."""
    start = stretch.start
    for last in np.flatnonzero(steps.terminal[stretch.start : stretch.stop]) + stretch.start:
        yield start, int(last) + 1, True
        start = int(last) + 1
    if start < stretch.stop:
        yield start, stretch.stop, False


def _skip_padding(frames: MemberReader, steps: Steps, start: int, stop: int, limit: int) -> int:
    """Leave out all-zero rows, at most ``limit``; a black screen later on is the game's own."""
    count = 0
    while count < min(limit, stop - start) and steps.are_blank(start + count):
        if frames.peek().any():
            break
        frames.skip(1)
        count += 1
    return count


def _check_length(n_steps: int, checkpoint: Checkpoint) -> None:
    if n_steps > _LONGEST_EPISODE:
        raise DatasetError(
            f"{checkpoint.path('terminal')}: no episode ends in {n_steps:,} rows, and no game of "
            f"Atari is longer than {_LONGEST_EPISODE:,} steps; get that file again"
        )


def follow_recipe(
    episodes: Mapping[int, Iterator[RecordedEpisode]],
    trajectories_per_buffer: int,
    n_steps: int,
    seed: int,
) -> Iterator[RecordedEpisode]:
    """Visit checkpoints at random until there are enough steps.

    A visit takes the next episodes of its checkpoint, from where the visit before left off, and
    whole ones only. Steps are counted after each visit, so there are a few more in the end.

    Args:
        episodes: What each checkpoint holds, in its order.
        trajectories_per_buffer: Episodes in a visit.
        n_steps: How many steps are enough.
        seed: Of the visits' order.

    Raises:
        DatasetError: All checkpoints together have fewer steps.

    Source: Chen et al. 2021 (arXiv:2106.01345), section 4.1, and the order that their code's
    ``np.random.choice`` draws checkpoints in after ``np.random.seed(seed)``; theirs takes one
    episode more in each visit, and keeps the all-zero rows.
    """
    generator = np.random.RandomState(seed)  # whose draws are theirs
    numbers = np.array(sorted(episodes))
    exhausted: set[int] = set()
    taken = 0
    while taken < n_steps:
        if len(exhausted) == len(numbers):
            raise DatasetError(
                f"the {len(numbers)} checkpoints have {taken:,} steps in whole episodes and "
                f"n_steps={n_steps:,} were asked for: ask for fewer, or for all with n_steps=None"
            )
        number = int(generator.choice(numbers, 1)[0])
        visited = 0
        while visited < trajectories_per_buffer and number not in exhausted:
            episode = next(episodes[number], None)
            if episode is None:
                exhausted.add(number)
            elif episode.terminated:
                taken += len(episode.actions)
                visited += 1
                yield episode


_LOGS = "replay_logs"
_DEFAULT_VISIT = 10  # episodes, the recipe's
_SCREEN_SIZE = 84
_PUBLISHED_STICKY_ACTIONS = 0.25


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

    Files are unpacked a piece at a time. Single frames are kept, once, and stacked when a window
    is drawn. The all-zero rows before an episode are left out, episodes that go from one
    checkpoint into the next are joined, and one whose end is not there counts as cut by
    collection. Rewards are clipped to ±1, as the agent's were.

    Without ``n_steps`` every episode comes, in the order of recording. With it, the paper's
    recipe: checkpoints are visited at random, each visit takes the next whole episodes of its
    checkpoint, until there are ``n_steps``. The paper's numbers are ``n_buffers=50,
    trajectories_per_buffer=10, n_steps=500_000``, and its seeds 123, 231 and 312.

    Args:
        source: Folder of a game, of one of its runs, or of the run's ``replay_logs``.
        game: Its name, where the folder's does not tell.
        run: Which run of a game's folder; None is the only one, or 1, the paper's. A run's own
            folder takes no other.
        checkpoints: Numbers of the checkpoints to read; None is all that are there.
        n_buffers: How many of these, the last; None is all.
        trajectories_per_buffer: Episodes in a visit of the recipe; None is 10.
        n_steps: Steps after which the recipe stops, at the end of a visit.
        seed: Of the recipe's visits.
        frame_stack: Frames in an observation.
        keep_headless: Whether to keep an episode whose beginning lies in a checkpoint that is not
            there. Its time steps then start at 0 wherever it was cut.
        store: Folder to convert to, which ``load_trajectories`` opens from then on. None: in
            memory up to a gigabyte of frames, in a temporary file beyond.
        overwrite: Whether to replace a store that is there already.
        progress_bar: Whether to show the rows read.

    Raises:
        DatasetError: A file is missing, cut, of a wrong dtype or shape, or members differ in
            length (names file and member); the game is unknown; or there are too few steps.
        ConfigError: A number is out of its range, or belongs to the recipe and ``n_steps`` is
            not given.

    Source: Agarwal et al. 2020 (arXiv:1907.04543) recorded the data; Chen et al. 2021
    (arXiv:2106.01345), section 4.1, have the recipe.
    """
    run = check_optional_integer("run", run, 0)
    n_buffers = check_optional_integer("n_buffers", n_buffers, 1)
    visit = check_optional_integer("trajectories_per_buffer", trajectories_per_buffer, 1)
    n_steps = check_optional_integer("n_steps", n_steps, 1)
    seed = check_integer("seed", seed, 0)
    frame_stack = check_integer("frame_stack", frame_stack, 1)
    if n_steps is None and visit is not None:
        raise ConfigError(
            "trajectories_per_buffer is part of the paper's recipe: give n_steps too "
            "(the paper's is 500000)"
        )
    logs = _find_logs(Path(source).expanduser(), run)
    name = canonical_game(game if game is not None else _game_of(logs))
    opened = [Checkpoint.open(logs, number) for number in _choose(logs, checkpoints, n_buffers)]
    _check_frames(opened)
    n_rows = sum(checkpoint.n_rows for checkpoint in opened)
    if n_steps is not None and n_steps > n_rows:
        raise DatasetError(
            f"{logs}: {len(opened)} checkpoints have {n_rows:,} rows and n_steps={n_steps:,} were "
            f"asked for: ask for fewer, or for all with n_steps=None"
        )
    n_actions, frame_shape = N_ACTIONS[name], opened[0].frame_shape
    seen = frame_shape if frame_stack == 1 else (frame_stack, *frame_shape)
    with count_progress(name, "rows" if n_steps is None else "steps", progress_bar) as bar:
        bar.start(0, n_rows if n_steps is None else n_steps)
        episodes: Iterator[RecordedEpisode]
        if n_steps is None:
            episodes = iterate_episodes(
                plan_all(opened), n_actions, keep_headless=keep_headless, report=bar.advance
            )
        else:
            visits = {
                one.number: iterate_episodes(
                    plan_visit(one), n_actions, keep_headless=keep_headless
                )
                for one in opened
            }
            recipe = follow_recipe(visits, visit or _DEFAULT_VISIT, n_steps, seed)
            episodes = _report_steps(recipe, bar.advance)
        pieces = _as_pieces(
            episodes,
            observation_space=spaces.Box(0, 255, seen, np.uint8),
            action_space=spaces.Discrete(n_actions),
            env_id=ATARI_ID,
            env_kwargs=_env_kwargs(name, logs, frame_shape, frame_stack),
            frame_stack=frame_stack,
        )
        describe = partial(_describe, name, logs, opened, None if n_steps is None else seed)
        if store is None:
            return gather_pieces(pieces, describe)
        return write_pieces(pieces, Path(store), overwrite=overwrite, source=describe)


def _as_pieces(episodes: Iterator[RecordedEpisode], **fields: Any) -> Iterator[Trajectories]:
    for episode in episodes:
        yield Trajectories(
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminated=np.array([episode.terminated]),
            truncated=np.array([False]),
            episode_offsets=np.array([0, len(episode.rewards)]),
            **fields,
        )


def _find_logs(folder: Path, run: int | None) -> Path:
    """Return the folder that has the files."""
    if not folder.is_dir():
        raise DatasetError(f"there is no folder {folder}")
    logs = folder if find_checkpoints(folder) else folder / _LOGS
    if logs.is_dir():
        _check_run(logs, run)
        return logs
    runs = sorted(
        int(path.parent.name) for path in folder.glob(f"*/{_LOGS}") if path.parent.name.isdigit()
    )
    chosen = run
    if chosen is None:
        chosen = runs[0] if len(runs) == 1 else 1
    if chosen not in runs:
        has = f"only runs {', '.join(map(str, runs))}: pass run=" if runs else f"no <run>/{_LOGS}"
        raise DatasetError(f"{folder} has no run {chosen}, {has}")
    return folder / str(chosen) / _LOGS


def _check_run(logs: Path, run: int | None) -> None:
    """Raise DatasetError if the folder is that of another run than the one asked for."""
    place = logs.resolve()
    name = place.parent.name if place.name == _LOGS else place.name
    if run is not None and not (name.isdecimal() and int(name) == run):
        raise DatasetError(
            f"run={run} chooses among the runs of a game's folder, and {logs} is one run's: leave "
            f"run out, or pass the game's folder"
        )


def _game_of(logs: Path) -> str:
    """Return the name of the game's folder: <game>/<run>/replay_logs."""
    parts = [part for part in logs.resolve().parts if part != _LOGS and not part.isdigit()]
    return parts[-1]


def _choose(logs: Path, checkpoints: Sequence[int] | None, n_buffers: int | None) -> list[int]:
    found = find_checkpoints(logs)
    if not found:
        raise DatasetError(
            f"{logs} has no checkpoints: files are called like $store$_observation_ckpt.0.gz"
        )
    chosen = found if checkpoints is None else sorted({int(number) for number in checkpoints})
    missing = [number for number in chosen if number not in found]
    if missing or not chosen:
        raise DatasetError(f"checkpoints={checkpoints!r}: {logs} has {found}")
    if n_buffers is not None and n_buffers > len(chosen):
        raise DatasetError(
            f"n_buffers={n_buffers} and {logs} has {len(chosen)} checkpoints: ask for fewer, or "
            f"for all with n_buffers=None"
        )
    return chosen if n_buffers is None else chosen[-n_buffers:]


def _check_frames(checkpoints: list[Checkpoint]) -> None:
    first = checkpoints[0]
    for other in checkpoints:
        if other.frame_shape != first.frame_shape:
            raise DatasetError(
                f"{other.path('observation')}: frames have shape {other.frame_shape} and those of "
                f"checkpoint {first.number} {first.frame_shape}"
            )


def _env_kwargs(
    game: str, logs: Path, frame_shape: tuple[int, ...], frame_stack: int
) -> dict[str, Any]:
    """Return what makes the environment that the data was recorded in."""
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
    for path in (logs / "info.json", logs.parent / "info.json"):
        if path.is_file():
            kwargs.update(_read_info(path))
            break
    return kwargs


def _read_info(path: Path) -> dict[str, Any]:
    """Return the environment's settings that a file beside the data has."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read as JSON ({error}): repair or remove it"
        ) from error
    if not isinstance(info, dict):
        raise DatasetError(f"{path} holds no JSON object: repair or remove it")
    found = {}
    for name, kinds in (("sticky_actions", (int, float)), ("frame_skip", (int,))):
        if name in info:
            if isinstance(info[name], bool) or not isinstance(info[name], kinds):
                raise DatasetError(f"{path}: {name!r} is {info[name]!r}: give a number")
            found[name] = info[name]
    return found


def _describe(
    game: str, logs: Path, checkpoints: list[Checkpoint], seed: int | None, n_steps: int
) -> str:
    """Return where ``n_steps`` steps come from; ``seed`` is the recipe's, if it was followed."""
    run = logs.resolve().parent.name
    where = f"{game}/{run}" if run.isdigit() else game
    numbers = [checkpoint.number for checkpoint in checkpoints]
    which = (
        f"checkpoint {numbers[0]}"
        if len(numbers) == 1
        else f"{len(numbers)} checkpoints, {numbers[0]} to {numbers[-1]}"
    )
    recipe = "" if seed is None else f", {n_steps} steps, seed {seed}"
    return f"dqn-replay:{where} ({which}{recipe})"


def _report_steps(
    episodes: Iterator[RecordedEpisode], report: Callable[[int], object]
) -> Iterator[RecordedEpisode]:
    for episode in episodes:
        yield episode
        report(len(episode.actions))
