"""Tasks: names for an environment, dataset, target returns, reference scores and recipe."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sb3_dmamba import envs
from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.config import DecisionMambaConfig, Recipe
from sb3_dmamba.d4rl import D4RLName, list_names, parse_name
from sb3_dmamba.envs import ATARI_ID, MINIMAL_ACTIONS, TMAZE_ID, TMAZE_LENGTHS, parse_tmaze_name
from sb3_dmamba.envs.make import is_known_elsewhere, make_environment
from sb3_dmamba.errors import ConfigError, UnknownTaskError
from sb3_dmamba.io import minari_folder

if TYPE_CHECKING:
    import gymnasium


@dataclass(frozen=True)
class ReferenceScores:
    """The returns that the normalised scores 0 and 100 stand for.

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
        low, high = self.minimum, self.maximum
        if not -math.inf < low < high < math.inf:
            message = (
                f"reference scores minimum={low!r}, maximum={high!r}: give two finite numbers, "
                "the maximum above the minimum"
            )
            raise ConfigError(message, setting="reference", value=(low, high))


@dataclass(frozen=True)
class Task:
    """Environment, dataset, target returns, reference scores and recipe of a name.

    Args:
        name: The name, as given to ``DecisionMamba``.
        env_id: Gymnasium id; None where only the dataset names its environment.
        env_kwargs: Keyword arguments of ``gymnasium.make``, JSON-compatible.
        dataset: Source that ``load_trajectories`` takes; None for a task without a dataset.
        target_returns: Returns to ask for in evaluation, in the environment's units; empty when
            they are chosen from the dataset.
        reference: Scores that count as 0 and 100; None where nothing published or measured fits.
        overrides: Fields of ``DecisionMambaConfig`` that make up the task's recipe.
        clip_rewards: Whether the return-to-go counts rewards clipped to [-1, 1], as the DQN
            replay's are (``target_returns`` too); scores are raw, as ``reference`` is.
        actions: Names of a Discrete environment's actions, in their order; empty where unknown.
        description: The task in a line.
        source: For each of the fields above that is set, where its value comes from.
        recipe: ``"default"`` or ``"paper"``, which ``overrides`` change.

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
    recipe: Recipe = "default"

    def __post_init__(self) -> None:
        recipe = DecisionMambaConfig.from_recipe(self.recipe, **self.overrides)
        values = {
            "env_kwargs": dict(self.env_kwargs),  # copies that the caller does not hold
            "source": dict(self.source),
            "target_returns": tuple(float(target) for target in self.target_returns),
            "actions": tuple(self.actions),
            "overrides": {name: getattr(recipe, name) for name in self.overrides},  # no NumPy
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def config(self, **overrides: Any) -> DecisionMambaConfig:
        """Return the task's recipe, with some fields changed.

        A run of another length keeps the recipe's shape: where ``n_updates`` is changed,
        ``warmup_updates`` and ``decay_updates`` follow in proportion unless given too.

        Args:
            **overrides: Fields of ``DecisionMambaConfig``.

        Raises:
            ConfigError: A name is not a field (suggests the nearest), or a value is out of range.
        """
        recipe = DecisionMambaConfig.from_recipe(self.recipe, **self.overrides)
        changed = recipe.replace(**overrides)
        if "n_updates" not in overrides or None in (changed.n_updates, recipe.n_updates):
            return changed
        scale = changed.resolved_n_updates / recipe.resolved_n_updates
        counts = {"warmup_updates": recipe.warmup_updates, "decay_updates": recipe.decay_updates}
        scaled = {name: max(1, round(count * scale)) for name, count in counts.items() if count}
        return changed.replace(**{k: v for k, v in scaled.items() if k not in overrides})

    def with_recipe(self, recipe: Recipe | None) -> Task:
        """Return the task with another recipe, without the fields that belong to its own.

        Args:
            recipe: ``"default"`` or ``"paper"``; None, or the task's own, changes nothing.

        Raises:
            ConfigError: There is no such recipe.
        """
        if recipe is None or recipe == self.recipe:
            return self
        return dataclasses.replace(self, recipe=recipe, overrides={})

    def make_env(self, **kwargs: Any) -> gymnasium.Env[Any, Any]:
        """Make one environment of the task.

        Args:
            **kwargs: More keyword arguments of ``gymnasium.make``, such as ``render_mode``.

        Raises:
            UnknownTaskError: The task names no environment, or Gymnasium cannot make it.
            MissingDependencyError: The environment's package is not installed.
        """
        if self.env_id is None:
            message = (
                f"task {self.name!r} names no environment: give one with env=, "
                "or load its dataset, which may name it"
            )
            raise UnknownTaskError(message, setting="env", value=self.name)
        return make_environment(self.env_id, {**self.env_kwargs, **kwargs})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        lists = {name: list(getattr(self, name)) for name in ("target_returns", "actions")}
        fields = {**dataclasses.asdict(self), **lists}
        if self.recipe == "paper":  # 0.1.0 had no other, and reads this
            del fields["recipe"]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Task:
        """Build a task from what :meth:`to_dict` returned.

        Raises:
            ConfigError: A field is unknown, or its value cannot be one.
        """
        values = {"recipe": "paper", **fields}  # 0.1.0 had no other
        if values.get("preprocessing", ...) is None:
            del values["preprocessing"]  # a field of files written before 0.2
        try:
            if values.get("reference") is not None:
                values["reference"] = ReferenceScores(**values["reference"])
            return cls(**values)
        except TypeError as error:
            message = f"these are not a task's fields: {error}"
            raise ConfigError(message, setting="task", value=sorted(values)) from error


_NAMESPACED_ID = re.compile(r"(?:[\w-]+/)+[\w.-]+-v\d+")


def list_tasks() -> list[Task]:
    """Return the tasks of the paper and of this package; :func:`get_task` knows many more."""
    papers = itertools.product(_PAPERS_ROBOTS, _PAPERS_QUALITIES)
    locomotion = [_d4rl_task(D4RLName(robot, quality, 2)) for robot, quality in papers]
    return [_bundled_task(), *locomotion, *map(_atari_task, _ATARI), *map(_tmaze, TMAZE_LENGTHS)]


def get_task(name: str) -> Task:
    """Return the task of a name.

    In this order: a named task (:func:`list_tasks`), any other Gym-MuJoCo dataset of D4RL
    (``"hopper-expert-v2"``), a T-maze of any length (``"tmaze-70"``), an environment registered
    with Gymnasium (``"Hopper-v5"``; ``"package:Name-v0"`` imports the package first,
    ``"ALE/Pong-v5"`` and ``"dm_control/cartpole-swingup-v0"`` need no import, ``"gym:Name-v0"`` is
    the old gym's), and a Minari dataset (``"hopper/medium-v0"``, or any id found in the local
    storage). A name is never translated: D4RL's ``"hopper-medium-v2"`` and Minari's
    ``"hopper/medium-v0"`` are different data.

    A Gymnasium id has no dataset and no targets; a Minari id has neither environment nor targets
    until its dataset, which may name them, is loaded.

    Raises:
        UnknownTaskError: The name is none of these; suggests close ones.
    """
    for task in list_tasks():
        if task.name == name:
            return task
    if name in list_names():
        return _d4rl_task(parse_name(name))
    if (length := parse_tmaze_name(name)) is not None:
        return _tmaze(length)
    if is_known_elsewhere(name) or _is_registered(name):
        return _gymnasium_task(name)
    if _is_local_minari_id(name) or _NAMESPACED_ID.fullmatch(name):
        return _minari_task(name)
    if name == "hopper-bundled":
        message = (
            'the data of "hopper-bundled" is no longer in the package: use "halfcheetah-bundled" '
            "(models trained on the former still load)"
        )
        raise UnknownTaskError(message, setting="task", value=name, choices=["halfcheetah-bundled"])
    near = _near_tasks(name)
    hint = f"{did_you_mean(near)} " if near else ""
    message = (
        f"no task is called {name!r}: {hint}`dmamba tasks` lists the named ones; a D4RL name "
        "(hopper-expert-v2), a registered Gymnasium id (Hopper-v5) and a Minari id "
        "(hopper/medium-v0) work too"
    )
    raise UnknownTaskError(message, setting="task", value=name, choices=near)


def get_reference_scores(env_id: str) -> ReferenceScores | None:
    """Return the scores measured in an environment, to normalise by; None where there are none.

    D4RL's scores belong to its named tasks alone: they are never returned for a bare environment.
    """
    return _MEASURED_REFERENCES.get(env_id)


def _gymnasium_task(env_id: str) -> Task:
    reference = get_reference_scores(env_id)
    source = {"env_id": "registered with Gymnasium"}
    if reference is not None:
        source["reference"] = reference.source
    text = f"The environment {env_id}; the dataset is yours to give"
    return Task(env_id, env_id, reference=reference, description=text, source=source)


def _minari_task(dataset_id: str) -> Task:
    text, source = f"The Minari dataset {dataset_id}", {"dataset": "the Minari id given"}
    return Task(dataset_id, dataset=dataset_id, description=text, source=source)


def _is_registered(name: str) -> bool:
    import gymnasium

    envs.register()
    if name in gymnasium.registry:
        return True
    module, _, env_id = name.partition(":")
    if not module or not env_id:
        return False
    try:
        importlib.import_module(module)  # as gymnasium.make does
    except (ImportError, TypeError):  # no module, or a relative name
        return False
    return env_id in gymnasium.registry


def _is_local_minari_id(name: str) -> bool:
    """Whether Minari's local storage holds the dataset; leaves the storage as it is."""
    if not re.fullmatch(r"[\w./-]+", name) or ".." in name or name.startswith("/"):
        return False
    return (minari_folder() / name / "data").is_dir()


