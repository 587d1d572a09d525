"""Baselines without history: ``python -m sb3_dmamba.experiments.no_history DATASET``.

A small perceptron predicts the action from the observation and the return-to-go (RvS), for each
target; and from the observation alone, in the best episodes only (behaviour cloning, DT's BC%).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sb3_dmamba.data import compute_observation_statistics
from sb3_dmamba.data.sources import load_trajectories
from sb3_dmamba.data.trajectories import Trajectories
from sb3_dmamba.evaluation import EvaluationReport, evaluate_targets

HIDDEN_SIZE = BATCH_SIZE = 256
LEARNING_RATE = 1e-3
RETURN_SCALE = 1000.0


@dataclass(frozen=True)
class _NoState:
    """The empty state of ``n`` episodes."""

    n: int

    def take(self, rows: Any) -> _NoState:
        return _NoState(len(rows))

    def reset(self, mask: Any) -> _NoState:
        return self


class Perceptron(nn.Module):
    """Two hidden layers and a tanh.

    Source: Emmons et al. 2021 (arXiv:2112.10751), RvS-R, for the conditioned one.
    """

    memory = "none"
    mean: Tensor
    std: Tensor

    def __init__(self, trajectories: Trajectories, conditioned: bool) -> None:
        super().__init__()
        self.observation_space = trajectories.observation_space
        self.action_space = trajectories.action_space
        self.conditioned = conditioned
        statistics = compute_observation_statistics(trajectories)
        assert statistics is not None
        self.register_buffer("mean", torch.as_tensor(statistics.mean))
        self.register_buffer("std", torch.as_tensor(statistics.std))
        n_inputs = trajectories.observations.shape[1] + int(conditioned)
        sizes = n_inputs, HIDDEN_SIZE, HIDDEN_SIZE, trajectories.actions.shape[1]
        first, second, last = (nn.Linear(n, m) for n, m in itertools.pairwise(sizes))
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last, nn.Tanh())

    def forward(self, observations: Tensor, returns_to_go: Tensor) -> Tensor:
        """Predict actions (B, A) from observations (B, *obs) and returns-to-go (B,)."""
        inputs = (observations - self.mean) / self.std
        if self.conditioned:
            inputs = torch.cat([inputs, returns_to_go[:, None] / RETURN_SCALE], dim=1)
        actions: Tensor = self.layers(inputs)
        return actions

    def initial_state(self, n: int, memory: Any = None) -> _NoState:
        """Return the empty state of ``n`` episodes."""
        return _NoState(n)

    @torch.no_grad()
    def act(
        self,
        observations: NDArray[Any],
        returns_to_go: NDArray[np.float32],
        state: _NoState,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], _NoState]:
        """Choose actions; the arguments are those of ``DecisionMambaPolicy.act``."""
        inputs = torch.from_numpy(np.array(observations, dtype=np.float32))
        actions = self(inputs, torch.from_numpy(np.array(returns_to_go, dtype=np.float32)))
        return actions.numpy(), state


def train(trajectories: Trajectories, conditioned: bool, n_updates: int, seed: int) -> Perceptron:
    """Fit a perceptron by mean squared error, with a learning rate that falls to zero."""
    random = np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = Perceptron(trajectories, conditioned)
    optimizer = torch.optim.AdamW(policy.parameters(), LEARNING_RATE, weight_decay=1e-4)
    observations = torch.from_numpy(np.array(trajectories.observations))
    actions = torch.from_numpy(np.array(trajectories.actions))
    returns_to_go = torch.from_numpy(np.array(trajectories.returns_to_go))
    for update in range(n_updates):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - update / n_updates)
        rows = torch.from_numpy(random.integers(trajectories.n_steps, size=BATCH_SIZE))
        error = policy(observations[rows], returns_to_go[rows]) - actions[rows]
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    return policy


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment from the command line and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dataset", help="anything load_trajectories takes")
    parser.add_argument("--targets", nargs="+", type=float, default=[1200.0, 2500.0, 3600.0])
    parser.add_argument("--top", nargs="+", type=float, default=[1.0, 0.1, 0.02])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=12_000)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--eval-seed", type=int, default=10_000)
    options = parser.parse_args(arguments)
    trajectories = load_trajectories(options.dataset)
    assert trajectories.env_id is not None

    make_env = partial(gym.make, trajectories.env_id, **trajectories.env_kwargs)

    def evaluate(policy: Perceptron, targets: Sequence[float]) -> EvaluationReport:
        how: dict[str, Any] = {"seed": options.eval_seed, "n_workers": 0}
        return evaluate_targets(policy, make_env, targets, options.episodes, **how)

    rows: dict[str, list[float]] = {}
    for seed in options.seeds:
        conditioned = train(trajectories, True, options.updates, seed)
        for result in evaluate(conditioned, options.targets).results:
            name = f"asked {result.target_return:g}"
            rows.setdefault(name, []).append(float(np.mean(result.returns)))
        for fraction in options.top:
            cloned = train(trajectories.take_top(fraction), False, options.updates, seed)
            result = evaluate(cloned, [0.0]).results[0]
            name = f"cloned from the best {fraction:.0%}"
            rows.setdefault(name, []).append(float(np.mean(result.returns)))
    print("| without history | mean return of each seed |\n|---|---|")  # noqa: T201
    for name, means in rows.items():
        print(f"| {name} | {', '.join(f'{mean:.0f}' for mean in means)} |")  # noqa: T201


if __name__ == "__main__":
    main()
