"""Record a Hopper dataset the way D4RL recorded its own: with SAC, stopped early.

The dataset that ships inside ``sb3_dmamba`` was made by this script (``make dataset``). It has
two parts, both real roll-outs in Gymnasium's ``Hopper-v5``:

* ``replay``: every finished episode of SAC's replay buffer up to the moment it was stopped,
  from random flailing to a medium policy (D4RL's "medium-replay");
* ``medium``: fresh roll-outs of the stopped policy, actions sampled (D4RL's "medium").

It is also the example to copy for a dataset of your own: any Stable-Baselines3 off-policy agent
and any environment work the same way.

Usage::

    python examples/build_hopper_dataset.py --output sb3_dmamba/data/bundled

Source: Fu et al. 2020 (arXiv:2004.07219), appendix on Gym-MuJoCo, for the recording protocol.
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
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.monitor import Monitor

ENV_ID = "Hopper-v5"
DATASET_ID = "sb3_dmamba/hopper-v0"
LEARNING_STARTS = 10_000  # steps of random actions, which the replay buffer keeps too
EVAL_FREQ = 5_000  # environment steps between evaluations of the agent being trained
N_EVAL_EPISODES = 10

SMALLEST_COMPRESSED = 4_096  # bytes; below, a compressed array's index outweighs what it saves

Episode = dict[str, np.ndarray]


def train_until_medium(stop_at: float, max_steps: int, seed: int) -> SAC:
    """Train SAC until its evaluated mean return first reaches ``stop_at``.

    Args:
        stop_at: Mean undiscounted return over 10 evaluation episodes at which to stop.
        max_steps: Environment steps after which to stop in any case.
        seed: Seed of the agent and of its environments.

    Returns:
        The stopped agent, with its whole history in ``agent.replay_buffer``.
    """
    agent = SAC(
        "MlpPolicy",
        Monitor(gym.make(ENV_ID)),
        learning_starts=LEARNING_STARTS,
        buffer_size=max_steps,
        seed=seed,
        verbose=1,
    )
    evaluation = EvalCallback(
        Monitor(gym.make(ENV_ID)),
        callback_on_new_best=StopTrainingOnRewardThreshold(stop_at, verbose=1),
        n_eval_episodes=N_EVAL_EPISODES,
        eval_freq=EVAL_FREQ,
        verbose=1,
    )
    return agent.learn(max_steps, callback=evaluation, log_interval=50)


def split_replay_buffer(buffer: ReplayBuffer) -> list[Episode]:
    """Cut a single-environment replay buffer into its finished episodes.

    Args:
        buffer: A buffer that has not wrapped, of one environment, with ``timeouts`` recorded.

    Returns:
        Episodes in the order they were collected; an unfinished last one is left out.
    """
    size = buffer.size()
    dones = buffer.dones[:size, 0].astype(bool)
    timeouts = buffer.timeouts[:size, 0].astype(bool)
    episodes, start = [], 0
    for end in np.flatnonzero(dones) + 1:
        steps = slice(start, end)
        final_observation = buffer.next_observations[end - 1]
        episodes.append(
            {
                "observations": np.concatenate([buffer.observations[steps, 0], final_observation]),
                "actions": buffer.actions[steps, 0],
                "rewards": buffer.rewards[steps, 0],
                "terminations": dones[steps] & ~timeouts[steps],
                "truncations": timeouts[steps],
            }
        )
        start = end
    return episodes


def roll_out(agent: SAC, n_steps: int, seed: int) -> list[Episode]:
    """Record whole episodes of ``agent``, actions sampled, until they hold ``n_steps`` steps."""
    env = gym.make(ENV_ID)
    agent.set_random_seed(seed)
    episodes: list[Episode] = []
    collected = 0
    while collected < n_steps:
        observation, _ = env.reset(seed=seed if not episodes else None)
        rows: dict[str, list[Any]] = {
            "observations": [observation],
            "actions": [],
            "rewards": [],
            "terminations": [],
            "truncations": [],
        }
        done = False
        while not done:
            action, _ = agent.predict(observation, deterministic=False)
            observation, reward, terminated, truncated, _ = env.step(action)
            rows["observations"].append(observation)
            rows["actions"].append(action)
            rows["rewards"].append(reward)
            rows["terminations"].append(terminated)
            rows["truncations"].append(truncated)
            done = terminated or truncated
        episodes.append({key: np.asarray(values) for key, values in rows.items()})
        collected += len(rows["rewards"])
    env.close()
    return episodes


def thin(episodes: list[Episode], max_steps: int) -> list[Episode]:
    """Keep episodes evenly over the whole history until they hold about ``max_steps`` steps."""
    total = sum(len(episode["rewards"]) for episode in episodes)
    if total <= max_steps:
        return episodes
    kept, budget = [], 0.0
    for episode in episodes:
        length = len(episode["rewards"])
        budget += length * max_steps / total
        if budget >= length:
            kept.append(episode)
            budget -= length
    return kept


def write_minari(parts: dict[str, list[Episode]], output: Path, description: str) -> None:
    """Write the episodes as a compressed Minari dataset, replacing ``output`` at the end only.

    Args:
        parts: Episodes of each part, written one part after the other.
        output: Folder that will hold ``sb3_dmamba/hopper-v0``.
        description: The dataset's description.
    """
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MINARI_DATASETS_PATH"] = scratch
        import minari
        from minari.data_collector import EpisodeBuffer

        buffers = []
        for episodes in parts.values():
            for episode in episodes:
                buffers.append(
                    EpisodeBuffer(
                        id=len(buffers),
                        observations=episode["observations"].astype(np.float32),
                        actions=episode["actions"].astype(np.float32),
                        rewards=episode["rewards"].astype(np.float32).tolist(),
                        terminations=episode["terminations"].tolist(),
                        truncations=episode["truncations"].tolist(),
                    )
                )
        env = gym.make(ENV_ID)
        float32_space = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape, np.float32)
        minari.create_dataset_from_buffers(
            dataset_id=DATASET_ID,
            buffer=buffers,
            env=env,
            observation_space=float32_space,
            algorithm_name="SAC (Stable-Baselines3), stopped early",
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
                small = node.nbytes < SMALLEST_COMPRESSED
                options = {} if small else {"compression": "gzip", "compression_opts": 9}
                stored = copy.create_dataset(
                    name, data=node[()], shuffle=not small or None, **options
                )
                stored.attrs.update(node.attrs)

        source.visititems(visit)
    packed.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("sb3_dmamba/data/bundled"))
    parser.add_argument("--stop-at", type=float, default=1500.0, help="mean return that ends SAC")
    parser.add_argument("--max-steps", type=int, default=200_000, help="SAC steps at the most")
    parser.add_argument("--replay-steps", type=int, default=45_000, help="steps kept of the buffer")
    parser.add_argument("--medium-steps", type=int, default=35_000, help="steps of the roll-outs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scratch",
        type=Path,
        help="keep the agent and its buffer here, and go on from there if there are some",
    )
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # SAC's networks are too small to share
    if arguments.scratch and (arguments.scratch / "buffer.pkl").exists():
        agent = SAC.load(arguments.scratch / "agent")
        agent.load_replay_buffer(arguments.scratch / "buffer")
    else:
        agent = train_until_medium(arguments.stop_at, arguments.max_steps, arguments.seed)
        if arguments.scratch:
            agent.save(arguments.scratch / "agent")
            agent.save_replay_buffer(arguments.scratch / "buffer")
    assert isinstance(agent.replay_buffer, ReplayBuffer)
    parts = {
        "replay": thin(split_replay_buffer(agent.replay_buffer), arguments.replay_steps),
        "medium": roll_out(agent, arguments.medium_steps, arguments.seed + 1),
    }
    for name, episodes in parts.items():
        returns = np.array([episode["rewards"].sum() for episode in episodes])
        steps = sum(len(episode["rewards"]) for episode in episodes)
        print(
            f"{name}: {len(episodes)} episodes, {steps} steps, return {returns.mean():.1f} "
            f"(std {returns.std():.1f}, {returns.min():.1f} to {returns.max():.1f})"
        )
    description = (
        f"Hopper-v5, SAC (SB3 defaults, {LEARNING_STARTS} random steps first, seed "
        f"{arguments.seed}) stopped after {agent.num_timesteps} steps, at a mean return of "
        f"{arguments.stop_at:g} or more: its replay buffer ({len(parts['replay'])} episodes), "
        f"then roll-outs of the stopped policy ({len(parts['medium'])} episodes)."
    )
    write_minari(parts, arguments.output, description)


if __name__ == "__main__":
    main()
