"""The return-to-go wrapper of Gymnasium's vector environments."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sb3_dmamba.data import flatten_observation
from sb3_dmamba.evaluation.wrappers.base import (
    ReturnToGo,
    ReturnTracker,
    TargetReturn,
    conditioned_space,
)
from sb3_dmamba.evaluation.wrappers.lives import has_lost_life

__all__ = ["ReturnToGoVectorEnv"]

Observations = dict[str, NDArray[Any]]


class ReturnToGoVectorEnv(ReturnToGo, VectorWrapper):
    """:class:`ReturnToGo` for a ``gymnasium.vector.VectorEnv``.

    Follows the environment's autoreset mode. Next-step (Gymnasium 1.0, and the default later):
    the step after an episode's end only resets, its reward is not counted, and its observation
    has the whole target to go. Same-step: the step that ends an episode shows the new one's first
    observation, and ``info["final_obs"]`` gets the wrapped form of the old one's last. Disabled:
    ``reset(options={"reset_mask": ...})`` starts the masked episodes. Lost lives are told from
    ends of games in a ``SyncVectorEnv``, and in any where ``info["is_lost_life"]`` says so, as
    ``sb3_dmamba/Atari-v0`` does.

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

    wraps: ClassVar[type[Any]] = VectorEnv

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        target_return: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> None:
        self._tracker = ReturnTracker(env.num_envs, target_return, clip_rewards, delayed_rewards)
        super().__init__(env)
        self.single_observation_space = conditioned_space(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        # gymnasium 1.0 has no AutoresetMode and always resets on the next step
        mode = env.metadata.get("autoreset_mode")
        self._mode: str = "NextStep" if mode is None else str(getattr(mode, "value", mode))
        self._to_reset = np.zeros(env.num_envs, dtype=np.bool_)
        self._episode_start = np.ones(env.num_envs, dtype=np.bool_)
        envs = getattr(env.unwrapped, "envs", ())  # those of another process cannot be asked
        self._with_lives = [
            (row, each) for row, each in enumerate(envs) if each.has_wrapper_attr("was_real_done")
        ]

    def reset(
        self,
        *,
        seed: int | list[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment, or in those of ``options["reset_mask"]``."""
        mask = (options or {}).get("reset_mask")  # read first: gymnasium takes it out
        rows: NDArray[np.bool_] = np.ones(self.num_envs, dtype=np.bool_)
        if mask is not None:
            rows = np.array(mask, dtype=np.bool_)
        goes_on = np.zeros(self.num_envs, dtype=np.bool_)
        for row, env in self._with_lives:
            goes_on[row] = not env.get_wrapper_attr("was_real_done")
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        goes_on = np.asarray(infos.get("is_continued", goes_on), dtype=np.bool_)
        self._begin(rows & ~goes_on)
        self._to_reset[rows] = False
        return self._with_returns_to_go(observations), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, and take the rewards off the returns-to-go.

        Raises:
            ConditioningError: A reward is not finite.
        """
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._tracker.receive(rewards)
        self._begin(self._to_reset)  # whose step was a reset and paid nothing
        ended = np.logical_or(terminated, truncated)
        if self._mode == "NextStep":
            self._to_reset = ended & ~self._has_lost_life(infos)
        elif self._mode == "SameStep" and ended.any():
            lost = self._has_lost_life(infos.get("final_info", {}))
            infos = self._with_final_returns_to_go(infos)
            self._begin(ended & ~lost)
        return self._with_returns_to_go(observations), rewards, terminated, truncated, infos

    def _begin(self, rows: NDArray[np.bool_]) -> None:
        """Note that the observations in ``rows``, (n,) bool, and no others begin episodes."""
        self._tracker.start(rows)
        self._episode_start = rows.copy()

    def _has_lost_life(self, infos: dict[str, Any]) -> NDArray[np.bool_]:
        """Say, where episodes ended (``infos`` are of their last steps), which games go on."""
        said = np.zeros(self.num_envs, dtype=np.bool_)
        if "is_lost_life" in infos:
            return said | np.asarray(infos["is_lost_life"], dtype=np.bool_)
        for row, env in self._with_lives:
            lives = infos.get("lives")
            one = {} if lives is None else {"lives": lives[row]}
            lost = has_lost_life(one) if self._mode == "SameStep" else None
            said[row] = not env.get_wrapper_attr("was_real_done") if lost is None else lost
        return said

    def _with_returns_to_go(self, observations: Any) -> Observations:
        flat = flatten_observation(self.env.single_observation_space, observations, batch=True)
        return {"observation": flat, "return_to_go": self._tracker.as_column()}

    def _with_final_returns_to_go(self, infos: dict[str, Any]) -> dict[str, Any]:
        if "final_obs" not in infos:
            return infos
        column = self._tracker.as_column()
        final = infos["final_obs"].copy()  # (n,) objects, None where no episode ended
        for row, observation in enumerate(final):
            if observation is not None:
                flat = flatten_observation(self.env.single_observation_space, observation)
                final[row] = {"observation": flat, "return_to_go": column[row]}
        return {**infos, "final_obs": final}
