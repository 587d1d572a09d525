"""Catalogue of experiments: the question each asks, the variants it compares, the tasks it uses.

The small tasks (``hopper``, ``pendulum``, ...) and every experiment are data below the classes
that describe them. A run is identified by its settings, so variants
with equal settings are trained once, whichever experiments list them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.config import DecisionMambaConfig, Memory, Recipe
from sb3_dmamba.envs import ATARI_ID
from sb3_dmamba.errors import ConfigError
from sb3_dmamba.tasks import Task, get_reference_scores

Each = TypeVar("Each")


@dataclass(frozen=True)
class Variant:
    """One of the settings that an experiment compares.

    Args:
        settings: Fields of ``DecisionMambaConfig`` on top of the task's recipe; of a peer, fields
            of d3rlpy's config, as ``serialize_to_dict`` has them.
        data_options: Options of ``load_trajectories`` on top of the task's.
        description: A note for the report, where the name does not say enough.
        relative: Computes settings from the recipe's; ``settings`` come after them.
        recipe: ``"default"`` or ``"paper"``: replaces the task's recipe and its changes to it.
        algorithm: A peer: ``"d3rlpy:IQL"`` and so on; empty is Decision Mamba. The experiment's
            and the user's settings are not a peer's.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    data_options: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    relative: Callable[[DecisionMambaConfig], Mapping[str, Any]] | None = None
    recipe: Recipe | None = None
    algorithm: str = ""


@dataclass(frozen=True)
class Published:
    """Scores that others have reported."""

    scores: Mapping[str, Mapping[str, str]]  # by task and method, as they were printed
    is_normalized: bool  # 0 and 100 are the task's reference
    notes: str


@dataclass(frozen=True)
class Experiment:
    """A question, and the trainings that answer it.

    Args:
        name: As on the command line.
        title: Its subject, in a few words.
        question: What it asks, and what the paper says about it.
        variants: What is trained, by name; the others are compared with the first.
        tasks: Names of the default tasks.
        memories: The memories that every training is evaluated with.
        n_episodes: Episodes of each target.
        seeds: Training seeds.
        evaluations: Evaluations of a training, evenly spread; 1 evaluates the last weights alone.
        settings: Fields of ``DecisionMambaConfig`` that all variants share, on top of the recipe.
        deterministic: Whether discrete actions are the likeliest ones, or drawn.
        published: Scores that others have reported, shown beside ours.
        data_options: Gives a task's data options, of the task's name, source and training seed.
        keep_data: Whether loaded data is kept as stores beside the runs, since loading is slow.
        processor_seconds: Processor time of each training, which decides its number of updates;
            None leaves that to the recipe.

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
    data_options: Callable[[str, str, int], dict[str, Any]] = lambda *_: {}
    keep_data: bool = False
    processor_seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.variants:
            raise ConfigError(f"experiment {self.name!r} has no variants", setting="variants")

    @property
    def baseline(self) -> str:
        """The variant that the others are compared with."""
        return next(iter(self.variants))


@dataclass(frozen=True)
class MeasurementRequest:
    """The user's options of a measurement.

    Args:
        out: Folder of the report.
        command: What reproduces it.
        variants: The variants to measure; empty is all.
        settings: Fields of ``DecisionMambaConfig`` for all variants.
        device: Where to compute.
        threads: Threads to compute with.
    """

    out: Path
    command: str
    variants: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    threads: int = 1


@dataclass(frozen=True)
class Measurement:
    """An experiment that measures costs and trains nothing.

    Args:
        name: As on the command line.
        title: Its subject, in a few words.
        question: What it asks.
        variants: Settings of what is measured, by name.
        function: ``"module:function"`` of a measurement and a request; returns the files written.
        rebuilder: ``"module:function"`` of a folder; makes its report again, and returns it.
    """

    name: str
    title: str
    question: str
    variants: Mapping[str, Mapping[str, Any]]
    function: str
    rebuilder: str

    def run(self, request: MeasurementRequest) -> list[Path]:
        """Measure, and write the report.

        Raises:
            ConfigError: A variant or setting is unknown.
            ExperimentError: A variant computes something else than the reference implementation.
        """
        files: list[Path] = resolve_name(self.function)(self, request)
        return files

    def rebuild(self, folder: Path) -> Path:
        """Make the report in a folder again from the files in it.

        Raises:
            ExperimentError: A file is missing or damaged.
        """
        report: Path = resolve_name(self.rebuilder)(folder)
        return report


def list_experiments() -> list[Experiment]:
    """Return every experiment that trains."""
    return list(_EXPERIMENTS)


def list_measurements() -> list[Measurement]:
    """Return every experiment that measures and trains nothing."""
    return [_EFFICIENCY]


def get_experiment(name: str) -> Experiment | Measurement:
    """Return an experiment by its name.

    Raises:
        ConfigError: There is none; suggests a close one.
    """
    known = {each.name: each for each in (*_EXPERIMENTS, _EFFICIENCY)}
    if name not in known:
        hint = did_you_mean(near_names(name, known)) or f"there are {', '.join(known)}"
        message = f"no experiment is called {name!r}: {hint}"
        raise ConfigError(message, setting="experiment", value=name, choices=known)
    return known[name]


def choose_variants(
    experiment: str, variants: Mapping[str, Each], names: Iterable[str]
) -> dict[str, Each]:
    """Return the variants of these names in the experiment's order; all where none is named."""
    chosen = list(names) or list(variants)
    for name in chosen:
        if name not in variants:
            known = ", ".join(map(repr, variants))
            message = f"{experiment} has no variant {name!r}: it has {known}"
            raise ConfigError(message, setting="variants", value=name, choices=variants)
    return {name: each for name, each in variants.items() if name in chosen}


