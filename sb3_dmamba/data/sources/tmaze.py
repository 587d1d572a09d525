"""T-maze datasets: episodes of scripted agents of mixed quality."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from sb3_dmamba.checks import check_integer
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.envs import TMAZE_ID, parse_tmaze_name
from sb3_dmamba.envs.tmaze import BACK, DOWN, FORWARD, UP, TMaze
from sb3_dmamba.errors import DatasetError

_MOST_WASTE = 0.03  # share of its steps that the laziest agent wastes
_LEAST_RIGHT = 0.5  # share of its turns that the most forgetful agent gets right


def load_tmaze(source: str, *, n_episodes: int = 1000, seed: int = 0) -> Trajectories:
    """Record scripted agents of mixed quality in a T-maze.

    Each episode's agent wastes a share of its steps, between none and 0.03, and chooses the arm
    that was shown with a probability between one half and one: the return tells whether it did,
    and nothing before the junction does. A model that imitates on average is right in three of
    four episodes if it remembers, and in two of four if not; one that is asked for a return of 1
    and remembers is always right.

    Args:
        source: ``"tmaze-50"`` for a corridor of 50 steps, and so on.
        n_episodes: Episodes to record.
        seed: Seed of environment and agents.

    Raises:
        DatasetError: The name is not a T-maze's, or a number is out of its range.
    """
    length = parse_tmaze_name(source)
    if length is None:
        raise DatasetError(
            f"{source!r} is not a T-maze: write tmaze- and its length, 'tmaze-50'", value=source
        )
    n_episodes = check_integer("n_episodes", n_episodes, 1, error=DatasetError)
    seed = check_integer("seed", seed, 0, error=DatasetError)
    env = TMaze(length)
    generators = np.random.default_rng(seed).spawn(n_episodes)
    played = [_play(env, generator) for generator in generators]
    observations, actions, rewards, terminated = zip(*played, strict=True)
    return Trajectories.from_episodes(
        observations,
        actions,
        rewards,
        terminated,
        [not each for each in terminated],
        observation_space=env.observation_space,  # type: ignore[arg-type]
        action_space=env.action_space,  # type: ignore[arg-type]
        env_id=TMAZE_ID,
        env_kwargs={"length": length},
        source=f"{source}, {n_episodes} scripted episodes, seed {seed}",
    )


def _play(
    env: TMaze, generator: np.random.Generator
) -> tuple[Float32[ndarray, "T 4"], Int64[ndarray, "T"], Float32[ndarray, "T"], bool]:
    """Play one episode of a random agent; return its arrays and whether it terminated."""
    waste = generator.uniform(0.0, _MOST_WASTE)
    is_right = generator.random() < generator.uniform(_LEAST_RIGHT, 1.0)
    observation, _ = env.reset(seed=int(generator.integers(2**31)))
    shown = UP if observation[0] else DOWN
    turn = shown if is_right else UP + DOWN - shown
    observations: list[ndarray] = []
    actions: list[int] = []
    rewards: list[float] = []
    terminated = truncated = False
    while not (terminated or truncated):
        action = _choose(bool(observation[3]), turn, waste, generator)
        observations.append(observation)
        actions.append(action)
        observation, reward, terminated, truncated, _ = env.step(np.int64(action))
        rewards.append(float(reward))
    rewarded = np.array(rewards, dtype=np.float32)
    return np.stack(observations), np.array(actions, dtype=np.int64), rewarded, terminated


def _choose(at_junction: bool, turn: int, waste: float, generator: np.random.Generator) -> int:
    if generator.random() >= waste:
        return turn if at_junction else FORWARD
    # into a wall or back, but never into an arm
    return int(generator.choice([FORWARD, BACK] if at_junction else [UP, DOWN, BACK]))
