"""What an experiment is: a question, and variants of one recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.errors import ConfigError

__all__ = ["Experiment", "Published", "Variant"]


@dataclass(frozen=True)
class Variant:
    """One thing to train.

    Args:
        settings: Fields of ``DecisionMambaConfig`` on top of the task's recipe.
        data_options: Options of ``load_trajectories`` on top of the data's.
        description: What is special about it, where the name does not say.
        relative: Settings that depend on the recipe's, from the recipe; they come before
            ``settings``.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    relative: Callable[[DecisionMambaConfig], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Published:
    """What others have reported.

    Args:
        scores: By task, then by whose, as they wrote them.
        is_normalized: Whether scores are between 0 and 100 of the task's reference.
        notes: What they are, and why they may not be comparable.
    """

    scores: Mapping[str, Mapping[str, str]]
    is_normalized: bool
    notes: str


def _no_options(task: str, source: str, seed: int) -> dict[str, Any]:
    return {}


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
        deterministic: Whether discrete actions are the likeliest ones, or drawn.
        published: Figures of others, shown beside ours.
        data_options: Options that a task's data is loaded with, from the task's name, the source
            and the training seed.
        keep_data: Whether loaded data is kept as stores beside the cells, since loading is slow.

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
    deterministic: bool = True
    published: Published | None = None
    data_options: Callable[[str, str, int], dict[str, Any]] = _no_options
    keep_data: bool = False

    def __post_init__(self) -> None:
        if not self.variants:
            raise ConfigError(f"experiment {self.name!r} has no variants")

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with."""
        return next(iter(self.variants))
