"""A stateful wrapper for d3rlpy that acts with the recurrent state (stream memory)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from d3rlpy.algos.transformer.action_samplers import TransformerActionSampler
from d3rlpy.algos.transformer.base import TransformerAlgoBase
from d3rlpy.constants import ActionSpace
from d3rlpy.dataset import is_tuple_shape
from d3rlpy.torch_utility import convert_to_torch, convert_to_torch_recursively
from gymnasium import spaces
from torch import Tensor

from sb3_dmamba.d3rlpy.network import pack_observations
from sb3_dmamba.envs.return_to_go import subtract_rewards
from sb3_dmamba.errors import SpaceError
from sb3_dmamba.networks.memory import StreamMemory


class StreamTransformerWrapper:
    """An actor for one environment that carries the recurrent state over the episode.

    Takes the place of d3rlpy's ``StatefulTransformerWrapper``: the same ``predict`` and ``reset``,
    at a cost that does not grow with ``context_size``, and with a memory of the whole episode.
    For the first ``context_size`` steps of an episode Mamba predicts what the window would.

    Args:
        algo: One of our algorithms, built.
        target_return: Return to ask for at the start of each episode.
        action_sampler: Turns a prediction into an action.
    """

    def __init__(
        self,
        algo: TransformerAlgoBase,
        target_return: float,
        action_sampler: TransformerActionSampler,
    ) -> None:
        assert algo.impl is not None
        self._algo = algo
        self._target_return = target_return
        self._action_sampler = action_sampler
        self._is_discrete = algo.get_action_type() == ActionSpace.DISCRETE
        size = algo.impl.action_size
        action_space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (size,), np.float32)
        if self._is_discrete:
            action_space = spaces.Discrete(size)
        self._memory = StreamMemory(algo.impl.model, action_space)
        self.reset()

    @property
    def algo(self) -> TransformerAlgoBase:
        """The algorithm that acts."""
        return self._algo

    def reset(self) -> None:
        """Begin an episode: clear the memory, and reset the return-to-go to the target."""
        self._state = self._memory.initial_state(1)
        self._return_rest = self._target_return

    @torch.no_grad()
    def predict(self, x: Any, reward: float) -> Any:
        """Choose the next action.

        Args:
            x: One observation (*obs), or the arrays of a tuple.
            reward: The reward of the last action; 0 at an episode's first step.

        Returns:
            The action sampler's action: (A,) float32, or an int.

        Raises:
            SpaceError: The observation has another shape; the episode can go on.
            ConditioningError: ``reward`` is not finite.
        """
        self._check_shape(x)
        return_rest = float(subtract_rewards(self._return_rest, reward))
        self._algo.impl.modules.set_eval()
        prediction, remembered = self._memory.encode(
            self._prepare(x), self._scale(return_rest), self._state
        )
        self._return_rest = return_rest
        output = prediction[0]
        scaler = self._algo.action_scaler
        if scaler is not None:
            output = scaler.reverse_transform(output)
        action = self._action_sampler(output.cpu().numpy())
        self._state = self._state.advance(self._stored(action), remembered)
        return action

    def _check_shape(self, x: Any) -> None:
        expected = self._algo.impl.observation_shape
        if is_tuple_shape(expected):
            return
        if isinstance(x, tuple) or np.size(x) != np.prod(expected, dtype=int):
            found = "a tuple" if isinstance(x, tuple) else f"of shape {np.shape(x)}"
            raise SpaceError(
                f"the observation is {found}, and shape {tuple(expected)} was expected: "
                f"predict(observation, reward), with what env.step returned first",
                setting="observation",
                value=np.shape(x) if found != "a tuple" else x,
                choices=[tuple(expected)],
            )

    def _prepare(self, x: Any) -> Tensor:
        one = [part[None] for part in x] if isinstance(x, (list, tuple)) else np.asarray(x)[None]
        observation = convert_to_torch_recursively(one, self._device)
        if self._algo.observation_scaler is not None:
            observation = self._algo.observation_scaler.transform(observation)
        if isinstance(observation, Tensor):
            return observation  # (1, *obs)
        return pack_observations([part.unsqueeze(1) for part in observation])[:, 0]  # (1, size)

    def _scale(self, return_rest: float) -> Tensor:
        returns_to_go = torch.tensor([return_rest], dtype=torch.float32, device=self._device)
        if self._algo.reward_scaler is not None:
            returns_to_go = self._algo.reward_scaler.transform(returns_to_go)
        return returns_to_go  # (1,)

    def _stored(self, action: Any) -> Tensor:
        if self._is_discrete:
            return torch.tensor([int(action)], device=self._device)
        taken: Tensor = convert_to_torch(np.asarray(action)[None], self._device)  # (1, A)
        if self._algo.action_scaler is not None:
            taken = self._algo.action_scaler.transform(taken)
        return taken

    @property
    def _device(self) -> str:
        device: str = self._algo.impl.device
        return device
