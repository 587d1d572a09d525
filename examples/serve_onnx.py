"""Act with an exported policy: numpy, gymnasium and onnxruntime, neither this package nor torch.

Export first, either memory, then play::

    dmamba demo
    dmamba export runs/demo/model.zip policy.onnx
    python examples/serve_onnx.py policy.onnx --target 3000

``ServedPolicy`` is all that a program of your own needs.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime


class ServedPolicy:
    """An exported policy that acts in several environments at once, each in its own episode.

    Args:
        path: The ``.onnx`` file.
        n_envs: Number of environments.
        seed: Of actions that are drawn.
    """

    def __init__(self, path: str, n_envs: int = 1, seed: int | None = None) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["sb3_dmamba"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.seen = self.about["inputs"]["observation"]
        self.random = np.random.default_rng(seed)
        self.state = {
            f"state.{name}": np.zeros((n_envs, *rows["shape"]), rows["dtype"])
            for name, rows in self.about["state"].items()
        }

    def start(self, rows: Any = slice(None)) -> None:
        """Begin an episode in some environments, or in all: zeros are an empty memory."""
        for tensor in self.state.values():
            tensor[rows] = 0

    def act(self, observations: Any, returns_to_go: Any, sample: bool = False) -> np.ndarray:
        """Choose an action for each environment's newest observation."""
        shape = (-1, *self.seen["shape"])
        feed = {
            "observation": np.asarray(observations, self.seen["dtype"]).reshape(shape),
            "return_to_go": np.asarray(returns_to_go, np.float32).reshape(-1),
        }
        results = self.session.run(None, {**feed, **self.state})
        found = dict(zip(self.outputs, results, strict=True))
        self.state = {name: found[f"next_{name}"].copy() for name in self.state}
        actions = found["action"]
        if sample:  # the greedy action is the likeliest; a drawn one has to be remembered
            noise = self.random.gumbel(size=found["logits"].shape)
            actions = (found["logits"] + noise).argmax(-1) + self.about["action_space"]["start"]
            self.state["state.action"] = actions
        return actions


def play(env: gym.Env[Any, Any], policy: ServedPolicy, target: float, **options: Any) -> float:
    """Play an episode and return what it earned; ``options`` are seed and sample."""
    observation, _ = env.reset(seed=options.get("seed"))
    policy.start()
    earned, return_to_go, is_over = 0.0, target, False
    while not is_over:
        if not isinstance(env.observation_space, gym.spaces.Box):
            observation = gym.spaces.flatten(env.observation_space, observation)
        action = policy.act([observation], [return_to_go], options.get("sample", False))[0]
        observation, reward, terminated, truncated, _ = env.step(action)
        is_over = terminated or truncated
        earned += float(reward)
        if not policy.about["delayed_rewards"]:  # as the data was, so is acting
            bound = 1.0 if policy.about["clip_rewards"] else np.inf
            return_to_go -= float(np.clip(reward, -bound, bound))
    return earned


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("policy", help="the .onnx file")
    parser.add_argument("--env", help="Gymnasium id; default: the one in the file")
    parser.add_argument("--target", type=float, help="return to ask for; default: the file's")
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", action="store_true", help="draw discrete actions")
    options = parser.parse_args()
    policy = ServedPolicy(options.policy, seed=options.seed)
    env_id, kwargs = options.env or policy.about["env_id"], policy.about["env_kwargs"]
    if env_id is None:
        parser.error("the file names no environment: give --env")
    target = policy.about["target_return"] if options.target is None else options.target
    if target is None:
        parser.error("the file has no target return: give --target")
    env = gym.make(env_id, **({} if options.env else kwargs))
    print(f"{env_id}, {policy.about['memory']} memory, asking for {target:g}")
    for episode in range(options.episodes):
        earned = play(env, policy, target, seed=options.seed + episode, sample=options.sample)
        print(f"episode {episode}: {earned:g}")


if __name__ == "__main__":
    main()
