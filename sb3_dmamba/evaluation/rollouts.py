"""Roll-outs: all episodes of an evaluation stepped as one batch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from sb3_dmamba.checks import check_integer, check_optional_integer
from sb3_dmamba.envs import stepping
from sb3_dmamba.envs.return_to_go import subtract_rewards
from sb3_dmamba.errors import ConfigError, SpaceError, StepError
from sb3_dmamba.evaluation.actors import ActingPolicy, flat_space_of
from sb3_dmamba.evaluation.report import EvaluationReport, ReportDetails, TargetResult
from sb3_dmamba.evaluation.workers import Envs, LocalEnvs, WorkerEnvs
from sb3_dmamba.spaces import (
    arrange_space,
    cast_actions,
    channels_first,
    check_environment_fits,
    flat_space,
    flatten_observation,
    is_conditioned,
    observation_dtype,
    with_source,
)
from sb3_dmamba.tasks import ReferenceScores

DEFAULT_MAX_ENVS = 128
"""Environments alive at once at most, unless ``n_envs`` says otherwise."""

MakeEnv = Callable[[], "gym.Env[Any, Any]"]
OnProgress = Callable[[int, int], None]


def evaluate_targets(
    policy: ActingPolicy,
    make_env: MakeEnv,
    target_returns: Any,
    n_episodes: int,
    *,
    n_envs: int | None = None,
    n_workers: int | None = None,
    seed: int = 0,
    memory: str | None = None,
    deterministic: bool = True,
    clip_rewards: bool = False,
    delayed_rewards: bool = False,
    reference: ReferenceScores | None = None,
    max_episode_steps: int | None = None,
    details: ReportDetails | None = None,
    on_progress: OnProgress | None = None,
) -> EvaluationReport:
    """Ask a policy for several returns and measure those that it achieves.

    The episodes of all targets are stepped together, as one batch of the policy. Episode k of
    every target starts from the environment seed ``seed + k``, so targets are compared on the
    same starts. Where an episode ends, its environment takes the next one that waits, or its row
    leaves the batch. Neither ``n_workers`` nor the order in which episodes end changes a result;
    ``n_envs`` changes it by no more than the rounding of a matrix product over another number of
    rows (which a chaotic environment can amplify), and, with ``deterministic=False``, by the
    order in which random numbers are drawn (from ``seed``, not from torch's global generator).

    Atari games are scored as whole games with the game's own rewards: a lost life ends nothing
    and clipped rewards are not scored, under Stable-Baselines3's ``EpisodicLifeEnv`` and
    ``ClipRewardEnv`` (so ``AtariWrapper``) and under ``terminal_on_life_loss``.

    Args:
        policy: The policy; see :class:`~sb3_dmamba.evaluation.actors.ActingPolicy`.
        make_env: Makes one environment, a new one at each call. Its rewards are what is scored.
        target_returns: The returns to ask for, in the environment's units: one, or several.
        n_episodes: Episodes for each target.
        n_envs: Environments alive at once; None is one for each episode, at most
            ``DEFAULT_MAX_ENVS``.
        n_workers: Processes that step the environments; 0 or None steps them in this process. A
            worker takes seconds to start and half a millisecond a step, so ask for one a core
            where stepping all environments once takes several milliseconds and episodes are long.
        seed: The environment seed of each target's first episode.
        memory: ``"window"`` or ``"stream"``; None is the policy's own.
        deterministic: Whether to take the most likely action rather than draw one.
        clip_rewards: Whether the return-to-go loses rewards clipped to [-1, 1], for a model of
            data whose rewards were clipped; targets are then in those units, scores never are.
        delayed_rewards: Whether the return-to-go stays at the target until an episode's end, for
            a model of data whose rewards came there.
        reference: The returns that the normalised scores 0 and 100 stand for.
        max_episode_steps: Episodes are cut after this many steps; None leaves it to the
            environment.
        details: What else the report should say: task, dataset, weights, ...
        on_progress: Called with (episodes finished, episodes in all) as episodes finish.

    Returns:
        The report, targets in the order given.

    Raises:
        ConfigError: An argument is out of its range, or ``make_env`` makes no new environments.
        SpaceError: The environment's spaces are not those of the policy.
        EvaluationError: A worker process died, or (its subclass StepError) what an environment
            returned is no step, such as a reward that is not finite.
    """
    n_episodes = check_integer("n_episodes", n_episodes, 1)
    n_envs = check_optional_integer("n_envs", n_envs, 1)
    n_workers = check_optional_integer("n_workers", n_workers, 0) or 0
    seed = check_integer("seed", seed, 0)
    max_episode_steps = check_optional_integer("max_episode_steps", max_episode_steps, 1)
    targets = _check_targets(target_returns)
    if not callable(make_env):
        raise ConfigError(
            f"make_env={make_env!r}: give a function that makes an environment",
            setting="make_env",
            value=make_env,
        )
    n_envs = min(n_envs or DEFAULT_MAX_ENVS, len(targets) * n_episodes)
    started = time.perf_counter()
    envs: Envs
    envs = WorkerEnvs(make_env, n_envs, n_workers) if n_workers else LocalEnvs(make_env, n_envs)
    try:
        _check_spaces(envs.description, policy)
        episodes = _Episodes(envs, policy, targets, n_episodes, seed, max_episode_steps)
        memory = policy.memory if memory is None else memory
        with _random_numbers_from(seed, policy):
            for n_finished in episodes.run(
                n_envs, memory, deterministic, clip_rewards, delayed_rewards
            ):
                if on_progress is not None:
                    on_progress(n_finished, len(targets) * n_episodes)
    finally:
        envs.close()
    shape = (len(targets), n_episodes)
    returns, lengths = episodes.returns.reshape(shape), episodes.lengths.reshape(shape)
    results = (
        TargetResult(float(target), returns[row], lengths[row], reference)
        for row, target in enumerate(targets)
    )
    return EvaluationReport.from_results(
        tuple(results),
        details or ReportDetails(),
        env_id=envs.description["env_id"],
        memory=str(memory),
        deterministic=deterministic,
        clip_rewards=clip_rewards,
        delayed_rewards=delayed_rewards,
        max_episode_steps=max_episode_steps,
        eval_seed=seed,
        seconds=time.perf_counter() - started,
    )


def _check_targets(target_returns: Any) -> NDArray[np.float64]:
    try:
        targets = np.atleast_1d(np.asarray(target_returns, dtype=np.float64))
    except (TypeError, ValueError):
        targets = np.empty(0)
    if targets.ndim != 1 or not len(targets) or not np.isfinite(targets).all():
        message = f"target_returns={target_returns!r}: give one finite number, or a list of them"
        raise ConfigError(message, setting="target_returns", value=target_returns)
    return targets


def _check_spaces(description: dict[str, Any], policy: ActingPolicy) -> None:
    """Check that the policy can act there, and bring parts of observations into its order."""
    shown_space = with_source(description["observation_space"], description.get("flattened"))
    if is_conditioned(shown_space):
        problem = (
            "env shows a return-to-go already, and evaluate adds its own: leave ReturnToGo out"
        )
        raise SpaceError(problem, setting="env", value=shown_space)
    space = arrange_space(shown_space, flat_space_of(policy))
    description["observation_space"] = space
    shown = flat_space(space), description["action_space"]
    expected = flat_space_of(policy), policy.action_space
    check_environment_fits(*shown, *expected, "the environment")


@contextlib.contextmanager
def _random_numbers_from(seed: int, policy: ActingPolicy) -> Iterator[None]:
    """Draw torch's random numbers from ``seed``, and leave its generators as they were."""
    device = torch.device(getattr(policy, "device", "cpu"))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class _Episodes:
    """The episodes of all targets, numbered target by target: those under way, and the results."""

    def __init__(
        self,
        envs: Envs,
        policy: ActingPolicy,
        targets: NDArray[np.float64],
        n_episodes: int,
        seed: int,
        max_episode_steps: int | None,
    ) -> None:
        self._envs = envs
        self._policy = policy
        self._targets = np.repeat(targets, n_episodes)  # (J,)
        self._seeds = np.tile(seed + np.arange(n_episodes), len(targets))  # (J,)
        self.returns = np.zeros(len(self._targets), dtype=np.float64)  # (J,)
        self.lengths = np.zeros(len(self._targets), dtype=np.int64)  # (J,)
        self._step_limit = max_episode_steps
        self._has_warned = False
        self._observation_space = envs.description["observation_space"]
        self._observation_dtype = observation_dtype(flat_space(self._observation_space))
        self._action_space = envs.description["action_space"]
        self._policy_space = flat_space_of(policy)

    def run(
        self, n_envs: int, memory: Any, deterministic: bool, clip: bool, delayed: bool
    ) -> Iterator[int]:
        """Run every episode, ``n_envs`` at a time; yields how many have ended when some do."""
        env, job = np.arange(n_envs), np.arange(n_envs)  # of each row: its place, its episode
        n_begun = n_envs
        state = self._policy.initial_state(n_envs, memory=memory)
        observations, remaining = self._begin(env, job)
        while len(job):
            actions, state = self._policy.act(
                observations, remaining.astype(np.float32), state, deterministic
            )
            observations, rewards, ended = self._step(env, job, actions)
            remaining = subtract_rewards(remaining, rewards, clip, delayed)
            if not ended.any():
                continue
            over = np.flatnonzero(ended)
            refilled, dropped = np.split(over, [min(len(over), len(self._targets) - n_begun)])
            if len(refilled):
                job[refilled] = np.arange(n_begun, n_begun + len(refilled))
                n_begun += len(refilled)
                observations[refilled], remaining[refilled] = self._begin(
                    env[refilled], job[refilled]
                )
                state = state.reset(np.isin(np.arange(len(job)), refilled))
            if len(dropped):
                kept = np.delete(np.arange(len(job)), dropped)
                state = state.take(kept)
                env, job, remaining = env[kept], job[kept], remaining[kept]
                observations = observations[kept]
            yield n_begun - len(job)

    def _begin(
        self, env: NDArray[np.int64], job: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Start episodes; returns their first observations and returns-to-go."""
        try:
            shown = self._envs.reset(env.tolist(), self._seeds[job].tolist())
        except StepError as error:
            number = job[error.index]
            raise error.located(f"at the start of the episode with {self._name(number)}") from error
        return self._as_batch(shown), self._targets[job]

    def _step(
        self, env: NDArray[np.int64], job: NDArray[np.int64], actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_]]:
        """Step the environments, and enter scores and lengths; returns the rewards to subtract."""
        if isinstance(self._action_space, spaces.Box):
            actions = actions.reshape(-1, *self._action_space.shape)
            actions = cast_actions(self._action_space, actions)  # a copy, which it may change
        try:
            shown, rewards, scores, ended = self._envs.step(env.tolist(), actions)
        except StepError as error:
            number = job[error.index]
            where = f"at step {self.lengths[number]} of the episode with {self._name(number)}"
            raise error.located(where) from error
        self.returns[job] += scores
        self.lengths[job] += 1
        is_long = (self.lengths[job] == stepping.LONG_EPISODE).any()
        if self._step_limit is None and is_long and not self._has_warned:
            self._has_warned = True
            stepping.warn_of_long_episode("pass max_episode_steps= (--max-steps)")
        if self._step_limit is not None:
            ended = ended | (self.lengths[job] >= self._step_limit)
        return self._as_batch(shown), rewards, ended

    def _name(self, number: Any) -> str:
        return f"seed {self._seeds[number]} and target {self._targets[number]:g}"

    def _as_batch(self, observations: list[Any]) -> NDArray[Any]:
        """Stack observations as (n, *flat shape), float32 or uint8."""
        flat = [flatten_observation(self._observation_space, each) for each in observations]
        batch = np.stack(flat).astype(self._observation_dtype, copy=False)
        return channels_first(batch, self._policy_space)


class SeedEpisodes(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Start episode k of an environment from the seed ``seed + k``.

    ``model.evaluate`` seeds every episode so. Stable-Baselines3's ``evaluate_policy`` and d3rlpy's
    evaluators seed none: inside of this wrapper they play the same episodes, and with as many
    environments return the same numbers::

        env = ReturnToGo(SeedEpisodes(Monitor(gym.make("Hopper-v5")), seed=100), target)
        evaluate_policy(model, env, n_eval_episodes=10)
        model.evaluate(target, n_episodes=10, seed=100, n_envs=1)

    A seed given to ``reset`` begins the count anew from it. A reset before the first step, and one
    that goes on with a game after a lost life, begin no other episode.

    Args:
        env: The environment.
        seed: Seed of the first episode.

    Raises:
        ConfigError: ``seed`` is not a non-negative integer.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int = 0) -> None:
        self._next_seed = check_integer("seed", seed, 0)
        RecordConstructorArgs.__init__(self, seed=self._next_seed)
        gym.Wrapper.__init__(self, env)
        self._is_fresh = True
        self._lives = stepping.Lives(env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start the next episode from its seed."""
        if seed is not None:
            self._next_seed = seed
        elif self._lives.game_goes_on():
            return self.env.reset(options=options)
        self._is_fresh = True
        return self.env.reset(seed=self._next_seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; from an episode's first step on, the next reset takes the next seed."""
        if self._is_fresh:
            self._is_fresh = False
            self._next_seed += 1
        return self.env.step(action)


def split_seeds(seed: int, n_episodes: int, n_envs: int) -> list[int]:
    """Return the first seed of each environment when ``evaluate_policy`` shares out the episodes.

    Stable-Baselines3 gives environment i of a ``VecEnv`` ``(n_episodes + i) // n_envs`` episodes.
    With these seeds they are the episodes of ``model.evaluate(target, n_episodes, seed=seed)``,
    each once, listed in the order in which they end::

        seeds = split_seeds(100, n_episodes=10, n_envs=4)
        envs = [partial(make_env, seed) for seed in seeds]  # makes a SeedEpisodes(env, seed)
        evaluate_policy(model, ReturnToGo(DummyVecEnv(envs), target), n_eval_episodes=10)

    Args:
        seed: Seed of the first episode.
        n_episodes: Episodes in all.
        n_envs: Environments.

    Raises:
        ConfigError: An argument is not an integer, or too small.
    """
    seed = check_integer("seed", seed, 0)
    n_episodes = check_integer("n_episodes", n_episodes, 1)
    n_envs = check_integer("n_envs", n_envs, 1)
    counts = (n_episodes + np.arange(n_envs)) // n_envs
    return [int(first) for first in seed + np.cumsum(counts) - counts]
