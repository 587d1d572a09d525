"""Small d3rlpy algorithms, theirs and ours, and data for them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.algos import TransformerInput
from d3rlpy.dataset import (
    Episode,
    InfiniteBuffer,
    PartialTrajectory,
    ReplayBuffer,
    TrajectoryMiniBatch,
)
from d3rlpy.logging import LoggerAdapter
from d3rlpy.models import EncoderFactory, VectorEncoderFactory, register_encoder_factory
from d3rlpy.models.torch import Encoder
from d3rlpy.preprocessing import (
    MinMaxActionScaler,
    MinMaxObservationScaler,
    MinMaxRewardScaler,
    TupleObservationScaler,
)

from sb3_dmamba.d3rlpy import DecisionMambaConfig, DiscreteDecisionMambaConfig

CONTEXT = 4
ACTIONS = 3
WIDTH = 8

Shape = Sequence[Any]


class SumEncoder(Encoder):
    """An encoder of any shape: the first numbers of all arrays together, and a parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.offset = torch.nn.Parameter(torch.rand(1, width))

    def forward(self, x: Any) -> torch.Tensor:
        parts = x if isinstance(x, (list, tuple)) else [x]
        flat = torch.cat([part.view(part.shape[0], -1) for part in parts], dim=1)
        result: torch.Tensor = flat[:, -self.offset.shape[1] :] + self.offset
        return result


@dataclasses.dataclass()
class SumEncoderFactory(EncoderFactory):
    """A factory that a user might have registered."""

    width: int = WIDTH

    def create(self, observation_shape: Shape) -> SumEncoder:
        return SumEncoder(self.width)

    @staticmethod
    def get_type() -> str:
        return "sum_of_tests"


register_encoder_factory(SumEncoderFactory)


def is_tuple(shape: Shape) -> bool:
    return not isinstance(shape[0], int)


def make_scalers(kind: str | None, shape: Shape, is_discrete: bool) -> dict[str, Any]:
    """The scalers of a config, with numbers."""
    if kind is None:
        return {}

    def scale(one: Shape) -> Any:
        return MinMaxObservationScaler(minimum=np.full(one, -1.0), maximum=np.full(one, 2.0))

    observation_scaler = (
        TupleObservationScaler([scale(one) for one in shape]) if is_tuple(shape) else scale(shape)
    )
    scalers = {
        "observation_scaler": observation_scaler,
        "reward_scaler": MinMaxRewardScaler(minimum=-10.0, maximum=30.0),
    }
    if not is_discrete:
        scalers["action_scaler"] = MinMaxActionScaler(
            minimum=np.full(ACTIONS, -2.0), maximum=np.full(ACTIONS, 5.0)
        )
    return scalers


CONFIGS: dict[str, Callable[..., Any]] = {
    "transformer": d3rlpy.algos.DecisionTransformerConfig,
    "discrete transformer": d3rlpy.algos.DiscreteDecisionTransformerConfig,
    "mamba": DecisionMambaConfig,
    "discrete mamba": DiscreteDecisionMambaConfig,
}
OURS = ("mamba", "discrete mamba")
SMALL: dict[str, Any] = {
    "context_size": CONTEXT,
    "batch_size": 5,
    "num_layers": 1,
    "num_heads": 2,
    "max_timestep": 50,
}
SHAPES: tuple[Shape, ...] = ((100,), (4, 20, 20), ((100,), (4, 6, 6)))
SHAPE_NAMES = ("vector", "image", "tuple")


def make_config(name: str, **fields: Any) -> Any:
    """A small config of one of the four algorithms."""
    return CONFIGS[name](**{**SMALL, "encoder_factory": SumEncoderFactory(), **fields})


def make_algo(name: str, shape: Shape | None = None, **fields: Any) -> Any:
    """A small algorithm, built where a shape is given."""
    algo = make_config(name, **fields).create()
    if shape is not None:
        algo.create_impl(shape, ACTIONS)
    return algo


def vector_encoder(width: int = WIDTH) -> VectorEncoderFactory:
    """d3rlpy's encoder as its Decision Transformer script has it."""
    return VectorEncoderFactory([width], exclude_last_activation=True)


