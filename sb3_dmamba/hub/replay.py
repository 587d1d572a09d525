"""A video of one episode."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import RecordVideo

from sb3_dmamba.errors import ConfigError, MissingDependencyError
from sb3_dmamba.evaluation import StatefulActor

__all__ = ["make_rendered", "record_replay"]


def make_rendered(make_env: Callable[..., gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """Make an environment that renders frames.

    Args:
        make_env: Makes one environment; asked for ``render_mode="rgb_array"`` if it takes that.

    Raises:
        ConfigError: What it makes renders no frames.
    """
    try:
        env = make_env(render_mode="rgb_array")
    except TypeError:  # a function without arguments
        env = make_env()
    if env.render_mode != "rgb_array":
        mode = env.render_mode
        env.close()  # type: ignore[no-untyped-call]
        raise ConfigError(
            f"the environment has render_mode={mode!r}, and a video needs frames: give one that "
            f'has them, env=lambda: gymnasium.make(..., render_mode="rgb_array")'
        )
    return env


def record_replay(
    actor: StatefulActor, env: gym.Env[Any, Any], path: Path, seed: int, max_steps: int
) -> tuple[float, int]:
    """Record one episode and close the environment.

    Args:
        actor: Who acts.
        env: Renders frames.
        path: The ``.mp4`` to write.
        seed: The episode's.
        max_steps: The video stops after so many steps; the episode does not.

    Returns:
        The episode's return and length.

    Raises:
        MissingDependencyError: moviepy is not installed.
        ConfigError: What the environment renders with is not installed.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moviepy's own, and that the folder is there
        try:
            recorder = RecordVideo(
                env,
                folder,
                episode_trigger=lambda episode: episode == 0,
                video_length=max_steps,
                name_prefix="replay",
                disable_logger=True,
            )
        except DependencyNotInstalled as error:
            env.close()  # type: ignore[no-untyped-call]
            raise MissingDependencyError("moviepy", "record a video", "video") from error
        try:
            score, length = _play(actor, recorder, seed)
        except DependencyNotInstalled as error:
            raise ConfigError(f"the environment cannot render frames here: {error}") from error
        finally:
            recorder.close()  # type: ignore[no-untyped-call]
        shutil.move(str(next(Path(folder).glob("*.mp4"))), path)
    return score, length


def _play(actor: StatefulActor, env: gym.Env[Any, Any], seed: int) -> tuple[float, int]:
    actor.reset()
    observation, _ = env.reset(seed=seed)
    reward, score, length, over = 0.0, 0.0, 0, False
    while not over:
        action = actor.predict(observation, reward)
        observation, paid, terminated, truncated, _ = env.step(action)
        reward, over = float(paid), terminated or truncated
        score, length = score + reward, length + 1
    return score, length
