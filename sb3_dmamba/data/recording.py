"""``collect``: record a policy's episodes in any kind of environment."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, iterate
from jaxtyping import Bool, Float64
from numpy import ndarray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_dmamba.checks import check_integer, check_optional_integer
from sb3_dmamba.console import count_progress
from sb3_dmamba.data.trajectories import Trajectories, TrajectoriesWriter
from sb3_dmamba.data.validation import check_frame_stack, frame_shape
from sb3_dmamba.envs import register
from sb3_dmamba.envs.make import as_gymnasium, make_environment, qualify_id
from sb3_dmamba.envs.stepping import (
    Envs,
    GymEnvs,
    GymVectorEnvs,
    SB3Envs,
    Stepped,
    find_normalizers,
    statistics_kept,
)
from sb3_dmamba.errors import ConfigError, DatasetError
from sb3_dmamba.spaces import (
    check_action_space,
    flat_space,
    flatten_observation,
    is_conditioned,
    loosen_bounds,
    observation_dtype,
)

Act = Callable[[Any, Float64[ndarray, "n"], Bool[ndarray, "n"], Bool[ndarray, "n"]], Any]
"""From observations, the last rewards, where episodes start, and where the next step only resets:
one action for each environment."""

_ACTIONS = 0xAC7105  # tells the seed of actions from those of environments


def as_actor(policy: Any, envs: Envs, deterministic: bool, seed: int | None) -> Act:
    """Tell what kind of policy it is.

    Args:
        policy: ``"random"``, a Stable-Baselines3 model or policy, a d3rlpy algorithm, anything
            with ``predict(x, reward)`` and ``reset()``, or a function of one observation.
        envs: What it will act in.
        deterministic: Whether to take the most likely action rather than draw one.
        seed: For ``"random"``.

    Raises:
        ConfigError: It is none of these, or cannot act in so many environments.
    """
    if isinstance(policy, str) and policy == "random":
        return _act_at_random(envs, seed)
    parameters = _parameters(getattr(policy, "predict", None))
    if "episode_start" in parameters:
        return _ask_sb3(policy, deterministic)
    if "reward" in parameters and callable(getattr(policy, "reset", None)):
        return _ask_stateful(policy, envs)
    if callable(getattr(policy, "as_stateful_wrapper", None)):
        raise ConfigError(
            f"{type(policy).__name__} acts by its past rewards: pass "
            f"policy.as_stateful_wrapper(target_return)"
        )
    if parameters:
        return _ask_d3rlpy(policy, envs, deterministic)
    if callable(policy):
        return _ask_function(policy, envs)
    raise ConfigError(
        f"policy={policy!r}: give a Stable-Baselines3 or d3rlpy model, a function from one "
        f'observation to an action, or "random"'
    )


def check_actions(
    actions: Any, space: spaces.Box | spaces.Discrete, is_taken: Bool[ndarray, "n"], step: int
) -> ndarray:
    """Return the actions as the environments take them.

    Args:
        actions: One for each environment.
        space: The action space.
        is_taken: Which of them will be taken; the others may be anything.
        step: Number of the step, for messages.

    Raises:
        DatasetError: They do not fit the space, or are not finite in its dtype or in the float32
            of the recording; names the step.
    """
    array = np.asarray(actions)
    is_box, n = isinstance(space, spaces.Box), len(is_taken)
    shape = (n, *(space.shape or ()))
    if array.size != n * int(np.prod(shape[1:])) or array.dtype.kind not in (
        "iuf" if is_box else "iu"
    ):
        raise DatasetError(
            f"at step {step} the policy returned actions of shape {array.shape} and dtype "
            f"{array.dtype} for {n} environment(s) with the action space {space}"
        )
    array = array.reshape(shape)
    taken: ndarray
    if isinstance(space, spaces.Discrete):
        inside = (array >= space.start) & (array < space.start + space.n)
        taken = array.astype(np.int64)
    else:
        with np.errstate(over="ignore"):  # too large is infinite, which is refused below
            taken = array.astype(space.dtype)
            recorded = taken.astype(np.float32)
        low, high = loosen_bounds(space)
        inside = (array >= low) & (array <= high)
        inside &= np.isfinite(taken) & np.isfinite(recorded)
    inside[~is_taken] = True
    if not inside.all():
        raise DatasetError(
            f"at step {step} the policy chose {array[~inside][0]}, outside {space}: clip or scale "
            f"its actions in a function, collect(lambda observation: ..., ...)"
        )
    return taken


def derive_action_seed(seed: int) -> int:
    """Return a seed for a space to draw actions from.

    Spaces and environments make the same generator of the same seed: with ``seed`` itself, the
    actions would follow the environment's own random numbers.
    """
    return int(np.random.SeedSequence([seed, _ACTIONS]).generate_state(1, np.uint64)[0])


def _parameters(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _act_at_random(envs: Envs, seed: int | None) -> Act:
    space = copy.deepcopy(envs.action_space)
    space.seed(None if seed is None else derive_action_seed(seed))
    return lambda *_: np.stack([np.asarray(space.sample()) for _ in range(envs.n)])


def _ask_sb3(policy: Any, deterministic: bool) -> Act:
    state: Any = None

    def act(observations: Any, rewards: Any, starts: Bool[ndarray, "n"], resets: Any) -> Any:
        nonlocal state
        actions, state = policy.predict(
            observations, state=state, episode_start=starts, deterministic=deterministic
        )
        return actions

    return act


def _ask_d3rlpy(policy: Any, envs: Envs, deterministic: bool) -> Act:
    choose = policy.predict if deterministic else getattr(policy, "sample_action", policy.predict)
    view = _as_d3rlpy_sees(envs.observation_space, policy)
    return lambda observations, *_: choose(view(observations))


def _ask_stateful(policy: Any, envs: Envs) -> Act:
    if envs.n != 1:
        raise ConfigError(
            f"{type(policy).__name__} remembers one episode, and there are {envs.n} environments: "
            f"give one"
        )
    view = _as_d3rlpy_sees(envs.observation_space, policy)
    action: Any = None

    def act(
        observations: Any,
        rewards: Float64[ndarray, "n"],
        starts: Bool[ndarray, "n"],
        resets: Bool[ndarray, "n"],
    ) -> Any:
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


def _ask_function(policy: Callable[[Any], Any], envs: Envs) -> Act:
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


# Wrappers that leave observations, actions and rewards as they are, or that are undone here.
_HARMLESS = ("Monitor", "ReturnToGoEnv", "RecordEpisodeStatistics", "RecordVideo")
_HARMLESS_VECTOR = ("VecNormalize", "VecMonitor", "VecCheckNan", "ReturnToGoVecEnv")
_OF_VECTORS = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "render_mode")


@dataclass(frozen=True)
class Opened:
    """Environments, what they are called, and how to read what is to be recorded.

    Args:
        envs: The environments.
        recorded_space: Space of the observations to record.
        read: Makes them of what the policy sees.
        env_id: What ``gymnasium.make`` takes, if it is known.
        env_kwargs: Its other arguments.
    """

    envs: Envs
    recorded_space: spaces.Space[Any]
    read: Callable[[Any], Any]
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)


Condition = Callable[[Any], Any]
"""Adds the return-to-go to an environment of any of the three kinds."""


@contextlib.contextmanager
def open_envs(
    env: Any,
    n_envs: int,
    env_kwargs: Mapping[str, Any] | None,
    condition: Condition | None = None,
) -> Iterator[Opened]:
    """Make what is not made yet (and close that at the end), and adapt the rest.

    Args:
        env: What the user gave.
        n_envs: How many to make.
        env_kwargs: Arguments of the environment.
        condition: For a policy that needs the return-to-go: adds it where it is not shown.

    Raises:
        ConfigError: ``env`` is nothing of the kind, or cannot be made ``n_envs`` times.
        UnknownTaskError: No environment has that id.
        MissingDependencyError: The environment's package is not installed.
        DatasetError: The environment's own observations cannot be told from normalised ones.
    """
    env = as_gymnasium(env)
    is_made = isinstance(env, (gym.Env, VectorEnv, VecEnv))
    if is_made and n_envs != 1:
        raise ConfigError(
            f"n_envs={n_envs} and an environment that is made already: give its id, or a function "
            f"that makes one"
        )
    if is_made:
        with statistics_kept(env):
            yield _adapt(_with_return_to_go(env, condition), describe_environment(env))
        return
    if not isinstance(env, str) and not callable(env):
        raise ConfigError(
            f"env={env!r}: give a Gymnasium id, an environment (one, or a Gymnasium or "
            f"Stable-Baselines3 vector), or a function that makes one"
        )
    made: list[gym.Env[Any, Any]] = []
    try:
        for _ in range(n_envs):
            new = _make(env, env_kwargs)
            if not isinstance(new, gym.Env) or any(new is each for each in made):
                raise ConfigError(
                    f"env() returned {new!r}: it must make a new gymnasium.Env at each call"
                )
            made.append(new)
        named = (env, dict(env_kwargs or {})) if isinstance(env, str) else None
        shown = [_with_return_to_go(each, condition) for each in made]
        yield _condition_free(GymEnvs(shown), named or describe_environment(made[0]))
    finally:
        for each in made:
            each.close()  # type: ignore[no-untyped-call]


def _make(env: str | Callable[[], Any], env_kwargs: Mapping[str, Any] | None) -> Any:
    if not isinstance(env, str):
        return as_gymnasium(env())
    register()  # what "sb3_dmamba:..." names, should this package be older than Gymnasium here
    return make_environment(env, env_kwargs or {})


def _with_return_to_go(env: Any, condition: Condition | None) -> Any:
    space = getattr(env, "single_observation_space", env.observation_space)
    return env if condition is None or is_conditioned(space) else condition(env)


def _adapt(
    env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | VecEnv,
    named: tuple[str | None, dict[str, Any]],
) -> Opened:
    if isinstance(env, gym.Env):
        return _condition_free(GymEnvs([env]), named)
    if isinstance(env, VectorEnv):
        return _condition_free(GymVectorEnvs(env), named)
    opened = _condition_free(SB3Envs(env), named)
    seeing = [each for each in find_normalizers(env) if each.norm_obs]
    if not seeing:
        return opened
    normalize = seeing[-1]  # the innermost is shown the original
    original = normalize.venv.observation_space
    if original.shape != opened.recorded_space.shape or type(original) is not type(
        opened.recorded_space
    ):
        raise DatasetError(
            f"VecNormalize sees observations of {original}, and the policy "
            f"{opened.recorded_space}: "
            f"put VecNormalize outside the wrappers that change observations, so that what it "
            f"normalises can be recorded"
        )
    return Opened(opened.envs, original, lambda _: normalize.get_original_obs(), *named)


def _condition_free(envs: Envs, named: tuple[str | None, dict[str, Any]]) -> Opened:
    """Leave the return-to-go, which a wrapper has added to the observations, unrecorded."""
    space = envs.observation_space
    if isinstance(space, spaces.Dict) and is_conditioned(space):
        return Opened(envs, space["observation"], lambda seen: seen["observation"], *named)
    return Opened(envs, space, lambda seen: seen, *named)


def describe_environment(env: Any) -> tuple[str | None, dict[str, Any]]:
    """Return what ``gymnasium.make`` takes to make it again, or None where that is unknown.

    It is unknown where a wrapper may change what is observed, done or paid.
    """
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
    if spec is None or any(each.name not in _HARMLESS for each in spec.additional_wrappers):
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


class Sink(Protocol):
    """Where episodes go: a store's writer, or memory."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

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

    def finish(self) -> Trajectories:
        """Return all of them."""


