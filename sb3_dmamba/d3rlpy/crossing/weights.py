"""What both ways know about the weights."""

from __future__ import annotations

from torch import Tensor

from sb3_dmamba.d3rlpy.crossing.scaling import Affine, fold_actions

__all__ = ["ENCODER", "RETURNS", "Weights", "refold_actions"]

Weights = dict[str, Tensor]

ENCODER = "embedding.observation_encoder."
RETURNS = "embedding.return_encoder."
_ACTIONS = "embedding.action_encoder.projection."


def refold_actions(weights: Weights, actions: Affine, *, into_scaled: bool) -> None:
    """Let the network take actions scaled, or in the environment's units, in place."""
    weight, bias = f"{_ACTIONS}weight", f"{_ACTIONS}bias"
    weights[weight], weights[bias] = fold_actions(
        weights[weight], weights[bias], actions, into_scaled=into_scaled
    )
