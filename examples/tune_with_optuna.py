"""Search hyper-parameters around a task's recipe with Optuna, as RL Zoo does.

A trial trains from the recipe with sampled settings, is evaluated along the way, and stops early
where it falls behind the median of the trials before it. The search may be stopped and run again
(``--storage``), and several processes may share one storage. What it finds was chosen by the noise
of single trainings too: confirm it with new seeds, with the command that it prints.

    pip install "sb3-dmamba[optuna]"
    python examples/tune_with_optuna.py pendulum/mixed-v0 --trials 30 --updates 1500
"""

from __future__ import annotations

import argparse
import shlex
from typing import Any

import numpy as np
import optuna
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dmamba import DecisionMamba, Trajectories, load_trajectories
from sb3_dmamba.tasks import Task

SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
N_STARTUP_TRIALS = 5  # before any is stopped early


def sample_settings(trial: optuna.Trial) -> dict[str, Any]:
    """Draw what a trial changes of the recipe."""
    settings: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-5, 0.3, log=True),
        "dropout": trial.suggest_float("dropout", 0.0, 0.3, step=0.05),
        "context_length": trial.suggest_categorical("context_length", [3, 5, 10, 20]),
        "hidden_size": trial.suggest_categorical("hidden_size", [32, 64, 128]),
        "n_layers": trial.suggest_int("n_layers", 1, 3),
        "mixer": trial.suggest_categorical("mixer", ["mamba", "attention"]),
    }
    if settings["mixer"] == "mamba":  # only where they mean something
        settings["d_state"] = trial.suggest_categorical("d_state", [4, 8, 16, 32])
        settings["channel_mixing"] = trial.suggest_categorical("channel_mixing", [False, True])
    return settings


class TrialCallback(BaseCallback):
    """RL Zoo's ``TrialEvalCallback``, with the episodes of an evaluation acted together.

    Args:
        trial: Is told the mean return, and says whether to go on.
        target_return: The return asked for.
        n_episodes: Episodes of an evaluation.
        every: Updates between two.
    """

    def __init__(
        self, trial: optuna.Trial, target_return: float, n_episodes: int, every: int
    ) -> None:
        super().__init__()
        self.trial = trial
        self.target_return = target_return
        self.n_episodes = n_episodes
        self.every = every
        self.last_mean_reward = float("nan")
        self.is_pruned = False

    def _on_step(self) -> bool:
        if self.n_calls % self.every:
            return True
        assert isinstance(self.model, DecisionMamba)
        report = self.model.evaluate(self.target_return, self.n_episodes, seed=0, n_workers=0)
        self.last_mean_reward = report.results[0].mean
        self.trial.report(self.last_mean_reward, self.n_calls)
        self.is_pruned = self.trial.should_prune()
        return not self.is_pruned


def make_recipe(dataset: Trajectories, n_updates: int) -> dict[str, Any]:
    """Return settings that trials share: a schedule, and scales that are the data's."""
    return {
        "n_updates": n_updates,
        "warmup_updates": n_updates // 10,
        "lr_schedule": "linear",
        "return_scale": float(np.abs(dataset.returns).max()),
        "max_timestep": int(dataset.lengths.max()),
    }


def optimize(options: argparse.Namespace) -> optuna.Study:
    """Run the search."""
    dataset = load_trajectories(options.dataset)
    task = Task(options.dataset, env_id=dataset.env_id, env_kwargs=dataset.env_kwargs)
    target = options.target if options.target is not None else float(dataset.returns.max())
    recipe = make_recipe(dataset, options.updates)
    every = max(1, options.updates // options.evaluations)

    def objective(trial: optuna.Trial) -> float:
        settings = {**recipe, **sample_settings(trial)}
        model = DecisionMamba(task, seed=options.seed + trial.number, **settings)
        callback = TrialCallback(trial, target, options.episodes, every)
        model.fit(dataset, callback=callback)
        if callback.is_pruned:
            raise optuna.TrialPruned
        return callback.last_mean_reward

    study = optuna.create_study(
        study_name=options.study,
        storage=options.storage,
        load_if_exists=True,
        direction="maximize",
        sampler=SAMPLERS[options.sampler](seed=options.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=N_STARTUP_TRIALS),
    )
    study.optimize(objective, n_trials=options.trials, show_progress_bar=options.progress)
    return study


def describe_confirmation(study: optuna.Study, options: argparse.Namespace) -> str:
    """Return the command that trains the best settings from seeds that chose nothing."""
    settings = [f"{name}={value}" for name, value in study.best_params.items()]
    command = ["dmamba", "experiment", "mixers", "--variants", "mamba", "--data", options.dataset]
    command += ["--updates", str(options.updates), "--seeds", "101", "102", "103", "104", "105"]
    return shlex.join([*command, "--set", *settings])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dataset", help="anything load_trajectories takes that names its env")
    parser.add_argument("--target", type=float, help="return to ask for; default: the data's best")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--evaluations", type=int, default=5, help="in a trial")
    parser.add_argument("--episodes", type=int, default=20, help="in an evaluation")
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", help="such as sqlite:///tuning.db; default: in memory")
    parser.add_argument("--study", default="decision-mamba")
    parser.add_argument("--progress", action="store_true", help="show a bar")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_arguments()
    study = optimize(options)
    finished = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    print(f"{len(study.trials)} trials, {len(finished)} of them to their end")
    print(f"best: {study.best_value:.4g} with {study.best_params}")
    print(f"confirm it: {describe_confirmation(study, options)}")


if __name__ == "__main__":
    main()