def draw_observations(rng: np.random.Generator, shape: Shape, n: int) -> Any:
    if is_tuple(shape):
        return [draw_observations(rng, one, n) for one in shape]
    return rng.normal(size=(n, *shape)).astype(np.float32)


def draw_actions(rng: np.random.Generator, is_discrete: bool, n: int) -> np.ndarray:
    if is_discrete:
        return rng.integers(0, ACTIONS, (n, 1))
    return rng.uniform(-1.0, 1.0, (n, ACTIONS)).astype(np.float32)


def draw_input(
    shape: Shape, is_discrete: bool, n: int = CONTEXT, first: int = 1, seed: int = 0
) -> TransformerInput:
    """Input of ``predict``: ``n`` steps from timestep ``first`` on."""
    rng = np.random.default_rng(seed)
    return TransformerInput(
        observations=draw_observations(rng, shape, n),
        actions=draw_actions(rng, is_discrete, n),
        rewards=rng.normal(size=(n, 1)).astype(np.float32),
        returns_to_go=rng.normal(10.0, 5.0, size=(n, 1)).astype(np.float32),
        timesteps=np.arange(first, first + n),
    )


def draw_batch(
    shape: Shape = (9,), is_discrete: bool = False, size: int = 5
) -> TrajectoryMiniBatch:
    """Windows without padding."""
    zeros, ones = np.zeros((CONTEXT, 1), np.float32), np.ones(CONTEXT, np.float32)
    drawn = [vars(draw_input(shape, is_discrete, seed=seed)) for seed in range(size)]
    return TrajectoryMiniBatch.from_partial_trajectories(
        [PartialTrajectory(**each, terminals=zeros, masks=ones, length=CONTEXT) for each in drawn]
    )


def padded_input(
    shape: Shape, is_discrete: bool, n_real: int = CONTEXT, first: int = 1
) -> list[np.ndarray]:
    """The newest steps of an episode as an exported policy takes them, padded on the left."""
    given = draw_input(shape, is_discrete, n_real, first)
    parts = given.observations if is_tuple(shape) else [given.observations]
    arrays = [np.float32(array) for array in (*parts, given.actions, given.returns_to_go)]
    arrays.append(given.timesteps.astype(np.int64))
    pad = CONTEXT - n_real
    return [np.pad(array, [(pad, 0)] + [(0, 0)] * (array.ndim - 1)) for array in arrays]


def load_torchscript(path: Any) -> Any:
    """Open a TorchScript file, without torch's warning that it is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(path))


def make_buffer(
    shape: Shape = (9,),
    is_discrete: bool = False,
    lengths: Sequence[int] = (9, 2, 6),
    seed: int = 0,
) -> ReplayBuffer:
    """d3rlpy's own buffer; some windows of it have padding."""
    rng = np.random.default_rng(seed)
    episodes = [
        Episode(
            observations=draw_observations(rng, shape, n),
            actions=draw_actions(rng, is_discrete, n),
            rewards=rng.normal(size=(n, 1)).astype(np.float32),
            terminated=True,
        )
        for n in lengths
    ]
    return ReplayBuffer(
        InfiniteBuffer(),
        episodes=episodes,
        action_size=ACTIONS,
        action_space=d3rlpy.ActionSpace.DISCRETE if is_discrete else d3rlpy.ActionSpace.CONTINUOUS,
    )


class Metrics(LoggerAdapter):
    """Keeps the logged metrics, by name."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def create(self, algo: Any, experiment_name: str, n_steps_per_epoch: int) -> LoggerAdapter:
        return self

    def write_metric(self, epoch: int, step: int, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)


def fit(algo: Any, dataset: Any, n_steps: int, **options: Any) -> Metrics:
    """Train with d3rlpy's loop, an epoch a step, and return what was logged."""
    metrics = Metrics()
    algo.fit(
        dataset,
        n_steps=n_steps,
        n_steps_per_epoch=1,
        logger_adapter=metrics,
        show_progress=False,
        **options,
    )
    return metrics


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """d3rlpy's generators within a test."""
    state = np.random.get_state()  # noqa: NPY002  # d3rlpy draws from it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


def weights_of(algo: Any) -> dict[str, torch.Tensor]:
    """Copies of a learnable's weights."""
    state = algo.impl.modules.transformer.state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}
