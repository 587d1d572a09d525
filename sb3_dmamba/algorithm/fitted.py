"""What a fitted model gives away: reports, model files, exported policies."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import torch

from sb3_dmamba.algorithm.about import describe_use
from sb3_dmamba.algorithm.acting import ActingAlgorithm
from sb3_dmamba.checks import check_integer
from sb3_dmamba.config import Memory
from sb3_dmamba.environments import Environment, make_factory
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.evaluation import EvaluationReport, ReportDetails, evaluate_targets
from sb3_dmamba.export import ExportedPolicy, export_policy
from sb3_dmamba.files import COUNTERS, SavedModel, check_parameters
from sb3_dmamba.networks.features import name_extractor
from sb3_dmamba.training.callbacks import Evaluations

__all__ = ["FittedAlgorithm"]


class FittedAlgorithm(ActingAlgorithm):
    """An :class:`ActingAlgorithm` that can be scored, saved and exported."""

    # --- Evaluation ----------------------------------------------------------------------------

    def evaluate(
        self,
        target_returns: float | Sequence[float] | None = None,
        n_episodes: int = 10,
        *,
        env: Environment | None = None,
        memory: Memory | None = None,
        deterministic: bool = True,
        clip_rewards: bool | None = None,
        delayed_rewards: bool | None = None,
        max_episode_steps: int | None = None,
        seed: int | None = None,
        n_envs: int | None = None,
        n_workers: int | None = None,
    ) -> EvaluationReport:
        """Act for whole episodes, every target and episode together, and report the returns.

        Args:
            target_returns: Returns to ask for; None takes the task's, or the dataset's median,
                90th percentile and best.
            n_episodes: Episodes of each target.
            env: Where to act; None is the model's environment.
            memory: ``"window"`` or ``"stream"``; None is the config's.
            deterministic: Whether a discrete action is the likeliest one, or drawn.
            clip_rewards: Whether targets count rewards clipped to [-1, 1] (scores never do);
                None is as in the dataset, or the task.
            delayed_rewards: Whether the return-to-go stays at the target until an episode's end;
                None is as in the dataset.
            max_episode_steps: Episodes are cut after this many steps; None leaves it to the
                environment, which may wait long: a game of Breakout without FIRE lasts 27,000.
            seed: Episode k of every target starts from environment seed ``seed + k``; None is
                the model's seed.
            n_envs: Environments that live at once; None is one an episode, at most 128.
            n_workers: Subprocesses that step them; None or 0 steps them in this process, which
                changes no result. One a core is faster where a step is slow and episodes are long.

        Returns:
            The report: print it, ``.plot(path)`` it, or ``.to_pandas()`` it.

        Raises:
            NotFittedError: The model has no weights yet.
            UnknownTaskError: No environment is known, or it cannot be made again.
            SpaceError: The environment's spaces are not the model's.
        """
        policy = self._built_policy()
        if target_returns is None:
            target_returns = self._surroundings.target_returns()
        return evaluate_targets(
            policy,
            make_factory(self._surroundings.require() if env is None else env),
            target_returns,
            n_episodes,
            n_envs=n_envs,
            n_workers=n_workers,
            seed=self.seed if seed is None else seed,
            memory=memory,
            deterministic=deterministic,
            **self._counts(clip_rewards, delayed_rewards),
            max_episode_steps=max_episode_steps,
            reference=None if env is not None else self._surroundings.reference_scores(),
            details=ReportDetails(
                task=None if self.task is None else self.task.name,
                dataset=self.dataset.source or None,
                dataset_returns=self.dataset.returns if len(self.dataset.returns) else None,
                mixer=self.config.mixer,
                training_seed=self.seed,
                n_updates=self._n_updates,
                weights="last",
            ),
        )

    def _make_eval_callback(
        self, env: Environment | None, eval_freq: int, n_episodes: int
    ) -> Evaluations:
        n_episodes = check_integer("n_eval_episodes", n_episodes, 1)
        environment = self._surroundings.require() if env is None else env
        venv = self._surroundings.wrap(environment)
        self._check(venv, "the environment")
        return Evaluations(venv, eval_freq, n_episodes, self.verbose)

    # --- Files ---------------------------------------------------------------------------------

    def save(  # type: ignore[override]  # any path, and files that are only writable
        self,
        path: str | os.PathLike[str] | BinaryIO,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Write the model to a zip of JSON and safetensors, from which training continues exactly.

        Args:
            path: File to write, atomically; ``.zip`` is added to a name without a suffix.
            exclude: ``["optimizer"]`` leaves out the optimiser's state, two thirds of the file.
            include: Stable-Baselines3's; everything that a model holds is written anyway.

        Raises:
            NotFittedError: The model has no weights yet.
            ConfigError: ``exclude`` names something else.
            OSError: The file cannot be written; one that was there is as it was.
        """
        policy = self._built_policy()
        assert self._updater is not None
        excluded = {exclude} if isinstance(exclude, str) else set(exclude or ())
        if not excluded <= {"optimizer"}:
            raise ConfigError(f"exclude={exclude!r}: only 'optimizer' can be left out")
        SavedModel(
            config=self.config,
            task=self.task,
            dataset=self.dataset,
            observation_space=policy.observation_space,
            action_space=self.action_space,
            target_return=self._surroundings.given_target_return,
            seed=self.seed,
            counters={name: getattr(self, name) for name in COUNTERS},
            policy=policy.state_dict(),
            optimizer={} if excluded else self._updater.state(),
            extractor=name_extractor(self.policy_kwargs),
            schedule=self._schedule,
        ).write(path)

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        memory: Memory | None = None,
        device: torch.device | str = "cpu",
        verify: bool = True,
    ) -> ExportedPolicy:
        """Write the policy as a graph that acts without this package, and in ONNX without torch.

        One step: ``observation``, ``return_to_go`` and a state go in, ``action`` (for discrete ones
        ``logits`` too) and the next state come out; a state of zeros starts an episode.
        Normalisation, return scaling and the actions' bounds are inside.

        Args:
            path: File to write, atomically: ``.onnx`` or ``.pt2`` (``torch.export``).
            memory: ``"window"`` or ``"stream"``; None is the config's.
            device: Where a ``.pt2`` is to run; ONNX decides that when it is opened.
            verify: Whether to run the result beside the model before it is written; ONNX only
                where onnxruntime is installed.

        Returns:
            The file, what it says about itself, and how far it was from the model.

        Raises:
            NotFittedError: The model has no weights yet.
            ConfigError: The suffix is neither of these, or the memory cannot be used.
            MissingDependencyError: onnx is not installed.
            ExportError: The graph does not act as the model does; nothing was written.
            OSError: The file cannot be written; one that was there is as it was.
        """
        policy = self._built_policy()
        about = describe_use(self._surroundings)
        return export_policy(policy, path, memory=memory, about=about, device=device, verify=verify)

    # --- Weights -------------------------------------------------------------------------------

    def set_parameters(
        self,
        load_path_or_dict: Any,
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Take over weights and optimiser state, from :meth:`get_parameters` or a model file.

        Args:
            load_path_or_dict: State dictionaries by name (``"policy"``, ``"policy.optimizer"``),
                or what :meth:`load` takes.
            exact_match: Whether everything must be given; a file always gives everything.
            device: Stable-Baselines3's; the model stays where it is.

        Raises:
            NotFittedError: The model has no weights that could be replaced.
            ModelFileError: The file is damaged, or the weights are another model's; this one is as
                it was.
            ConfigError: A dictionary has names that a model has nothing for, or lacks some.
        """
        policy = self._built_policy()
        if isinstance(load_path_or_dict, dict):
            check_parameters(load_path_or_dict, policy, exact_match)
            # Copied: torch's optimisers would share their moments with the giver's.
            super().set_parameters(copy.deepcopy(load_path_or_dict), exact_match, device)
            return
        saved = SavedModel.read(load_path_or_dict)
        assert self._updater is not None
        saved.restore_into(self._updater)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        self._built_policy()
        return ["policy", "policy.optimizer"], []
