"""A model's folder for the Hugging Face hub: model file, model card, results and video."""

from __future__ import annotations

import datetime
import functools
import json
import re
import shutil
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.utils import get_system_info

import sb3_dmamba
from sb3_dmamba.algorithm import DecisionMamba
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.context import Environment, make_factory
from sb3_dmamba.data import DatasetInfo
from sb3_dmamba.errors import ConfigError, MissingDependencyError
from sb3_dmamba.evaluation import EvaluationReport, StatefulActor, TargetResult

_TEXT = """\
# **{algorithm}** agent playing **{env_name}**

Learned offline, from recorded data, with \
[sb3_dmamba](https://pypi.org/project/sb3-dmamba) {version}, a \
Stable-Baselines3 algorithm: it acts for the return it is asked for.

## Results

{headline}

```text
{report}
```

![Achieved against asked](evaluation.png)

Every episode's return is in [evaluation.json](evaluation.json).
{replay}
## Use it

```bash
pip install sb3-dmamba huggingface_hub
```

{own_environment}```python
from huggingface_hub import hf_hub_download
from sb3_dmamba import DecisionMamba

path = hf_hub_download("{repo_id}", "{name}.zip")
model = DecisionMamba.load(path)
print(model.evaluate({target}, n_episodes={n_episodes}, seed={seed}, memory="{memory}"{drawn}))
```

or with Stable-Baselines3, where you choose the return to ask for:

```python
from stable_baselines3.common.evaluation import evaluate_policy

model.target_return = {target}
print(evaluate_policy(model, model.get_env(), n_eval_episodes={n_episodes}{drawn}))
```

The file holds data and no code: loading it executes nothing.

## Training

{facts}

Settings that are not the defaults:

```json
{settings}
```
"""

_OWN_ENVIRONMENT = """The file names no environment: give yours to
`DecisionMamba.load(path, env=lambda: ...)`.

"""

_TAGS = (
    *("deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3"),
    *("offline-reinforcement-learning", "decision-mamba", "sb3-dmamba"),
)


