"""The policy: the sequence model as a Stable-Baselines3 policy, and its file."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import get_device
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.data import ObservationStatistics
from sb3_dmamba.errors import ConditioningError, ConfigError, ModelFileError, SpaceError
from sb3_dmamba.networks.encoders import (
    ExtractorEncoder,
    check_extractor,
    check_policy_kwargs,
    name_extractor,
)
from sb3_dmamba.networks.memory import ActingState, StreamMemory, WindowMemory
from sb3_dmamba.networks.mixers import forget_kept_weights
from sb3_dmamba.networks.model import SequenceModel
from sb3_dmamba.spaces import channels_first, space_from_json, space_to_json

Conditioned = tuple[NDArray[Any], NDArray[np.float32], bool]

_WRAP_IT = (
    "wrap the environment, env = ReturnToGo(env, target_return), or use model.get_env(); if you "
    "hold the rewards yourself, use model.as_stateful_wrapper(target_return)"
)


def read_observation(observation: Any, space: spaces.Box) -> Conditioned:
    """Read what a :class:`~sb3_dmamba.ReturnToGo` environment shows.

    Images whose channels are last are transposed where the space has them first, as
    Stable-Baselines3's policies do. Of stacked returns-to-go (a ``VecFrameStack`` outside of the
    wrapper) the newest counts.

    Args:
        observation: A mapping with ``"observation"``, of shape (*space.shape) or
            (n, *space.shape), and ``"return_to_go"``, of shape (n,), (n, 1) or (n, stacked).
        space: The policy's flat observations.

    Returns:
        Observations (n, *space.shape), returns-to-go (n,) float32, and whether it was one
        observation without an axis of environments.

    Raises:
        ConditioningError: There is no return-to-go, not one an observation, or it is not a finite
            number.
        SpaceError: The observation is not of the space's shape.
    """
    if not isinstance(observation, Mapping) or not {"observation", "return_to_go"} <= set(
        observation
    ):
        raise ConditioningError(
            "the observation has no return_to_go, and no policy can know how much return is still "
            f"to come: {_WRAP_IT}",
            setting="observation",
        )
    observations = channels_first(np.asarray(observation["observation"]), space)
    single = observations.ndim == len(space.shape)
    if single:
        observations = observations[np.newaxis]
    if observations.shape[1:] != space.shape:
        expected = (*observations.shape[:1], *space.shape)
        raise SpaceError(
            f"observations have shape {observations.shape}, and {expected} "
            f"was expected: act in the environment that the data is of, ReturnToGo(env, "
            f"target_return)",
            setting="observation",
            value=observations.shape,
            choices=[expected],
        )
    return observations, _read_returns(observation["return_to_go"], len(observations)), single


def check_finite(observations: NDArray[Any]) -> None:
    """Refuse observations that no action can follow from; images in bytes pass at no cost.

    Args:
        observations: Shape (n, *obs), any dtype.

    Raises:
        SpaceError: A value is NaN or infinite; says of which environment and where.
    """
    if observations.dtype.kind != "f" or np.isfinite(observations).all():
        return
    row, *place = (int(index) for index in np.argwhere(~np.isfinite(observations))[0])
    value = observations[(row, *place)]
    raise SpaceError(
        f"the observation of environment {row} has {value} at {tuple(place)}, which would "
        f"make every later action meaningless: fix the environment's output (np.nan_to_num "
        f"replaces such values) or end the episode there",
        setting="observation",
        value=value,
    )


def read_starts(episode_start: Any, n_envs: int) -> NDArray[np.bool_]:
    """Read which of ``n_envs`` environments start an episode.

    Raises:
        ConditioningError: There is neither one flag nor one an environment, or it is Python's True
            or False: a bare bool in this place is usually a misplaced ``deterministic``.
    """
    if isinstance(episode_start, bool):
        raise ConditioningError(
            f"episode_start={episode_start} is not an array: write "
            f"predict(observation, state, deterministic={episode_start}) if that was meant, or "
            f"episode_start=np.full({n_envs}, {episode_start})",
            setting="episode_start",
            value=episode_start,
        )
    starts = np.asarray(episode_start, dtype=bool)
    if starts.shape not in ((), (1,), (n_envs,)):
        raise ConditioningError(
            f"episode_start has shape {starts.shape}, and {n_envs} observations came: give one "
            f"flag each, np.ones({n_envs}, dtype=bool) at the first step and what env.step "
            f"returned as done afterwards",
            setting="episode_start",
            value=starts.shape,
            choices=[(), (1,), (n_envs,)],
        )
    return np.broadcast_to(starts, (n_envs,))


def read_state(
    state: ActingState,
    n_envs: int,
    layout: Mapping[str, tuple[int, ...]],
    device: torch.device,
) -> ActingState:
    """Check that a state is one of ``n_envs`` episodes of this policy.

    Args:
        state: What the last ``predict`` returned, perhaps joined, reordered or pickled since.
        n_envs: Number of observations that came with it.
        layout: The shape of a row of each tensor that such a state of this policy holds.
        device: Where the policy is.

    Returns:
        The state, on ``device``.

    Raises:
        ConditioningError: It is of other environments or another policy.
    """
    if len(state) != n_envs:
        raise ConditioningError(
            f"state holds {len(state)} environments, but {n_envs} observations came: pass the "
            f"state that the last predict returned for these environments (state.take(rows) "
            f"drops some), or None at the first step",
            setting="state",
            value=len(state),
            choices=[n_envs],
        )
    found = {name: tuple(tensor.shape[1:]) for name, tensor in state.tensors.items()}
    if found != layout:
        name = next(key for key in {**layout, **found} if found.get(key) != layout.get(key))
        raise ConditioningError(
            f"state is another model's (a row of {name} has shape {found.get(name)}, and this "
            f"model's {layout.get(name)}): pass None at the first step with this model",
            setting="state",
        )
    return state if state.tensors["timestep"].device == device else state.to(device)


def _read_returns(returns_to_go: Any, n_envs: int) -> NDArray[np.float32]:
    returns = np.asarray(returns_to_go, dtype=np.float32)
    if returns.ndim == 2 and len(returns) == n_envs:
        returns = returns[:, -1:]
    returns = returns.reshape(-1)
    if len(returns) != n_envs:
        raise ConditioningError(
            f"{n_envs} observations came with {len(returns)} returns-to-go: give one each",
            setting="return_to_go",
            value=len(returns),
            choices=[n_envs],
        )
    # math.isfinite is several times faster than NumPy's on the one number of one environment
    if not (math.isfinite(returns[0]) if n_envs == 1 else np.isfinite(returns).all()):
        raise ConditioningError(
            f"return_to_go={returns.tolist()}: give finite numbers, ReturnToGo(env, target_return) "
            f"counts them",
            setting="return_to_go",
            value=returns.tolist(),
        )
    return returns


_FORMAT = "sb3_dmamba policy 1"
_DAMAGE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
)

MakePolicy = Callable[[Any, Any, DecisionMambaConfig], Any]


def write_policy(
    path: str | os.PathLike[str] | BinaryIO,
    config: DecisionMambaConfig,
    observation_space: spaces.Box,
    action_space: spaces.Space[Any],
    weights: Mapping[str, Tensor],
    extractor: str | None = None,
) -> None:
    """Write all that makes up a policy; spaces and config as JSON, an extractor's class by name."""
    description = {
        "format": _FORMAT,
        "config": config.to_dict(),
        "observation_space": space_to_json(observation_space),
        "action_space": space_to_json(action_space),
        "features_extractor": extractor,
    }
    torch.save({"data": json.dumps(description), "state_dict": dict(weights)}, path)