def _near_tasks(name: str) -> list[str]:
    """Return up to five names like this one: named tasks that start so, then similar spellings."""
    import gymnasium

    tasks = [task.name for task in list_tasks()]
    newest: dict[tuple[str | None, str], tuple[int, str]] = {}  # version of each environment
    for env_id, spec in gymnasium.registry.items():
        versioned = (spec.version or 0, env_id)
        key = (spec.namespace, spec.name)
        newest[key] = max(newest.get(key, versioned), versioned)
    candidates = [*tasks, *list_names(), *(env_id for _, env_id in newest.values())]
    begun = [task for task in tasks if name and task.startswith(name.lower())][:2]
    return list(dict.fromkeys(begun + near_names(name, candidates, n=3)))


# --- Where the values come from ------------------------------------------------------------------

_PAPER = "Ota 2024 (arXiv:2403.19925), appendix and official code"
_D4RL = "D4RL (Fu et al. 2020, arXiv:2004.07219), the same for v0, v1 and v2"
_GAMER = "a random player and a human gamer, as Chen et al. 2021 normalise, without their rounding"
_MEASURED = "measured in this environment, 100 episodes each; not D4RL's"

_BUNDLED_DATASET = "sb3_dmamba/halfcheetah-v0"  # found in the package by this Minari id