class MemorySink:
    """Arrays that are made once; pages that nothing was written to yet cost no memory."""

    def __init__(self, n_steps: int, described: dict[str, Any]) -> None:
        flat, space = described["observation_space"], described["action_space"]
        stack = check_frame_stack(described["frame_stack"], flat)
        shape, kind = frame_shape(flat, stack), observation_dtype(flat)
        is_box = isinstance(space, spaces.Box)
        self._arrays: dict[str, Any] = {
            "observations": np.empty((n_steps, *shape), dtype=kind),
            "actions": np.empty((n_steps, *space.shape), dtype=np.float32 if is_box else np.int64),
            "rewards": np.empty(n_steps, dtype=np.float32),
        }
        self._described = described
        self._offsets = [0]
        self._ends: list[tuple[bool, bool]] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        pass

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
        start = self._offsets[-1]
        steps = slice(start, start + len(rewards))
        for name, values in (
            ("observations", observations),
            ("actions", actions),
            ("rewards", rewards),
        ):
            self._arrays[name][steps] = values
        self._offsets.append(steps.stop)
        self._ends.append((terminated, truncated))

    def finish(self) -> Trajectories:
        """Return all of them."""
        ends = np.array(self._ends, dtype=bool)
        return Trajectories(
            **self._arrays,
            terminated=ends[:, 0],
            truncated=ends[:, 1],
            episode_offsets=np.array(self._offsets),
            **self._described,
        )


