"""The return-to-go wrapper of Stable-Baselines3's vector environments."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_dmamba.data import flatten_observation
from sb3_dmamba.data.normalizers import find_normalizers
from sb3_dmamba.evaluation.wrappers.base import (
    ReturnToGo,
    ReturnTracker,
    TargetReturn,
    conditioned_space,
)
from sb3_dmamba.evaluation.wrappers.lives import LifeStatistics, begin_new_game, has_lost_life

__all__ = ["ReturnToGoVecEnv"]

Observations = dict[str, NDArray[Any]]


class ReturnToGoVecEnv(ReturnToGo, VecEnvWrapper):
    """:class:`ReturnToGo` for a Stable-Baselines3 ``VecEnv``.

    Where a ``VecNormalize`` is inside, the rewards that it scaled are passed on, but the
    return-to-go is counted with the original ones, so a target means the same with and without
    it. ``info["terminal_observation"]`` gets the wrapped form of an episode's last observation.

    Args:
        env: The vector environment.
        target_return: The return to ask for, in the environment's units: one, or one per
            environment.
        clip_rewards: Whether the return-to-go loses rewards clipped to [-1, 1].
        delayed_rewards: Whether the return-to-go stays at the target until an episode's end.

    Raises:
        SpaceError: The observations have no flat view.
        ConditioningError: A target is not finite, or their count is not ``env.num_envs``.
    """

    wraps: ClassVar[type[Any]] = VecEnv

    def __init__(
        self,
        env: VecEnv,
        target_return: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> None:
        self._tracker = ReturnTracker(env.num_envs, target_return, clip_rewards, delayed_rewards)
        super().__init__(env, conditioned_space(env.observation_space))
        normalizers = find_normalizers(env)  # the innermost is paid the environment's rewards
        self._reward_source = normalizers[-1] if normalizers else None
        self._may_lose_lives = np.array(env.env_is_wrapped(EpisodicLifeEnv))
        self._lives = LifeStatistics()
        self._episode_start = np.ones(env.num_envs, dtype=np.bool_)

    def reset(self) -> Any:
        """Start an episode in every environment, with the whole target to go."""
        self._begin_new_games()
        goes_on = self._goes_on(self._may_lose_lives)  # where a subprocess could not be told
        observations = self.venv.reset()
        self._tracker.start(~goes_on)
        for row in range(self.num_envs):
            self._lives.forget(row)
        self._episode_start = np.ones(self.num_envs, dtype=np.bool_)
        return self._with_returns_to_go(observations)

    def step_wait(self) -> Any:
        """Finish the step, and take the rewards off the returns-to-go.

        A lost life is not done: the environment has gone on with the game already.

        Raises:
            ConditioningError: A reward is not finite.
        """
        observations, rewards, dones, infos = self.venv.step_wait()
        normalizer = self._reward_source
        raw = rewards if normalizer is None else normalizer.get_original_reward()
        self._tracker.receive(raw)
        self._episode_start = np.zeros(self.num_envs, dtype=np.bool_)
        if dones.any():
            infos = self._with_terminal_returns_to_go(infos)
            lost = self._has_lost_life(dones, infos)
            for row in np.flatnonzero(dones):
                join = self._lives.after_life if lost[row] else self._lives.after_game
                infos[row] = join(int(row), infos[row])
            dones = dones & ~lost
            self._tracker.start(dones)
            self._episode_start = dones.copy()
        return self._with_returns_to_go(observations), rewards, dones, infos

    def _has_lost_life(
        self, dones: NDArray[np.bool_], infos: list[dict[str, Any]]
    ) -> NDArray[np.bool_]:
        """Say which of the episodes that ended cost a life and not the game."""
        lost = np.zeros(self.num_envs, dtype=np.bool_)
        doubtful = np.zeros(self.num_envs, dtype=np.bool_)
        for row in np.flatnonzero(dones):
            if self._may_lose_lives[row] or "is_lost_life" in infos[row]:
                said = has_lost_life(infos[row])
                lost[row], doubtful[row] = bool(said), said is None
        return lost | self._goes_on(doubtful)

    def _begin_new_games(self) -> None:
        """Make the next reset start games where ``EpisodicLifeEnv`` would go on with one."""
        rows = np.flatnonzero(self._may_lose_lives).tolist()
        local = getattr(self.unwrapped, "envs", None)
        if local is not None:
            for row in rows:
                begin_new_game(local[row])
        elif rows:
            self.venv.env_method("set_wrapper_attr", "was_real_done", True, indices=rows)

    def _goes_on(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Ask the environments in ``rows``, (n,) bool, whether their games are under way."""
        goes_on = np.zeros(self.num_envs, dtype=np.bool_)
        if rows.any():
            indices = np.flatnonzero(rows)
            goes_on[indices] = ~np.array(
                self.venv.get_attr("was_real_done", indices=indices.tolist()), dtype=np.bool_
            )
        return goes_on

    def _with_returns_to_go(self, observations: Any) -> Observations:
        flat = flatten_observation(self.venv.observation_space, observations, batch=True)
        return {"observation": flat, "return_to_go": self._tracker.as_column()}

    def _with_terminal_returns_to_go(self, infos: list[dict[str, Any]]) -> list[dict[str, Any]]:
        column = self._tracker.as_column()
        space = self.venv.observation_space
        wrapped = list(infos)
        for row, info in enumerate(infos):
            if "terminal_observation" in info:
                flat = flatten_observation(space, info["terminal_observation"])
                terminal = {"observation": flat, "return_to_go": column[row]}
                wrapped[row] = {**info, "terminal_observation": terminal}
        return wrapped
