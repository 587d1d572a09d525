"""A model's folder for the Hugging Face hub: model file, model card, results and video."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import RecordVideo
from stable_baselines3.common.utils import get_system_info

import sb3_dmamba
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.context import Environment, make_factory
from sb3_dmamba.data import DatasetInfo
from sb3_dmamba.errors import ConfigError, MissingDependencyError
from sb3_dmamba.evaluation import EvaluationReport, StatefulActor, TargetResult

if TYPE_CHECKING:
    from sb3_dmamba.algorithm import DecisionMamba

__all__ = ["Card", "make_folder", "require_huggingface_hub"]

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

_TAGS = [
    "deep-reinforcement-learning",
    "reinforcement-learning",
    "stable-baselines3",
    "offline-reinforcement-learning",
    "decision-mamba",
    "sb3-dmamba",
]


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
    ``README.md`` with a ``model-index``, ``replay.mp4``; besides, ``evaluation.json`` with every
    episode, ``evaluation.png``, and ``vec_normalize.pkl`` where the model's environment has one.
    Publish it with ``hf upload <user>/<repository> <folder>``.

    Needs huggingface_hub: ``pip install "sb3-dmamba[hub]"``.

    Args:
        model: A fitted model.
        folder: Where to write; created where it is missing.
        report: What ``model.evaluate`` returned; None evaluates now.
        target_return: The target in the card's headline; None is the model's ``target_return``, or
            the report's best target if the report lacks that one.
        n_episodes: Episodes to evaluate where there is no report.
        name: Name of the model file; None is ``dmamba-<environment>``.
        repo_id: ``"user/repository"``, for the code on the card.
        license: SPDX identifier, such as ``"mit"``.
        env: Where to evaluate and record; None is the model's environment.
        video: Whether to record the report's first episode again, as ``replay.mp4``.
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
        raise ConfigError(
            f"{target} is there already: give another folder, or pass overwrite=True (--overwrite)"
        )
    if report is None:
        asked = model.target_return if target_return is None else target_return
        report = model.evaluate(asked, n_episodes, env=env)
    result = _choose_result(report, target_return, model)
    env_name = _name_environment(report, model)
    file = f"dmamba-{env_name}" if name is None else name
    if not re.fullmatch(r"[\w.\-]+", file):
        raise ConfigError(f"name={name!r}: give letters, digits, '-', '_' and '.' alone")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        made = Path(temporary)
        _write_model(model, made, file)
        replay = None
        if video:
            replay = _write_replay(model, made, report, result, env, video_steps)
        card = Card(
            name=file,
            repo_id=repo_id or f"<user>/{file}",
            env_name=env_name,
            report=report,
            result=result,
            config=model.config,
            dataset=model.dataset,
            env_id=_env_id(report, model),
            license=license,
            replay=replay,
        )
        _write_results(made, card)
        target.mkdir(exist_ok=True)
        for path in sorted(made.iterdir()):
            path.replace(target / path.name)
    return target


def _choose_result(
    report: EvaluationReport, target_return: float | None, model: DecisionMamba
) -> TargetResult:
    asked = {result.target_return: result for result in report.results}
    if target_return is not None:
        if target_return not in asked:
            raise ConfigError(
                f"target_return={target_return!r}: the report has "
                f"{', '.join(f'{target:g}' for target in asked)}"
            )
        return asked[target_return]
    try:
        return asked.get(model.target_return, report.best)
    except ConfigError:  # the model has no target of its own
        return report.best


def _env_id(report: EvaluationReport, model: DecisionMamba) -> str | None:
    """Return the id of the environment that the model file names."""
    task = None if model.task is None else model.task.env_id
    return task or model.dataset.env_id


def _name_environment(report: EvaluationReport, model: DecisionMamba) -> str:
    """Name the environment as ``huggingface_sb3`` does, a game of ours by the game too."""
    env_id = report.env_id or _env_id(report, model)
    if env_id is None:
        return report.task or "environment"
    name = env_id.rpartition(":")[2].replace("/", "-")
    described = model.task.env_kwargs if model.task is not None else {}
    game = {**model.dataset.env_kwargs, **described}.get("game")
    return name if game is None else f"{name}-{game}"


def _write_model(model: DecisionMamba, folder: Path, file: str) -> None:
    path = folder / f"{file}.zip"
    model.save(path)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        normalizer.save(str(folder / "vec_normalize.pkl"))
    with zipfile.ZipFile(path) as archive:
        description = json.loads(archive.read("data"))
    description["system_info"] = get_system_info(print_info=False)[0]
    _write_json(folder / "config.json", description)


def _write_replay(
    model: DecisionMamba,
    folder: Path,
    report: EvaluationReport,
    result: TargetResult,
    env: Environment | None,
    n_steps: int,
) -> str:
    make_env = make_factory(model._context.require_env() if env is None else env)
    actor = model.as_stateful_wrapper(
        result.target_return,
        memory=report.memory,  # type: ignore[arg-type]
        deterministic=report.deterministic,
        clip_rewards=report.clip_rewards,
        delayed_rewards=report.delayed_rewards,
    )
    rendered = _make_rendered(make_env)
    score, length = _record_replay(
        actor, rendered, folder / "replay.mp4", report.eval_seed, n_steps
    )
    shown = f", of which the video shows {n_steps:,}" if length > n_steps else ""
    return (
        f"[replay.mp4](replay.mp4) is the episode with seed {report.eval_seed}, asked for "
        f"{result.target_return:,g}: it returned {score:,.2f} in {length:,} steps{shown}."
    )


def _write_results(folder: Path, card: Card) -> None:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    _write_json(folder / "results.json", {**card.results(), "eval_datetime": now})
    card.report.to_json(folder / "evaluation.json")
    card.report.plot(folder / "evaluation.png")
    card.to_model_card().save(folder / "README.md")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Card:
    """Content of a model card and of ``results.json``.

    Args:
        name: Name of the model file, without its suffix.
        repo_id: ``"user/repository"`` on the hub, or a placeholder for it.
        env_name: The environment's name on the hub.
        report: Evaluation of the model.
        result: The report's result that the headline states.
        config: The model's settings.
        dataset: The dataset it was fitted to.
        env_id: The environment that the model file names, if any.
        license: SPDX identifier, or None if unknown.
        replay: What the video shows, as a sentence; None without a video.
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
        """Name of the algorithm, by its mixer."""
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

    def to_model_card(self) -> Any:
        """Return the ``huggingface_hub.ModelCard``: front matter and text of ``README.md``.

        Raises:
            MissingDependencyError: huggingface_hub is not installed.
        """
        front_matter = self._metadata().to_yaml()
        return require_huggingface_hub().ModelCard(f"---\n{front_matter}\n---\n\n{self._text()}")

    def _metadata(self) -> Any:
        """Return the ``ModelCardData`` from which the hub lists the model and its score."""
        hub, results = require_huggingface_hub(), self.results()
        conditions = ("target_return", "memory", "weights", "n_eval_episodes", "first_seed")
        reward = f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f}"
        metrics: list[tuple[str, Any, Any]] = [
            ("mean_reward", reward, {name: results[name] for name in conditions})
        ]
        if results["normalized_score"] is not None:
            metrics.append(("normalized_score", round(results["normalized_score"], 2), None))
        return hub.ModelCardData(
            library_name="stable-baselines3",
            license=self.license,
            pipeline_tag="reinforcement-learning",
            tags=[self.env_name, *_TAGS],
            model_name=self.algorithm,
            eval_results=[
                hub.EvalResult(
                    task_type="reinforcement-learning",
                    task_name="reinforcement-learning",
                    dataset_type=self.env_name,
                    dataset_name=self.env_name,
                    metric_type=name,
                    metric_name=name,
                    metric_value=value,
                    metric_args=arguments,
                    verified=False,
                )
                for name, value, arguments in metrics
            ],
        )

    def _text(self) -> str:
        parts = [
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
        """Describe how the return-to-go counted rewards; None if as they came."""
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


def require_huggingface_hub() -> Any:
    """Import huggingface_hub.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise  # it is there, and something that it needs is not
        raise MissingDependencyError("huggingface_hub", "write a model card", "hub") from error
    return huggingface_hub


def _make_rendered(make_env: Callable[..., gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
    """Make an environment that renders frames.

    Args:
        make_env: Makes one environment; called with ``render_mode="rgb_array"`` if it takes that.

    Raises:
        ConfigError: The environment renders no frames.
    """
    try:
        env = make_env(render_mode="rgb_array")
    except TypeError:  # a function without arguments
        env = make_env()
    if env.render_mode != "rgb_array":
        mode = env.render_mode
        env.close()  # type: ignore[no-untyped-call]
        raise ConfigError(
            f"the environment has render_mode={mode!r}, and a video needs frames: give one that "
            f'has them, env=lambda: gymnasium.make(..., render_mode="rgb_array")'
        )
    return env


def _record_replay(
    actor: StatefulActor, env: gym.Env[Any, Any], path: Path, seed: int, max_steps: int
) -> tuple[float, int]:
    """Record one episode and close the environment.

    Args:
        actor: The model as a stateful actor.
        env: An environment that renders frames.
        path: The ``.mp4`` to write.
        seed: Seed of the episode.
        max_steps: Length of the video in steps; the episode goes on without it.

    Returns:
        The episode's return and length.

    Raises:
        MissingDependencyError: moviepy is not installed.
        ConfigError: A package with which the environment renders is not installed.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moviepy's own, and that the folder is there
        try:
            recorder = RecordVideo(
                env,
                folder,
                episode_trigger=lambda episode: episode == 0,
                video_length=max_steps,
                name_prefix="replay",
                disable_logger=True,
            )
        except DependencyNotInstalled as error:
            env.close()  # type: ignore[no-untyped-call]
            raise MissingDependencyError("moviepy", "record a video", "video") from error
        try:
            score, length = _play(actor, recorder, seed)
        except DependencyNotInstalled as error:
            raise ConfigError(f"the environment cannot render frames here: {error}") from error
        finally:
            recorder.close()  # type: ignore[no-untyped-call]
        shutil.move(str(next(Path(folder).glob("*.mp4"))), path)
    return score, length


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
