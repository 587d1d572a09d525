"""The experiments: the question each asks and the variants it compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from sb3_dmamba.checks import did_you_mean, near_names
from sb3_dmamba.config import DecisionMambaConfig, Memory
from sb3_dmamba.errors import ConfigError


@dataclass(frozen=True)
class MeasurementRequest:
    """What the user asks for.

    Args:
        out: Folder of the report.
        command: What reproduces it.
        variants: The variants to measure; none is all.
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
    """A question, and the function that answers it.

    Args:
        name: As on the command line.
        title: The report's.
        question: What it asks.
        variants: Settings of what is measured, by name.
        function: ``"module:function"`` of a measurement and a request; returns the files written.
        rebuilder: ``"module:function"`` of a report's folder, which makes the report again from
            the files in it; returns the report.
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
            ExperimentError: What would be timed computes something else than it should.
        """
        files: list[Path] = _import(self.function)(self, request)
        return files

    def rebuild(self, folder: Path) -> Path:
        """Make the report in a folder again from the files in it.

        Raises:
            ExperimentError: A file is missing or damaged.
        """
        report: Path = _import(self.rebuilder)(folder)
        return report


def _import(name: str) -> Any:
    module, function = name.split(":")
    return getattr(import_module(module), function)


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


INIT_EXPERIMENT = Experiment(
    name="init",
    title="Mamba's initialisation and the official code's",
    question=(
        "The official code draws every linear layer from N(0, 0.02) with zero bias, Mamba's "
        "included, so its step size starts near softplus(0) = 0.69 instead of 0.001 to 0.1. "
        "Does it matter?"
    ),
    variants={"mamba": Variant({"init": "mamba"}), "paper": Variant({"init": "paper"})},
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),
    settings={"mixer": "mamba", "channel_mixing": True, "time_encoding": "timestep"},
)

_LENGTHS = (20, 1, 5, 10, 30, 50, 100)

CONTEXT_LENGTH_EXPERIMENT = Experiment(
    name="context-length",
    title="Steps of context",
    question=(
        "How much does the context length K matter? The paper's ablation finds other effects on "
        "Breakout than on Qbert, and leaves the question open. K 1 sees the present alone."
    ),
    variants={f"K {length}": Variant({"context_length": length}) for length in _LENGTHS},
    tasks=("hopper",),
    memories=("window", "stream"),
    settings={"mixer": "mamba", "channel_mixing": True, "time_encoding": "timestep"},
)

MEASUREMENT = Measurement(
    name="efficiency",
    title="Time, memory and operations",
    question=(
        "The paper does not explore efficiency, which is what Mamba is known for. What does an "
        "update cost, and a step of acting, in time, memory and operations, as the context grows?"
    ),
    variants={
        "mamba": {"mixer": "mamba", "channel_mixing": False, "time_encoding": "none"},
        "mamba+mlp": {"mixer": "mamba", "channel_mixing": True, "time_encoding": "none"},
        "attention+mlp": {"mixer": "attention", "channel_mixing": True},
        "convolution+mlp": {"mixer": "convolution", "channel_mixing": True},
    },
    function="sb3_dmamba.experiments.efficiency:measure_efficiency",
    rebuilder="sb3_dmamba.experiments.efficiency:rebuild_efficiency",
)

_SIZES = ((128, 3), (32, 3), (64, 3), (256, 3), (128, 1), (128, 2), (128, 6))

SIZE_EXPERIMENT = Experiment(
    name="size",
    title="Width and depth",
    question=(
        "Which size does the data call for? The paper uses width 128 or 256 and 3 layers on "
        "locomotion, 6 on Atari, and tries no other."
    ),
    variants={
        f"width {width}, {layers} layer{'s' if layers > 1 else ''}": Variant(
            {"hidden_size": width, "n_layers": layers}
        )
        for width, layers in _SIZES
    },
    tasks=("hopper",),
    settings={"mixer": "mamba", "channel_mixing": True, "time_encoding": "timestep"},
)

