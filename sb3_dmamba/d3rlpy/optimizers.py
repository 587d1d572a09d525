"""Our optimiser and learning-rate schedules as d3rlpy factories."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from d3rlpy.optimizers import OptimizerFactory, register_optimizer_factory
from d3rlpy.optimizers.lr_schedulers import LRSchedulerFactory, register_lr_scheduler_factory
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sb3_dmamba.config import DecisionMambaConfig as CoreConfig
from sb3_dmamba.training.optimizer import make_optimizer
from sb3_dmamba.training.schedule import compute_learning_rate

__all__ = ["DecisionMambaAdamWFactory", "DecisionMambaLRFactory"]


@dataclasses.dataclass()
class DecisionMambaAdamWFactory(OptimizerFactory):
    """AdamW that decays the weights of matrix products and convolutions of images alone.

    Biases, norms, embeddings and Mamba's ``A_log``, ``D`` and short convolution are not decayed.
    Defaults are those of ``sb3_dmamba.DecisionMamba``.

    Args:
        clip_grad_norm: Gradients are clipped to this norm; None leaves them.
        lr_scheduler_factory: Makes the schedule; None keeps the learning rate.
        betas: Decay of the two moments.
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
        """Return the name that saved files know the factory by."""
        return "decision_mamba_adam_w"


@dataclasses.dataclass()
class DecisionMambaLRFactory(LRSchedulerFactory):
    """A linear warm-up, then a constant rate, or a linear or cosine decay.

    Args:
        n_updates: Updates of the whole run.
        warmup_updates: Updates over which the rate rises from zero; None is a tenth of the run.
        lr_schedule: ``"constant"``, ``"linear"`` or ``"cosine"``.
        final_lr_fraction: The rate at the end of the decay, as a fraction of the top.
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
        """Return the name that saved files know the factory by."""
        return "decision_mamba"


register_optimizer_factory(DecisionMambaAdamWFactory)
register_lr_scheduler_factory(DecisionMambaLRFactory)