def read_policy(
    path: str | os.PathLike[str] | BinaryIO,
    device: torch.device,
    make: MakePolicy,
    extractor: str | None = None,
) -> Any:
    """Read what :func:`write_policy` wrote, and make a policy of it.

    Args:
        path: The file.
        device: Where to put the policy.
        make: Makes a policy of an observation space, an action space and a config.
        extractor: Name of the features extractor's class that it makes it with, if any.

    Raises:
        ConfigError: The policy was made with another one.
        ModelFileError: The file is missing, damaged, or something else.
        OSError: The file may not be opened.
    """
    try:
        content = Path(path).read_bytes() if isinstance(path, (str, os.PathLike)) else path.read()
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no policy file at {path}", path=path) from error
    try:
        if not zipfile.is_zipfile(io.BytesIO(content)):
            raise ModelFileError("it is not a zip, or was cut off")
        saved = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        description = json.loads(saved["data"])
        if description["format"] != _FORMAT:
            raise ModelFileError(
                f"the format is {description['format']!r}, not {_FORMAT!r}",
                path=path,
                setting="format",
                value=description["format"],
                choices=[_FORMAT],
            )
        theirs = description.get("features_extractor")
    except (ModelFileError, *_DAMAGE) as error:
        raise _is_no_policy(path, error) from error
    check_extractor(theirs, extractor, path)
    try:
        observation_space = space_from_json(description["observation_space"])
        action_space = space_from_json(description["action_space"])
        config = DecisionMambaConfig.from_dict(description["config"])
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn for nothing
            policy = make(observation_space, action_space, config)
        policy.load_state_dict(saved["state_dict"])
    except (ConfigError, SpaceError, ModelFileError, *_DAMAGE) as error:
        raise _is_no_policy(path, error) from error
    policy.set_training_mode(False)
    return policy.to(device)


def _is_no_policy(path: Any, error: Exception) -> ModelFileError:
    return ModelFileError(
        f"{path} is not a policy that policy.save wrote ({type(error).__name__}: "
        f"{str(error).splitlines()[0]}): a model that model.save wrote is read by "
        f"DecisionMamba.load(path), whose .policy it is",
        path=path,
    )


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
        return taken, state.advance(stored, remembered)

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
