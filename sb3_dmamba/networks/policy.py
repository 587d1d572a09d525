"""The policy: the sequence model as Stable-Baselines3 and the evaluation see it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import get_device
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.data import ObservationStatistics
from sb3_dmamba.errors import ConditioningError, ConfigError, SpaceError
from sb3_dmamba.networks.acting import StreamMemory, WindowMemory
from sb3_dmamba.networks.features import (
    ExtractorEncoder,
    check_policy_kwargs,
    name_extractor,
)
from sb3_dmamba.networks.mamba import forget_kept_weights
from sb3_dmamba.networks.policy_file import read_policy, write_policy
from sb3_dmamba.networks.protocol import (
    check_finite,
    read_observation,
    read_starts,
    read_state,
)
from sb3_dmamba.networks.sequence_model import SequenceModel
from sb3_dmamba.networks.state import ActingState

__all__ = ["DecisionMambaPolicy"]

Self = TypeVar("Self", bound="DecisionMambaPolicy")


class DecisionMambaPolicy(BasePolicy):
    """A :class:`SequenceModel` that acts.

    Args:
        observation_space: Flat observations or images, without the return-to-go.
        action_space: Bounded Box or Discrete.
        config: Architecture and default memory.
        statistics: What observations are standardised with, or None.
        **policy_kwargs: A features extractor in place of the config's encoder, as
            Stable-Baselines3's policies take one: ``features_extractor_class`` and
            ``features_extractor_kwargs``, see :class:`~sb3_dmamba.networks.ExtractorEncoder`.

    Raises:
        SpaceError: A space that no encoder or head fits.
        ConfigError: ``policy_kwargs`` holds something else.
    """

    observation_space: spaces.Box

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Space[Any],
        config: DecisionMambaConfig,
        statistics: ObservationStatistics | None = None,
        **policy_kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space)
        self.policy_kwargs = check_policy_kwargs(policy_kwargs)
        self.config = config
        self.memory: Memory = config.memory
        encoder = None
        if policy_kwargs:
            encoder = ExtractorEncoder(observation_space, config, statistics, **policy_kwargs)
        self.model = SequenceModel(observation_space, action_space, config, statistics, encoder)
        self._memories: dict[str, StreamMemory | WindowMemory] = {
            "stream": StreamMemory(self.model, action_space),
            "window": WindowMemory(self.model, action_space, config.context_length),
        }
        self._layouts: dict[str, dict[str, tuple[int, ...]]] = {}

    def initial_state(self, n_envs: int, memory: str | None = None) -> ActingState:
        """Return the memory of ``n_envs`` episodes that have not begun.

        Args:
            n_envs: Number of environments acted in together.
            memory: ``"window"`` or ``"stream"``; None is the config's.

        Raises:
            ConfigError: An unknown memory, or one that the time encoding rules out.
        """
        memory = self.memory if memory is None else memory
        if memory not in self._memories:
            raise ConfigError(
                f"memory={memory!r}: choose one of {', '.join(self._memories)}",
                setting="memory",
                value=memory,
                choices=self._memories,
            )
        if memory != self.memory:
            self.config.replace(memory=memory)  # raises where the combination cannot work
        return self._memories[memory].initial_state(n_envs)

    @torch.inference_mode()
    def act(
        self,
        observations: np.ndarray,
        returns_to_go: np.ndarray,
        state: ActingState,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, ActingState]:
        """Choose the next action in each environment.

        Args:
            observations: Shape (n, *observation_space.shape).
            returns_to_go: Shape (n,), in the environment's units.
            state: What :meth:`initial_state` or the last call returned.
            deterministic: Whether a discrete action is the likeliest one, or drawn.

        Returns:
            Actions of shape (n, *action_space.shape), float32 or int64, and the state after
            they were taken; ``state`` itself is left as it was.

        Raises:
            SpaceError: Observations are not of the space's shape, or not finite.
        """
        expected = (len(state), *self.observation_space.shape)
        if observations.shape != expected:
            raise SpaceError(
                f"observations have shape {observations.shape}, and {expected} was expected",
                setting="observations",
                value=observations.shape,
                choices=[expected],
            )
        check_finite(observations)
        memory = self._memories[state.memory]
        device = state.tensors["timestep"].device
        # A copy in order: the array may be read-only, or flipped, which torch cannot read.
        inputs = torch.as_tensor(np.array(observations, order="C"), device=device)
        if inputs.dtype != torch.uint8:
            inputs = inputs.float()
        returns = torch.tensor(returns_to_go, dtype=torch.float32, device=device)
        if self.training:
            self.set_training_mode(False)
        predictions, remembered = memory.encode(inputs, returns, state)
        actions = self.model.head.act(predictions, deterministic)
        stored = actions.flatten(1) if actions.dim() > 1 else actions
        taken = actions.cpu().numpy().copy()  # the caller may change it, and the state must not
        return taken, memory.remember_action(stored, state, remembered)

    def predict(
        self,
        observation: np.ndarray | Mapping[str, np.ndarray],
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, Any]:
        """Choose actions, in Stable-Baselines3's protocol.

        Args:
            observation: What a :class:`~sb3_dmamba.ReturnToGo` environment gives: a mapping with
                ``"observation"`` and ``"return_to_go"``, of one environment or of several.
            state: What the last call returned; None at the first.
            episode_start: Shape (n,), True where a new episode starts.
            deterministic: Whether a discrete action is the likeliest one, or drawn.

        Returns:
            The actions, and the state to pass to the next call.

        Raises:
            ConditioningError: The observation has no finite return-to-go, or ``state`` is not one
                that this method returned for as many environments.
            SpaceError: The observation is not of the space's shape, or not finite.
        """
        observations, returns_to_go, single = read_observation(observation, self.observation_space)
        n_envs = len(observations)
        state = self.initial_state(n_envs) if state is None else self._read_state(state, n_envs)
        if episode_start is not None:
            state = state.reset(read_starts(episode_start, n_envs))
        actions, new_state = self.act(observations, returns_to_go, state, deterministic)
        return (actions.squeeze(axis=0) if single else actions), new_state

    def _read_state(self, state: Any, n_envs: int) -> ActingState:
        if not isinstance(state, ActingState) or state.memory not in self._memories:
            raise ConditioningError(
                f"state is {state!r}, and {n_envs} observations came: pass the state that the last "
                f"predict returned, or None at the first step",
                setting="state",
                value=state,
            )
        if state.memory not in self._layouts:
            rows = self.initial_state(0, state.memory).tensors
            self._layouts[state.memory] = {name: tuple(t.shape[1:]) for name, t in rows.items()}
        return read_state(state, n_envs, self._layouts[state.memory], self.device)

    # --- Files ---------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the policy alone, without optimiser, task and dataset, to a file of torch's.

        Args:
            path: File to write. Unlike ``model.save`` it adds no suffix, as
                Stable-Baselines3's policies do not.

        Raises:
            OSError: The file cannot be written.
        """
        spaces_ = self.observation_space, self.action_space
        extractor = name_extractor(self.policy_kwargs)
        write_policy(path, self.config, *spaces_, self.state_dict(), extractor)

    @classmethod
    def load(
        cls: type[Self],
        path: str | os.PathLike[str] | BinaryIO,
        device: torch.device | str = "auto",
        policy_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a policy that :meth:`save` wrote; nothing in the file is executed.

        Args:
            path: The file.
            device: Where to put the policy; ``"auto"`` is CUDA where there is one.
            policy_kwargs: The features extractor that it was made with, if any.

        Raises:
            ModelFileError: The file is missing, damaged, or no policy of this package.
        """
        given = check_policy_kwargs(policy_kwargs)
        make = functools.partial(cls, **given)
        policy: Self = read_policy(path, get_device(device), make, name_extractor(given))
        return policy

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "config": self.config,
            **self.policy_kwargs,
        }

    def load_from_vector(self, vector: np.ndarray) -> None:
        """Take the parameters from a vector, which they then share memory with.

        Args:
            vector: What ``parameters_to_vector`` returned, shape (n_parameters,).
        """
        super().load_from_vector(vector)
        forget_kept_weights(self)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        raise NotImplementedError("the policy needs its memory: call predict or act")
