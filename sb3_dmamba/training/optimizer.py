"""AdamW, with weight decay where it belongs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sb3_dmamba.config import DecisionMambaConfig

__all__ = ["make_optimizer", "set_learning_rate", "split_by_decay"]


def split_by_decay(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Separate the weights of matrix products and convolutions from everything else.

    Biases, norms, embedding tables, and Mamba's ``A_log``, ``D`` and short convolution are not
    decayed.

    Returns:
        The parameters that decay, and those that do not.

    Source: mamba_ssm marks ``A_log`` and ``D`` as free of decay; the rest is minGPT's rule.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_product = name == "weight" and isinstance(module, (nn.Linear, nn.Conv2d))
            (decayed if is_product else free).append(parameter)
    return decayed, free


def make_optimizer(model: nn.Module, config: DecisionMambaConfig) -> torch.optim.AdamW:
    """Build AdamW over the model's parameters in two groups, decayed and not."""
    decayed, free = split_by_decay(model)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.adam_betas,
        fused=True,  # one pass over all parameters; on a CPU several times faster than the loop
    )


def set_learning_rate(
    optimizer: torch.optim.Optimizer, value: float, place: Tensor | None = None
) -> None:
    """Set the learning rate of every group.

    Args:
        optimizer: The optimiser.
        value: The learning rate.
        place: A scalar on the parameters' device to hold it, so that a graph that was recorded
            reads each update's own; None is a number.
    """
    if place is not None:
        place.fill_(value)
    for group in optimizer.param_groups:
        group["lr"] = value if place is None else place
