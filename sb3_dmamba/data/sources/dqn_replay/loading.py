"""The Atari DQN replay: replay buffers as Dopamine logs them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_dmamba.atari import ATARI_ID
from sb3_dmamba.atari.games import N_ACTIONS, canonical_game
from sb3_dmamba.checks import check_integer, check_optional_integer
from sb3_dmamba.data._progress import count_progress
from sb3_dmamba.data.sources.dqn_replay.episodes import (
    RecordedEpisode,
    iterate_episodes,
    plan_all,
    plan_visit,
)
from sb3_dmamba.data.sources.dqn_replay.files import Checkpoint, find_checkpoints
from sb3_dmamba.data.sources.dqn_replay.recipe import follow_recipe
from sb3_dmamba.data.store.gathering import gather_pieces, write_pieces
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ConfigError, DatasetError

__all__ = ["load_dqn_replay"]

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