def make_folder(
    model: DecisionMamba,
    folder: str | Path,
    *,
    report: EvaluationReport | None = None,
    target_return: float | None = None,
    n_episodes: int = 10,
    name: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
    env: Environment | None = None,
    video: bool = False,
    video_steps: int = 1000,
    overwrite: bool = False,
) -> Path:
    """Write the files of a model's repository on the Hugging Face hub; nothing is uploaded.

    The layout is that of ``huggingface_sb3``: ``<name>.zip``, ``config.json``, ``results.json``,
    ``README.md`` with a ``model-index``, ``replay.mp4``; plus ``evaluation.json`` with every
    episode, ``evaluation.png``, and ``vec_normalize.pkl`` where the model's environment has one.
    Publish it with ``hf upload <user>/<repository> <folder>``. Needs ``sb3-dmamba[hub]``.

    Args:
        model: A fitted model.
        folder: Where to write; created where it is missing.
        report: What ``model.evaluate`` returned; None evaluates now.
        target_return: Of the headline; None is the model's, or else the report's best.
        n_episodes: Episodes to evaluate if no report is given.
        name: Name of the model file; None is ``dmamba-<environment>``.
        repo_id: ``"user/repository"``, for the code on the card.
        license: SPDX identifier, such as ``"mit"``.
        env: Where to evaluate and record; None is the model's environment.
        video: Whether to play the report's first episode again and record it as ``replay.mp4``.
        video_steps: Steps after which the video stops.
        overwrite: Whether files that exist may be replaced.

    Returns:
        The folder.

    Raises:
        MissingDependencyError: huggingface_hub is not installed, or for a video moviepy.
        NotFittedError: The model has no weights yet.
        ConfigError: The folder is not empty, the target is not in the report, ``name`` is no file
            name, or the environment renders no frames.
        UnknownTaskError: No environment is known, and one is needed.
    """
    require_huggingface_hub()  # before an evaluation that may take long
    target = Path(folder)
    if not overwrite and target.exists() and (not target.is_dir() or any(target.iterdir())):
        fix = "give another folder, or pass overwrite=True (--overwrite)"
        raise ConfigError(f"{target} is there already: {fix}", setting="folder", value=str(target))
    if report is None:
        asked = model.target_return if target_return is None else target_return
        report = model.evaluate(asked, n_episodes, env=env)
    result = _choose_result(report, target_return, model)
    env_name = _name_environment(report, model)
    file = f"dmamba-{env_name}" if name is None else name
    if not re.fullmatch(r"[\w.\-]+", file):
        message = f"name={name!r}: give letters, digits, '-', '_' and '.' alone"
        raise ConfigError(message, setting="name", value=name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        made = Path(temporary)
        _write_model(model, made, file)
        replay = ""
        if video:
            environment = model._context.require_env() if env is None else env
            replay = _write_replay(model, made, report, result, environment, video_steps)
        names = file, repo_id or f"<user>/{file}", env_name, _env_id(model)
        card = Card(*names, report, result, model.config, model.dataset, license, replay)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        _write_json(made / "results.json", {**card.results(), "eval_datetime": now})
        report.to_json(made / "evaluation.json")
        report.plot(made / "evaluation.png")
        card.to_model_card().save(made / "README.md")
        target.mkdir(exist_ok=True)
        for path in sorted(made.iterdir()):
            path.replace(target / path.name)
    return target


def require_huggingface_hub() -> Any:
    """Import huggingface_hub."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise  # it is there, and something that it needs is not
        raise MissingDependencyError("huggingface_hub", "write a model card", "hub") from error
    return huggingface_hub


def _choose_result(
    report: EvaluationReport, target_return: float | None, model: DecisionMamba
) -> TargetResult:
    by_target = {result.target_return: result for result in report.results}
    if target_return is None:
        try:
            return by_target.get(model.target_return, report.best)
        except ConfigError:  # the model has no target of its own
            return report.best
    if target_return not in by_target:
        has = ", ".join(f"{target:g}" for target in by_target)
        message = f"target_return={target_return!r}: the report has {has}"
        name = "target_return"
        raise ConfigError(message, setting=name, value=target_return, choices=by_target)
    return by_target[target_return]


def _env_id(model: DecisionMamba) -> str | None:
    """Return the id of the environment that the model file names."""
    task = None if model.task is None else model.task.env_id
    return task or model.dataset.env_id


def _name_environment(report: EvaluationReport, model: DecisionMamba) -> str:
    """Name the environment as ``huggingface_sb3`` does, our Atari environment by its game too."""
    env_id = report.env_id or _env_id(model)
    if env_id is None:
        return report.task or "environment"
    name = env_id.rpartition(":")[2].replace("/", "-")
    env_kwargs = model.task.env_kwargs if model.task is not None else {}
    game = {**model.dataset.env_kwargs, **env_kwargs}.get("game")
    return name if game is None else f"{name}-{game}"


def _write_model(model: DecisionMamba, folder: Path, file: str) -> None:
    path = folder / f"{file}.zip"
    model.save(path, exclude=["tensorboard_log"])  # a path of this machine
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        normalizer.save(str(folder / "vec_normalize.pkl"))
    with zipfile.ZipFile(path) as archive:
        description = json.loads(archive.read("data"))
    description["system_info"] = get_system_info(print_info=False)[0]
    _write_json(folder / "config.json", description)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Card:
    """Content of a model card and of ``results.json``."""

    name: str
    repo_id: str
    env_name: str  # on the hub
    env_id: str | None  # that the model file names
    report: EvaluationReport
    result: TargetResult  # of the headline
    config: DecisionMambaConfig
    dataset: DatasetInfo
    license: str | None = None  # SPDX identifier
    replay: str = ""  # a sentence about the video

    @property
    def algorithm(self) -> str:
        """Name of the algorithm, by its mixer."""
        names = {"mamba": "DecisionMamba", "attention": "DecisionTransformer"}
        return names.get(self.config.mixer, f"DecisionMamba ({self.config.mixer})")

    def results(self) -> dict[str, Any]:
        """Return ``results.json``: Stable-Baselines3's fields, then what they depend on."""
        low, high = self.result.confidence_interval
        return {
            "mean_reward": self.result.mean,
            "std_reward": float(np.std(self.result.returns)),  # over n, as SB3's is
            "is_deterministic": self.report.deterministic,
            "n_eval_episodes": self.result.n_episodes,
            "target_return": self.result.target_return,
            "memory": self.report.memory,
            "weights": self.report.weights,
            "first_seed": self.report.eval_seed,
            "confidence_interval": [low, high] if self.result.n_episodes > 1 else None,
            "normalized_score": self.result.normalized_score,
            "n_targets": len(self.report.results),
            "clip_rewards": self.report.clip_rewards,
            "delayed_rewards": self.report.delayed_rewards,
            "max_episode_steps": self.report.max_episode_steps,
        }

    def to_model_card(self) -> Any:
        """Return the ``huggingface_hub.ModelCard``: front matter and text of ``README.md``."""
        front_matter = self._metadata().to_yaml()
        return require_huggingface_hub().ModelCard(f"---\n{front_matter}\n---\n\n{self._text()}")

    def _metadata(self) -> Any:
        """Return the ``ModelCardData`` by which the hub lists the model and its score."""
        hub, results = require_huggingface_hub(), self.results()
        field, env_name = "reinforcement-learning", self.env_name
        evaluated = functools.partial(hub.EvalResult, field, env_name, env_name, task_name=field)
        conditions = ("target_return", "memory", "weights", "n_eval_episodes", "first_seed")
        reward = f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
        metrics: dict[str, tuple[Any, Any]] = {
            "mean_reward": (reward, {name: results[name] for name in conditions})
        }
        if results["normalized_score"] is not None:
            metrics["normalized_score"] = round(results["normalized_score"], 2), None
        return hub.ModelCardData(
            library_name="stable-baselines3",
            license=self.license,
            pipeline_tag=field,
            tags=[env_name, *_TAGS],
            model_name=self.algorithm,
            eval_results=[
                evaluated(name, value, metric_name=name, metric_args=arguments, verified=False)
                for name, (value, arguments) in metrics.items()
            ],
        )

    def _text(self) -> str:
        target = self.result.target_return
        defaults = DecisionMambaConfig().to_dict()
        changed = {k: v for k, v in self.config.to_dict().items() if v != defaults[k]}
        return _TEXT.format(
            algorithm=self.algorithm,
            env_name=self.env_name,
            version=sb3_dmamba.__version__,
            headline=self._headline(),
            report=self.report,
            replay=f"\n{self.replay}\n" if self.replay else "",
            own_environment="" if self.env_id is not None else _OWN_ENVIRONMENT,
            repo_id=self.repo_id,
            name=self.name,
            target=f"{target:.0f}" if target == round(target) else repr(target),  # exactly
            n_episodes=self.result.n_episodes,
            seed=self.report.eval_seed,
            memory=self.report.memory,
            drawn="" if self.report.deterministic else ", deterministic=False",
            facts=self._facts(),
            settings=json.dumps(changed, indent=1),
        )

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

    def _facts(self) -> str:
        """Return the table about training: dataset, rewards, updates, seed and task."""
        report, returns = self.report, self.dataset.returns
        rewards = ["clipped to [-1, 1]"] * report.clip_rewards
        rewards += ["paid at the end of the episode"] * report.delayed_rewards
        facts: dict[str, Any] = {"dataset": self.dataset.source or "not named"}
        if len(returns):
            facts["episodes"] = f"{len(returns):,}"
            facts["returns in the data"] = f"mean {returns.mean():,.2f}, best {returns.max():,.2f}"
        if rewards:  # how the return-to-go counted them
            facts["rewards"] = ", ".join(rewards)
        if report.n_updates is not None:
            facts["updates"] = f"{report.n_updates:,}"
        facts |= {"seed": report.training_seed, "task": report.task}
        rows = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
        return "\n".join(["| | |", "|---|---|", *rows])


def _write_replay(
    model: DecisionMamba,
    folder: Path,
    report: EvaluationReport,
    result: TargetResult,
    environment: Environment,
    n_steps: int,
) -> str:
    """Play the report's first episode, record at most ``n_steps`` steps, and describe it."""
    options = ("memory", "deterministic", "clip_rewards", "delayed_rewards")
    how: dict[str, Any] = {name: getattr(report, name) for name in options}
    actor = model.as_stateful_wrapper(result.target_return, **how)
    env, seed = _make_rendered(environment), report.eval_seed
    with tempfile.TemporaryDirectory() as videos, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moviepy's own, and that the folder is there
        try:
            recorder = RecordVideo(
                env, videos, lambda n: n == 0, None, n_steps, "replay", disable_logger=True
            )
        except DependencyNotInstalled as error:
            env.close()  # type: ignore[no-untyped-call]
            raise MissingDependencyError("moviepy", "record a video", "video") from error
        try:
            score, length = _play(actor, recorder, seed)
        except DependencyNotInstalled as error:
            message = f"the environment cannot render frames here: {error}"
            raise ConfigError(message, setting="video") from error
        finally:
            recorder.close()  # type: ignore[no-untyped-call]
        shutil.move(str(next(Path(videos).glob("*.mp4"))), folder / "replay.mp4")
    shown = f", of which the video shows {n_steps:,}" if length > n_steps else ""
    return (
        f"[replay.mp4](replay.mp4) is the episode with seed {seed}, asked for "
        f"{result.target_return:,g}: it returned {score:,.2f} in {length:,} steps{shown}."
    )


def _make_rendered(environment: Environment) -> gym.Env[Any, Any]:
    """Make an environment that renders frames."""
    make_env: Any = make_factory(environment)
    try:
        env: gym.Env[Any, Any] = make_env(render_mode="rgb_array")
    except TypeError:  # a function without arguments
        env = make_env()
    if env.render_mode != "rgb_array":
        mode = env.render_mode
        env.close()  # type: ignore[no-untyped-call]
        message = (
            f"the environment has render_mode={mode!r}, and a video needs frames: give one that "
            f'has them, env=lambda: gymnasium.make(..., render_mode="rgb_array")'
        )
        raise ConfigError(message, setting="render_mode", value=mode)
    return env


def _play(actor: StatefulActor, env: gym.Env[Any, Any], seed: int) -> tuple[float, int]:
    actor.reset()
    observation, _ = env.reset(seed=seed)
    reward, score, length, over = 0.0, 0.0, 0, False
    while not over:
        action = actor.predict(observation, reward)
        observation, paid, terminated, truncated, _ = env.step(action)
        reward, over = float(paid), terminated or truncated
        score, length = score + reward, length + 1
    return score, length
