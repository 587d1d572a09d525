"""Stateful actors, for callers who pass the rewards themselves."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_dmamba.envs.return_to_go import ReturnTracker, conditioning_rewards
from sb3_dmamba.errors import ConditioningError, SpaceError
from sb3_dmamba.spaces import channels_first


class ActingState(Protocol):
    """What a policy remembers of ``n`` episodes, a row each."""

    def take(self, rows: Any) -> Any:
        """Return the state of the rows (int index array) alone, in that order."""

    def reset(self, mask: Any) -> Any:
        """Return the state with new episodes started where ``mask`` (n,) is True."""


class ActingPolicy(Protocol):
    """A policy that acts in ``n`` environments at once and remembers their episodes."""

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The flat observations."""

    @property
    def action_space(self) -> gym.Space[Any]:
        """Box or Discrete."""

    @property
    def memory(self) -> Any:
        """The default of ``initial_state``'s ``memory``."""

    def initial_state(self, n: int, memory: Any = ...) -> Any:
        """Return the state at the start of ``n`` episodes."""

    def act(
        self,
        observations: NDArray[Any],
        returns_to_go: NDArray[np.float32],
        state: Any,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], Any]:
        """Choose actions for observations (n, *obs) and unscaled returns-to-go (n,)."""


class ReferenceScore(Protocol):
    """The returns that the normalised scores 0 and 100 stand for, and where they are from."""

    @property
    def minimum(self) -> float:
        """The return of a random policy."""

    @property
    def maximum(self) -> float:
        """The return of an expert."""

    @property
    def source(self) -> str:
        """Who measured them."""


_FLATTEN = (
    "what is not a Box is flattened as in training, by "
    "gymnasium.spaces.flatten(env.observation_space, observation)"
)


class StatefulActor:
    """A policy that keeps count of the return-to-go from the rewards it is told.

    Speaks the protocol of d3rlpy's stateful wrapper, so d3rlpy's
    ``evaluate_transformer_with_environment`` and callbacks drive it unchanged::

        actor.reset()
        observation, reward = env.reset()[0], 0.0
        while ...:
            action = actor.predict(observation, reward)
            observation, reward, terminated, truncated, info = env.step(action)

    Args:
        policy: The policy.
        target_return: The return to ask for, in the environment's units.
        memory: ``"window"`` or ``"stream"``; None is the policy's own.
        deterministic: Whether to take the most likely action rather than draw one.
        clip_rewards: Whether the return-to-go loses rewards clipped to [-1, 1]; the target is
            then in those units.
        delayed_rewards: Whether the return-to-go stays at the target until an episode's end.

    Raises:
        ConditioningError: ``target_return`` is not one finite number.

    Source: d3rlpy 2.8.1, ``algos/transformer/base.py`` (the protocol).
    """

    def __init__(
        self,
        policy: ActingPolicy,
        target_return: float,
        memory: str | None = None,
        deterministic: bool = True,
        clip_rewards: bool = False,
        delayed_rewards: bool = False,
    ) -> None:
        self._clip_rewards, self._delayed_rewards = clip_rewards, delayed_rewards
        self._target = float(ReturnTracker(1, target_return).targets[0])
        self._policy = policy
        self._memory = policy.memory if memory is None else memory
        self._deterministic = deterministic
        self._shape = policy.observation_space.shape or ()
        self.reset()

    def reset(self) -> None:
        """Begin an episode: forget the last one, and ask for the whole target again."""
        self._state = self._policy.initial_state(1, memory=self._memory)
        self._remaining = self._target
        self._is_first = True

    def predict(self, x: NDArray[Any], reward: float) -> Any:
        """Choose the next action.

        Args:
            x: One observation (*obs), as the policy's flat observation space has it.
            reward: The reward of the last action; ignored at an episode's first step.

        Returns:
            The action: (A,) float32, or an int.

        Raises:
            SpaceError: ``x`` has another shape than the policy's observations.
            ConditioningError: ``reward`` is not finite.
        """
        if isinstance(x, (tuple, dict)):
            raise SpaceError(
                f"the observation is a {type(x).__name__} and the policy takes one array of shape "
                f"{self._shape}: {_FLATTEN}"
            )
        observation = channels_first(np.asarray(x), self._policy.observation_space)
        if observation.shape != self._shape:
            raise SpaceError(
                f"the observation has shape {observation.shape} and the policy takes "
                f"{self._shape}: give one observation; {_FLATTEN}"
            )
        if observation.dtype == np.float64:
            observation = observation.astype(np.float32)
        remaining = self._remaining
        if not self._is_first:
            remaining -= float(
                conditioning_rewards(float(reward), self._clip_rewards, self._delayed_rewards)
            )
            if not np.isfinite(remaining):
                raise ConditioningError(f"reward={reward!r}: give a finite number")
        returns_to_go = np.array([remaining], dtype=np.float32)
        actions, self._state = self._policy.act(
            observation[None], returns_to_go, self._state, self._deterministic
        )
        self._remaining, self._is_first = remaining, False  # an observation may be refused before
        action = actions[0]
        return int(action) if actions.ndim == 1 else action

    @property
    def target_return(self) -> float:
        """The return asked for at each episode's start."""
        return self._target

    @property
    def return_to_go(self) -> float:
        """The return still to go, as of the last ``predict``."""
        return self._remaining
