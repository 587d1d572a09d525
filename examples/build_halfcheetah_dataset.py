"""Record a HalfCheetah dataset of clearly different skills: checkpoints of one SAC run.

The dataset that ships inside ``sb3_dmamba`` was made by this script (``make dataset``). SAC learns
in Gymnasium's ``HalfCheetah-v5`` and is saved every 5,000 steps. Of the checkpoints, those whose
returns are nearest to evenly spaced levels are recorded with Gaussian noise on their actions, whose
standard deviation is drawn for each episode. HalfCheetah never falls: an episode of a weaker
checkpoint is a slower run of the same 1,000 steps.

It is also the example to copy for a dataset of your own: any Stable-Baselines3 agent and any
environment work the same way.

Usage::

    python examples/build_halfcheetah_dataset.py --output sb3_dmamba/data/bundled
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

ENV_ID = "HalfCheetah-v5"
DATASET_ID = "sb3_dmamba/halfcheetah-v0"
LEARNING_STARTS = 5_000  # steps of random actions
CHECKPOINT_FREQ = 5_000  # environment steps between two checkpoints
N_EVAL_EPISODES = 5

SMALLEST_COMPRESSED = 4_096  # bytes; below, a compressed array's index outweighs what it saves

Episode = dict[str, np.ndarray]


def train(folder: Path, n_steps: int, seed: int) -> list[Path]:
    """Train SAC with a checkpoint every ``CHECKPOINT_FREQ`` steps, unless they are there.

    Returns:
        The checkpoints, first to last.
    """

    def find() -> list[Path]:
        steps = range(CHECKPOINT_FREQ, n_steps + 1, CHECKPOINT_FREQ)
        paths = [folder / f"rl_model_{step}_steps.zip" for step in steps]
        return [path for path in paths if path.exists()]

    if len(find()) < n_steps // CHECKPOINT_FREQ:
        agent = SAC(
            "MlpPolicy",
            Monitor(gym.make(ENV_ID)),
            learning_starts=LEARNING_STARTS,
            policy_kwargs={"net_arch": [128, 128]},
            seed=seed,
            verbose=1,
        )
        agent.learn(n_steps, callback=CheckpointCallback(CHECKPOINT_FREQ, str(folder)))
    return find()


def choose_levels(checkpoints: list[Path], n_levels: int, seed: int) -> list[Path]:
    """Choose the checkpoints nearest to evenly spaced returns, up to the best.

    Returns:
        The checkpoints, weakest first by the mean return of ``N_EVAL_EPISODES`` deterministic
        episodes, which are the same for all of them.
    """
    env = DummyVecEnv([lambda: Monitor(gym.make(ENV_ID))])
    returns = []
    for path in checkpoints:
        env.seed(seed)
        mean, _ = evaluate_policy(SAC.load(path), env, N_EVAL_EPISODES)
        print(f"{path.stem}: return {mean:.0f}")
        returns.append(mean)
    levels = np.linspace(0.0, max(returns), n_levels + 1)[1:]
    nearest = {int(np.abs(np.subtract(returns, level)).argmin()) for level in levels}
    return [checkpoints[place] for place in sorted(nearest, key=lambda place: returns[place])]


def roll_out(agent: SAC, n_episodes: int, noise: float, rng: np.random.Generator) -> list[Episode]:
    """Record episodes of the agent's deterministic actions with Gaussian noise on them.

    Args:
        agent: The agent.
        n_episodes: How many.
        noise: Largest standard deviation; each episode's own is drawn uniformly below it.
        rng: Draws the noise and the environment's seeds.
    """
    env = gym.make(ENV_ID)
    episodes: list[Episode] = []
    for _ in range(n_episodes):
        scale = rng.uniform(0.0, noise)
        observation, _ = env.reset(seed=int(rng.integers(2**31)))
        rows: dict[str, list[Any]] = {
            "observations": [observation],
            "actions": [],
            "rewards": [],
            "terminations": [],
            "truncations": [],
        }
        done = False
        while not done:
            action, _ = agent.predict(observation, deterministic=True)
            action = np.clip(action + rng.normal(scale=scale, size=action.shape), -1.0, 1.0)
            observation, reward, terminated, truncated, _ = env.step(action.astype(np.float32))
            rows["observations"].append(observation)
            rows["actions"].append(action)
            rows["rewards"].append(reward)
            rows["terminations"].append(terminated)
            rows["truncations"].append(truncated)
            done = terminated or truncated
        episodes.append({key: np.asarray(values) for key, values in rows.items()})
    env.close()
    return episodes


def write_minari(episodes: list[Episode], output: Path, description: str) -> None:
    """Write the episodes as a compressed Minari dataset, replacing ``output`` at the end only.

    Args:
        episodes: The episodes, in their order.
        output: Folder that will hold the dataset under its id.
        description: The dataset's description.
    """
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MINARI_DATASETS_PATH"] = scratch
        import minari
        from minari.data_collector import EpisodeBuffer

        buffers = [
            EpisodeBuffer(
                id=number,
                observations=episode["observations"].astype(np.float32),
                actions=episode["actions"].astype(np.float32),
                rewards=episode["rewards"].astype(np.float32).tolist(),
                terminations=episode["terminations"].tolist(),
                truncations=episode["truncations"].tolist(),
            )
            for number, episode in enumerate(episodes)
        ]
        env = gym.make(ENV_ID)
        float32_space = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
        minari.create_dataset_from_buffers(
            dataset_id=DATASET_ID,
            buffer=buffers,
            env=env,
            observation_space=float32_space,
            algorithm_name="SAC (Stable-Baselines3), checkpoints with noise",
            author="sb3_dmamba contributors",
            description=description,
        )
        made = Path(scratch) / DATASET_ID
        _compress(made / "data" / "main_data.hdf5")
        target = output / DATASET_ID
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(made, partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)


def _compress(path: Path) -> None:
    """Rewrite an HDF5 file with gzip and byte shuffle; Minari itself writes it uncompressed."""
    packed = path.with_suffix(".packed")
    with h5py.File(path) as source, h5py.File(packed, "w", libver=("v110", "v110")) as copy:
        copy.attrs.update(source.attrs)

        def visit(name: str, node: Any) -> None:
            if isinstance(node, h5py.Group):
                copy.require_group(name).attrs.update(node.attrs)
            else:
                options: dict[str, Any] = {}
                if node.nbytes >= SMALLEST_COMPRESSED:
                    options = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
                    options["chunks"] = (len(node), *[1] * (node.ndim - 1))  # a column each
                stored = copy.create_dataset(name, data=node[()], **options)
                stored.attrs.update(node.attrs)

        source.visititems(visit)
    packed.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("sb3_dmamba/data/bundled"))
    parser.add_argument("--sac-steps", type=int, default=100_000, help="steps that SAC learns")
    parser.add_argument("--levels", type=int, default=6, help="checkpoints to record")
    parser.add_argument("--episodes", type=int, default=18, help="episodes of each")
    parser.add_argument("--noise", type=float, default=0.2, help="largest standard deviation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scratch", type=Path, default=Path("runs/sac-halfcheetah"), help="the checkpoints' folder"
    )
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # SAC's networks are too small to share
    checkpoints = train(arguments.scratch, arguments.sac_steps, arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    episodes: list[Episode] = []
    chosen = choose_levels(checkpoints, arguments.levels, arguments.seed)
    for path in chosen:
        recorded = roll_out(SAC.load(path), arguments.episodes, arguments.noise, rng)
        returns = np.array([episode["rewards"].sum() for episode in recorded])
        print(
            f"| {path.stem.split('_')[2]} | {len(recorded)} | {returns.mean():.0f} | "
            f"{returns.std():.0f} | {returns.min():.0f} | {returns.max():.0f} |"
        )
        episodes += recorded
    description = (
        f"HalfCheetah-v5: {len(chosen)} checkpoints of one SAC run (SB3, seed "
        f"{arguments.seed}, {arguments.sac_steps} steps) of evenly spaced returns, "
        f"{arguments.episodes} episodes each, with Gaussian noise of standard deviation up to "
        f"{arguments.noise:g} on the actions."
    )
    write_minari(episodes, arguments.output, description)


if __name__ == "__main__":
    main()
