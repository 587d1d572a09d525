"""Everything that belongs to a published model, in one folder."""

from __future__ import annotations

import datetime
import json
import re
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.utils import get_system_info

from sb3_dmamba.environments import Environment, make_factory
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.evaluation import EvaluationReport, TargetResult
from sb3_dmamba.hub.card import Card
from sb3_dmamba.hub.replay import make_rendered, record_replay

if TYPE_CHECKING:
    from sb3_dmamba.algorithm import DecisionMamba

__all__ = ["make_folder"]


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
    """Write what a model's repository on the Hugging Face hub holds; nothing is sent anywhere.

    The layout is that of ``huggingface_sb3``: ``<name>.zip``, ``config.json``, ``results.json``,
    ``README.md`` with a ``model-index``, ``replay.mp4``; besides, ``evaluation.json`` with every
    episode, ``evaluation.png``, and ``vec_normalize.pkl`` where the model's environment has one.
    Publish it with ``hf upload <user>/<repository> <folder>``.

    Args:
        model: A fitted model.
        folder: Where to write; made if it is not there.
        report: What ``model.evaluate`` found; None evaluates now.
        target_return: The target that the card's headline is about; None is the model's
            ``target_return``, or where the report has it not, the report's best.
        n_episodes: Episodes to evaluate where there is no report.
        name: Of the model file; None is ``dmamba-<environment>``.
        repo_id: ``"user/repository"``, for the code on the card.
        license: SPDX identifier, such as ``"mit"``.
        env: Where to evaluate and record; None is the model's environment.
        video: Whether to record the report's first episode again, as ``replay.mp4``.
        video_steps: Steps after which the video stops.
        overwrite: Whether files of an earlier call may be replaced.

    Returns:
        The folder.

    Raises:
        NotFittedError: The model has no weights yet.
        ConfigError: The folder is not empty, the target is not in the report, a name cannot be a
            file's, or the environment renders no frames.
        UnknownTaskError: No environment is known, and one is needed.
        MissingDependencyError: moviepy is needed for a video and not installed.
    """
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
    """Return the environment that the model file names."""
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
    make_env = make_factory(model._surroundings.require() if env is None else env)
    actor = model.as_stateful_wrapper(
        result.target_return,
        memory=report.memory,  # type: ignore[arg-type]
        deterministic=report.deterministic,
        clip_rewards=report.clip_rewards,
        delayed_rewards=report.delayed_rewards,
    )
    rendered = make_rendered(make_env)
    score, length = record_replay(actor, rendered, folder / "replay.mp4", report.eval_seed, n_steps)
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
    (folder / "README.md").write_text(card.to_markdown(), encoding="utf-8")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