# --- Small tasks ---------------------------------------------------------------------------------

SMALL_RECIPE: dict[str, Any] = {
    "hidden_size": 64,
    "n_layers": 2,
    "context_length": 20,
    "batch_size": 64,
    "n_updates": 1500,
    "learning_rate": 1e-3,
    "warmup_updates": 150,
    "lr_schedule": "linear",
    "final_lr_fraction": 0.1,
    "dropout": 0.1,
}
# The paper's shape with a tenth of its updates. The schedule decays, and dropout and weight decay
# are higher, so that the loss on held-out episodes still falls at the end (docs/results.md). bf16
# takes 0.7 of the time on a CPU that multiplies in it natively; "auto" takes it there alone.
_HOPPER = {
    **SMALL_RECIPE,
    "precision": "auto",
    "hidden_size": 128,
    "n_layers": 3,
    "n_updates": 10_000,
    "warmup_updates": 1000,
    "dropout": 0.2,
    "weight_decay": 0.1,
}
_BREAKOUT: dict[str, Any] = {
    "hidden_size": 128,
    "n_layers": 3,
    "context_length": 10,
    "encoder": "nature_cnn",
    "embedding": "tanh",
    "batch_size": 64,
    "n_updates": 3000,
    "learning_rate": 6e-4,
    "warmup_updates": 300,
    "lr_schedule": "cosine",
    "final_lr_fraction": 0.1,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "return_scale": 10.0,
    "max_timestep": 10_000,
}


