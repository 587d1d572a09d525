"""Atari games with the preprocessing of the DQN replay dataset."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from numpy.typing import NDArray

from sb3_dmamba.checks import check_integer, check_number, did_you_mean, near_names
from sb3_dmamba.errors import ConfigError, MissingDependencyError

_PURPOSE = "play Atari games"
_FRAMES_PER_SECOND = 60  # of the emulator

Observation = NDArray[np.uint8]


class AtariGame(gym.Env[Observation, int]):
    """An Atari game as an agent of the DQN replay sees it, with the game's own rewards.

    Each step holds an action for ``frame_skip`` frames of the emulator and shows the last
    ``frame_stack`` results, oldest first, zeros before the episode's start: the maximum of the last
    two frames, in the emulator's grey, shrunk by area averaging. ``unwrapped`` offers ``ale`` and
    ``get_action_meanings()``.

    Args:
        game: Its name: ``"SpaceInvaders"``, or the emulator's ``"space_invaders"``.
        sticky_actions: Probability that the emulator repeats the last action for a frame: 0.25 in
            the DQN replay, 0 in the paper's own evaluation.
        frame_skip: Frames of the emulator in a step.
        frame_stack: Results in an observation.
        screen_size: Height and width of an observation, in pixels.
        terminal_on_life_loss: Whether an episode ends with a life; the next reset then goes on with
            the game unless seeded, and ``info["is_lost_life"]`` tells it from the game's end.
        noop_max: A game starts after 1 to this many frames without an action; 0 is none.
        full_action_space: Whether all 18 actions are offered, or those the game reacts to.
        max_episode_frames: The emulator truncates a game after so many frames.
        mode: The game's variant; None is the default.
        difficulty: The switch's position; None is the default.
        render_mode: ``"rgb_array"`` or ``"human"``.

    Raises:
        ConfigError: There is no such game, or an argument is out of its range.
        MissingDependencyError: ale-py or OpenCV is not installed.

    Source: Mnih et al. 2015, Methods; Machado et al. 2018 (arXiv:1709.06009), section 5; Agarwal
    et al. 2020 (arXiv:1907.04543), the DQN replay, recorded with Dopamine's settings.
    """

    metadata = {  # noqa: RUF012  (an instance's, in Gymnasium's declaration)
        "render_modes": ["human", "rgb_array"],
        "render_fps": _FRAMES_PER_SECOND // 4,
    }

    def __init__(
        self,
        game: str,
        *,
        sticky_actions: float = 0.25,
        frame_skip: int = 4,
        frame_stack: int = 4,
        screen_size: int = 84,
        terminal_on_life_loss: bool = False,
        noop_max: int = 30,
        full_action_space: bool = False,
        max_episode_frames: int = 108_000,
        mode: int | None = None,
        difficulty: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        sticky_actions = check_number("sticky_actions", sticky_actions, 0.0, 1.0, "from 0 to 1")
        frame_skip = check_integer("frame_skip", frame_skip, 1)
        frame_stack = check_integer("frame_stack", frame_stack, 1)
        screen_size = check_integer("screen_size", screen_size, 1)
        noop_max = check_integer("noop_max", noop_max, 0)
        max_episode_frames = check_integer("max_episode_frames", max_episode_frames, 1)
        emulator = _make_emulator(
            game,
            obs_type="grayscale",
            frameskip=1,
            repeat_action_probability=sticky_actions,
            full_action_space=full_action_space,
            max_num_frames_per_episode=max_episode_frames,
            mode=mode,
            difficulty=difficulty,
            render_mode=render_mode,
        )
        try:
            self._frames = AtariPreprocessing(
                emulator, noop_max=noop_max, frame_skip=frame_skip, screen_size=screen_size
            )
        except DependencyNotInstalled as error:
            raise MissingDependencyError("opencv-python", _PURPOSE, "atari") from error
        self._emulator = emulator
        self._stack: gym.Env[Observation, int] = FrameStackObservation(
            _Lives(self._frames) if terminal_on_life_loss else self._frames,
            stack_size=frame_stack,
            padding_type="zero",
        )
        fps = _FRAMES_PER_SECOND // frame_skip
        self.metadata = {**type(self).metadata, "render_fps": fps}
        self.render_mode = render_mode
        self.observation_space = self._stack.observation_space
        self.action_space = emulator.action_space
        self.was_real_done = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start a game, or go on with it after a lost life."""
        super().reset(seed=seed)
        observation, info = self._stack.reset(seed=seed, options=options)
        self.was_real_done = not info.get("is_continued", False)
        return observation, {**info, "is_continued": not self.was_real_done}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Hold an action for ``frame_skip`` frames; the reward is the game's, not clipped."""
        observation, reward, terminated, truncated, info = self._stack.step(action)
        self.was_real_done = not info.get("is_lost_life", False)
        info = {**info, "is_lost_life": not self.was_real_done}
        return observation, float(reward), bool(terminated), bool(truncated), info

    def render(self) -> Any:
        """Return the screen in colour, or None where the emulator shows it itself."""
        return self._emulator.render()

    def close(self) -> None:
        """Close the emulator."""
        self._stack.close()  # type: ignore[no-untyped-call]

    @property
    def ale(self) -> Any:
        """The emulator (``ale_py.ALEInterface``)."""
        return self._emulator.ale

    def get_action_meanings(self) -> list[str]:
        """Return the names of the actions, in their order."""
        meanings: list[str] = self._emulator.get_action_meanings()
        return meanings

    def get_keys_to_action(self) -> Any:
        """Return which keys stand for which action, for ``gymnasium.utils.play``."""
        return self._emulator.get_keys_to_action()


class _Lives(gym.Wrapper[Observation, int, Observation, int]):
    """End an episode with a life; a reset without a seed goes on with the game."""

    def __init__(self, env: AtariPreprocessing) -> None:
        super().__init__(env)
        self._ale = env.ale
        self._lives = 0
        self._last: tuple[Observation, dict[str, Any]] | None = None  # after a lost life

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        if self._last is not None and seed is None:
            observation, info = self._last
            self._last = None
            return observation, {**info, "is_continued": True, "is_lost_life": False}
        self._last = None
        observation, info = self.env.reset(seed=seed, options=options)
        self._lives = self._ale.lives()
        return observation, info

    def step(self, action: int) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        lives = self._ale.lives()
        # Qbert shows no lives for some frames before its game is over: that is no life lost
        is_lost = 0 < lives < self._lives and not (terminated or truncated)
        self._lives = lives
        info = {**info, "is_lost_life": is_lost}
        self._last = (observation, info) if is_lost else None
        return observation, reward, terminated or is_lost, truncated, info


def _make_emulator(game: str, **options: Any) -> Any:
    try:
        from ale_py import roms
        from ale_py.env import AtariEnv
    except ImportError as error:
        raise MissingDependencyError("ale-py", _PURPOSE, "atari") from error
    names = {rom.replace("_", ""): rom for rom in roms.get_all_rom_ids()}
    key = str(game).replace("_", "").lower()
    if key not in names:
        near = [names[match] for match in near_names(key, names, n=3)]
        hint = did_you_mean(near) or "give a name such as 'Breakout'"
        problem = f"game={game!r}: the emulator has no such game: {hint}"
        raise ConfigError(problem, setting="game", value=game, choices=names.values())
    return AtariEnv(names[key], **options)
