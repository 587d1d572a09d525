"""What a task is: an environment, a dataset, target returns, reference scores and a recipe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sb3_dmamba.compatibility import make_environment
from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.errors import ConfigError, UnknownTaskError

if TYPE_CHECKING:
    import gymnasium

__all__ = ["ReferenceScores", "Task"]


@dataclass(frozen=True)
class ReferenceScores:
    """The two returns between which a score is normalised to 0 and 100.

    Args:
        minimum: Return that counts as 0 (a random policy's, as a rule).
        maximum: Return that counts as 100 (an expert's).
        source: Where the two come from.

    Raises:
        ConfigError: They are not finite, or ``maximum`` is not above ``minimum``.
    """

    minimum: float
    maximum: float
    source: str

    def __post_init__(self) -> None:
        finite = math.isfinite(self.minimum) and math.isfinite(self.maximum)
        if not finite or self.maximum <= self.minimum:
            raise ConfigError(
                f"reference scores minimum={self.minimum!r}, maximum={self.maximum!r}: "
                "give two finite numbers, the maximum above the minimum",
                setting="reference",
                value=(self.minimum, self.maximum),
            )


@dataclass(frozen=True)
class Task:
    """Everything that belongs to a name: what to act in, learn from, ask for and compare with.

    Args:
        name: The name, as given to ``DecisionMamba``.
        env_id: Gymnasium id; None when only the dataset knows its environment.
        env_kwargs: Keyword arguments of ``gymnasium.make``, JSON-compatible.
        dataset: What ``load_trajectories`` takes; None where no dataset belongs to the task.
        target_returns: Returns to ask for in evaluation, in the environment's units; empty when
            they are chosen from the dataset.
        reference: Scores that count as 0 and 100; None where nothing published or measured fits.
        overrides: Fields of ``DecisionMambaConfig`` that make up the task's recipe.
        clip_rewards: Whether the return-to-go counts rewards clipped to [-1, 1], as the DQN
            replay's are (``target_returns`` too); scores are raw, as ``reference`` is.
        actions: Names of a Discrete environment's actions, in their order; empty where unknown.
        description: The task in a line.
        source: For each of the fields above that is set, where its value comes from.

    Raises:
        ConfigError: ``overrides`` is not a valid recipe.
    """

    name: str
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    target_returns: tuple[float, ...] = ()
    reference: ReferenceScores | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    clip_rewards: bool = False
    actions: tuple[str, ...] = ()
    description: str = ""
    source: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("env_kwargs", "overrides", "source"):  # nobody else holds our copies
            object.__setattr__(self, name, dict(getattr(self, name)))
        targets = tuple(float(target) for target in self.target_returns)
        object.__setattr__(self, "target_returns", targets)
        object.__setattr__(self, "actions", tuple(self.actions))
        recipe = self.config()
        plain = {name: getattr(recipe, name) for name in self.overrides}  # Python's, not NumPy's
        object.__setattr__(self, "overrides", plain)

    def config(self, **overrides: Any) -> DecisionMambaConfig:
        """Return the task's recipe, with some fields changed.

        A run of another length keeps the recipe's shape: where ``n_updates`` is changed,
        ``warmup_updates`` and ``decay_updates`` follow in proportion unless given too.

        Args:
            **overrides: Fields of ``DecisionMambaConfig``.

        Raises:
            ConfigError: A name is not a field (suggests the nearest), or a value is out of range.
        """
        recipe = DecisionMambaConfig().replace(**self.overrides)
        changed = recipe.replace(**overrides)
        if "n_updates" not in overrides:
            return changed
        scale = changed.n_updates / recipe.n_updates
        counts = {"warmup_updates": recipe.warmup_updates, "decay_updates": recipe.decay_updates}
        return changed.replace(
            **{
                name: max(1, round(count * scale))
                for name, count in counts.items()
                if count and name not in overrides
            }
        )

    def make_env(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """Make one environment of the task.

        Args:
            **kwargs: More keyword arguments of ``gymnasium.make``, such as ``render_mode``.

        Raises:
            UnknownTaskError: The task names no environment, or Gymnasium cannot make it.
            MissingDependencyError: The environment's package is not installed.
        """
        if self.env_id is None:
            raise UnknownTaskError(
                f"task {self.name!r} names no environment: give one with env=, "
                "or load its dataset, which may name it",
                setting="env",
                value=self.name,
            )
        return make_environment(self.env_id, {**self.env_kwargs, **kwargs})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        lists = {name: list(getattr(self, name)) for name in ("target_returns", "actions")}
        return {**dataclasses.asdict(self), **lists}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Task:
        """Build a task from what :meth:`to_dict` returned.

        Raises:
            ConfigError: A field is unknown, or its value cannot be one.
        """
        values = dict(fields)
        if values.get("preprocessing", ...) is None:
            del values["preprocessing"]  # a field of files written before 0.2
        try:
            if values.get("reference") is not None:
                values["reference"] = ReferenceScores(**values["reference"])
            return cls(**values)
        except TypeError as error:
            raise ConfigError(
                f"these are not a task's fields: {error}",
                choices=[field.name for field in dataclasses.fields(cls)],
            ) from error
