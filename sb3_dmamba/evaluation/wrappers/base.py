"""What the three wrappers share: choosing the class, the running returns, the spaces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, overload

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_dmamba.data import flat_space
from sb3_dmamba.data.spaces import is_conditioned
from sb3_dmamba.errors import ConditioningError, SpaceError

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv
    from stable_baselines3.common.vec_env import VecEnv

    from sb3_dmamba.evaluation.wrappers.gym_env import ReturnToGoEnv
    from sb3_dmamba.evaluation.wrappers.gym_vector import ReturnToGoVectorEnv
    from sb3_dmamba.evaluation.wrappers.sb3_vec_env import ReturnToGoVecEnv

__all__ = [
    "ReturnToGo",
    "ReturnTracker",
    "TargetReturn",
    "conditioned_space",
    "conditioning_rewards",
]

TargetReturn: TypeAlias = "float | Sequence[float] | NDArray[np.floating[Any]]"


class ReturnToGo:
    """Add the return still to go to what an environment shows.

    The observation becomes ``{"observation": flat observation, "return_to_go": (1,) float32}``,
    which is what ``DecisionMamba.predict`` takes. The return-to-go starts each episode at
    ``target_return`` and loses every reward: ``R_{t+1} = R_t - r_t``, in the environment's units
    (or clipped to [-1, 1], as Atari data is), summed in float64. The rewards themselves are passed
    on as they are. Where an episode ends with a life and not with the game (Stable-Baselines3's
    ``EpisodicLifeEnv``, ``AtariWrapper``'s default, or ``terminal_on_life_loss=True`` of
    ``sb3_dmamba/Atari-v0``), the return-to-go goes on: it is the game's return that was asked for,
    and so is the episode. The environment goes on by itself after a lost life, which is no end of
    the episode, what a monitor noted of its lives is joined, and ``reset`` begins a game. (Only
    Gymnasium's vector environments report the lost life as an end; it is not an ``episode_start``.)
    Calling ``ReturnToGo`` picks the class by the environment:
    :class:`ReturnToGoEnv`, :class:`ReturnToGoVectorEnv` or :class:`ReturnToGoVecEnv`; all three
    are instances of ``ReturnToGo``.

    Args:
        env: A ``gymnasium.Env``, a ``gymnasium.vector.VectorEnv`` or a Stable-Baselines3
            ``VecEnv``. Dict, Tuple and Discrete observations are flattened.
        target_return: The return to ask for, in the environment's units; for the two vector
            kinds also one per environment.
        clip_rewards: Whether the return-to-go loses rewards clipped to [-1, 1], for a model of
            data whose rewards were clipped; targets are then in those units.
        delayed_rewards: Whether the return-to-go stays at the target until an episode's end, for
            a model of data whose rewards came there (``reward_mode="delayed"``).

    Raises:
        SpaceError: ``env`` is none of the three kinds, or its observations have no flat view.
        ConditioningError: A target is not a finite number, or their count is not the number of
            environments.

    Source: Chen et al. 2021 (arXiv:2106.01345), section 3.
    """

    wraps: ClassVar[type[Any]]
    _kinds: ClassVar[list[type[ReturnToGo]]] = []
    _tracker: ReturnTracker
    _episode_start: NDArray[np.bool_]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "wraps" in cls.__dict__:
            ReturnToGo._kinds.append(cls)

    @overload
    def __new__(
        cls,
        env: VecEnv,
        target_return: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> ReturnToGoVecEnv: ...
    @overload
    def __new__(
        cls,
        env: VectorEnv[Any, Any, Any],
        target_return: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> ReturnToGoVectorEnv: ...
    @overload
    def __new__(
        cls,
        env: gym.Env[Any, Any],
        target_return: float,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> ReturnToGoEnv: ...
    def __new__(
        cls,
        env: Any = None,
        target_return: Any = None,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> Any:
        """Make an instance of the class that fits ``env``; ``__init__`` follows as usual."""
        if cls is not ReturnToGo:
            return super().__new__(cls)
        for kind in cls._kinds:
            if isinstance(env, kind.wraps):
                return super().__new__(kind)
        raise SpaceError(
            f"cannot add a return-to-go to {env!r} ({type(env).__name__}): give a gymnasium.Env, "
            "a gymnasium.vector.VectorEnv or a stable_baselines3 VecEnv"
        )

    @property
    def target_return(self) -> Any:
        """The return asked for in episodes that start from now on: a float, or (n,) float64."""
        return self._tracker.targets.copy()

    @property
    def return_to_go(self) -> Any:
        """The return still to go: a float, or (n,) float64; inf-free and unscaled."""
        return self._tracker.remaining.copy()

    @property
    def episode_start(self) -> Any:
        """What ``predict`` takes as ``episode_start`` together with the last observation.

        A bool, or (n,) bool: True where that observation is the first of an episode. The same in
        every autoreset mode of a Gymnasium vector environment, and False after a lost life.
        """
        return self._episode_start.copy()

    @property
    def clip_rewards(self) -> bool:
        """Whether the return-to-go loses rewards clipped to [-1, 1]."""
        return self._tracker.clip_rewards

    @property
    def delayed_rewards(self) -> bool:
        """Whether the return-to-go stays at the target until an episode's end."""
        return self._tracker.delayed_rewards

    def set_target_return(self, target_return: TargetReturn) -> None:
        """Ask for another return, from each environment's next episode on.

        Args:
            target_return: As in the constructor.

        Raises:
            ConditioningError: As in the constructor.
        """
        self._tracker.set_targets(target_return)


class ReturnTracker:
    """The returns still to go of ``n`` environments, in float64.

    Args:
        n: Number of environments.
        targets: One target return, or one per environment.
        clip_rewards: Whether rewards are clipped to [-1, 1] before they are taken off.
        delayed_rewards: Whether none is taken off.

    Raises:
        ConditioningError: As :class:`ReturnToGo`.
    """

    def __init__(
        self,
        n: int,
        targets: TargetReturn,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> None:
        self.n = n
        self.clip_rewards = clip_rewards
        self.delayed_rewards = delayed_rewards
        self.set_targets(targets)
        self.remaining: NDArray[np.float64] = self.targets.copy()

    def set_targets(self, targets: TargetReturn) -> None:
        """Change the targets of the episodes that start later."""
        try:
            values = np.asarray(targets, dtype=np.float64)
        except (TypeError, ValueError):
            raise ConditioningError(
                f"target_return={targets!r}: give a number, or one per environment"
            ) from None
        if values.ndim > 1 or (values.ndim == 1 and len(values) != self.n):
            raise ConditioningError(
                f"target_return has shape {values.shape} for {self.n} environment(s): "
                "give one number, or one per environment"
            )
        if not np.isfinite(values).all():
            raise ConditioningError(f"target_return={targets!r}: give finite numbers")
        self.targets: NDArray[np.float64] = np.array(np.broadcast_to(values, (self.n,)))

    def start(self, rows: NDArray[np.bool_] | slice = slice(None)) -> None:
        """Begin an episode in ``rows`` ((n,) bool, or all)."""
        self.remaining[rows] = self.targets[rows]

    def receive(self, rewards: Any) -> None:
        """Take the rewards (n,) of one step off the returns-to-go."""
        values = np.asarray(rewards, dtype=np.float64).reshape(self.n)
        self.remaining -= conditioning_rewards(values, self.clip_rewards, self.delayed_rewards)
        if not np.isfinite(self.remaining).all():
            raise ConditioningError(
                f"the environment returned the reward(s) {rewards!r}: the return-to-go is no "
                "longer a finite number"
            )

    def as_column(self) -> NDArray[np.float32]:
        """Return the returns-to-go as (n, 1) float32, a fresh array."""
        return self.remaining.astype(np.float32)[:, None]


def conditioning_rewards(rewards: Any, clip_rewards: bool, delayed_rewards: bool = False) -> Any:
    """Return what ``rewards`` take off the return-to-go.

    Args:
        rewards: Of one step; what is not finite stays so, to be noticed.
        clip_rewards: Whether they are clipped to [-1, 1].
        delayed_rewards: Whether they take nothing off, since the episode pays at its end.
    """
    if delayed_rewards:
        return np.where(np.isfinite(rewards), 0.0, np.nan)
    if not clip_rewards:
        return rewards
    # an infinite reward is not a reward of +-1: NaN, so that it does not go unnoticed
    return np.where(np.isfinite(rewards), np.clip(rewards, -1.0, 1.0), np.nan)


def conditioned_space(observation_space: gym.Space[Any]) -> spaces.Dict:
    """Return the space of observations with their return-to-go.

    Raises:
        SpaceError: The observations have no flat view, or one with a return-to-go already.
    """
    if is_conditioned(observation_space):
        raise SpaceError(
            "the environment shows a return-to-go already: ask for another return with its "
            "set_target_return, or model.target_return for model.get_env()"
        )
    return spaces.Dict(
        {
            "observation": flat_space(observation_space),
            "return_to_go": spaces.Box(-np.inf, np.inf, (1,), np.float32),
        }
    )