# Version 5 of the environments changes the rewards: D4RL's scores do not apply to it.
_MEASURED_REFERENCES = {
    "Hopper-v5": ReferenceScores(16.6, 3521.0, _MEASURED),
    "Walker2d-v5": ReferenceScores(1.8, 4431.0, _MEASURED),
}

# --- Gym locomotion ------------------------------------------------------------------------------

_LOCOMOTION_REFERENCES = {
    "halfcheetah": ReferenceScores(-280.178953, 12135.0, _D4RL),
    "hopper": ReferenceScores(-20.272305, 3234.3, _D4RL),
    "walker2d": ReferenceScores(1.629008, 4592.3, _D4RL),
    "ant": ReferenceScores(-325.6, 3879.7, _D4RL),
}
_LOCOMOTION_TARGETS = {  # the paper has no ant: its targets are chosen from the dataset
    "halfcheetah": (6000.0, 12000.0, 24000.0, 120000.0, 240000.0),
    "hopper": (1800.0, 3600.0, 7200.0, 36000.0, 72000.0),
    "walker2d": (2500.0, 5000.0, 10000.0, 50000.0, 100000.0),
}
_PAPERS_ROBOTS = ("halfcheetah", "hopper", "walker2d")
_PAPERS_QUALITIES = ("medium", "medium-replay", "medium-expert")
_LOCOMOTION_WIDTH_AND_RATE = {  # every other dataset: 128 and 1e-3
    ("hopper", "medium"): (256, 1e-4),
    ("hopper", "medium-replay"): (256, 1e-4),
    ("walker2d", "medium"): (128, 1e-4),
}
_LOCOMOTION_RECIPE: dict[str, Any] = {
    "context_length": 20,
    "n_layers": 3,
    "channel_mixing": True,
    "dropout": 0.1,
    "embedding": "norm",
    "time_encoding": "timestep",
    "max_timestep": 1000,
    "return_scale": 1000.0,
    "n_updates": 100_000,
    "batch_size": 64,
    "warmup_updates": 10_000,
    "lr_schedule": "constant",
    "weight_decay": 1e-4,
    "max_grad_norm": 0.25,
}


