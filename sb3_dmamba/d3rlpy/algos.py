"""The algorithms: d3rlpy's transformer algorithms, with our network inside."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from d3rlpy.algos.transformer.action_samplers import (
    IdentityTransformerActionSampler,
    SoftmaxTransformerActionSampler,
    TransformerActionSampler,
)
from d3rlpy.algos.transformer.base import StatefulTransformerWrapper, TransformerAlgoBase
from d3rlpy.base import register_learnable
from d3rlpy.constants import IMPL_NOT_INITIALIZED_ERROR, ActionSpace
from d3rlpy.dataset import ReplayBuffer, ReplayBufferBase
from d3rlpy.torch_utility import wrap_model_by_ddp

from sb3_dmamba.d3rlpy.config import DecisionMambaConfig, DiscreteDecisionMambaConfig
from sb3_dmamba.d3rlpy.export import export_policy
from sb3_dmamba.d3rlpy.files import save_learnable
from sb3_dmamba.d3rlpy.impl import (
    DecisionMambaImpl,
    DecisionMambaModules,
    TokenSchedule,
    TrainingProgress,
)
from sb3_dmamba.d3rlpy.network import make_model, set_backend
from sb3_dmamba.d3rlpy.stateful import StreamTransformerWrapper
from sb3_dmamba.errors import ConfigError, DatasetError
from sb3_dmamba.training.seeding import WEIGHT_STREAM, local_seed

__all__ = [
    "DecisionMamba",
    "DecisionMambaConfig",
    "DiscreteDecisionMamba",
    "DiscreteDecisionMambaConfig",
    "SequenceAlgoBase",
]


class SequenceAlgoBase(TransformerAlgoBase):
    """What our two algorithms have in common; made by a config's ``create``."""

    def inner_create_impl(self, observation_shape: Sequence[Any], action_size: int) -> None:
        """Build network and optimiser; d3rlpy calls it when shapes are known."""
        config = self._config
        seeded: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if config.seed is not None:
            seeded = local_seed(torch.device("cpu"), config.seed, WEIGHT_STREAM)
        with seeded:
            model = make_model(config, observation_shape, action_size)
        if self.compiled and config.backend == "auto":
            set_backend(model, "traceable")  # what is compiled is better without loops
        model = model.to(self._device)
        if self._enable_ddp:
            model = wrap_model_by_ddp(model)
        optim = config.optim_factory.create(
            model.named_modules(), lr=config.learning_rate, compiled=self.compiled
        )
        self._impl = DecisionMambaImpl(
            observation_shape,
            action_size,
            DecisionMambaModules(model, optim, TrainingProgress()),
            is_discrete=self.get_action_type() == ActionSpace.DISCRETE,
            precision=config.precision,
            seed=config.seed,
            schedule=self._make_schedule(),
            compiled=self.compiled,
            device=self._device,
        )

    def _make_schedule(self) -> TokenSchedule | None:
        return None

    def fit(self, dataset: ReplayBuffer, *args: Any, **kwargs: Any) -> None:
        """Train with d3rlpy's loop; arguments as d3rlpy's ``fit``.

        Raises:
            DatasetError: The dataset is not a d3rlpy replay buffer.
            DivergenceError: The loss is not finite.
        """
        if not isinstance(dataset, ReplayBufferBase):
            raise DatasetError(
                f"d3rlpy's fit takes a replay buffer, and this is a {type(dataset).__name__}: "
                f"give it sb3_dmamba.d3rlpy.as_replay_buffer(dataset), or "
                f"load_trajectories(dataset).to_d3rlpy()"
            )
        super().fit(dataset, *args, **kwargs)

    def as_stateful_wrapper(
        self,
        target_return: float,
        action_sampler: TransformerActionSampler | None = None,
        memory: str | None = None,
    ) -> StatefulTransformerWrapper | StreamTransformerWrapper:
        """Return an actor for one environment, with ``predict(x, reward)`` and ``reset()``.

        Args:
            target_return: Return to ask for at the start of each episode.
            action_sampler: Makes an action of a prediction; None takes continuous actions as they
                are, and draws discrete ones.
            memory: ``"window"`` is d3rlpy's own wrapper, which encodes the last ``context_size``
                steps at each step; ``"stream"`` carries the recurrent state over the episode, at a
                constant cost a step. None is the config's.

        Returns:
            d3rlpy's ``StatefulTransformerWrapper``, or our :class:`StreamTransformerWrapper`.

        Raises:
            ConfigError: An unknown memory, one that the position encoding rules out, or a target
                that is not finite.
        """
        assert self._impl is not None, IMPL_NOT_INITIALIZED_ERROR
        if not math.isfinite(target_return):
            raise ConfigError(f"target_return={target_return!r}: give a finite number")
        if memory is None:
            memory = self._config.memory
        dataclasses.replace(self._config, memory=memory)  # raises where it cannot work
        if action_sampler is None:
            is_continuous = self.get_action_type() == ActionSpace.CONTINUOUS
            action_sampler = (
                IdentityTransformerActionSampler()
                if is_continuous
                else SoftmaxTransformerActionSampler()
            )
        if memory == "window":
            return StatefulTransformerWrapper(self, target_return, action_sampler)
        return StreamTransformerWrapper(self, target_return, action_sampler)

    def save(self, fname: str | os.PathLike[str]) -> None:
        """Write config and weights, for ``d3rlpy.load_learnable`` and d3rlpy's command line.

        The file is d3rlpy's, except that opening it imports this package, so that d3rlpy knows the
        algorithm. Training continues from it exactly.

        Args:
            fname: File to write, atomically.
        """
        assert self._impl is not None, IMPL_NOT_INITIALIZED_ERROR
        save_learnable(self, fname)

    def save_policy(self, fname: str | os.PathLike[str]) -> None:
        """Export the greedy policy over one window, as TorchScript (.pt) or ONNX (.onnx).

        Inputs, each of ``context_size`` steps without a batch axis, padded on the left with zeros:
        ``observation_0`` (and ``_1``, ... of a tuple), ``action`` (A,) or (1,), ``return_to_go``
        (1,), ``timestep``, from 1, 0 where there is padding. Output: the action of the newest step,
        (A,), or its number. Scalers are inside: everything is in the environment's units.

        Args:
            fname: File to write.

        Raises:
            ConfigError: The suffix is another.
            MissingDependencyError: ONNX was asked for, and its packages are not installed.
        """
        assert self._impl is not None, IMPL_NOT_INITIALIZED_ERROR
        export_policy(self, fname)


class DecisionMamba(SequenceAlgoBase):
    """Decision Mamba for continuous actions; made by :class:`DecisionMambaConfig`."""

    def get_action_type(self) -> ActionSpace:
        """Return the kind of actions."""
        return ActionSpace.CONTINUOUS


class DiscreteDecisionMamba(SequenceAlgoBase):
    """Decision Mamba for discrete actions; made by :class:`DiscreteDecisionMambaConfig`."""

    def get_action_type(self) -> ActionSpace:
        """Return the kind of actions."""
        return ActionSpace.DISCRETE

    def _make_schedule(self) -> TokenSchedule | None:
        config = self._config
        if config.optim_factory.lr_scheduler_factory is not None:
            return None
        return TokenSchedule(config.learning_rate, config.warmup_tokens, config.final_tokens)


register_learnable(DecisionMambaConfig)
register_learnable(DiscreteDecisionMambaConfig)
