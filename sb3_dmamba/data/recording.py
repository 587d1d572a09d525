"""``collect``: record a policy's episodes in any kind of environment."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, iterate
from jaxtyping import Bool, Float64
from numpy import ndarray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_dmamba.checks import check_integer, check_optional_integer
from sb3_dmamba.data.trajectories import Trajectories, TrajectoriesWriter
from sb3_dmamba.data.validation import check_frame_stack, frame_shape
from sb3_dmamba.envs.batches import Batch, Stepped, find_normalizers, frozen_statistics
from sb3_dmamba.envs.make import (
    HARMLESS_WRAPPERS,
    as_gymnasium,
    make_environment,
    make_gymnasium,
    qualify_id,
)
from sb3_dmamba.envs.stepping import check_rewards, close_envs, make_envs
from sb3_dmamba.errors import ConfigError, DatasetError, StepError
from sb3_dmamba.io import count_progress
from sb3_dmamba.spaces import (
    check_action_space,
    flat_space,
    flatten_observation,
    is_conditioned,
    loosen_bounds,
    observation_dtype,
)


def collect(
    policy: Any,
    env: Any,
    n_steps: int,
    *,
    deterministic: bool = False,
    seed: int | None = None,
    n_envs: int = 1,
    env_id: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    frame_stack: int = 1,
    folder: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress_bar: bool = False,
    name: str | None = None,
) -> Trajectories:
    """Let a policy act, and record exactly ``n_steps`` steps.

    Whether an episode was terminated or truncated is taken from the environment; those still
    running at the end are kept as cut (``drop_cut_episodes()`` leaves them out). Resets that vector
    environments make on their own are no steps. Under ``VecNormalize`` the policy sees normalised
    observations (by frozen statistics) and the environment's own are recorded, rewards included; of
    :class:`~sb3_dmamba.ReturnToGo` likewise, without the return-to-go.

    Args:
        policy: A Stable-Baselines3 model or policy, a ``DecisionMamba`` (with its ``target_return``
            where the environment shows no return-to-go), a d3rlpy algorithm, a stateful wrapper (in
            one environment), a function from one observation to an action, or ``"random"``.
        env: A Gymnasium id, a function that makes an environment, or a ``gymnasium.Env``,
            ``VectorEnv`` or SB3 ``VecEnv``, which is reset first and not closed.
        n_steps: Steps to record, over all environments.
        deterministic: Whether to take the most likely action rather than draw one.
        seed: Of the environments (``seed``, ``seed + 1``, ...) and of the policy's random numbers
            (global generators are put back afterwards); None leaves them unseeded.
        n_envs: How many environments to make of an id or a function.
        env_id: What ``gymnasium.make`` takes, noted in the data. None: found out where no wrapper
            could change what is observed, done or paid.
        env_kwargs: The other arguments of ``gymnasium.make``.
        frame_stack: Where observations are stacks of this many frames, oldest first and zeros
            before the start, (frame_stack, height, width) uint8: each frame is stored once.
        folder: Where to write a store, episode by episode; None keeps the steps in memory.
        overwrite: Whether a store in ``folder`` may be replaced.
        progress_bar: Whether to show the progress on stderr.
        name: Where the data came from. None: the policy's and environment's names.

    Returns:
        The episodes in the order in which they ended, those that were cut last.

    Raises:
        ConfigError: ``policy`` or ``env`` is none of those, or a number is out of its range.
        DatasetError: An observation or (StepError) a reward is not finite, an action lies outside
            the space, or observations are not stacks of frames.
        SpaceError: The environment's spaces cannot be learnt.
        UnknownTaskError: No environment has the id ``env``.
        MissingDependencyError: Its package is not installed.
    """
    n_steps = check_integer("n_steps", n_steps, 1)
    n_envs = check_integer("n_envs", n_envs, 1)
    seed = check_optional_integer("seed", seed, 0)
    if env_kwargs and env_id is None and not isinstance(env, str):
        problem = f"env_kwargs={dict(env_kwargs)!r} need an id: give it as env or env_id"
        raise ConfigError(problem, setting="env_kwargs", value=dict(env_kwargs))
    with contextlib.ExitStack() as stack:
        condition = getattr(policy, "condition_env", None)
        opened = stack.enter_context(_open_envs(env, n_envs, env_kwargs, condition))
        noted = (opened.env_id, opened.env_kwargs) if env_id is None else (env_id, env_kwargs)
        kind = policy if isinstance(policy, str) else getattr(policy, "__name__", None)
        described: dict[str, Any] = {
            "observation_space": flat_space(opened.recorded_space),
            "action_space": check_action_space(opened.envs.action_space),
            "env_id": noted[0],
            "env_kwargs": dict(noted[1] or {}),
            "frame_stack": frame_stack,
            "source": name or f"{kind or type(policy).__name__} in {noted[0] or 'an environment'}",
        }
        sink: _MemorySink | TrajectoriesWriter
        if folder is None:
            sink = _MemorySink(n_steps, described)
        else:
            writer = TrajectoriesWriter(folder, overwrite=overwrite, **described)
            sink = stack.enter_context(writer)
        stack.enter_context(_random_numbers_from(seed, policy))
        bar = stack.enter_context(count_progress("recording", "steps", progress_bar))
        bar.start(0, n_steps)
        recorder = Recorder(sink, opened, frame_stack, n_steps)
        for recorded in recorder.run(_as_actor(policy, opened.envs, deterministic, seed), seed):
            bar.advance(recorded)
        return sink.finish()


@contextlib.contextmanager
def _random_numbers_from(seed: int | None, policy: Any) -> Iterator[None]:
    """Draw random numbers from ``seed``, and leave all generators as they were."""
    if seed is None:
        yield
        return
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    space = getattr(policy, "action_space", None)  # SB3's DQN explores with it
    generator = space.np_random.bit_generator if isinstance(space, spaces.Space) else None
    numpys = np.random.get_state()  # noqa: NPY002
    spaces_own = None if generator is None else generator.state
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        if generator is not None:
            own = np.random.default_rng(derive_action_seed(seed))
            generator.state = own.bit_generator.state
        try:
            yield
        finally:
            np.random.set_state(numpys)  # noqa: NPY002
            if generator is not None and spaces_own is not None:
                generator.state = spaces_own


_ACTIONS = 0xAC7105  # tells the seed of actions from those of environments


def derive_action_seed(seed: int) -> int:
    """Return a seed for actions, which must not follow the environment's own random numbers."""
    return int(np.random.SeedSequence([seed, _ACTIONS]).generate_state(1, np.uint64)[0])


