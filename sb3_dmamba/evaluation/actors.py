"""What acting needs of a policy, and the actor for callers who pass the rewards themselves."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_dmamba.envs.return_to_go import ReturnTracker, subtract_rewards
from sb3_dmamba.errors import SpaceError
from sb3_dmamba.spaces import cast_actions, channels_first, flatten_for, is_conditioned
from sb3_dmamba.tasks import ReferenceScores


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
        """The flat observations, with or without their return-to-go."""

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


def flat_space_of(policy: ActingPolicy) -> gym.Space[Any]:
    """Return the space of the observations that a policy's ``act`` takes."""
    space = policy.observation_space
    if is_conditioned(space):
        assert isinstance(space, gym.spaces.Dict)
        return space["observation"]
    return space


ReferenceScore = ReferenceScores
"""The returns that the normalised scores 0 and 100 stand for."""


class StatefulActor:
    """A policy that keeps count of the return-to-go from the rewards it is told.

    Has the methods of d3rlpy's stateful wrapper, so d3rlpy's
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
        clip_rewards: Whether rewards count clipped to [-1, 1]; the target is in those units.
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
        self.reset()

    def reset(self) -> None:
        """Begin an episode: forget the last one, and ask for the whole target again."""
        self._state = self._policy.initial_state(1, memory=self._memory)
        self._remaining = self._target
        self._is_first = True

    def predict(self, x: NDArray[Any], reward: float) -> Any:
        """Choose the next action.

        Args:
            x: One observation (*obs), as the policy's flat observation space has it, or of the
                space that was flattened.
            reward: The reward of the last action; ignored at an episode's first step.

        Returns:
            The action: (A,) of the action space's dtype, or an int.

        Raises:
            SpaceError: ``x`` has another shape than the policy's observations.
            ConditioningError: ``reward`` is not finite. The episode can go on after either.
        """
        observation = self._check_observation(x)
        remaining = self._remaining
        if not self._is_first:
            remaining = float(
                subtract_rewards(remaining, reward, self._clip_rewards, self._delayed_rewards)
            )
        returns_to_go = np.array([remaining], dtype=np.float32)
        actions, self._state = self._policy.act(
            observation[None], returns_to_go, self._state, self._deterministic
        )
        self._remaining, self._is_first = remaining, False  # only now: act may refuse its input
        action = cast_actions(self._policy.action_space, actions)[0]
        return int(action) if actions.ndim == 1 else action

    def _check_observation(self, x: Any) -> NDArray[Any]:
        space = flat_space_of(self._policy)
        shape = space.shape or ()
        takes_pairs = isinstance(getattr(space, "source", None), spaces.Tuple)
        if isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], dict) and not takes_pairs:
            message = "the observation is a tuple: of reset's (observation, info) pass the first"
            raise SpaceError(message, setting="observation", value=x, choices=[shape])
        observation = channels_first(flatten_for(space, x), space)
        if observation.shape == shape:
            is_double = observation.dtype == np.float64
            return observation.astype(np.float32) if is_double else observation
        found = f"array of shape {observation.shape}"
        message = f"the observation is an {found}, and the policy takes one of shape {shape}"
        raise SpaceError(message, setting="observation", value=found, choices=[shape])

    @property
    def target_return(self) -> float:
        """The return asked for at each episode's start."""
        return self._target

    @property
    def return_to_go(self) -> float:
        """The return still to go, as of the last ``predict``."""
        return self._remaining
