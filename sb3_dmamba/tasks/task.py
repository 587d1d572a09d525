"""What a task is: an environment, a dataset, target returns, reference scores and a recipe."""

from __future__ import annotations

import dataclasses
import importlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.errors import ConfigError, MissingDependencyError, UnknownTaskError

if TYPE_CHECKING:
    import gymnasium

__all__ = ["ReferenceScores", "Task"]

Preprocessing = Literal["atari"]


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
                "give two finite numbers, the maximum above the minimum"
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
        preprocessing: ``"atari"`` wraps the environment as DQN-replay data was preprocessed: 84x84
            greyscale, a frame skip of 4, four frames stacked, episodes end at game over only.
        description: The task in a line.
        source: For each of the fields above that is set, where its value comes from.

    Raises:
        ConfigError: ``overrides`` is no valid recipe.
    """

    name: str
    env_id: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    target_returns: tuple[float, ...] = ()
    reference: ReferenceScores | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    description: str = ""
    source: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("env_kwargs", "overrides", "source"):  # nobody else holds our copies
            object.__setattr__(self, name, dict(getattr(self, name)))
        targets = tuple(float(target) for target in self.target_returns)
        object.__setattr__(self, "target_returns", targets)
        self.config()

    def config(self, **overrides: Any) -> DecisionMambaConfig:
        """Return the task's recipe, with some fields changed.

        A run of another length keeps the recipe's shape: where ``n_updates`` is changed,
        ``warmup_updates`` and ``decay_updates`` follow in proportion unless given too.

        Args:
            **overrides: Fields of ``DecisionMambaConfig``.

        Raises:
            ConfigError: A name is no field (suggests the nearest), or a value is out of range.
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
        import gymnasium

        if self.env_id is None:
            raise UnknownTaskError(
                f"task {self.name!r} names no environment: give one with env=, "
                "or load its dataset, which may name it"
            )
        if self.env_id.startswith("ALE/"):
            _register_atari()
        try:
            with warnings.catch_warnings():
                # Hopper-v4 and its siblings are asked for on purpose: v5 changes the rewards.
                warnings.filterwarnings("ignore", ".*is out of date", DeprecationWarning)
                env = gymnasium.make(self.env_id, **{**self.env_kwargs, **kwargs})
        except gymnasium.error.DependencyNotInstalled as error:
            if "mujoco" in str(error) and "mujoco_py" not in str(error):
                raise MissingDependencyError("mujoco", f"make {self.env_id}", "mujoco") from error
            raise UnknownTaskError(f"{self.env_id!r} cannot be made here: {error}") from error
        except gymnasium.error.Error as error:
            raise UnknownTaskError(
                f"Gymnasium cannot make {self.env_id!r}: {error} (a package that registers it "
                'can be named in front: "package:Name-v0")'
            ) from error
        return _preprocess_atari(env) if self.preprocessing == "atari" else env

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return {**dataclasses.asdict(self), "target_returns": list(self.target_returns)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Task:
        """Build a task from what :meth:`to_dict` returned.

        Raises:
            ConfigError: A field is unknown, or its value cannot be one.
        """
        values = dict(fields)
        try:
            if values.get("reference") is not None:
                values["reference"] = ReferenceScores(**values["reference"])
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"these are not a task's fields: {error}") from error


def _register_atari() -> None:
    """Register the Arcade Learning Environment's games, which ale-py does when imported."""
    import gymnasium

    try:
        ale_py = importlib.import_module("ale_py")
    except ImportError as error:
        raise MissingDependencyError("ale-py", "play Atari games", "atari") from error
    gymnasium.register_envs(ale_py)


def _preprocess_atari(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Wrap a game as DQN-replay data was preprocessed; observations are (4, 84, 84) uint8.

    Source: Mnih et al. 2015, Methods; Machado et al. 2018 (arXiv:1709.06009), section 5.
    """
    from gymnasium.error import DependencyNotInstalled
    from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

    try:
        single = AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84)
    except DependencyNotInstalled as error:
        raise MissingDependencyError("opencv-python", "play Atari games", "atari") from error
    return FrameStackObservation(single, stack_size=4)
