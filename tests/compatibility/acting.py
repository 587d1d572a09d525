"""Acting and training that are done alike when the files are written and when they are tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.data.trajectories import Trajectories

ROOT = Path(__file__).parents[2]
FILES = Path(__file__).parent / "files"
N_STEPS, N_ENVS = 9, 2  # longer than every context

Arrays = dict[str, np.ndarray]


def run_python(*arguments: str, cwd: Path = ROOT, stdin: str = "") -> str:
    """Run Python in a process of its own; return what it prints."""
    run = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def draw_observations(data: Trajectories) -> np.ndarray:
    """Steps of a dataset as the policy sees them, (N_STEPS, N_ENVS, *obs)."""
    steps = np.arange(N_STEPS * N_ENVS) % data.n_steps
    seen = data.stack_frames(steps)
    return seen.reshape(N_STEPS, N_ENVS, *seen.shape[1:])


def returns_to_go() -> np.ndarray:
    """What is asked for at each step, (N_STEPS, N_ENVS) float32."""
    steps = np.arange(N_STEPS, dtype=np.float32)
    return np.stack([9.0 - 0.5 * steps, 2.0 - 1.5 * steps], axis=1)


def act(policy: Any, memory: str, observations: np.ndarray, state: Any = None) -> tuple[Any, Any]:
    """Predict at every step; the second environment starts again at step 4.

    Returns:
        The actions (N_STEPS, N_ENVS, ...), and the state after the last step.
    """
    if state is None:
        state = policy.initial_state(N_ENVS, memory)
    actions = []
    for step, (seen, asked) in enumerate(zip(observations, returns_to_go(), strict=True)):
        observation = {"observation": seen, "return_to_go": asked[:, None]}
        starts = np.array([False, step == 4])
        chosen, state = policy.predict(observation, state, episode_start=starts)
        actions.append(chosen)
    return np.stack(actions), state


def weights_of(model: DecisionMamba) -> Arrays:
    """Copies of a model's weights and normalisation, by name."""
    return {name: each.numpy().copy() for name, each in model.policy.state_dict().items()}


def d3rlpy_window(data: Trajectories, n_steps: int) -> Any:
    """What a d3rlpy algorithm predicts from: the first steps of the first episode."""
    from d3rlpy.algos import TransformerInput

    episode = data[0]
    actions = episode.actions[:n_steps]
    return TransformerInput(
        observations=episode.observations[:n_steps],
        actions=actions[:, None] if actions.ndim == 1 else actions,
        rewards=episode.rewards[:n_steps, None],
        returns_to_go=np.linspace(9.0, 5.0, n_steps, dtype=np.float32)[:, None],
        timesteps=np.arange(1, n_steps + 1),
    )
