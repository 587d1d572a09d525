"""``DecisionMambaPolicy``: the sequence model as a Stable-Baselines3 policy, and its file."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
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
from sb3_dmamba.data.sources.pickles import check_opcodes
from sb3_dmamba.envs.return_to_go import conditioned_space
from sb3_dmamba.errors import ConditioningError, ConfigError, ModelFileError, SpaceError
from sb3_dmamba.io import check_members
from sb3_dmamba.networks.encoders import (
    ExtractorEncoder,
    check_extractor,
    check_policy_kwargs,
    name_extractor,
)
from sb3_dmamba.networks.memory import ActingState, StreamMemory, WindowMemory
from sb3_dmamba.networks.mixers import forget_kept_weights
from sb3_dmamba.networks.model import SequenceModel
from sb3_dmamba.spaces import (
    arrange_columns,
    cast_actions,
    channels_first,
    space_from_json,
    space_to_json,
)

Self = TypeVar("Self", bound="DecisionMambaPolicy")


class DecisionMambaPolicy(BasePolicy):
    """Policy that acts with a :class:`SequenceModel`.

    Args:
        observation_space: Flat observations or images, without the return-to-go.
        action_space: Bounded Box or Discrete.
        config: Architecture and default memory.
        statistics: Mean and standard deviation of the observations, or None.
        **policy_kwargs: A features extractor in place of the config's encoder, as
            Stable-Baselines3's policies take one: ``features_extractor_class`` and
            ``features_extractor_kwargs``, see :class:`~sb3_dmamba.networks.ExtractorEncoder`.

    Raises:
        SpaceError: A space that no encoder or head fits.
        ConfigError: ``policy_kwargs`` has other keys.
    """

    flat_space: spaces.Box  # of observations without the return-to-go
    observation_space: spaces.Dict

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Space[Any],
        config: DecisionMambaConfig,
        statistics: ObservationStatistics | None = None,
        **policy_kwargs: Any,
    ) -> None:
        super().__init__(conditioned_space(observation_space), action_space)
        self.flat_space = observation_space
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
        self.register_state_dict_post_hook(_name_as_not_compiled)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_name_as_compiled)  # type: ignore[no-untyped-call]

    def initial_state(self, n_envs: int, memory: str | None = None) -> ActingState:
        """Return the state of ``n_envs`` episodes that have not begun.

        Args:
            n_envs: Number of environments.
            memory: ``"window"`` or ``"stream"``; None is the config's.

        Raises:
            ConfigError: The memory is unknown, or the time encoding excludes it.
        """
        memory = self.memory if memory is None else memory
        if memory not in self._memories:
            message = f"memory={memory!r}: choose one of {', '.join(self._memories)}"
            raise ConfigError(message, setting="memory", value=memory, choices=self._memories)
        if memory != self.memory:
            self.config.replace(memory=memory)  # raises if the time encoding excludes it
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
            observations: Shape (n, *flat_space.shape).
            returns_to_go: Shape (n,), in the environment's units.
            state: Result of :meth:`initial_state` or of the last call.
            deterministic: Whether a discrete action is the most likely one, or sampled.

        Returns:
            Actions of shape (n, *action_space.shape), float32 or int64, and the state after
            them; ``state`` itself is unchanged.

        Raises:
            SpaceError: Observations are not of the space's shape, or not finite.
        """
        expected = (len(state), *self.flat_space.shape)
        if observations.shape != expected:
            message = f"observations have shape {observations.shape}, and {expected} was expected"
            raise SpaceError(message, setting="observations", value=observations.shape)
        check_finite(observations)
        device = state.tensors["timestep"].device
        # A contiguous copy: torch reads no negative strides, and warns of read-only arrays.
        inputs = torch.as_tensor(np.array(observations, order="C"), device=device)
        returns = torch.tensor(returns_to_go, dtype=torch.float32, device=device)
        actions, remembered = self._choose(inputs, returns, state, deterministic)
        stored = actions.flatten(1) if actions.dim() > 1 else actions
        taken = actions.cpu().numpy().copy()  # the caller may change it, but not the state
        return taken, state.advance(stored, remembered)

    def _choose(
        self, observations: Tensor, returns_to_go: Tensor, state: ActingState, deterministic: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return actions (n, *action) and what the memory remembers of the step."""
        if observations.dtype != torch.uint8:
            observations = observations.float()
        if self.training:
            self.set_training_mode(False)
        memory = self._memories[state.memory]
        predictions, remembered = memory.encode(observations, returns_to_go, state)
        return self.model.head.act(predictions, deterministic), remembered

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, Any]:
        """Choose actions, with the signature of Stable-Baselines3.

        Args:
            observation: Observation of a :class:`~sb3_dmamba.ReturnToGo` environment: a mapping
                with ``"observation"`` and ``"return_to_go"``, of one or several environments.
            state: State returned by the last call; None at the first.
            episode_start: Shape (n,), True where a new episode starts.
            deterministic: Whether a discrete action is the most likely one, or sampled.

        Returns:
            The actions, in the space's dtype, and the state to pass to the next call.

        Raises:
            ConditioningError: The observation has no finite return-to-go, or ``state`` is of
                another model or number of environments.
            SpaceError: The observation is not of the space's shape, or not finite.
        """
        observations, returns_to_go, single = read_observation(observation, self.flat_space)
        n_envs = len(observations)
        state = self.initial_state(n_envs) if state is None else self._check_state(state, n_envs)
        if episode_start is not None:
            state = state.reset(read_starts(episode_start, n_envs))
        actions, new_state = self.act(observations, returns_to_go, state, deterministic)
        actions = cast_actions(self.action_space, actions)
        return (actions.squeeze(axis=0) if single else actions), new_state

    def _check_state(self, state: Any, n_envs: int) -> ActingState:
        """Check that a state is one of this policy for ``n_envs`` environments; move it here."""
        if not isinstance(state, ActingState) or state.memory not in self._memories:
            message = (
                f"state is {state!r}, and {n_envs} observations came: pass the state that the last "
                f"predict returned, or None at the first step"
            )
            raise ConditioningError(message, setting="state", value=state)
        if len(state) != n_envs:
            message = (
                f"state holds {len(state)} environments, but {n_envs} observations came: pass the "
                f"state that the last predict returned for these environments (state.take(rows) "
                f"drops some), or None at the first step"
            )
            raise ConditioningError(message, setting="state", value=len(state))
        if state.memory not in self._layouts:
            rows = self.initial_state(0, state.memory).tensors
            self._layouts[state.memory] = {name: tuple(t.shape[1:]) for name, t in rows.items()}
        expected = self._layouts[state.memory]
        found = {name: tuple(tensor.shape[1:]) for name, tensor in state.tensors.items()}
        if found != expected:
            name = next(key for key in {**expected, **found} if found.get(key) != expected.get(key))
            raise ConditioningError(
                f"state is another model's (a row of {name} has shape {found.get(name)}, and this "
                f"model's {expected.get(name)}): pass None at the first step with this model",
                setting="state",
            )
        return state if state.tensors["timestep"].device == self.device else state.to(self.device)

    def save(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the policy alone, without optimiser, task and dataset, with ``torch.save``.

        Args:
            path: File to write. No suffix is added, as by Stable-Baselines3's policies.

        Raises:
            OSError: The file cannot be written.
        """
        description = {
            "format": _FORMAT,
            "config": self.config.to_file(),
            "observation_space": space_to_json(self.flat_space),
            "action_space": space_to_json(self.action_space),
            "features_extractor": name_extractor(self.policy_kwargs),
        }
        torch.save({"data": json.dumps(description), "state_dict": dict(self.state_dict())}, path)

    @classmethod
    def load(
        cls: type[Self],
        path: str | os.PathLike[str] | BinaryIO,
        device: torch.device | str = "auto",
        policy_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Read a policy written by :meth:`save`; nothing in the file is executed.

        Args:
            path: The file.
            device: Device of the policy; ``"auto"`` is CUDA if available.
            policy_kwargs: The features extractor that the policy was made with, if any.

        Raises:
            ModelFileError: The file is missing, damaged, or no policy of this package.
            ConfigError: The policy was made with another features extractor.
            OSError: The file cannot be opened.
        """
        given, where = check_policy_kwargs(policy_kwargs), get_device(device)
        saved, description = _read_policy_file(path, where)
        check_extractor(description.get("features_extractor"), name_extractor(given), path)
        try:
            observation_space: Any = space_from_json(description["observation_space"])
            action_space = space_from_json(description["action_space"])
            config = DecisionMambaConfig.from_dict(description["config"])
            with torch.random.fork_rng(devices=[]):  # the initial weights are not used
                policy = cls(observation_space, action_space, config, **given)
            policy.load_state_dict(saved["state_dict"])
        except (ConfigError, SpaceError, ModelFileError, *_DAMAGE) as error:
            raise _no_policy_error(path, error) from error
        policy.set_training_mode(False)
        return policy.to(where)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.flat_space,
            "action_space": self.action_space,
            "config": self.config,
            **self.policy_kwargs,
        }

    def load_from_vector(self, vector: np.ndarray) -> None:
        """Set the parameters from a vector, with which they then share memory.

        Args:
            vector: Result of ``parameters_to_vector``, shape (n_parameters,).
        """
        super().load_from_vector(vector)
        forget_kept_weights(self)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Choose actions at the first step of episodes, where there is nothing to remember.

        Args:
            observation: First result of :meth:`obs_to_tensor`: a dictionary of tensors.
            deterministic: Whether a discrete action is the most likely one, or sampled.

        Returns:
            Actions of shape (n, *action_space.shape), without gradients. Later steps need the
            memory of :meth:`predict` or :meth:`act`.
        """
        return self._predict(observation, deterministic)

    @torch.no_grad()
    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, dict)
        observations, returns_to_go = observation["observation"], observation["return_to_go"]
        state = self.initial_state(len(observations))
        return self._choose(observations, returns_to_go[:, -1].float(), state, deterministic)[0]


_COMPILED = "_orig_mod."  # where torch.compile keeps the module that it wraps


def _name_as_not_compiled(
    policy: DecisionMambaPolicy, weights: dict[str, Tensor], prefix: str, _metadata: Any
) -> None:
    """Name the weights alike whether or not modules inside are wrapped by ``torch.compile``."""
    for name in [name for name in weights if _COMPILED in name.removeprefix(prefix)]:
        plain = prefix + name.removeprefix(prefix).replace(_COMPILED, "")
        weights[plain] = weights.pop(name)


def _name_as_compiled(
    policy: DecisionMambaPolicy, weights: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Undo :func:`_name_as_not_compiled` before weights are loaded."""
    for name, _weight in [*policy.named_parameters(), *policy.named_buffers()]:
        plain = prefix + name.replace(_COMPILED, "")
        if _COMPILED in name and plain in weights:
            weights[prefix + name] = weights.pop(plain)


_WRAP_IT = (
    "wrap the environment, env = ReturnToGo(env, target_return), or use model.get_env(); if you "
    "hold the rewards yourself, use model.as_stateful_wrapper(target_return)"
)


def read_observation(
    observation: Any, space: spaces.Box
) -> tuple[NDArray[Any], NDArray[np.float32], bool]:
    """Split and validate an observation of a :class:`~sb3_dmamba.ReturnToGo` environment.

    Images whose channels are last are transposed if the space has them first, as by
    Stable-Baselines3's policies. Of stacked returns-to-go (a ``VecFrameStack`` around the wrapper)
    the newest counts.

    Returns observations (n, *space.shape), returns-to-go (n,) float32, and whether the observation
    had no axis of environments.
    """
    if isinstance(observation, tuple) and isinstance(observation[-1], Mapping):
        raise ConditioningError(
            "the observation is a tuple, as Gymnasium's reset returns it: write "
            "observation, info = env.reset() and pass the observation alone",
            setting="observation",
            value=observation,
        )
    if not isinstance(observation, Mapping) or not {"observation", "return_to_go"} <= set(
        observation
    ):
        raise ConditioningError(
            "the observation has no return_to_go, and no policy can know how much return is still "
            f"to come: {_WRAP_IT}",
            setting="observation",
        )
    observations = channels_first(np.asarray(observation["observation"]), space)
    observations = arrange_columns(observations, space)  # of a ReturnToGo that knows no model
    single = observations.ndim == len(space.shape)
    if single:
        observations = observations[np.newaxis]
    if observations.shape[1:] != space.shape:
        expected = (*observations.shape[:1], *space.shape)
        message = (
            f"observations have shape {observations.shape}, and {expected} was expected: act in "
            f"the environment that the data is of, ReturnToGo(env, target_return)"
        )
        raise SpaceError(message, setting="observation", value=observations.shape)
    return observations, _read_returns(observation["return_to_go"], len(observations)), single


def check_finite(observations: NDArray[Any]) -> None:
    """Reject observations that are not finite; integers are not looked at.

    Shapes: ``observations`` (n, *obs).

    Raises SpaceError: a value is NaN or infinite; names the environment and the index.
    """
    if observations.dtype.kind != "f" or np.isfinite(observations).all():
        return
    row, *place = (int(index) for index in np.argwhere(~np.isfinite(observations))[0])
    value = observations[(row, *place)]
    message = (
        f"the observation of environment {row} has {value} at {tuple(place)}, which would make "
        f"every later action meaningless: fix the environment's output (np.nan_to_num replaces "
        f"such values) or end the episode there"
    )
    raise SpaceError(message, setting="observation", value=value)


def read_starts(episode_start: Any, n_envs: int) -> NDArray[np.bool_]:
    """Return the flags of ``n_envs`` environments that start an episode."""
    if isinstance(episode_start, bool):
        message = (
            f"episode_start={episode_start} is not an array: write predict(observation, state, "
            f"deterministic={episode_start}) if that was meant, or episode_start=np.full({n_envs}, "
            f"{episode_start})"
        )
        raise ConditioningError(message, setting="episode_start", value=episode_start)
    starts = np.asarray(episode_start, dtype=bool)
    if starts.shape not in ((), (1,), (n_envs,)):
        message = (
            f"episode_start has shape {starts.shape}, and {n_envs} observations came: give one "
            f"flag each, np.ones({n_envs}, dtype=bool) at the first step and what env.step "
            f"returned as done afterwards"
        )
        raise ConditioningError(message, setting="episode_start", value=starts.shape)
    return np.broadcast_to(starts, (n_envs,))


def _read_returns(returns_to_go: Any, n_envs: int) -> NDArray[np.float32]:
    returns = np.asarray(returns_to_go, dtype=np.float32)
    if returns.ndim == 2 and len(returns) == n_envs:
        returns = returns[:, -1:]
    returns = returns.reshape(-1)
    if len(returns) != n_envs:
        message = f"{n_envs} observations came with {len(returns)} returns-to-go: give one each"
        raise ConditioningError(message, setting="return_to_go", value=len(returns))
    # math.isfinite is several times faster than NumPy on a single number
    if not (math.isfinite(returns[0]) if n_envs == 1 else np.isfinite(returns).all()):
        message = (
            f"return_to_go={returns.tolist()}: give finite numbers, ReturnToGo(env, target_return) "
            f"counts them"
        )
        raise ConditioningError(message, setting="return_to_go", value=returns.tolist())
    return returns


_FORMAT = "sb3_dmamba policy 1"
# What torch, zipfile and json raise on damaged files.
_DAMAGE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError),
    *(zipfile.BadZipFile, AttributeError, OverflowError, MemoryError, AssertionError),
)


def _read_policy_file(
    path: str | os.PathLike[str] | BinaryIO, device: torch.device
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content and the description of a policy file."""
    try:
        content = Path(path).read_bytes() if isinstance(path, (str, os.PathLike)) else path.read()
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no policy file at {path}", path=path) from error
    try:
        if not zipfile.is_zipfile(io.BytesIO(content)):
            raise ModelFileError("it is not a zip, or was cut off")
        # torch compares no checksums, and finds other bytes where a zip's directory is damaged.
        checked = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(checked, "w") as copy:
            check_members(archive)
            for name in archive.namelist():
                member = archive.read(name)
                if name.endswith(".pkl"):
                    check_opcodes(io.BytesIO(member))
                copy.writestr(name, member)
        checked.seek(0)
        saved = torch.load(checked, map_location=device, weights_only=True)
        description = json.loads(saved["data"])
        if description["format"] != _FORMAT:
            raise ModelFileError(f"the format is {description['format']!r}, not {_FORMAT!r}")
    except (ModelFileError, *_DAMAGE) as error:
        raise _no_policy_error(path, error) from error
    return saved, description


def _no_policy_error(path: Any, error: Exception) -> ModelFileError:
    return ModelFileError(
        f"{path} is not a policy that policy.save wrote ({type(error).__name__}: "
        f"{str(error).partition(chr(10))[0]}): a model that model.save wrote is read by "
        f"DecisionMamba.load(path), whose .policy it is",
        path=path,
    )