_MAMBA = {"mixer": "mamba", "channel_mixing": True, "time_encoding": "timestep"}
_ATTENTION = {"mixer": "attention", "channel_mixing": True, "time_encoding": "timestep"}
_DELAYED = {"reward_mode": "delayed"}

SPARSE_EXPERIMENT = Experiment(
    name="sparse",
    title="Delayed rewards",
    question=(
        "What is lost where an episode's return is known at its end alone, so that the "
        "return-to-go says nothing about how things stand? The Decision Transformer's authors "
        "report little loss on such data; the paper does not try. A model of such data acts with a "
        "return-to-go that stays what was asked for; what is scored is the same in all variants."
    ),
    variants={
        "mamba, dense": Variant(_MAMBA),
        "mamba, delayed": Variant(_MAMBA, _DELAYED),
        "attention, dense": Variant(_ATTENTION),
        "attention, delayed": Variant(_ATTENTION, _DELAYED),
    },
    tasks=("hopper", "pendulum"),
    memories=("window", "stream"),  # as `mixers`, which trains some of the same
)

_channel_mixing_MAMBA = {"mixer": "mamba", "time_encoding": "timestep"}
_TIMELESS = {"mixer": "mamba", "time_encoding": "none"}

CHANNEL_MIXING_EXPERIMENT = Experiment(
    name="channel-mixing",
    title="With and without channel mixing",
    question=(
        "Does Mamba need the MLP that follows it in each block? The paper's Table 3 removes it and "
        "finds comparable scores, the best of each run. A wider Mamba without an MLP tells "
        "capacity from mixing; the time encoding, which Mamba can do without as well, is taken "
        "away from both."
    ),
    variants={
        "mamba+mlp": Variant({**_channel_mixing_MAMBA, "channel_mixing": True}),
        "mamba": Variant({**_channel_mixing_MAMBA, "channel_mixing": False}),
        "mamba, expand 4": Variant(
            {**_channel_mixing_MAMBA, "channel_mixing": False, "expand": 4},
            description="twice the inner width and no MLP",
        ),
        "mamba+mlp, no time": Variant({**_TIMELESS, "channel_mixing": True}),
        "mamba, no time": Variant({**_TIMELESS, "channel_mixing": False}),
    },
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),  # as `mixers`, which trains some of the same
)

# Mamba without the MLP, whose cells `channel-mixing` and `mixers` train too.
_time_encoding_MAMBA = {"mixer": "mamba", "channel_mixing": False}
_time_encoding_ATTENTION = {"mixer": "attention", "channel_mixing": True}

TIME_ENCODING_EXPERIMENT = Experiment(
    name="time-encoding",
    title="With and without a time encoding",
    question=(
        "The paper's models see which step of the episode it is, by a learned embedding that "
        "attention was given to tell the order and that Mamba can do without. It tells more than "
        "the order: where episodes fail at a certain step, a model may learn to fail there too. "
        "Does it help, and is what it does a matter of the mixer?"
    ),
    variants={
        "mamba, timestep": Variant({**_time_encoding_MAMBA, "time_encoding": "timestep"}),
        "mamba, none": Variant({**_time_encoding_MAMBA, "time_encoding": "none"}),
        "attention, timestep": Variant({**_time_encoding_ATTENTION, "time_encoding": "timestep"}),
        "attention, none": Variant(
            {**_time_encoding_ATTENTION, "time_encoding": "none"},
            description="the order is known by the causal mask alone",
        ),
    },
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),  # as `mixers`, which trains some of the same
)

# One thing differs between the first three. The others are what Mamba may do without: its gate
# mixes channels (Table 3 of the paper), and it knows the order by itself.
_EQUAL = {"channel_mixing": True, "time_encoding": "timestep"}

MIXERS_EXPERIMENT = Experiment(
    name="mixers",
    title="Mamba, attention, convolution",
    question=(
        "Does Mamba do at least as well as attention (Decision Transformer) and local convolution "
        "(Decision ConvFormer) at equal updates, and what does each cost? The paper compares "
        "scores alone, the best of a run; here are the last weights, with the time they took."
    ),
    variants={
        "mamba": Variant({"mixer": "mamba", **_EQUAL}),
        "attention": Variant({"mixer": "attention", **_EQUAL}),
        "convolution": Variant({"mixer": "convolution", **_EQUAL}),
        "mamba, no mlp": Variant(
            {"mixer": "mamba", "channel_mixing": False, "time_encoding": "timestep"},
            description="as in the paper's Table 3",
        ),
        "mamba alone": Variant(
            {"mixer": "mamba", "channel_mixing": False, "time_encoding": "none"},
            description="no MLP and no time encoding",
        ),
    },
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),
)