def _d4rl_task(name: D4RLName) -> Task:
    robot = name.settings
    width, rate = _LOCOMOTION_WIDTH_AND_RATE.get((name.robot, name.quality), (128, 1e-3))
    targets = _LOCOMOTION_TARGETS.get(name.robot, ())
    recipe, origin = _describe_recipe(name)
    source = {
        "env_id": "nearest to D4RL's, which needs mujoco-py; v5 changes the rewards",
        "dataset": f"D4RL (Fu et al. 2020, arXiv:2004.07219), Gym-MuJoCo v{name.version}",
        "reference": _D4RL,
        "overrides": origin,
    }
    if targets:
        source["target_returns"] = f"{_PAPER}, for {name.robot}"
    if robot.env_kwargs:
        source["env_kwargs"] = "D4RL's observations have what they switch on"
    if name.quality == "medium-expert":
        source["dataset"] += (
            "; the official runs join the expert's and the medium file instead, as the option "
            "medium_expert='paper' does"
        )
    return Task(
        name=str(name),
        env_id=robot.env_id,
        env_kwargs=robot.env_kwargs,
        dataset=str(name),
        target_returns=targets,
        reference=_LOCOMOTION_REFERENCES[name.robot],
        recipe="paper",
        overrides={**_LOCOMOTION_RECIPE, "hidden_size": width, "learning_rate": rate},
        description=f"D4RL {name.robot} {name.quality}, {recipe}",
        source=source,
    )


def _describe_recipe(name: D4RLName) -> tuple[str, str]:
    """Return the recipe's name for the description, and its origin."""
    if name.robot not in _PAPERS_ROBOTS or name.quality not in _PAPERS_QUALITIES:
        origin = "none is published for this dataset: what the paper has for most others"
        return "which the paper does not have", f"{origin} ({_PAPER})"
    if name.version != 2:
        return "the paper's recipe of version 2", f"{_PAPER}, where it is for version 2"
    return "the paper's recipe", _PAPER


# --- Atari ---------------------------------------------------------------------------------------

_ATARI_TRANSITIONS = 500_000  # of the DQN replay, for each game
_ATARI_EPOCHS, _ATARI_BATCH_SIZE = 10, 256
_ATARI_WARMUP_TOKENS = 512 * 20
_ATARI_TOKENS_OF_STEP = 3  # in the official code's final_tokens = 2 * N * K * 3

# game: (context length, target return, random score, gamer's score)
_ATARI = {
    "Breakout": (30, 90.0, 1.7, 30.5),
    "Qbert": (30, 14000.0, 163.9, 13455.0),
    "Pong": (50, 20.0, -20.7, 14.6),
    "Seaquest": (30, 1150.0, 68.4, 42054.7),
}
_TARGETS_OF_DT = {"Qbert": 2500, "Seaquest": 1450}  # where the two papers differ
_ATARI_RECIPE: dict[str, Any] = {
    "hidden_size": 128,
    "n_layers": 6,
    "channel_mixing": True,
    "dropout": 0.1,
    "encoder": "nature_cnn",
    "embedding": "tanh",
    "time_encoding": "global",
    "max_timestep": 27_000,  # the emulator stops an episode at 108,000 frames, 4 frames a step
    "return_scale": 1.0,
    "n_updates": _ATARI_EPOCHS * math.ceil(_ATARI_TRANSITIONS / _ATARI_BATCH_SIZE),
    "batch_size": _ATARI_BATCH_SIZE,
    "learning_rate": 6e-4,
    "lr_schedule": "cosine",
    "final_lr_fraction": 0.1,
    "weight_decay": 0.1,
    "adam_betas": (0.9, 0.95),
    "max_grad_norm": 1.0,
}


