"""Dropout that does not dominate an update on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Dropout"]

_LEVELS = 1 << 16  # a random int16 an element: probabilities are multiples of 1 / 65536
_PER_DRAW = 4  # int16s in the int64 that torch's generator draws


class Dropout(nn.Module):
    """Zero each activation with probability ``p`` in training, and scale the others up.

    On a CPU ``torch.nn.Dropout`` draws one double an element from a generator that a single
    thread can use, which is a tenth of an update here; 16 random bits an element do as well.

    Args:
        p: Probability of zeroing an activation, rounded to a multiple of 1 / 65536 on a CPU.

    Source: Srivastava et al. 2014.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, activations: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop out in training mode; return the activations as they are otherwise."""
        if not self.training or self.p == 0.0:
            return activations
        if activations.device.type != "cpu":
            return nn.functional.dropout(activations, self.p)
        n_dropped = min(round(self.p * _LEVELS), _LEVELS - 1)
        n_draws = -(-activations.numel() // _PER_DRAW)
        draws = torch.empty(n_draws, dtype=torch.int64)
        draws.random_(torch.iinfo(torch.int64).min, None)
        levels = draws.view(torch.int16)[: activations.numel()].view(activations.shape)
        kept = (levels >= n_dropped - _LEVELS // 2).to(activations.dtype)
        return activations * kept.mul_(_LEVELS / (_LEVELS - n_dropped))

    def extra_repr(self) -> str:
        """Describe the module in ``print(model)``."""
        return f"p={self.p}"
