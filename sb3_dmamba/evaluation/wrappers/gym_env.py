"""The return-to-go wrapper of one ``gymnasium.Env``."""

from __future__ import annotations

from typing import Any, ClassVar, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from sb3_dmamba.data import flatten_observation
from sb3_dmamba.evaluation.wrappers.base import ReturnToGo, ReturnTracker, conditioned_space
from sb3_dmamba.evaluation.wrappers.lives import LifeStatistics, begin_new_game

__all__ = ["ReturnToGoEnv"]

Observation = dict[str, NDArray[Any]]


class ReturnToGoEnv(ReturnToGo, gym.Wrapper[Observation, Any, Any, Any], RecordConstructorArgs):
    """:class:`ReturnToGo` for one ``gymnasium.Env``.

    Args:
        env: The environment.
        target_return: The return to ask for, in the environment's units.
        clip_rewards: Whether the return-to-go loses rewards clipped to [-1, 1].
        delayed_rewards: Whether the return-to-go stays at the target until an episode's end.

    Raises:
        SpaceError: The observations have no flat view.
        ConditioningError: ``target_return`` is not one finite number.
    """

    wraps: ClassVar[type[Any]] = gym.Env

    def __init__(
        self,
        env: gym.Env[Any, Any],
        target_return: float,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> None:
        self._tracker = ReturnTracker(1, target_return, clip_rewards, delayed_rewards)
        RecordConstructorArgs.__init__(
            self,
            target_return=self.target_return,
            clip_rewards=clip_rewards,
            delayed_rewards=delayed_rewards,
        )
        gym.Wrapper.__init__(self, env)
        self.observation_space = conditioned_space(env.observation_space)
        self._may_lose_lives = env.has_wrapper_attr("was_real_done")
        self._lives = LifeStatistics()
        self._episode_start = np.ones(1, dtype=np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, with the whole target to go."""
        if self._may_lose_lives:
            begin_new_game(self.env)
        observation, info = self.env.reset(seed=seed, options=options)
        self._tracker.start()
        self._lives.forget(0)
        self._episode_start[:] = True
        return self._with_return_to_go(observation), info

    def step(self, action: Any) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and take the reward off the return-to-go; go on where a life is lost.

        Raises:
            ConditioningError: The reward is not finite.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._tracker.receive(reward)
        self._episode_start[:] = False
        if terminated and not truncated and self._game_goes_on():
            observation, _ = self.env.reset()
            terminated, info = False, self._lives.after_life(0, info)
        elif terminated or truncated:
            info = self._lives.after_game(0, info)
        return self._with_return_to_go(observation), reward, terminated, truncated, info

    @property
    def episode_start(self) -> bool:
        """Whether the last observation is the first of an episode, as ``predict`` takes it."""
        return bool(self._episode_start[0])

    @property
    def target_return(self) -> float:
        """The return asked for in episodes that start from now on."""
        return float(self._tracker.targets[0])

    @property
    def return_to_go(self) -> float:
        """The return still to go, in the environment's units."""
        return float(self._tracker.remaining[0])

    def _game_goes_on(self) -> bool:
        return self._may_lose_lives and not self.env.get_wrapper_attr("was_real_done")

    def _with_return_to_go(self, observation: Any) -> Observation:
        flat = flatten_observation(self.env.observation_space, observation)
        return {
            "observation": np.asarray(flat),
            "return_to_go": self._tracker.as_column()[0],
        }