def _atari_task(game: str) -> Task:
    context_length, target, minimum, maximum = _ATARI[game]
    target_source = (
        f"{_PAPER}, which takes raw rewards off it; here clipped ones, as the data has them"
    )
    if game in _TARGETS_OF_DT:
        target_source += (
            f". No game of the data comes near it in clipped rewards: it asks for as much as "
            f"there is, as Chen et al. 2021 do with {_TARGETS_OF_DT[game]}, about 5 times their "
            f"data's best. evaluate(clip_rewards=False) counts as the official code does"
        )
    return Task(
        name=game.lower(),
        env_id=ATARI_ID,
        env_kwargs={"game": game, "sticky_actions": 0.25, "terminal_on_life_loss": False},
        target_returns=(target,),
        reference=ReferenceScores(minimum, maximum, _GAMER),
        recipe="paper",
        overrides=_ATARI_RECIPE
        | {"context_length": context_length, **_atari_schedule(context_length)},
        clip_rewards=True,
        actions=MINIMAL_ACTIONS[game],
        description=f"Atari {game} from DQN replay, the paper's recipe",
        source={
            "env_id": "Arcade Learning Environment, with DQN replay's preprocessing",
            "env_kwargs": "how DQN replay was recorded (Agarwal et al. 2020, "
            "arXiv:1907.04543); the official code evaluates with sticky_actions=0.0",
            "target_returns": target_source,
            "reference": _GAMER,
            "overrides": _PAPER,
            "clip_rewards": "DQN replay holds clipped rewards; scores are raw",
            "actions": "the emulator's minimal set",
        },
    )


def _atari_schedule(context_length: int) -> dict[str, int]:
    """Convert the official schedule from its tokens, one an action (batch * K), to updates.

    Warm-up takes 512 * 20 of them, and the cosine ends at 2 * N * K * 3, six epochs in.
    """
    tokens_per_update = _ATARI_BATCH_SIZE * context_length
    final_tokens = 2 * _ATARI_TRANSITIONS * context_length * _ATARI_TOKENS_OF_STEP
    return {
        "warmup_updates": math.ceil(_ATARI_WARMUP_TOKENS / tokens_per_update),
        "decay_updates": math.ceil(final_tokens / tokens_per_update),
    }


# --- Bundled dataset -----------------------------------------------------------------------------


def _bundled_task() -> Task:
    return Task(
        name="halfcheetah-bundled",
        env_id="HalfCheetah-v5",
        dataset=_BUNDLED_DATASET,
        target_returns=(1500.0, 3000.0, 4500.0),
        overrides={"n_updates": 1200, "memory": "stream"},
        description="The dataset inside this package: five checkpoints of one SAC run",
        source={
            "env_id": "where the dataset was recorded",
            "dataset": "recorded by examples/build_halfcheetah_dataset.py",
            "target_returns": "evenly spread over the dataset's returns",
            "overrides": "minutes on a laptop CPU; every speed is followed for a whole episode",
        },
    )


# --- T-maze --------------------------------------------------------------------------------------

_TMAZE_SPARE_STEPS = 14  # that agents of the dataset waste, most of them


def _tmaze(length: int) -> Task:
    return Task(
        name=f"tmaze-{length}",
        env_id=TMAZE_ID,
        env_kwargs={"length": length},
        dataset=f"tmaze-{length}",
        target_returns=(1.0,),
        reference=ReferenceScores(0.0, 1.0, "never right, and always right without a detour"),
        recipe="paper",
        overrides={
            "hidden_size": 32,
            "n_layers": 2,
            "context_length": length + _TMAZE_SPARE_STEPS,
            "channel_mixing": False,
            "dropout": 0.0,
            "time_encoding": "none",
            "return_scale": 1.0,
            "memory": "stream",
            "carry_state": True,
            "batch_size": 32,
            "n_updates": 4000,
            "warmup_updates": 200,
            "learning_rate": 3e-3,
            "lr_schedule": "linear",
        },
        description=f"A T-maze: the first of {length} steps decides the last; scripted agents",
        source={
            "env_id": "after Bakker 2002, NeurIPS 14",
            "env_kwargs": "the length in the name",
            "dataset": "scripted agents that waste steps and choose wrong half the time",
            "target_returns": "the most there is",
            "reference": "the rewards of the environment",
            "overrides": "a window as long as the corridor, carried on where an episode is longer; "
            "chosen on tmaze-50",
        },
    )