@dataclass(frozen=True)
class _Opened:
    envs: Batch
    recorded_space: spaces.Space[Any]
    read: Callable[[Any], Any]  # from what the policy sees to what is recorded, both batched
    env_id: str | None  # what ``gymnasium.make`` takes, if it is known
    env_kwargs: Mapping[str, Any]  # its other arguments


@contextlib.contextmanager
def _open_envs(
    env: Any,
    n_envs: int,
    env_kwargs: Mapping[str, Any] | None,
    condition: Callable[[Any], Any] | None,
) -> Iterator[_Opened]:
    """Make what is not made yet (and close it at the end); ``condition`` adds a return-to-go."""
    env = as_gymnasium(env)
    if isinstance(env, (gym.Env, VectorEnv, VecEnv)):
        if n_envs != 1:
            problem = f"n_envs={n_envs} with an environment: give its id or a function instead"
            raise ConfigError(problem, setting="n_envs", value=n_envs)
        with frozen_statistics(env):
            yield _adapt(_with_return_to_go(env, condition), describe_environment(env))
        return
    kwargs = dict(env_kwargs or {})
    if isinstance(env, str):
        made = make_envs("env", partial(make_environment, env, kwargs), n_envs)
    elif callable(env):
        made = make_envs("env", partial(make_gymnasium, env), n_envs)
    else:
        problem = f"env={env!r}: give a Gymnasium id, an environment or a function that makes one"
        raise ConfigError(problem, setting="env", value=env)
    try:
        named = (env, kwargs) if isinstance(env, str) else describe_environment(made[0])
        yield _adapt([_with_return_to_go(each, condition) for each in made], named)
    finally:
        close_envs(made)


def _with_return_to_go(env: Any, condition: Callable[[Any], Any] | None) -> Any:
    space = getattr(env, "single_observation_space", env.observation_space)
    return env if condition is None or is_conditioned(space) else condition(env)