class Recorder:
    """Steps environments and keeps the episodes that are still running."""

    def __init__(self, sink: Sink, opened: Opened, frame_stack: int, n_steps: int) -> None:
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
            actions = check_actions(
                act(observations, rewards, starts, resets),
                envs.action_space,  # type: ignore[arg-type]  # checked by the caller
                ~resets,
                self._n_steps,
            )
            shown = self._copy(observations)
            stepped = envs.step(actions.copy())  # which they may overwrite
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
            raise DatasetError(
                f"at step {self._n_steps} the environment showed {shown[~np.isfinite(shown)][0]}: "
                f"every observation must be finite"
            )
        return shown

    def _add(self, shown: ndarray, actions: ndarray, stepped: Stepped, is_live: ndarray) -> int:
        rewards = stepped.rewards
        if not np.isfinite(rewards[is_live]).all():
            raise DatasetError(
                f"at step {self._n_steps} the environment paid "
                f"{rewards[is_live & ~np.isfinite(rewards)][0]}: every reward must be finite"
            )
        live = np.flatnonzero(is_live)[: self._limit - self._n_steps].tolist()
        for env in live:  # copies: a view would keep all environments' rows in memory
            row = shown[env]
            frame = row.copy() if self._frame_stack == 1 else self._newest(env, row)
            self._running[env].append((frame, actions[env].copy(), rewards[env]))
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
            raise DatasetError(
                f"at step {self._n_steps} the observation is not a stack of the last "
                f"{self._frame_stack} frames, oldest first, with zeros before the episode's start "
                f"(gymnasium's FrameStackObservation needs padding_type='zero'): pass frame_stack=1"
            )
        self._last_stacks[env] = stack
        newest: ndarray = stack[-1]
        return newest.copy()


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
    running at the end are kept as cut (``drop_cut_episodes()`` leaves them out). The resets that
    vector environments make on their own are no steps. Under ``VecNormalize`` the policy sees
    normalised observations (by statistics that stay as they are) and the environment's own are
    recorded, rewards included; of :class:`~sb3_dmamba.ReturnToGo` likewise, without the
    return-to-go.

    Args:
        policy: A Stable-Baselines3 model or policy (recurrent ones included), a ``DecisionMamba``
            (which is asked for its ``target_return`` where the environment shows no return-to-go),
            a d3rlpy algorithm, a stateful wrapper (``model.as_stateful_wrapper(target_return)``,
            in one environment), a function from one observation to an action, or ``"random"``.
        env: A Gymnasium id, a function that makes an environment, or a ``gymnasium.Env``, a
            ``gymnasium.vector.VectorEnv`` or an SB3 ``VecEnv``, which is reset first and not
            closed.
        n_steps: Steps to record, over all environments.
        deterministic: Whether to take the most likely action rather than draw one.
        seed: Of the environments (``seed``, ``seed + 1``, ...) and of the policy's random numbers
            (torch's and NumPy's global generators are put back afterwards). The same seed gives
            the same data. None leaves it unseeded.
        n_envs: How many environments to make of an id or a function.
        env_id: What ``gymnasium.make`` takes to make the environment again, noted in the data.
            None: found out where ``env`` is an id or made by ``gymnasium.make``, without wrappers
            that could change what is observed, done or paid.
        env_kwargs: The other arguments of ``gymnasium.make``: of ``env`` where it is an id, else
            of ``env_id``.
        frame_stack: Where observations are stacks of this many frames, oldest first and zeros
            before the start, (frame_stack, height, width) uint8: each frame is stored once.
        folder: Where to write the steps, episode by episode, as a store that is mapped into
            memory; None keeps them in memory.
        overwrite: Whether a store in ``folder`` may be replaced.
        progress_bar: Whether to show the progress on stderr.
        name: Where the data came from, for people. None: the policy's and environment's names.

    Returns:
        The episodes in the order in which they ended, those that were cut last.

    Raises:
        ConfigError: ``policy`` or ``env`` is none of those, or a number is out of its range.
        DatasetError: An observation or a reward is not finite, an action lies outside the space,
            or observations are not stacks of frames.
        SpaceError: The environment's spaces cannot be learnt.
        UnknownTaskError: No environment has the id ``env``.
        MissingDependencyError: Its package is not installed.
    """
    n_steps = check_integer("n_steps", n_steps, 1)
    n_envs = check_integer("n_envs", n_envs, 1)
    seed = check_optional_integer("seed", seed, 0)
    if env_kwargs and env_id is None and not isinstance(env, str):
        raise ConfigError(
            f"env_kwargs={dict(env_kwargs)!r} are for making an environment: give its id, as env "
            f"or, to be noted, as env_id"
        )
    condition = getattr(policy, "condition_env", None)
    with open_envs(env, n_envs, env_kwargs, condition) as opened:
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
        sink: Sink
        if folder is None:
            sink = MemorySink(n_steps, described)
        else:
            sink = TrajectoriesWriter(folder, overwrite=overwrite, **described)
        with (
            sink,
            _random_numbers_from(seed, policy),
            count_progress("recording", "steps", progress_bar) as bar,
        ):
            bar.start(0, n_steps)
            recorder = Recorder(sink, opened, frame_stack, n_steps)
            act = as_actor(policy, opened.envs, deterministic, seed)
            for recorded in recorder.run(act, seed):
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