_long_memory_MAMBA = {"mixer": "mamba", "channel_mixing": False, "time_encoding": "none"}
# The task's recipe carries the state over whole episodes: each variant says what it does instead.
_WINDOWS = {"carry_state": False}
_WHOLE = {"context_length": 64, "carry_state": True}

LONG_MEMORY_EXPERIMENT = Experiment(
    name="long-memory",
    title="Memory beyond the window",
    question=(
        "In a T-maze the side to turn to is shown at the first step and needed 50 steps later. A "
        "window of 20 steps cannot hold both, so what reaches more than half of the rewards "
        "remembers by other means: a longer window, or a state that training has taught to last. "
        "Does Mamba's state learn that, at the same cost for every step?"
    ),
    variants={
        "windows of 20": Variant({**_long_memory_MAMBA, **_WINDOWS, "context_length": 20}),
        "burn-in of 40": Variant(
            {**_long_memory_MAMBA, **_WINDOWS, "context_length": 20, "burn_in": 40}
        ),
        "carried state": Variant({**_long_memory_MAMBA, "context_length": 20, "carry_state": True}),
        "windows of 64": Variant({**_long_memory_MAMBA, **_WINDOWS, "context_length": 64}),
        "whole episodes": Variant(
            {**_long_memory_MAMBA, **_WHOLE},
            description="windows of 64 that follow each other from an episode's first step on",
        ),
        "attention, whole episodes": Variant({**_ATTENTION, **_WHOLE}),
    },
    tasks=("tmaze-50",),
    memories=("window", "stream"),
    n_episodes=100,
)


def _long_windows(recipe: DecisionMambaConfig) -> dict[str, Any]:
    batch_size = max(1, round(recipe.batch_size / 3))
    return {"context_length": 3 * recipe.context_length, "batch_size": batch_size}


def _burn_in(recipe: DecisionMambaConfig) -> dict[str, Any]:
    return {"burn_in": 2 * recipe.context_length}


MEMORY_EXPERIMENT = Experiment(
    name="memory",
    title="Window and stream",
    question=(
        "The paper encodes the last K steps anew at each step. Carrying the recurrent state "
        "instead costs the same at every step and is another policy, one that training on windows "
        "of K steps has not seen. How much does it lose, and what training makes up for it?"
    ),
    variants={
        "windows": Variant(description="windows of K steps, as the paper trains"),
        "long windows": Variant(
            relative=_long_windows,
            description="windows of 3 K steps, and a third of them in a batch",
        ),
        "burn-in": Variant(
            relative=_burn_in,
            description="the 2 K steps before each window of K bring the state to its start",
        ),
        "carried state": Variant(
            {"carry_state": True},
            description="truncated backpropagation through time: windows follow each other",
        ),
    },
    tasks=("hopper", "pendulum", "cartpole"),
    memories=("window", "stream"),
    settings={"mixer": "mamba", "channel_mixing": True, "time_encoding": "timestep"},
)

# Ota 2024 (arXiv:2403.19925), Table 2, raw scores: Decision Transformer and Decision Mamba.
_TABLE_2 = {
    "breakout": ("76.9", "70.6"),
    "qbert": ("2215.8", "5786.0"),
    "pong": ("17.1", "1.6 ± 15.3"),
    "seaquest": ("1129.3", "992.1"),
}


def _data_options(task: str, source: str, seed: int) -> dict[str, Any]:
    """Draw what the paper draws from the DQN replay; other kinds of data are what they are."""
    from pathlib import Path

    is_replay = any(Path(source).glob("**/replay_logs")) or Path(source).name == "replay_logs"
    if not is_replay:
        return {}
    recipe = {"n_buffers": 50, "trajectories_per_buffer": 10, "n_steps": 500_000}
    return {**recipe, "seed": seed}


