"""One optimiser step: a batch of windows in, changed weights out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from sb3_dmamba.config import DecisionMambaConfig
from sb3_dmamba.data import ObservationStatistics, WindowBatch, WindowSampler
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.heads import ActionHead
from sb3_dmamba.training.carrying import PREFIX, CarriedState, warm_up
from sb3_dmamba.training.checkpoints import optimizer_from_tensors, optimizer_to_tensors
from sb3_dmamba.training.optimizer import make_optimizer
from sb3_dmamba.training.schedule import compute_learning_rate
from sb3_dmamba.training.seeding import DROPOUT_STREAM, WEIGHT_STREAM, local_seed

__all__ = ["UpdateMetrics", "Updater", "compute_carried_loss", "compute_loss", "compute_mean_loss"]


@dataclass(frozen=True)
class UpdateMetrics:
    """What one update measured; tensors stay on the device until somebody reads them."""

    loss: Tensor
    grad_norm: Tensor
    learning_rate: float


def compute_loss(policy: DecisionMambaPolicy, batch: WindowBatch) -> Tensor:
    """Return the mean loss over the real steps of a batch; padding counts for nothing.

    Args:
        policy: In training or evaluation mode, as it is.
        batch: Windows on the policy's device; each starts from the state after ``batch.before``.

    Returns:
        A scalar: squared error (actions scaled to [-1, 1]) or cross-entropy, averaged over steps.
    """
    model, inputs = policy.model, batch.inputs()
    if batch.before is None:
        predictions = model(*inputs)
    else:
        predictions, _ = model.resume(*inputs, warm_up(model, batch.before))
    return compute_mean_loss(model.head, predictions, batch.actions, batch.padding_mask)


def compute_carried_loss(
    policy: DecisionMambaPolicy, batch: WindowBatch, carried: CarriedState
) -> Tensor:
    """Return :func:`compute_loss` of windows that go on from a carried state, and carry it on."""
    model = policy.model
    predictions, layers = model.resume(*batch.inputs(), carried.layers_for(model, batch))
    carried.keep(layers, batch)
    return compute_mean_loss(model.head, predictions, batch.actions, batch.padding_mask)


def compute_mean_loss(
    head: ActionHead, predictions: Tensor, actions: Tensor, padding_mask: Tensor
) -> Tensor:
    """Return the mean loss of predictions over the real steps.

    Args:
        head: The head that predicted.
        predictions: What it predicted, (B, K, A).
        actions: What was done, (B, K, A) or (B, K).
        padding_mask: (B, K), True where the step is real.

    Returns:
        A scalar, as :func:`compute_loss`.
    """
    # Selected before and after: whatever padding holds, NaN included, must reach neither the sum
    # nor, through the derivative of a loss that it is part of, the gradients.
    predictions = torch.where(padding_mask.unsqueeze(-1), predictions, 0.0)
    losses = head.losses(predictions, actions)  # (B, K)
    return torch.where(padding_mask, losses, 0.0).sum() / padding_mask.sum()


class Updater:
    """Run updates; the n-th one is a function of the weights, the seed and n alone.

    Args:
        policy: The policy to train, on its device.
        config: Optimiser, schedule, precision.
        seed: Seed of dropout; the sampler has the same one.
    """

    def __init__(self, policy: DecisionMambaPolicy, config: DecisionMambaConfig, seed: int) -> None:
        self.policy = policy
        self.config = config
        self.seed = seed
        self.optimizer = make_optimizer(policy, config)
        self.carried = CarriedState()
        policy.optimizer = self.optimizer  # where Stable-Baselines3 looks for it
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    @classmethod
    def create(
        cls,
        observation_space: spaces.Box,
        action_space: spaces.Space[Any],
        config: DecisionMambaConfig,
        statistics: ObservationStatistics | None,
        seed: int,
        device: torch.device,
    ) -> Updater:
        """Build a policy with the weights of a seed, and what trains it.

        Raises:
            SpaceError: A space that no encoder or head fits.
        """
        with local_seed(device, seed, WEIGHT_STREAM):
            policy = DecisionMambaPolicy(observation_space, action_space, config, statistics)
        return cls(policy.to(device), config, seed)

    def update(
        self, sampler: WindowSampler, n_done: int, schedule_step: int, n_updates: int
    ) -> UpdateMetrics:
        """Take one optimiser step.

        Args:
            sampler: Where the batch comes from.
            n_done: Updates this model has had in its life; picks the batch and the dropout.
            schedule_step: Updates of this run so far; with ``n_updates`` sets the learning rate.
            n_updates: Updates of the whole run.

        Returns:
            Loss, gradient norm before clipping, and learning rate.
        """
        device = self.policy.device
        learning_rate = compute_learning_rate(self.config, schedule_step, n_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        batch = sampler.sample(n_done).to(device)
        self.policy.set_training_mode(True)
        bf16 = self.config.precision == "bf16"
        with (
            local_seed(device, self.seed, n_done, DROPOUT_STREAM),
            torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        ):
            if self.config.carry_state:
                loss = compute_carried_loss(self.policy, batch, self.carried)
            else:
                loss = compute_loss(self.policy, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        self.optimizer.step()
        return UpdateMetrics(loss.detach(), grad_norm.detach(), learning_rate)

    def state(self) -> dict[str, Tensor]:
        """Return the optimiser's moments and steps, and what is carried, as named tensors."""
        return {**optimizer_to_tensors(self.optimizer), **self.carried.state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned; an empty one starts the optimiser anew.

        Raises:
            ModelFileError: The tensors belong to another model.
        """
        carries = self.config.carry_state
        carried = {name: t for name, t in state.items() if carries and name.startswith(PREFIX)}
        moments = {name: tensor for name, tensor in state.items() if name not in carried}
        before = self.carried.state()
        self.carried.restore(self.policy.model, carried)
        if moments:
            try:
                optimizer_from_tensors(self.optimizer, moments)
            except BaseException:
                self.carried.restore(self.policy.model, before)
                raise
