"""What ``dmamba train`` was asked for, and what the command is that goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_dmamba.cli.checkpoints import Checkpoints

__all__ = ["Plan", "default_output"]


@dataclass(frozen=True)
class Plan:
    """What was asked for on the command line; ``option_texts`` is how ``options`` were typed."""

    task: str | None
    resume: Path | None
    dataset: str | None
    option_texts: list[str]
    options: dict[str, Any]
    output: Path
    updates: int | None
    settings: dict[str, Any]
    seed: int | None
    device: str
    checkpoint_every: int
    eval_every: int
    tensorboard: Path | None

    @property
    def model_path(self) -> Path:
        """The file that the run ends with."""
        return self.output / "model.zip"

    def checkpoints(self, n_processes: int = 1) -> Checkpoints:
        """Return what the run leaves on its way, and how it goes on from there."""
        anew = [] if self.updates is None else ["--updates", str(self.updates)]
        if self.resume is not None and self.output != default_output(None, self.resume):
            anew += ["--output", str(self.output)]
        for name, value in self.settings.items():
            anew += ["--set", f"{name}={value}"]
        return Checkpoints(
            folder=self.output / "checkpoints",
            every=self.checkpoint_every,
            resumed=self.resume,
            arguments=self._arguments(),
            anew=anew,
            n_processes=n_processes,
        )

    def _arguments(self) -> list[str]:
        """Return what this run was given and the one that goes on from a checkpoint needs too."""
        given = {
            "--dataset": self.dataset,
            "--device": None if self.device == "auto" else self.device,
            "--checkpoint-every": self.checkpoint_every or None,
            "--eval-every": self.eval_every or None,
            "--tensorboard": self.tensorboard,
        }
        named = [(name, str(value)) for name, value in given.items() if value is not None]
        named += [("--option", text) for text in self.option_texts]
        return [word for pair in named for word in pair]


def default_output(task: str | None, resume: Path | None) -> Path:
    """Return the folder of a run: its task's, or that of the run that it goes on with."""
    if resume is None:
        return Path("runs") / str(task).replace("/", "-").replace(":", "-")
    return resume.parent.parent if resume.parent.name == "checkpoints" else resume.parent