def _adapt(env: Any, named: tuple[str | None, dict[str, Any]]) -> _Opened:
    """Find what to record: no return-to-go, and observations as they were before VecNormalize."""
    envs = Batch.of(env)
    space, read = envs.observation_space, lambda seen: seen
    if isinstance(space, spaces.Dict) and is_conditioned(space):
        space, read = space["observation"], lambda seen: seen["observation"]
    normalizers = [each for each in find_normalizers(env) if each.norm_obs]
    if normalizers:
        normalizer = normalizers[-1]  # the innermost is shown the original
        original = normalizer.venv.observation_space
        if original.shape != space.shape or type(original) is not type(space):
            problem = f"put VecNormalize outside what changes {original} to {space}"
            raise DatasetError(problem, setting="observation_space", value=space)
        space, read = original, lambda _: normalizer.get_original_obs()
    return _Opened(envs, space, read, *named)


_HARMLESS_VECTOR = ("VecNormalize", "VecMonitor", "VecCheckNan", "ReturnToGoVecEnv")
_OF_VECTORS = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "render_mode")


def describe_environment(env: Any) -> tuple[str | None, dict[str, Any]]:
    """Return what ``gymnasium.make`` takes; None where a wrapper may change what happens."""
    while isinstance(env, VecEnvWrapper):
        if type(env).__name__ not in _HARMLESS_VECTOR:
            return None, {}
        env = env.venv
    if isinstance(env, VectorWrapper):
        return None, {}
    try:
        spec = env.get_attr("spec", 0)[0] if isinstance(env, VecEnv) else env.spec
    except (AttributeError, TypeError, ValueError, EOFError):  # a wrapper that cannot be recorded
        return None, {}
    if not isinstance(spec, EnvSpec):  # none, or the old gym's
        return None, {}
    if any(each.name not in HARMLESS_WRAPPERS for each in spec.additional_wrappers):
        return None, {}
    kwargs = {key: value for key, value in spec.kwargs.items() if key not in _OF_VECTORS}
    registered = gym.registry.get(spec.id)
    if spec.max_episode_steps != getattr(registered, "max_episode_steps", None):
        kwargs["max_episode_steps"] = spec.max_episode_steps
    try:
        json.dumps(kwargs)
    except (TypeError, ValueError):
        return None, {}
    return qualify_id(spec.id, spec.entry_point), kwargs


class Recorder:
    """Steps environments and keeps the episodes that are still running."""

    def __init__(
        self,
        sink: _MemorySink | TrajectoriesWriter,
        opened: _Opened,
        frame_stack: int,
        n_steps: int,
    ) -> None:
        self._sink = sink
        self._opened = opened
        self._frame_stack = frame_stack
        self._dtype = observation_dtype(flat_space(opened.recorded_space))
        self._limit = n_steps
        self._n_steps = 0
        n = opened.envs.n
        self._running: list[list[tuple[ndarray, ndarray, float]]] = [[] for _ in range(n)]
        self._last_stacks: list[ndarray | None] = [None] * n

    def run(self, act: Act, seed: int | None) -> Iterator[int]:
        """Record until there are enough steps; yields how many more there are."""
        envs = self._opened.envs
        observations = envs.reset(seed)
        rewards, starts = np.zeros(envs.n), np.ones(envs.n, dtype=bool)
        resets = np.zeros(envs.n, dtype=bool)
        while self._n_steps < self._limit:
            chosen = act(observations, rewards, starts, resets)
            actions = _check_actions(chosen, envs.action_space, ~resets, self._n_steps)
            shown = self._copy(observations)
            try:
                stepped = envs.step(actions.copy())  # which they may overwrite
                check_rewards(stepped.rewards, envs.n, ~resets)
            except StepError as error:
                raise error.located(f"at step {self._n_steps}") from error
            yield self._add(shown, actions, stepped, ~resets)
            ended = stepped.terminated | stepped.truncated
            starts = resets | (ended & ~stepped.resets)
            observations, rewards, resets = stepped.observations, stepped.rewards, stepped.resets
        for env in range(envs.n):
            self._end(env, terminated=False, truncated=False)

    def _copy(self, observations: Any) -> ndarray:
        """Return what is to be recorded of a batch, which the environments may overwrite."""
        space = self._opened.recorded_space
        flat = flatten_observation(space, self._opened.read(observations), batch=True)
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is named
            shown = np.array(flat, dtype=self._dtype)
        if shown.dtype.kind == "f" and not np.isfinite(shown).all():
            wrong = shown[~np.isfinite(shown)][0]
            step, value = self._n_steps, float(wrong)
            problem = f"at step {step} the environment showed {value}: observations must be finite"
            raise DatasetError(problem, setting="observation", value=value, index=step)
        return shown

    def _add(self, shown: ndarray, actions: ndarray, stepped: Stepped, is_live: ndarray) -> int:
        live = np.flatnonzero(is_live)[: self._limit - self._n_steps].tolist()
        for env in live:  # copies: a view would keep all environments' rows in memory
            row = shown[env]
            frame = row.copy() if self._frame_stack == 1 else self._newest(env, row)
            self._running[env].append((frame, actions[env].copy(), stepped.rewards[env]))
            terminated, truncated = bool(stepped.terminated[env]), bool(stepped.truncated[env])
            if terminated or truncated:
                self._end(env, terminated, truncated)
        self._n_steps += len(live)
        return len(live)

    def _end(self, env: int, terminated: bool, truncated: bool) -> None:
        steps, self._running[env], self._last_stacks[env] = self._running[env], [], None
        if steps:
            observations, actions, rewards = (np.stack(part) for part in zip(*steps, strict=True))
            self._sink.append(
                observations, actions, rewards, terminated=terminated, truncated=truncated
            )

    def _newest(self, env: int, stack: ndarray) -> ndarray:
        """Return the last frame of a stack, whose others must be those before it."""
        last = self._last_stacks[env]
        before = np.zeros_like(stack[1:]) if last is None else last[1:]
        if not np.array_equal(stack[:-1], before):
            step, count = self._n_steps, self._frame_stack
            problem = (
                f"at step {step} the observation is not a stack of the last {count} frames, zeros "
                f"before the start (padding_type='zero' in gymnasium): pass frame_stack=1"
            )
            raise DatasetError(problem, setting="frame_stack", value=count, index=step)
        self._last_stacks[env] = stack
        newest: ndarray = stack[-1]
        return newest.copy()


