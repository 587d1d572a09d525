"""What a saved model says about itself, and how it is read back."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from gymnasium import spaces
from torch import Tensor, nn

import sb3_dmamba
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import DatasetInfo
from sb3_dmamba.errors import ConfigError, ModelFileError
from sb3_dmamba.tasks import Task
from sb3_dmamba.training.checkpoints import ModelFile, space_from_json, space_to_json
from sb3_dmamba.training.updater import Updater

__all__ = ["SavedModel"]


@dataclass(frozen=True)
class SavedModel:
    """Everything a model needs to act, and to go on training as if it had never stopped.

    Args:
        config: Its settings.
        task: Its task, if it has one.
        dataset: What it was fitted to.
        observation_space: Flat observations, without the return-to-go.
        action_space: Its actions.
        target_return: Return that its environment asks for, if it was set.
        seed: Seed of its weights, batches and dropout.
        counters: How far training has come, by attribute name.
        policy: Weights and normalisation.
        optimizer: The optimiser's moments and steps; empty where they were left out.
    """

    config: DecisionMambaConfig
    task: Task | None
    dataset: DatasetInfo
    observation_space: spaces.Box
    action_space: spaces.Space[Any]
    target_return: float | None
    seed: int
    counters: dict[str, int]
    policy: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    def write(self, path: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the model file, atomically; ``.zip`` is added to a name without a suffix."""
        if isinstance(path, (str, os.PathLike)) and not Path(path).suffix:
            path = f"{os.fspath(path)}.zip"
        header = {
            "sb3_dmamba_version": sb3_dmamba.__version__,
            "torch_version": torch.__version__,
            "config": self.config.to_dict(),
            "task": None if self.task is None else self.task.to_dict(),
            "dataset": {
                "source": self.dataset.source,
                "env_id": self.dataset.env_id,
                "env_kwargs": dict(self.dataset.env_kwargs),
            },
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "target_return": self.target_return,
            "seed": self.seed,
            "counters": self.counters,
        }
        tensors = {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "dataset": {"returns": torch.as_tensor(self.dataset.returns)},
        }
        ModelFile(header, tensors).write(path)

    def restore(self, policy: nn.Module, updater: Updater) -> None:
        """Put weights and optimiser state into networks built from this model's config.

        Raises:
            ModelFileError: They do not fit; says which.
        """
        try:
            policy.load_state_dict(self.policy)
        except RuntimeError as error:
            raise ModelFileError(
                f"the weights in the file do not fit its own config, so it was changed: {error}"
            ) from error
        updater.restore(self.optimizer)

    @classmethod
    def read(cls, path: str | os.PathLike[str] | BinaryIO) -> SavedModel:
        """Read a model file.

        Raises:
            ModelFileError: The file is missing, damaged, no model file, or of a newer version.
        """
        file = ModelFile.read(path)
        header = file.header
        try:
            observation_space = space_from_json(header["observation_space"])
            if not isinstance(observation_space, spaces.Box):
                raise ModelFileError(f"{path} has observations {observation_space}, not a Box")
            dataset = header["dataset"]
            return cls(
                config=DecisionMambaConfig.from_dict(header["config"]),
                task=None if header["task"] is None else Task.from_dict(header["task"]),
                dataset=DatasetInfo(
                    dataset["source"],
                    dataset["env_id"],
                    dataset["env_kwargs"],
                    file.tensors["dataset"]["returns"].numpy(),
                ),
                observation_space=observation_space,
                action_space=space_from_json(header["action_space"]),
                target_return=header["target_return"],
                seed=int(header["seed"]),
                counters={name: int(count) for name, count in header["counters"].items()},
                policy=file.tensors["policy"],
                optimizer=file.tensors["optimizer"],
            )
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise ModelFileError(
                f"{path} does not describe a whole model ({type(error).__name__}: {error}): it "
                f"was changed, or written by something else"
            ) from error