def list_small_tasks() -> list[Task]:
    """Return the tasks that two CPU cores train in minutes."""
    return [
        Task(
            name="hopper",
            recipe="paper",
            env_id="Hopper-v5",
            dataset="hopper/medium-v0",
            # five within the data's range, evenly spread, and one out of reach
            target_returns=(1000.0, 1600.0, 2300.0, 3000.0, 3600.0, 7200.0),
            reference=get_reference_scores("Hopper-v5"),
            overrides=_HOPPER,
            description="Hopper-v5 of mixed quality",
        ),
        Task(
            name="hopper-medium-replay",
            env_id="Hopper-v5",
            dataset="hopper/medium-replay-v0",
            target_returns=(700.0, 1400.0, 2100.0, 2800.0),
            reference=get_reference_scores("Hopper-v5"),
            description="Hopper-v5, all that an agent saw until it was of medium quality",
        ),
        Task(
            name="walker2d-medium-replay",
            env_id="Walker2d-v5",
            dataset="walker2d/medium-replay-v0",
            target_returns=(1000.0, 2000.0, 3000.0, 3900.0),
            reference=get_reference_scores("Walker2d-v5"),
            description="Walker2d-v5, all that an agent saw until it was of medium quality",
        ),
        Task(
            name="pendulum",
            recipe="paper",
            env_id="Pendulum-v1",
            dataset="pendulum/mixed-v0",
            target_returns=(-1400.0, -1000.0, -600.0, -300.0, -100.0),
            # with a longer context the model repeats its previous actions
            overrides=SMALL_RECIPE
            | {"context_length": 5, "return_scale": 1000.0, "max_timestep": 200},
            description="Pendulum-v1, several agents with random actions in between",
        ),
        Task(
            name="cartpole",
            recipe="paper",
            env_id="CartPole-v1",
            dataset="cartpole/mixed-v0",
            target_returns=(20.0, 60.0, 120.0, 250.0, 500.0),
            overrides=SMALL_RECIPE | {"return_scale": 100.0, "max_timestep": 500},
            description="CartPole-v1, several agents with random actions in between",
        ),
        Task(
            name="breakout-small",
            recipe="paper",
            env_id=ATARI_ID,
            env_kwargs={"game": "Breakout", "sticky_actions": 0.0, "terminal_on_life_loss": False},
            dataset="dqn-replay/Breakout",
            target_returns=(10.0, 30.0, 60.0, 90.0),
            overrides=_BREAKOUT,
            clip_rewards=True,
            description="Breakout from frames of a scripted player",
        ),
    ]


_SMALL_TASKS = ("hopper", "pendulum", "cartpole")  # the default of most experiments
_ROBOTS = ("hopper", "hopper-medium-replay", "walker2d-medium-replay")

# --- Networks that several experiments train -----------------------------------------------------


def _network(mixer: str, *, mlp: bool = True, time: str = "timestep") -> dict[str, Any]:
    return {"mixer": mixer, "channel_mixing": mlp, "time_encoding": time}


_MAMBA_MLP = _network("mamba")
_MAMBA = _network("mamba", mlp=False)
_MAMBA_ALONE = _network("mamba", mlp=False, time="none")
_ATTENTION = _network("attention")
_DELAYED = {"reward_mode": "delayed"}


def _long_windows(recipe: DecisionMambaConfig) -> dict[str, Any]:
    batch_size = max(1, round(recipe.batch_size / 3))
    return {"context_length": 3 * recipe.context_length, "batch_size": batch_size}


_CHOICES: dict[str, dict[str, Any]] = {  # of fields of the default recipe: variants' names, values
    "conditioning": {"sequence": "sequence", "decoupled": "decoupled"},
    "sampling": {"uniform": "uniform", "balanced": "balanced"},
    "ema_decay": {"raw": 0.0, "averaged": 0.998},
    "channel_mixing": {"no MLP": False, "with MLP": True},
    "context_length": {"K 20": 20, "K 10": 10},
}


def _vary_the_default() -> dict[str, Variant]:
    """Return variants of the default recipe, each with another value of one setting."""
    default = DecisionMambaConfig()
    now = {name: getattr(default, name) for name in _CHOICES}
    now["channel_mixing"] = default.resolved_channel_mixing
    now["sampling"] = default.resolved_sampling
    variants = {}
    for field_name, choices in _CHOICES.items():
        name, value = next(item for item in choices.items() if item[1] != now[field_name])
        variants[name] = Variant({field_name: value}, recipe="default")
    return variants


# --- Peers: d3rlpy's algorithms, with the settings of its own reproductions ----------------------

