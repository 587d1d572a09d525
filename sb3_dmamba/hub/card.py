"""The model card: what was asked, what was reached, how to use it and how it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

import sb3_dmamba
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import DatasetInfo
from sb3_dmamba.evaluation import EvaluationReport, TargetResult

__all__ = ["Card"]

_USAGE = """```python
from huggingface_hub import hf_hub_download
from sb3_dmamba import DecisionMamba

path = hf_hub_download("{repo_id}", "{file}")
model = DecisionMamba.load(path)
print(model.evaluate({target}, n_episodes={n_episodes}, seed={seed}, memory="{memory}"{drawn}))
```

or with Stable-Baselines3, the return to ask for being yours to choose:

```python
from stable_baselines3.common.evaluation import evaluate_policy

model.target_return = {target}
print(evaluate_policy(model, model.get_env(), n_eval_episodes={n_episodes}{drawn}))
```"""

_OWN_ENVIRONMENT = """The file names no environment: give yours to
`DecisionMamba.load(path, env=lambda: ...)`.

"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """All that a model card says.

    Args:
        name: Of the model file, without its suffix.
        repo_id: ``"user/repository"`` on the hub, or a placeholder for it.
        env_name: The environment as the hub files it.
        report: What the model reached.
        result: The target among the report's that the headline is about.
        config: The model's settings.
        dataset: What it learned from.
        env_id: The environment that the model file names, if any.
        license: SPDX identifier, or None where nobody said.
        replay: What the video shows, as a sentence; None where there is none.
    """

    name: str
    repo_id: str
    env_name: str
    report: EvaluationReport
    result: TargetResult
    config: DecisionMambaConfig
    dataset: DatasetInfo
    env_id: str | None
    license: str | None = None
    replay: str | None = None

    @property
    def algorithm(self) -> str:
        """Which of the network's forms it is."""
        names = {"mamba": "DecisionMamba", "attention": "DecisionTransformer"}
        return names.get(self.config.mixer, f"DecisionMamba ({self.config.mixer})")

    def results(self) -> dict[str, Any]:
        """Return ``results.json``: Stable-Baselines3's fields, then what they depend on."""
        low, high = self.result.confidence_interval
        is_unknown = self.result.n_episodes < 2
        return {
            "mean_reward": self.result.mean,
            "std_reward": float(np.std(self.result.returns)),  # over n, as SB3's is
            "is_deterministic": self.report.deterministic,
            "n_eval_episodes": self.result.n_episodes,
            "target_return": self.result.target_return,
            "memory": self.report.memory,
            "weights": self.report.weights,
            "first_seed": self.report.eval_seed,
            "confidence_interval": None if is_unknown else [low, high],
            "normalized_score": self.result.normalized_score,
            "n_targets": len(self.report.results),
            "clip_rewards": self.report.clip_rewards,
            "delayed_rewards": self.report.delayed_rewards,
            "max_episode_steps": self.report.max_episode_steps,
        }

    def metadata(self) -> dict[str, Any]:
        """Return the front matter, from which the hub lists the model and its score."""
        tags = ["deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3"]
        ours = ["offline-reinforcement-learning", "decision-mamba", "sb3-dmamba"]
        results = self.results()
        conditions = ("target_return", "memory", "weights", "n_eval_episodes", "first_seed")
        metrics: list[dict[str, Any]] = [
            {
                "type": "mean_reward",
                "value": f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}",
                "name": "mean_reward",
                "verified": False,
                "args": {name: results[name] for name in conditions},
            }
        ]
        if results["normalized_score"] is not None:
            score = round(results["normalized_score"], 2)
            name = "normalized_score"
            metrics.append({"type": name, "value": score, "name": name, "verified": False})
        learning = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
        environment = {"name": self.env_name, "type": self.env_name}
        return {
            "library_name": "stable-baselines3",
            **({} if self.license is None else {"license": self.license}),
            "pipeline_tag": "reinforcement-learning",
            "tags": [self.env_name, *tags, *ours],
            "model-index": [
                {
                    "name": self.algorithm,
                    "results": [{"task": learning, "dataset": environment, "metrics": metrics}],
                }
            ],
        }

    def to_markdown(self) -> str:
        """Return ``README.md``."""
        front_matter = yaml.safe_dump(self.metadata(), sort_keys=False, allow_unicode=True)
        parts = [
            f"---\n{front_matter}---\n",
            f"# **{self.algorithm}** agent playing **{self.env_name}**\n",
            "Learned offline, from recorded data, with "
            f"[sb3_dmamba](https://pypi.org/project/sb3-dmamba) {sb3_dmamba.__version__}, a "
            "Stable-Baselines3 algorithm: it acts for the return it is asked for.\n",
            f"## Results\n\n{self._headline()}\n",
            f"```text\n{self.report}\n```\n",
            "![Achieved against asked](evaluation.png)\n",
            "Every episode's return is in [evaluation.json](evaluation.json).\n",
            *([] if self.replay is None else [f"{self.replay}\n"]),
            "## Use it\n\n```bash\npip install sb3-dmamba huggingface_hub\n```\n",
            f"{self._usage()}\n",
            "The file holds data and no code: loading it executes nothing.\n",
            f"## Training\n\n{self._training()}",
        ]
        return "\n".join(parts)

    def _headline(self) -> str:
        result, report = self.result, self.report
        results = self.results()
        n = result.n_episodes
        last = report.eval_seed + n - 1
        seeds = f"seeds {report.eval_seed} to {last}" if n > 1 else f"seed {last}"
        reached = f"{results['mean_reward']:,.2f} ± {results['std_reward']:,.2f}"
        text = (
            f"Asked for **{result.target_return:,g}** it reaches **{reached}** (mean and standard "
            f"deviation of {n} episodes, {seeds}, "
            f'`memory="{report.memory}"`, {report.weights} weights)'
        )
        if n > 1:
            low, high = result.confidence_interval
            text += f"; 95 % interval of the mean {low:,.2f} to {high:,.2f}"
        n_targets = len(report.results)
        if n_targets > 1 and result is report.best:
            text += f". This is the best of the {n_targets} targets below, so slightly optimistic"
        if report.weights == "best":
            text += ". The weights were picked by evaluations during training, which is optimistic"
        return text + "."

    def _usage(self) -> str:
        usage = _USAGE.format(
            repo_id=self.repo_id,
            file=f"{self.name}.zip",
            target=_exact(self.result.target_return),
            n_episodes=self.result.n_episodes,
            seed=self.report.eval_seed,
            memory=self.report.memory,
            drawn="" if self.report.deterministic else ", deterministic=False",
        )
        return usage if self.env_id is not None else _OWN_ENVIRONMENT + usage

    def _training(self) -> str:
        defaults = DecisionMambaConfig().to_dict()
        changed = {k: v for k, v in self.config.to_dict().items() if v != defaults[k]}
        facts: Mapping[str, Any] = {
            "dataset": self.dataset.source or "not named",
            "episodes": f"{len(self.dataset.returns):,}" if len(self.dataset.returns) else None,
            "returns in the data": self._data_returns(),
            "rewards": self._rewards(),
            "updates": None if self.report.n_updates is None else f"{self.report.n_updates:,}",
            "seed": self.report.training_seed,
            "task": self.report.task,
        }
        rows = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
        table = "\n".join(["| | |", "|---|---|", *rows])
        return (
            f"{table}\n\nSettings that are not the defaults:\n\n```json\n"
            f"{json.dumps(changed, indent=1)}\n```\n"
        )

    def _rewards(self) -> str | None:
        """Say how the return-to-go counted rewards, where it was not as they came."""
        clipped, delayed = self.report.clip_rewards, self.report.delayed_rewards
        parts = ["clipped to [-1, 1]"] * clipped + ["paid at the end of the episode"] * delayed
        return ", ".join(parts) or None

    def _data_returns(self) -> str | None:
        returns = self.dataset.returns
        if not len(returns):
            return None
        return f"mean {returns.mean():,.2f}, best {returns.max():,.2f}"


def _exact(value: float) -> str:
    """Write a number so that Python reads the same one."""
    return f"{value:.0f}" if value == round(value) else repr(value)
