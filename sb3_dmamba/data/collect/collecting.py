"""Record a policy's episodes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from sb3_dmamba.checks import check_integer, check_optional_integer
from sb3_dmamba.data._progress import count_progress
from sb3_dmamba.data.collect.opening import open_envs
from sb3_dmamba.data.collect.policies import as_actor, derive_action_seed
from sb3_dmamba.data.collect.recording import MemorySink, Recorder, Sink
from sb3_dmamba.data.spaces import check_action_space, flat_space
from sb3_dmamba.data.store import TrajectoriesWriter
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.errors import ConfigError

__all__ = ["collect"]


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