D3RLPY_TRANSFORMER = "d3rlpy:DecisionTransformer"
"""The one peer that is asked for a return, and that remembers."""

_STANDARDIZED = {"observation_scaler": {"type": "standard", "params": {"eps": 1e-3}}}
_MLP_256 = {"type": "vector", "params": {"hidden_units": [256, 256, 256]}}


def _schedule_d3rlpy(kind: str, **params: Any) -> dict[str, Any]:
    return {"lr_scheduler_factory": {"type": kind, "params": params}}


def _peers_transformer(run: DecisionMambaConfig) -> dict[str, Any]:
    warmup = _schedule_d3rlpy("warmup", warmup_steps=max(1, run.resolved_n_updates // 10))
    optimizer = {"weight_decay": 1e-4, "clip_grad_norm": 0.25, **warmup}
    return {"optim_factory": {"type": "gpt_adam_w", "params": optimizer}}


def _peers_cosine(run: DecisionMambaConfig) -> dict[str, Any]:
    schedule = _schedule_d3rlpy("cosine_annealing", T_max=run.resolved_n_updates)
    return {"actor_optim_factory": {"type": "adam", "params": schedule}}


_PEERS = {
    "d3rlpy DT": Variant(
        {
            "context_size": 20,
            "encoder_factory": {
                "type": "vector",
                "params": {"hidden_units": [128], "exclude_last_activation": True},
            },
            "reward_scaler": {"type": "multiply", "params": {"multiplier": 0.001}},
            **_STANDARDIZED,
        },
        relative=_peers_transformer,
        algorithm=D3RLPY_TRANSFORMER,
        description="d3rlpy's Decision Transformer; AdamW, warm-up over a tenth of the updates",
    ),
    "IQL": Variant(
        {"reward_scaler": {"type": "return", "params": {"multiplier": 1000.0}}},
        relative=_peers_cosine,
        algorithm="d3rlpy:IQL",
        description="the actor's learning rate falls to zero (cosine)",
    ),
    "TD3+BC": Variant(_STANDARDIZED, algorithm="d3rlpy:TD3PlusBC"),
    "CQL": Variant(
        {
            "actor_encoder_factory": _MLP_256,
            "critic_encoder_factory": _MLP_256,
            "alpha_learning_rate": 0.0,
        },
        algorithm="d3rlpy:CQL",
    ),
    "BC": Variant(_STANDARDIZED, algorithm="d3rlpy:BC"),
    "BC of the best 10 %": Variant(_STANDARDIZED, {"top_fraction": 0.1}, algorithm="d3rlpy:BC"),
}

# --- Tables of the paper -------------------------------------------------------------------------

# Ota 2024 (arXiv:2403.19925): Decision Transformer and Decision Mamba
_TABLE_1 = {  # normalised scores
    "halfcheetah-medium-v2": ("42.6", "42.8"),
    "hopper-medium-v2": ("67.6", "83.5 ± 12.5"),
    "walker2d-medium-v2": ("74.0", "78.2"),
    "halfcheetah-medium-replay-v2": ("36.6", "39.6"),
    "hopper-medium-replay-v2": ("82.7", "82.6"),
    "walker2d-medium-replay-v2": ("66.6", "70.9"),
    "halfcheetah-medium-expert-v2": ("86.8", "91.9"),
    "hopper-medium-expert-v2": ("107.6", "111.1"),
    "walker2d-medium-expert-v2": ("108.1", "108.3"),
}
_TABLE_2 = {  # raw scores
    "breakout": ("76.9", "70.6"),
    "qbert": ("2215.8", "5786.0"),
    "pong": ("17.1", "1.6 ± 15.3"),
    "seaquest": ("1129.3", "992.1"),
}


def _by_method(table: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    return {task: {"DT": dt, "DMamba": dmamba} for task, (dt, dmamba) in table.items()}


def _d4rl_options(task: str, source: str, seed: int) -> dict[str, Any]:
    """Join the expert's and the medium data as the official runs do; files are taken as given."""
    return {"medium_expert": "paper"} if source == task and "medium-expert" in task else {}


def _replay_options(task: str, source: str, seed: int) -> dict[str, Any]:
    """Draw the paper's sample of the DQN replay; other sources are loaded whole."""
    if Path(source).name != "replay_logs" and not any(Path(source).glob("**/replay_logs")):
        return {}
    return {"n_buffers": 50, "trajectories_per_buffer": 10, "n_steps": 500_000, "seed": seed}


# --- The experiments -----------------------------------------------------------------------------

_EXPERIMENTS = (
    Experiment(
        name="mixers",
        title="Mamba, attention, convolution",
        question="Does Mamba do at least as well as attention (Decision Transformer) and local "
        "convolution (Decision ConvFormer) at equal updates, and what does each cost? The paper "
        "compares scores alone, the best of a run; here are the last weights, with the time they "
        "took.",
        variants={
            "mamba": Variant(_MAMBA_MLP),
            "attention": Variant(_ATTENTION),
            "convolution": Variant(_network("convolution")),
            "mamba, no mlp": Variant(_MAMBA, description="as in the paper's Table 3"),
            "mamba alone": Variant(_MAMBA_ALONE, description="no MLP and no time encoding"),
        },
        tasks=_SMALL_TASKS,
        memories=("window", "stream"),
    ),
    Experiment(
        name="channel-mixing",
        title="With and without channel mixing",
        question="Does Mamba need the MLP that follows it in each block? The paper's Table 3 "
        "removes it and finds comparable scores, the best of each run. A wider Mamba without an "
        "MLP tells capacity from mixing; the time encoding, which Mamba can do without as well, "
        "is taken away from both.",
        variants={
            "mamba+mlp": Variant(_MAMBA_MLP),
            "mamba": Variant(_MAMBA),
            "mamba, expand 4": Variant(
                {**_MAMBA, "expand": 4}, description="twice the inner width and no MLP"
            ),
            "mamba+mlp, no time": Variant(_network("mamba", time="none")),
            "mamba, no time": Variant(_MAMBA_ALONE),
        },
        tasks=_SMALL_TASKS,
        memories=("window", "stream"),
    ),
    Experiment(
        name="time-encoding",
        title="With and without a time encoding",
        question="The paper's models see which step of the episode it is, by a learned embedding "
        "that attention was given to tell the order and that Mamba can do without. It tells more "
        "than the order: where episodes fail at a certain step, a model may learn to fail there "
        "too. Does it help, and is what it does a matter of the mixer?",
        variants={
            "mamba, timestep": Variant(_MAMBA),
            "mamba, none": Variant(_MAMBA_ALONE),
            "attention, timestep": Variant(_ATTENTION),
            "attention, none": Variant(
                _network("attention", time="none"),
                description="the order is known by the causal mask alone",
            ),
        },
        tasks=_SMALL_TASKS,
        memories=("window", "stream"),
    ),
    Experiment(
        name="context-length",
        title="Steps of context",
        question="How much does the context length K matter? The paper's ablation finds other "
        "effects on Breakout than on Qbert, and leaves the question open. K 1 sees the present "
        "alone.",
        variants={
            f"K {length}": Variant({"context_length": length})
            for length in (20, 1, 5, 10, 30, 50, 100)
        },
        tasks=("hopper",),
        memories=("window", "stream"),
        settings=_MAMBA_MLP,
    ),
    Experiment(
        name="init",
        title="Mamba's initialisation and the official code's",
        question="The official code draws every linear layer from N(0, 0.02) with zero bias, "
        "Mamba's included, so its step size starts near softplus(0) = 0.69 instead of 0.001 to "
        "0.1. Does it matter?",
        variants={"mamba": Variant({"init": "mamba"}), "paper": Variant({"init": "paper"})},
        tasks=_SMALL_TASKS,
        memories=("window", "stream"),
        settings=_MAMBA_MLP,
    ),
    Experiment(
        name="memory",
        title="Window and stream",
        question="The paper encodes the last K steps anew at each step. Carrying the recurrent "
        "state instead costs the same at every step and is another policy, one that training on "
        "windows of K steps has not seen. How much does it lose, and what training makes up for "
        "it?",
        variants={
            "windows": Variant(description="windows of K steps, as the paper trains"),
            "long windows": Variant(
                relative=_long_windows,
                description="windows of 3 K steps, and a third of them in a batch",
            ),
            "burn-in": Variant(
                relative=lambda recipe: {"burn_in": 2 * recipe.context_length},
                description="the 2 K steps before each window of K bring the state to its start",
            ),
            "carried state": Variant(
                {"carry_state": True},
                description="truncated backpropagation through time: windows follow each other",
            ),
        },
        tasks=_SMALL_TASKS,
        memories=("window", "stream"),
        settings=_MAMBA_MLP,
    ),
    Experiment(
        name="long-memory",
        title="Memory beyond the window",
        question="In a T-maze the side to turn to is shown at the first step and needed 50 steps "
        "later. A window of 20 steps cannot hold both, so what reaches more than half of the "
        "rewards remembers by other means: a longer window, or a state that training has taught "
        "to last. Does Mamba's state learn that, at the same cost for every step?",
        # The task's recipe carries the state over whole episodes, so each variant sets it.
        variants={
            "windows of 20": Variant({**_MAMBA_ALONE, "carry_state": False, "context_length": 20}),
            "burn-in of 40": Variant(
                {**_MAMBA_ALONE, "carry_state": False, "context_length": 20, "burn_in": 40}
            ),
            "carried state": Variant({**_MAMBA_ALONE, "context_length": 20, "carry_state": True}),
            "windows of 64": Variant({**_MAMBA_ALONE, "carry_state": False, "context_length": 64}),
            "whole episodes": Variant(
                {**_MAMBA_ALONE, "context_length": 64, "carry_state": True},
                description="windows of 64 that follow each other from an episode's first step on",
            ),
            "attention, whole episodes": Variant(
                {**_ATTENTION, "context_length": 64, "carry_state": True}
            ),
        },
        tasks=("tmaze-50",),
        memories=("window", "stream"),
        n_episodes=100,
    ),
    Experiment(
        name="sparse",
        title="Delayed rewards",
        question="What is lost where an episode's return is known at its end alone, so that the "
        "return-to-go says nothing about how things stand? The Decision Transformer's authors "
        "report little loss on such data; the paper does not try. A model of such data acts with "
        "a return-to-go that stays what was asked for; what is scored is the same in all variants.",
        variants={
            "mamba, dense": Variant(_MAMBA_MLP),
            "mamba, delayed": Variant(_MAMBA_MLP, _DELAYED),
            "attention, dense": Variant(_ATTENTION),
            "attention, delayed": Variant(_ATTENTION, _DELAYED),
        },
        tasks=("hopper", "pendulum"),
        memories=("window", "stream"),
    ),
    Experiment(
        name="size",
        title="Width and depth",
        question="Which size does the data call for? The paper uses width 128 or 256 and 3 layers "
        "on locomotion, 6 on Atari, and tries no other.",
        variants={
            f"width {width}, {n} layer{'' if n == 1 else 's'}": Variant(
                {"hidden_size": width, "n_layers": n}
            )
            for width, n in ((128, 3), (32, 3), (64, 3), (256, 3), (128, 1), (128, 2), (128, 6))
        },
        tasks=("hopper",),
        settings=_MAMBA_MLP,
    ),
    Experiment(
        name="recipes",
        title="The default recipe and its alternatives",
        question="Which recipe comes closest to the return asked for, at equal processor time "
        "rather than equal updates? The default recipe, the paper's (all defaults of version "
        "0.1.0), and the default with one setting changed. The default was chosen on seeds 0 and "
        "1; the seeds reported by default are fresh, 10 to 14.",
        variants={
            "default": Variant(recipe="default"),
            "paper": Variant(recipe="paper"),
            **_vary_the_default(),
        },
        tasks=(*_ROBOTS, "pendulum", "cartpole"),
        memories=("window", "stream"),
        n_episodes=20,
        seeds=(10, 11, 12, 13, 14),
        processor_seconds=100.0,
    ),
    Experiment(
        name="peers",
        title="Decision Mamba and other offline RL",
        question="Where does Decision Mamba stand beside what one would take instead, at equal "
        "processor time and on the same evaluation seeds? d3rlpy trains its own algorithms, with "
        "the settings of its reproductions. IQL, TD3+BC, CQL and BC cannot be asked for a return: "
        "the one that they reach stands in every target's column.",
        variants={
            "default": Variant(recipe="default"),
            "paper": Variant(recipe="paper"),
            "attention": Variant({"mixer": "attention"}, recipe="default"),
            "convolution": Variant({"mixer": "convolution"}, recipe="default"),
            **_PEERS,
        },
        tasks=_ROBOTS,
        n_episodes=20,
        seeds=(10, 11, 12, 13, 14),
        evaluations=5,
        processor_seconds=100.0,
    ),
    Experiment(
        name="d4rl",
        title="Locomotion (D4RL)",
        question="Does the paper's Table 1 reproduce? Its recipe, seeds and targets on the nine "
        "datasets; 100 episodes of each of five targets, ten times in a training. The paper "
        "reports the best evaluation of a training, so the last weights and the best ones are "
        "told apart here.",
        variants={"mamba": Variant({"mixer": "mamba"})},
        tasks=tuple(_TABLE_1),
        n_episodes=100,
        seeds=(12, 23, 34, 45, 51),
        evaluations=10,
        published=Published(
            scores=_by_method(_TABLE_1),
            is_normalized=True,
            notes="DT and DMamba are the paper's Table 1, the maximum over the evaluations of a "
            "training (its author, in the issue tracker of the official code); ours are on "
            "version 4 of the environments, the nearest that needs no mujoco-py. The best "
            "published by a relative of this method is 83.2 on average (arXiv:2406.05427).",
        ),
        data_options=_d4rl_options,
    ),
    Experiment(
        name="atari",
        title="Atari (DQN replay)",
        question="Does the paper's Table 2 reproduce? Its recipe and seeds on four games: ten "
        "passes over 500,000 steps of the DQN replay, 10 episodes with drawn actions after each. "
        "Scores are raw and of whole games; the return asked for counts clipped rewards, as the "
        "data does.",
        variants={"mamba": Variant({"mixer": "mamba"})},
        tasks=tuple(_TABLE_2),
        n_episodes=10,
        seeds=(123, 231, 312),
        evaluations=10,
        deterministic=False,
        published=Published(
            scores=_by_method(_TABLE_2),
            is_normalized=False,
            notes="DT and DMamba are the paper's Table 2, the maximum over the evaluations of a "
            "training (its author, in the issue tracker of the official code).",
        ),
        data_options=_replay_options,
        keep_data=True,
    ),
)

_EFFICIENCY = Measurement(
    name="efficiency",
    title="Time, memory and operations",
    question="The paper does not explore efficiency, which is what Mamba is known for. What does "
    "an update cost, and a step of acting, in time, memory and operations, as the context grows?",
    variants={
        "mamba": _MAMBA_ALONE,
        "mamba, decoupled": {**_MAMBA_ALONE, "conditioning": "decoupled"},
        "mamba+mlp": _network("mamba", time="none"),
        "attention+mlp": {"mixer": "attention", "channel_mixing": True},
        "convolution+mlp": {"mixer": "convolution", "channel_mixing": True},
    },
    function="sb3_dmamba.experiments.efficiency:measure_efficiency",
    rebuilder="sb3_dmamba.experiments.efficiency:rebuild_efficiency",
)
