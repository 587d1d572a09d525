"""Several agents, one return: a cooperative PettingZoo environment as one agent's.

Decision Mamba is conditioned on one return, so it fits environments in which all agents earn the
same reward: then one model can see what all of them see and choose for all of them at once.
``SharedReturnEnv`` makes such an environment out of any PettingZoo parallel environment. This is
central control. It is no method for agents that must act on their own view, nor for agents with
different rewards, which it refuses; and the number of joint actions grows with a power of the
number of agents.

The script records a scripted player with noise in MPE's ``simple_spread`` (two agents that should
cover two landmarks), learns from that, and asks for returns from poor to the best recorded. About
two minutes on a CPU. Run::

    pip install pettingzoo mpe2
    python examples/pettingzoo_shared_return.py
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_dmamba import DecisionMamba, Trajectories

N_AGENTS = 2
N_STEPS = 25


class SharedReturnEnv(gym.Env[NDArray[np.float32], Any]):
    """A PettingZoo parallel environment whose agents share their reward, as one environment.

    Observations are the agents' joined one after the other, in the order of ``possible_agents``.
    Discrete actions become one number, whose digits (the first agent's the most significant) are
    the agents' actions; vectors of floats are joined.

    Args:
        env: The parallel environment. All agents must live as long as the episode, and earn the
            same at each step.

    Raises:
        TypeError: The agents' observations are not all vectors, or their actions neither all
            Discrete nor all vectors of floats.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.metadata = getattr(env, "metadata", {"render_modes": []})
        self.render_mode = getattr(env, "render_mode", None)
        self.agents = list(env.possible_agents)
        shown = [env.observation_space(agent) for agent in self.agents]
        if not all(isinstance(space, spaces.Box) and len(space.shape) == 1 for space in shown):
            raise TypeError(f"observations are {shown}: they must be vectors")
        self.observation_space = _join_boxes(shown)
        actions = [env.action_space(agent) for agent in self.agents]
        self._is_discrete = all(isinstance(space, spaces.Discrete) for space in actions)
        if self._is_discrete:
            self._first = np.array([int(space.start) for space in actions])
            self._n_actions = tuple(int(space.n) for space in actions)
            self.action_space: spaces.Space[Any] = spaces.Discrete(math.prod(self._n_actions))
        elif all(isinstance(space, spaces.Box) and len(space.shape) == 1 for space in actions):
            self._ends = np.cumsum([space.shape[0] for space in actions])
            self.action_space = _join_boxes(actions)
        else:
            raise TypeError(f"actions are {actions}: they must be all Discrete, or all vectors")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode of all agents."""
        super().reset(seed=seed)
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._join(observations), dict(infos)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Let every agent act; the reward is the one that all of them earned.

        Raises:
            ValueError: Agents earned different rewards, or some left the episode before others.
        """
        result = self.env.step(self.split(action))
        observations, rewards, terminations, truncations, infos = result
        earned = [float(rewards[agent]) for agent in self.agents]
        if not np.allclose(earned, earned[0]):
            raise ValueError(
                f"the agents earned {earned}: no return is shared, so none is asked for"
            )
        ends = [(bool(terminations[agent]), bool(truncations[agent])) for agent in self.agents]
        if len({any(end) for end in ends}) > 1:
            raise ValueError("an agent left the episode before the others: who acts would change")
        terminated = any(end[0] for end in ends)
        truncated = not terminated and any(end[1] for end in ends)
        return self._join(observations), earned[0], terminated, truncated, dict(infos)

    def split(self, action: Any) -> dict[str, Any]:
        """Return each agent's part of a joint action."""
        parts: list[Any]
        if self._is_discrete:
            digits = np.array(np.unravel_index(int(action), self._n_actions))
            parts = [int(part) for part in digits + self._first]
        else:
            parts = np.split(np.asarray(action), self._ends[:-1])
        return dict(zip(self.agents, parts, strict=True))

    def join(self, actions: dict[str, int]) -> int:
        """Return the joint number of discrete actions of the agents."""
        digits = np.array([actions[agent] for agent in self.agents]) - self._first
        return int(np.ravel_multi_index(tuple(digits), self._n_actions))

    def render(self) -> Any:
        """Render as the environment does."""
        return self.env.render()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _join(self, observations: dict[str, Any]) -> NDArray[np.float32]:
        parts = [np.asarray(observations[agent], dtype=np.float32) for agent in self.agents]
        return np.concatenate(parts)


def _join_boxes(boxes: list[spaces.Box]) -> spaces.Box:
    low = np.concatenate([box.low for box in boxes]).astype(np.float32)
    high = np.concatenate([box.high for box in boxes]).astype(np.float32)
    return spaces.Box(low, high, dtype=np.float32)


# --- The experiment ------------------------------------------------------------------------------


def make_env() -> SharedReturnEnv:
    from mpe2 import simple_spread_v3

    env = simple_spread_v3.parallel_env(N=N_AGENTS, max_cycles=N_STEPS, local_ratio=0.0)
    return SharedReturnEnv(env)


def scripted_actions(observation: NDArray[np.float32]) -> dict[str, int]:
    """Send each agent to the landmark of its number; 0 waits, then left, right, down, up."""
    actions = {}
    for agent, view in enumerate(np.split(observation, N_AGENTS)):
        velocity, landmarks = view[:2], view[4 : 4 + 2 * N_AGENTS].reshape(N_AGENTS, 2)
        push = landmarks[agent] - 0.3 * velocity  # brakes before it arrives
        axis = int(np.abs(push).argmax())
        is_there = np.abs(push[axis]) < 0.05
        actions[f"agent_{agent}"] = 0 if is_there else 1 + 2 * axis + int(push[axis] > 0)
    return actions


def record(n_episodes: int, seed: int) -> Trajectories:
    """Record the scripted player; a share of its actions, drawn anew each episode, is random."""
    env, rng = make_env(), np.random.default_rng(seed)
    columns: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for episode in range(n_episodes):
        noise, is_over = rng.uniform(), False
        observation, _ = env.reset(seed=seed + episode)
        steps: list[tuple[Any, int, float]] = []
        while not is_over:
            is_random = rng.uniform() < noise
            action = int(rng.integers(5**N_AGENTS))
            if not is_random:
                action = env.join(scripted_actions(observation))
            shown, reward, terminated, truncated, _ = env.step(action)
            steps.append((observation, action, reward))
            observation, is_over = shown, terminated or truncated
        for column, values in zip(columns, zip(*steps, strict=True), strict=True):
            column.append(np.array(values))
    env.close()
    assert isinstance(env.action_space, spaces.Discrete)
    return Trajectories.from_episodes(
        *columns,
        [False] * n_episodes,
        [True] * n_episodes,
        observation_space=env.observation_space,
        action_space=env.action_space,
        source=f"simple_spread_v3 with {N_AGENTS} agents, scripted with noise",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=2000, help="recorded")
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = record(options.episodes, options.seed)
    print(data.summary())
    model = DecisionMamba(
        None,
        env=make_env,
        seed=options.seed,
        hidden_size=64,
        n_layers=2,
        context_length=N_STEPS,
        return_scale=10.0,
        learning_rate=1e-3,
        n_updates=options.updates,
    ).fit(data)
    targets = [float(np.quantile(data.returns, share)) for share in (0.1, 0.5, 0.9, 1.0)]
    print(model.evaluate(targets, n_episodes=50, seed=10**6))


if __name__ == "__main__":
    main()
