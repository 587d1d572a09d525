"""What an experiment is: a question, and variants of one recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sb3_dmamba.config import Memory
from sb3_dmamba.errors import ConfigError

__all__ = ["Experiment", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One thing to train.

    Args:
        settings: Fields of ``DecisionMambaConfig`` on top of the task's recipe.
        data_options: Options of ``load_trajectories`` on top of the data's.
        description: What is special about it, where the name does not say.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True)
class Experiment:
    """A question, and the trainings that answer it.

    Args:
        name: As on the command line.
        title: The report's.
        question: What it asks, and where the paper leaves it; the answer is the numbers' to give.
        variants: What is trained, by name; the first is what the others are compared with.
        tasks: Names of the tasks that it runs on by default.
        memories: The memories that every training is evaluated with.
        n_episodes: Episodes of each target.
        seeds: Training seeds.
        evaluations: How often a training is evaluated, evenly spread; 1 is at its end alone.
        settings: Fields of ``DecisionMambaConfig`` that all variants share, on top of the recipe.
        published: Figures of others by task, then by whose; shown beside ours in the units of
            ``published_unit``.
        published_unit: ``"normalised"`` or ``"raw"``.
        deterministic: Whether discrete actions are the likeliest ones, or drawn.

    Raises:
        ConfigError: There is no variant.
    """

    name: str
    title: str
    question: str
    variants: Mapping[str, Variant]
    tasks: tuple[str, ...]
    memories: tuple[Memory, ...] = ("window",)
    n_episodes: int = 50
    seeds: tuple[int, ...] = (0, 1, 2)
    evaluations: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    published_unit: str = "normalised"
    deterministic: bool = True

    def __post_init__(self) -> None:
        if not self.variants:
            raise ConfigError(f"experiment {self.name!r} has no variants")

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with."""
        return next(iter(self.variants))
