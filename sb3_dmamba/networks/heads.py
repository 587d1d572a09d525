"""From a state token to an action, and back to a loss's terms."""

from __future__ import annotations

import math
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float, Num
from torch import Tensor, nn

from sb3_dmamba.errors import SpaceError

__all__ = ["ActionHead", "ContinuousHead", "DiscreteHead", "make_head"]


class ContinuousHead(nn.Module):
    """Predict an action in [-1, 1] through a tanh, scaled to the bounds of the space.

    Args:
        space: Bounded Box of actions.
        hidden_size: Width of the tokens.

    Raises:
        SpaceError: A bound is not finite, or not above the other.
    """

    low: Tensor
    high: Tensor
    center: Tensor
    half_range: Tensor

    def __init__(self, space: spaces.Box, hidden_size: int) -> None:
        super().__init__()
        finite = space.is_bounded("both") and bool((space.high > space.low).all())
        if not finite:
            raise SpaceError(
                f"action space {space} has a bound that is not finite or is empty: rescale its "
                f"actions into finite bounds (gymnasium.wrappers.RescaleAction)",
                setting="action_space",
                value=space,
            )
        self.shape = space.shape
        self.projection = nn.Linear(hidden_size, math.prod(space.shape))
        low = torch.tensor(space.low, dtype=torch.float32).flatten()
        high = torch.tensor(space.high, dtype=torch.float32).flatten()
        bounds = {
            "low": low,
            "high": high,
            "center": (low + high) / 2,
            "half_range": (high - low) / 2,
        }
        for name, bound in bounds.items():  # the space has them: no need to save them
            self.register_buffer(name, bound, persistent=False)

    def forward(self, tokens: Float[Tensor, "*batch H"]) -> Float[Tensor, "*batch A"]:
        """Predict actions in the units of the space, flat."""
        squashed = torch.tanh(self.projection(tokens).float())
        return torch.addcmul(self.center, self.half_range, squashed)

    def losses(
        self, predictions: Float[Tensor, "*batch A"], actions: Num[Tensor, "*batch _"]
    ) -> Float[Tensor, "*batch"]:
        """Return each step's squared error, averaged over the action's dimensions.

        Errors are measured where the bounds are -1 and 1, so that a wide dimension of the action
        weighs no more than a narrow one.
        """
        error = (predictions - actions.flatten(2)) / self.half_range
        return error.square().mean(dim=-1)

    def act(
        self, predictions: Float[Tensor, "B A"], deterministic: bool
    ) -> Float[Tensor, "B *act"]:
        """Return the predicted actions; this head has no randomness to leave out."""
        # Rounding can carry a saturated tanh past a bound.
        return predictions.clamp(self.low, self.high).reshape(-1, *self.shape)


class DiscreteHead(nn.Module):
    """Predict the logits of a discrete action.

    Args:
        space: Discrete actions, from ``space.start``.
        hidden_size: Width of the tokens.
    """

    def __init__(self, space: spaces.Discrete, hidden_size: int) -> None:
        super().__init__()
        self.start = int(space.start)
        self.projection = nn.Linear(hidden_size, int(space.n), bias=False)

    def forward(self, tokens: Float[Tensor, "*batch H"]) -> Float[Tensor, "*batch A"]:
        """Predict logits."""
        logits: Tensor = self.projection(tokens).float()
        return logits

    def losses(
        self, predictions: Float[Tensor, "B K A"], actions: Num[Tensor, "B K"]
    ) -> Float[Tensor, "B K"]:
        """Return each step's cross-entropy."""
        # Padding is zero, which a space that does not start there has no logit for.
        classes = (actions - self.start).clamp_min(0)
        return nn.functional.cross_entropy(
            predictions.flatten(0, 1), classes.flatten(), reduction="none"
        ).view_as(classes)

    def act(self, predictions: Float[Tensor, "B A"], deterministic: bool) -> Num[Tensor, " B"]:
        """Return the likeliest action, or one drawn at temperature 1."""
        if deterministic:
            return predictions.argmax(dim=-1) + self.start
        probabilities = predictions.softmax(dim=-1)
        return torch.multinomial(probabilities, 1).squeeze(-1) + self.start


ActionHead = ContinuousHead | DiscreteHead


def make_head(space: spaces.Space[Any], hidden_size: int) -> ActionHead:
    """Build the head that fits the action space.

    Raises:
        SpaceError: The space is neither a bounded Box nor Discrete.
    """
    if isinstance(space, spaces.Box):
        return ContinuousHead(space, hidden_size)
    if isinstance(space, spaces.Discrete):
        return DiscreteHead(space, hidden_size)
    raise SpaceError(
        f"action space {space} is not supported: use Box or Discrete",
        setting="action_space",
        value=space,
    )
