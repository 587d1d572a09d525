"""What training minimises, over the real steps of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from sb3_dmamba.data import WindowBatch
from sb3_dmamba.networks import DecisionMambaPolicy
from sb3_dmamba.networks.heads import ActionHead
from sb3_dmamba.training.carrying import CarriedState, warm_up

__all__ = ["compute_carried_loss", "compute_loss", "compute_mean_loss"]


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