ATARI_EXPERIMENT = Experiment(
    name="atari",
    title="Atari (DQN replay)",
    question=(
        "Does the paper's Table 2 reproduce? Its recipe and seeds on four games: ten passes over "
        "500,000 steps of the DQN replay, 10 episodes with drawn actions after each. Scores are "
        "raw and of whole games; the return asked for counts clipped rewards, as the data does."
    ),
    variants={"mamba": Variant({"mixer": "mamba"})},
    tasks=tuple(_TABLE_2),
    n_episodes=10,
    seeds=(123, 231, 312),
    evaluations=10,
    deterministic=False,
    published=Published(
        scores={
            task: {"DT": transformer, "DMamba": mamba}
            for task, (transformer, mamba) in _TABLE_2.items()
        },
        is_normalized=False,
        notes=(
            "DT and DMamba are the paper's Table 2, the maximum over the evaluations of a training "
            "(its author, in the issue tracker of the official code)."
        ),
    ),
    data_options=_data_options,
    keep_data=True,
)

# Ota 2024 (arXiv:2403.19925), Table 1: Decision Transformer and Decision Mamba.
_TABLE_1 = {
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


def _d4rl_data_options(task: str, source: str, seed: int) -> dict[str, Any]:
    """Join the expert's and the medium data as the official runs do; a file is what it is."""
    is_name = source == task
    return {"medium_expert": "paper"} if is_name and "medium-expert" in task else {}


D4RL_EXPERIMENT = Experiment(
    name="d4rl",
    title="Locomotion (D4RL)",
    question=(
        "Does the paper's Table 1 reproduce? Its recipe, seeds and targets on the nine datasets; "
        "100 episodes of each of five targets, ten times in a training. The paper reports the best "
        "evaluation of a training, so the last weights and the best ones are told apart here."
    ),
    variants={"mamba": Variant({"mixer": "mamba"})},
    tasks=tuple(_TABLE_1),
    n_episodes=100,
    seeds=(12, 23, 34, 45, 51),
    evaluations=10,
    published=Published(
        scores={
            task: {"DT": transformer, "DMamba": mamba}
            for task, (transformer, mamba) in _TABLE_1.items()
        },
        is_normalized=True,
        notes=(
            "DT and DMamba are the paper's Table 1, the maximum over the evaluations of a training "
            "(its author, in the issue tracker of the official code); ours are on version 4 of "
            "the environments, the nearest that needs no mujoco-py. The best published by a "
            "relative of this method is 83.2 on average (arXiv:2406.05427)."
        ),
    ),
    data_options=_d4rl_data_options,
)

_EXPERIMENTS = (
    MIXERS_EXPERIMENT,
    CHANNEL_MIXING_EXPERIMENT,
    TIME_ENCODING_EXPERIMENT,
    CONTEXT_LENGTH_EXPERIMENT,
    INIT_EXPERIMENT,
    MEMORY_EXPERIMENT,
    LONG_MEMORY_EXPERIMENT,
    SPARSE_EXPERIMENT,
    SIZE_EXPERIMENT,
    D4RL_EXPERIMENT,
    ATARI_EXPERIMENT,
)


def list_experiments() -> list[Experiment]:
    """Return every experiment that trains."""
    return list(_EXPERIMENTS)


def list_measurements() -> list[Measurement]:
    """Return every experiment that measures and trains nothing."""
    return [MEASUREMENT]


def get_experiment(name: str) -> Experiment | Measurement:
    """Return an experiment by its name.

    Raises:
        ConfigError: There is none; suggests a close one.
    """
    everything: list[Experiment | Measurement] = [*list_experiments(), *list_measurements()]
    by_name = {each.name: each for each in everything}
    if name not in by_name:
        hint = did_you_mean(near_names(name, by_name)) or f"there are {', '.join(by_name)}"
        raise ConfigError(
            f"no experiment is called {name!r}: {hint}",
            setting="experiment",
            value=name,
            choices=by_name,
        )
    return by_name[name]
