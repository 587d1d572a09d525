"""d3rlpy factories of our encoders, optimiser and learning-rate schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from d3rlpy.dataset import is_tuple_shape
from d3rlpy.models import EncoderFactory, register_encoder_factory
from d3rlpy.models.torch import Encoder
from d3rlpy.optimizers import OptimizerFactory, register_optimizer_factory
from d3rlpy.optimizers.lr_schedulers import LRSchedulerFactory, register_lr_scheduler_factory
from gymnasium import spaces
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sb3_dmamba.checks import check_integer
from sb3_dmamba.config import DecisionMambaConfig as CoreConfig
from sb3_dmamba.errors import ConfigError, SpaceError
from sb3_dmamba.networks.encoders import LinearEncoder, NatureCNNEncoder
from sb3_dmamba.training.updater import compute_learning_rate, make_optimizer

_KINDS = ("auto", "linear", "nature_cnn")


class DecisionMambaEncoder(Encoder):
    """One of our encoders with d3rlpy's interface; it takes scaled observations."""

    def __init__(self, network: LinearEncoder | NatureCNNEncoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Encode observations (B, *obs) as (B, feature_size)."""
        encoded: Tensor = self.network(x.unsqueeze(1))[:, 0]
        return encoded


@dataclasses.dataclass()
class DecisionMambaEncoderFactory(EncoderFactory):
    """The encoders of ``sb3_dmamba.DecisionMamba``: a projection, or the network of Nature DQN.

    Scaling is left to the observation scaler: ``PixelObservationScaler`` for images.

    Args:
        feature_size: Output size, which is the model's width.
        kind: ``"linear"``, ``"nature_cnn"``, or ``"auto"``: ``"nature_cnn"`` for observations of
            three dimensions, else ``"linear"``.

    Raises:
        ConfigError: A value is out of its range.
    """

    feature_size: int = 128
    kind: str = "auto"

    def __post_init__(self) -> None:
        self.feature_size = check_integer("feature_size", self.feature_size, 1)
        if self.kind not in _KINDS:
            message = f"kind={self.kind!r}: choose one of {', '.join(map(repr, _KINDS))}"
            raise ConfigError(message, setting="kind", value=self.kind, choices=_KINDS)

    def makes_cnn(self, observation_shape: Sequence[int]) -> bool:
        """Whether the encoder of such observations is the network of Nature DQN."""
        return self.kind == "nature_cnn" or (self.kind == "auto" and len(observation_shape) == 3)

    def create(self, observation_shape: Sequence[Any]) -> DecisionMambaEncoder:
        """Return an encoder.

        Raises:
            SpaceError: Observations are tuples, or not images that are large enough for
                ``"nature_cnn"``.
        """
        if is_tuple_shape(observation_shape):
            message = (
                f"DecisionMambaEncoderFactory takes one array, and observations are tuples of "
                f"shapes {observation_shape}: give an encoder factory of your own that joins them"
            )
            raise SpaceError(message, setting="observation_space", value=observation_shape)
        shape = tuple(observation_shape)
        space = spaces.Box(-np.inf, np.inf, shape, np.float32)
        if self.makes_cnn(shape):
            if len(shape) != 3:
                message = (
                    f"kind='nature_cnn' takes images (channels, height, width), and observations "
                    f"are of shape {shape}: use kind='linear'"
                )
                raise SpaceError(message, setting="observation_space", value=shape)
            return DecisionMambaEncoder(NatureCNNEncoder(space, self.feature_size, scale=1.0))
        return DecisionMambaEncoder(LinearEncoder(space, self.feature_size, None))

    def create_with_action(
        self, observation_shape: Sequence[Any], action_size: int, discrete_action: bool = False
    ) -> Any:
        """Raise a ConfigError: these encoders take no action."""
        message = (
            "DecisionMambaEncoderFactory encodes observations alone: for algorithms that encode "
            "actions with them use d3rlpy's VectorEncoderFactory or PixelEncoderFactory"
        )
        raise ConfigError(message, setting="encoder_factory", value=self)

    @staticmethod
    def get_type() -> str:
        """Return the factory's name in saved files."""
        return "decision_mamba"


@dataclasses.dataclass()
class DecisionMambaAdamWFactory(OptimizerFactory):
    """AdamW that decays only the weights of matrix products and of image convolutions.

    Biases, norms, embeddings and Mamba's ``A_log``, ``D`` and short convolution are not decayed.
    Defaults are those of ``sb3_dmamba.DecisionMamba``.

    Args:
        clip_grad_norm: Largest norm of the gradients; None clips none.
        lr_scheduler_factory: Makes the schedule; None keeps the learning rate.
        betas: Decay rates of the two moments.
        weight_decay: Decoupled weight decay.

    Raises:
        ConfigError: A value is out of its range.
    """

    clip_grad_norm: float | None = 0.25
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        self._as_core(learning_rate=1.0)

    def create_optimizer(self, named_modules: Iterable[tuple[str, nn.Module]], lr: float) -> AdamW:
        """Return the optimiser of a network, the first of ``named_modules``."""
        _, network = next(iter(named_modules))
        return make_optimizer(network, self._as_core(lr))

    def _as_core(self, learning_rate: float) -> CoreConfig:
        return CoreConfig(
            learning_rate=learning_rate, adam_betas=self.betas, weight_decay=self.weight_decay
        )

    @staticmethod
    def get_type() -> str:
        """Return the factory's name in saved files."""
        return "decision_mamba_adam_w"


@dataclasses.dataclass()
class DecisionMambaLRFactory(LRSchedulerFactory):
    """A linear warm-up, then a constant learning rate, or a linear or cosine decay.

    Args:
        n_updates: Updates of the whole run.
        warmup_updates: Updates over which the rate rises from zero; None is a tenth of the run.
        lr_schedule: ``"constant"``, ``"linear"`` or ``"cosine"``.
        final_lr_fraction: The rate at the end of the decay, as a fraction of the highest.
        decay_updates: Updates after which the decay is complete; None is the end of the run.

    Raises:
        ConfigError: A value is out of its range.
    """

    n_updates: int
    warmup_updates: int | None = None
    lr_schedule: str = "constant"
    final_lr_fraction: float = 0.1
    decay_updates: int | None = None

    def __post_init__(self) -> None:
        self._as_core()

    def create(self, optim: Optimizer) -> LambdaLR:
        """Return the scheduler of an optimiser."""
        config = self._as_core()
        return LambdaLR(optim, lambda update: compute_learning_rate(config, update, self.n_updates))

    def _as_core(self) -> CoreConfig:
        fields: dict[str, Any] = dataclasses.asdict(self)
        return CoreConfig(learning_rate=1.0, **fields)

    @staticmethod
    def get_type() -> str:
        """Return the factory's name in saved files."""
        return "decision_mamba"


register_encoder_factory(DecisionMambaEncoderFactory)
register_optimizer_factory(DecisionMambaAdamWFactory)
register_lr_scheduler_factory(DecisionMambaLRFactory)