class _MemorySink:
    """Arrays that are made once; pages that nothing was written to yet cost no memory."""

    def __init__(self, n_steps: int, described: dict[str, Any]) -> None:
        flat, space = described["observation_space"], described["action_space"]
        stack = check_frame_stack(described["frame_stack"], flat)
        kind = np.float32 if isinstance(space, spaces.Box) else np.int64
        self._observations = np.empty(
            (n_steps, *frame_shape(flat, stack)), dtype=observation_dtype(flat)
        )
        self._actions = np.empty((n_steps, *space.shape), dtype=kind)
        self._rewards = np.empty(n_steps, dtype=np.float32)
        self._described = described
        self._offsets = [0]
        self._ends: list[tuple[bool, bool]] = []

    def append(
        self,
        observations: ndarray,
        actions: ndarray,
        rewards: ndarray,
        *,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Take an episode."""
        steps = slice(self._offsets[-1], self._offsets[-1] + len(rewards))
        self._observations[steps] = observations
        self._actions[steps] = actions
        self._rewards[steps] = rewards
        self._offsets.append(steps.stop)
        self._ends.append((terminated, truncated))

    def finish(self) -> Trajectories:
        """Return all episodes."""
        terminated, truncated = np.array(self._ends, dtype=bool).T
        return Trajectories(
            observations=self._observations,
            actions=self._actions,
            rewards=self._rewards,
            terminated=terminated,
            truncated=truncated,
            episode_offsets=np.array(self._offsets),
            **self._described,
        )


Act = Callable[[Any, Float64[ndarray, "n"], Bool[ndarray, "n"], Bool[ndarray, "n"]], Any]
"""From observations, the last rewards, where episodes start, and where the next step only resets:
one action for each environment."""


def _as_actor(policy: Any, envs: Batch, deterministic: bool, seed: int | None) -> Act:
    """Find out what kind of policy it is, and how to ask it for actions."""
    if isinstance(policy, str) and policy == "random":
        return _act_at_random(envs, seed)
    parameters = _parameters(getattr(policy, "predict", None))
    if "episode_start" in parameters:
        return _ask_sb3(policy, deterministic)
    if "reward" in parameters and callable(getattr(policy, "reset", None)):
        return _ask_stateful(policy, envs)
    if callable(getattr(policy, "as_stateful_wrapper", None)):
        problem = f"{type(policy).__name__}: pass policy.as_stateful_wrapper(target_return)"
        raise ConfigError(problem, setting="policy", value=policy)
    if parameters:
        choose = getattr(policy, "sample_action", policy.predict)
        choose = policy.predict if deterministic else choose
        view = _as_d3rlpy_sees(envs.observation_space, policy)
        return lambda observations, *_: choose(view(observations))
    if callable(policy):
        return _ask_function(policy, envs)
    problem = f"policy={policy!r}: give an SB3 or d3rlpy model, a function or 'random'"
    raise ConfigError(problem, setting="policy", value=policy)


def _parameters(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _act_at_random(envs: Batch, seed: int | None) -> Act:
    space = copy.deepcopy(envs.action_space)
    space.seed(None if seed is None else derive_action_seed(seed))
    return lambda *_: np.stack([np.asarray(space.sample()) for _ in range(envs.n)])


def _ask_sb3(policy: Any, deterministic: bool) -> Act:
    state: Any = None

    def act(observations: Any, rewards: Any, starts: Any, resets: Any) -> Any:
        nonlocal state
        actions, state = policy.predict(
            observations, state=state, episode_start=starts, deterministic=deterministic
        )
        return actions

    return act


def _ask_stateful(policy: Any, envs: Batch) -> Act:
    if envs.n != 1:
        problem = f"{type(policy).__name__} acts in one environment only, got {envs.n}"
        raise ConfigError(problem, setting="n_envs", value=envs.n)
    view = _as_d3rlpy_sees(envs.observation_space, policy)
    action: Any = None

    def act(observations: Any, rewards: Any, starts: Any, resets: Any) -> Any:
        nonlocal action
        if resets[0]:
            return action  # is not taken
        if starts[0]:
            policy.reset()
        seen = view(observations)
        one = [part[0] for part in seen] if isinstance(seen, list) else seen[0]
        action = np.asarray(policy.predict(one, 0.0 if starts[0] else float(rewards[0])))[None]
        return action

    return act


def _ask_function(policy: Callable[[Any], Any], envs: Batch) -> Act:
    batched = batch_space(envs.observation_space, envs.n)
    return lambda observations, *_: np.stack(
        [np.asarray(policy(each)) for each in iterate(batched, observations)]
    )


def _as_d3rlpy_sees(space: spaces.Space[Any], policy: Any) -> Callable[[Any], Any]:
    """Return what makes d3rlpy's observations: arrays, lists of arrays, or else the flat view."""
    if isinstance(space, spaces.Box):
        return lambda observations: observations
    shape = getattr(getattr(policy, "_algo", policy), "observation_shape", ())
    if isinstance(space, spaces.Tuple) and shape and not isinstance(shape[0], (int, np.integer)):
        return list
    return lambda observations: flatten_observation(space, observations, batch=True)


def _check_actions(
    actions: Any, space: spaces.Space[Any], is_taken: Bool[ndarray, "n"], step: int
) -> ndarray:
    """Return actions, (n, ...); those taken must fit the space and be finite, also in float32."""
    array = np.asarray(actions)
    kinds, n = ("iuf" if isinstance(space, spaces.Box) else "iu"), len(is_taken)
    shape = (n, *(space.shape or ()))
    if array.size != n * int(np.prod(shape[1:])) or array.dtype.kind not in kinds:
        given = f"shape {array.shape} and dtype {array.dtype} for {n} environment(s)"
        problem = f"at step {step} the policy's actions have {given} with {space}"
        raise DatasetError(problem, setting="action", value=actions, index=step)
    array = array.reshape(shape)
    taken: ndarray
    if isinstance(space, spaces.Discrete):
        inside = (array >= space.start) & (array < space.start + space.n)
        taken = array.astype(np.int64)
    else:
        assert isinstance(space, spaces.Box)  # check_action_space has seen it
        with np.errstate(over="ignore"):  # too large is infinite, which is refused below
            taken = array.astype(space.dtype)
            recorded = taken.astype(np.float32)
        low, high = loosen_bounds(space)
        inside = (array >= low) & (array <= high)
        inside &= np.isfinite(taken) & np.isfinite(recorded)
    inside[~is_taken] = True
    if not inside.all():
        problem = f"step {step}: the policy chose {array[~inside][0]}, outside {space}: clip it"
        raise DatasetError(problem, setting="action", value=array[~inside][0], index=step)
    return taken
